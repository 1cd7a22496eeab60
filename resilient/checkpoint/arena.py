# SPDX-License-Identifier: Apache-2.0
"""Memory for snapshots that outlives the worker that fills it.

Owns one slot of an arena: a file without a name, held open by the supervisor and inherited by
workers, so that it is gone with its last holder whatever dies. A slot only ever grows: a smaller
file would kill whoever reads the part that is gone. Its mapping is kept, so that each page is
mapped once and not with every snapshot. What all ranks share is given back when nobody reads it any more.

A slot on disk is for what does not fit into memory: the kernel may write its pages out.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import tempfile
from typing import Final

from resilient.errors import CheckpointError
from resilient.link.board import DESCRIPTORS, ON_DISK, SLOTS, SPILL
from resilient.link.memory import anonymous_file

_BLOCK_BYTES: Final = 512
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG})


class NoRoom(CheckpointError):
    """A snapshot does not fit."""

    kind = "full"


class Slot:
    """Room for one snapshot, shared by every process that holds its descriptor."""

    __slots__ = ("_fd", "_map", "_on_disk")

    def __init__(self, fd: int, *, on_disk: bool = False) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None
        self._on_disk = on_disk

    @classmethod
    def create(cls, name: str) -> Slot:
        """Make an empty slot in memory; ``name`` is shown in ``/proc`` and is no address."""
        return cls(anonymous_file(name))

    @classmethod
    def create_on_disk(cls, directory: str | os.PathLike[str]) -> Slot:
        """Make an empty slot in an unlinked file of ``directory``."""
        with tempfile.TemporaryFile(prefix="resilient-", dir=directory) as file:
            return cls(os.dup(file.fileno()), on_disk=True)

    @classmethod
    def from_fd(cls, fd: int, *, on_disk: bool = False) -> Slot:
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
        return cls(fd, on_disk=on_disk)

    @property
    def fd(self) -> int:
        """The descriptor to hand to another process; -1 once closed."""
        return self._fd

    @property
    def room(self) -> int:
        """Bytes that are reserved."""
        return os.fstat(self._fd).st_size

    def check(self, size_bytes: int, available_bytes: int | None) -> None:
        """Refuse what would take more memory than ``available_bytes``; a slot on disk takes none."""
        # A page that was never touched takes no memory yet, however large the file is.
        missing = size_bytes - os.fstat(self._fd).st_blocks * _BLOCK_BYTES
        if not self._on_disk and available_bytes is not None and missing > max(available_bytes, 0):
            raise NoRoom(
                f"cannot hold a snapshot of {_mib(size_bytes)} in memory: it takes {_mib(missing)} more and "
                f"{_mib(max(available_bytes, 0))} are free; do raise the memory limit of the container"
            )

    def reserve(self, size_bytes: int, *, touch: bool = False) -> None:
        """Grow to ``size_bytes``, with room for all of it: writing to a mapped page that has none would end the process
        by SIGBUS. ``touch``: have the kernel clear and map the new pages now, which would make the first copy several
        times slower; other threads run meanwhile."""
        if size_bytes <= (before := self.room):
            return
        try:
            os.posix_fallocate(self._fd, 0, size_bytes)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            where = "on disk" if self._on_disk else "in memory"
            raise NoRoom(
                f"cannot hold a snapshot of {_mib(size_bytes)} {where}: {error.strerror}; "
                "do give the container more memory, or the journal a larger volume"
            ) from error
        if touch:
            new = self.view(size_bytes)[before:]
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(new)), 0, len(new))

    def view(self, size_bytes: int) -> memoryview:
        """The first bytes of the slot, writable, shared with all who hold it; reserve them first."""
        if not 0 < size_bytes <= (room := self.room):
            raise CheckpointError(
                f"cannot use {size_bytes} bytes of the memory of snapshots: they are not reserved; do reserve them"
            )
        if self._map is None or len(self._map) < size_bytes:
            # The old mapping goes with the last view of it.
            self._map = mmap.mmap(self._fd, room)
        return memoryview(self._map)[:size_bytes]

    def mapped(self) -> memoryview:
        """All that is mapped by now."""
        return memoryview(self._map or b"")

    def give_back(self) -> None:
        """Free what it takes, for all who hold it; nobody may be reading."""
        self._map = None
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Let go of the memory; views that are still in use keep theirs."""
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def create_arena(rank: int, directory: str | os.PathLike[str]) -> list[Slot]:
    """Every slot of one rank; that on disk lies in ``directory``."""
    return [
        Slot.create_on_disk(directory) if number == SPILL else Slot.create(f"resilient-{rank}-{number}")
        for number in range(SLOTS)
    ]


def create_arenas(ranks: int, directory: str | os.PathLike[str]) -> dict[int, list[Slot]]:
    """Every slot of every rank: its own, then those that are one for all ranks."""
    shared = [
        Slot.create_on_disk(directory) if number in ON_DISK else Slot.create("resilient-whole")
        for number in range(SLOTS, DESCRIPTORS)
    ]
    return {rank: create_arena(rank, directory) + shared for rank in range(ranks)}


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"
