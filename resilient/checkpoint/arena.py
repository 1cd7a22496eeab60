# SPDX-License-Identifier: Apache-2.0
"""Memory for images that outlives the worker that fills it.

Owns one slot of an arena: a file without a name, held open by the supervisor and inherited by
workers, so that it is gone with its last holder whatever dies. A slot only ever grows: a smaller
file would kill whoever reads the part that is gone. Its mapping is kept, so that each page is
faulted in once and not with every snapshot.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import Final

from resilient.errors import CheckpointError
from resilient.link.memory import anonymous_file

# Before the first copy, in one go, and not page by page during it. Linux only.
_FLAGS: Final = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
_BLOCK_BYTES: Final = 512


class Slot:
    """Room for one image, shared by every process that holds its descriptor."""

    __slots__ = ("_fd", "_map")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str) -> Slot:
        """Make an empty slot; ``name`` is shown in ``/proc`` and is no address."""
        return cls(anonymous_file(name))

    @classmethod
    def from_fd(cls, fd: int) -> Slot:
        """Take over an inherited descriptor, which ``close`` will close."""
        try:
            found = os.fstat(fd)
        except OSError as error:
            raise CheckpointError(
                f"cannot open the memory of snapshots: descriptor {fd}: {error.strerror}; do start with resilient run"
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(
                f"cannot open the memory of snapshots: descriptor {fd} is not a file; do start with resilient run"
            )
        return cls(fd)

    @property
    def fd(self) -> int:
        """The descriptor to hand to another process; -1 once closed."""
        return self._fd

    def reserve(self, size_bytes: int, available_bytes: int | None = None) -> None:
        """Grow to ``size_bytes``, unless that would take more memory than ``available_bytes``."""
        found = os.fstat(self._fd)
        # A page that was never touched takes no memory yet, however large the file is.
        missing = size_bytes - found.st_blocks * _BLOCK_BYTES
        if available_bytes is not None and missing > max(available_bytes, 0):
            raise CheckpointError(
                f"cannot hold a snapshot of {_mib(size_bytes)} in memory: it takes {_mib(missing)} more and "
                f"{_mib(max(available_bytes, 0))} are free; do raise the memory limit of the container"
            )
        if size_bytes > found.st_size:
            os.ftruncate(self._fd, size_bytes)

    def view(self, size_bytes: int) -> memoryview:
        """The first bytes of the slot, writable, shared with all who hold it; reserve them first."""
        if not 0 < size_bytes <= os.fstat(self._fd).st_size:
            raise CheckpointError(
                f"cannot use {size_bytes} bytes of the memory of snapshots: they are not reserved; do reserve them"
            )
        if self._map is None or len(self._map) < size_bytes:
            # The old mapping goes with the last view of it.
            self._map = mmap.mmap(self._fd, size_bytes, flags=_FLAGS)
        return memoryview(self._map)[:size_bytes]

    def close(self) -> None:
        """Let go of the memory; views that are still in use keep theirs."""
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"
