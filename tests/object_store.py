# SPDX-License-Identifier: Apache-2.0
"""``objects://DIRECTORY``: an object store that several processes see, and that can kill its user at an operation.

An object appears whole or not at all, and creation is exclusive, as in S3; nothing is appended and nothing renamed.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from resilient.checkpoint.vault import Vault


class ObjectFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A directory that behaves like a bucket."""

    protocol = "objects"
    local_file = False
    async_impl = True  # no directories to be made
    fatal: ClassVar[int] = 0
    calls: ClassVar[Any] = itertools.count(1)

    def count(self) -> None:
        """One operation that changes something; the fatal one is not done."""
        if self.fatal and next(self.calls) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.count()
        path = self._strip_protocol(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        staged = f"{path}~{os.getpid()}"  # not a name that a store shows
        with open(staged, "wb") as file:
            file.write(value)
        try:
            (os.link if mode == "create" else os.replace)(staged, path)
        finally:
            if os.path.exists(staged):
                os.unlink(staged)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return Upload(self, path, mode, block_size=1 << 12) if mode == "wb" else super()._open(path, mode)

    def rm_file(self, path: str) -> None:
        self.count()
        super().rm_file(path)


class Upload(AbstractBufferedFile):  # type: ignore[misc]  # as above
    """Parts are kept until the last one completes the object."""

    def _initiate_upload(self) -> None:
        self.parts: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.fs.count()
        self.parts.append(bytes(self.buffer.getbuffer()))
        if final:
            self.fs.pipe_file(self.path, b"".join(self.parts))
        return True

    def discard(self) -> None:
        self.parts = []


fsspec.register_implementation("objects", ObjectFileSystem, clobber=True)


def kill_at(nth: int) -> None:
    """Kill this process at its nth operation from its first save on."""
    save = Vault.save

    def armed(*args: Any) -> Any:
        ObjectFileSystem.fatal = nth
        return save(*args)

    Vault.save = armed  # type: ignore[method-assign, assignment]  # an operation of ours is put around it
