# SPDX-License-Identifier: Apache-2.0
"""Make PyTorch training survive failures. Everything public, on one page::

    run = resilient.Run(state={"model": model, "optimizer": optimizer}, checkpoints="s3://bucket/run-42", every="5min")

    @run.step
    def train_step(batch): ...

    for batch in run.batches(loader, steps=10_000):
        train_step(batch)

    with run.phase("eval"):  # a name, and a bound of its own, for what is not a step
        evaluate(model)

Start it with ``resilient run train.py``. Importing this package loads the standard
library alone; torch comes with ``resilient.Run``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient.core.exit_codes import ExitCode
    from resilient.errors import CheckpointError, Reschedule, ResilientError, Retry, SettingsError, Stop
    from resilient.preflight.doctor import doctor
    from resilient.training.ddp import exact_ddp
    from resilient.training.run import Run

    __version__: str

__all__ = [
    "CheckpointError",
    "ExitCode",
    "Reschedule",
    "ResilientError",
    "Retry",
    "Run",
    "SettingsError",
    "Stop",
    "__version__",
    "doctor",
    "exact_ddp",
]

_HOMES = {
    "CheckpointError": "resilient.errors",
    "ExitCode": "resilient.core.exit_codes",
    "Reschedule": "resilient.errors",
    "ResilientError": "resilient.errors",
    "Retry": "resilient.errors",
    "Run": "resilient.training.run",
    "SettingsError": "resilient.errors",
    "Stop": "resilient.errors",
    "doctor": "resilient.preflight.doctor",
    "exact_ddp": "resilient.training.ddp",
}


if not TYPE_CHECKING:  # a type checker must not take any other name for one of ours

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name == "__version__":
            return globals().setdefault(name, importlib.import_module("resilient.version").version())
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        return globals().setdefault(name, getattr(importlib.import_module(_HOMES[name]), name))


def __dir__() -> list[str]:
    return __all__
