# SPDX-License-Identifier: Apache-2.0
"""The directory of one checkpoint in a store: what is there, committing it, and clearing it away.

A path holds one checkpoint and is written once. A save puts its files into fresh directories below the path and then
creates the manifest exclusively, so of two saves to one path one is refused, and a save that was killed leaves files
that nothing speaks of. The next save that commits there deletes them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from resilient import retry
from resilient.checkpoint.files import Store
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Exists, Missing
from resilient.dcp.manifest import LIMIT, MANIFEST, File, Manifest, decode, encode, is_file_name
from resilient.errors import CheckpointError

PATIENCE_S: Final = 60.0
"""How long a store that does not answer is asked again. Meanwhile the other ranks wait in a collective of DCP, which
ends after the process group's timeout: minutes."""
_LOOKS: Final = 16
"""Files that are looked for at once."""

T = TypeVar("T")


class Shelf:
    """Where one checkpoint is, or will be."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.store: Store = open_store(os.fspath(path))

    def patiently(self, work: Callable[[], T]) -> T:
        """Do it, again and again while the store does not answer."""
        return retry.store_small(PATIENCE_S, threading.Event())(work)

    def manifest(self) -> Manifest:
        """The manifest, verified."""
        url = self.store.url
        try:
            data = self.patiently(lambda: self.store.read(MANIFEST, LIMIT))
        except Missing:
            raise CheckpointError(
                f"cannot load {url}: no checkpoint was committed there, it has no {MANIFEST}; load another one"
            ) from None
        return decode(data, f"{url}/{MANIFEST}")

    def check_free(self) -> None:
        """Refuse a path that holds a checkpoint, and a store without exclusive creation."""
        if self.patiently(lambda: self.store.exists(MANIFEST)):
            raise self._taken()
        self.patiently(self.store.probe)

    def commit(self, manifest: Manifest) -> None:
        """Make it a checkpoint. Where it certainly is none, the files of all ranks are deleted again."""
        names = {file.name for file in manifest.files}
        try:
            data = encode(manifest)
            self._check_visible(manifest.files)
        except CheckpointError:
            self.forget(names)
            raise
        try:
            self.patiently(lambda: self.store.create(MANIFEST, data))
        except Exists:  # it may be ours, the answer to an earlier try having been lost
            if self.patiently(lambda: self.store.read(MANIFEST, LIMIT)) != data:
                self.forget(names)
                raise self._taken() from None
        self._clear(keep=names)

    def forget(self, files: Iterable[str]) -> None:
        """Free what a failed save takes up; what cannot be deleted is no harm."""
        for name in files:
            with contextlib.suppress(CheckpointError):
                self.store.delete(name)

    def remove(self) -> None:
        """Delete the checkpoint, or what a failed save has left: the manifest first."""
        self.patiently(lambda: self.store.delete(MANIFEST))
        for entry in self.patiently(lambda: self.store.list(".")):
            if is_file_name(entry.name):
                self.store.delete(entry.name)

    def _check_visible(self, files: Iterable[File]) -> None:
        """One file of each rank: ranks that write to disks of their own, under one path, must not go unnoticed."""
        first = {file.name.rpartition("-")[0]: file.name for file in files}
        with ThreadPoolExecutor(_LOOKS, "look") as threads:
            for name, there in zip(first.values(), threads.map(self._exists, first.values()), strict=True):
                if not there and self._exists(MANIFEST):  # another save has committed, and cleared these away
                    raise self._taken()
                if not there:
                    raise CheckpointError(
                        f"cannot save to {self.store.url}: {name} is not seen by the rank that commits; "
                        "use a directory that all ranks share, or an object store"
                    )

    def _exists(self, name: str) -> bool:
        return self.patiently(lambda: self.store.exists(name))

    def _clear(self, keep: set[str]) -> None:
        """What saves that were killed have left here. It takes space and nothing else, so failing to delete is fine."""
        with contextlib.suppress(CheckpointError):
            strays = [entry.name for entry in self.store.list(".") if is_file_name(entry.name)]
            self.forget(name for name in strays if name not in keep)

    def _taken(self) -> CheckpointError:
        return CheckpointError(
            f"cannot save to {self.store.url}: a checkpoint is committed there, and none is ever overwritten; "
            "give each save a path of its own, such as one with the step in it"
        )
