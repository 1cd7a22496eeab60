# SPDX-License-Identifier: Apache-2.0
"""The manifests that were read before: a pruning looks at those of all checkpoints, after each save.

A manifest is written once. One that the store's listing shows with another size or stamp was changed by somebody, and
is read again; so is every one of a store that gives no stamps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from resilient.checkpoint.files import Entry, Store
from resilient.checkpoint.layout import MANIFEST, Manifest
from resilient.checkpoint.survey import Directories, read_manifest

Read: TypeAlias = Callable[[Store, str], Manifest]


class Manifests:
    """Remembers those that could be read, as long as they are there."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Entry, Manifest]] = {}

    def reader(self, files: Directories) -> Read:
        """What reads a manifest where it has to be read; ``files`` is what the store lists now."""
        here = {str(name): found[MANIFEST] for name, found in files.items() if MANIFEST in found}
        self._known = {name: known for name, known in self._known.items() if here.get(name) == known[0]}

        def read(store: Store, name: str) -> Manifest:
            known = self._known.get(name)
            if known is not None:
                return known[1]
            manifest = read_manifest(store, name)
            if here[name].stamp:
                self._known[name] = (here[name], manifest)
            return manifest

        return read
