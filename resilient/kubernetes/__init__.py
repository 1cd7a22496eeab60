# SPDX-License-Identifier: Apache-2.0
"""Kubernetes manifests from Python, as ``resilient manifest`` writes them::

    from resilient.kubernetes import Submission, write

    asked = Submission(
        name="char-gpt", image="registry.example.com/char-gpt:1.0", command=("/app/char_gpt.py", "--steps", "100000"),
        memory="176Gi", state="40Gi", devices=8, checkpoints="s3://bucket/run-42",
    )
    print(write("job", asked))

``objects`` gives the same as the API is sent it, and ``add_contract`` does what ``--from`` does. The ``kubernetes``
client is imported with these names, not with the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient.kubernetes.adding import add_contract
    from resilient.kubernetes.completing import Addition
    from resilient.kubernetes.manifest import objects, write
    from resilient.kubernetes.submission import Submission

__all__ = ["Addition", "Submission", "add_contract", "objects", "write"]

_HOMES = {
    "Addition": "completing",
    "Submission": "submission",
    "add_contract": "adding",
    "objects": "manifest",
    "write": "manifest",
}


if not TYPE_CHECKING:  # a type checker must not take any other name for one of ours

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
