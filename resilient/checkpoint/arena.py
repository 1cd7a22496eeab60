# SPDX-License-Identifier: Apache-2.0
"""Memory for snapshots that outlives the worker that fills it.

Owns one slot of an arena: a file without a name, held open by the supervisor and inherited by
workers, so that it is gone with its last holder whatever dies (one that is to outlive the container
lies in a volume, see :mod:`resilient.checkpoint.volume`). A slot only ever grows: a smaller
file would kill whoever reads the part that is gone. Its mapping is kept, so that each page is
mapped once and not with every snapshot. What all ranks share is given back when nobody reads it any more.

A slot on disk is for what does not fit into memory: the kernel may write its pages out.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

from resilient.errors import CheckpointError
from resilient.link.board import DESCRIPTORS, ON_DISK, SLOTS, SPILL
from resilient.link.memory import anonymous_file

_PIECE_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 512
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_POPULATE_WRITE: Final = 23
"""``MADV_POPULATE_WRITE``, of Linux 5.14."""
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
        """Bytes that are reserved; none while a part of them is not, as when whoever filled them was killed."""
        found = os.fstat(self._fd)
        is_whole = self._on_disk or found.st_blocks * _BLOCK_BYTES >= found.st_size
        return found.st_size if is_whole else 0

    @property
    def held_bytes(self) -> int:
        """Memory that it takes: a page that was never touched takes none yet, however large the file is."""
        return os.fstat(self._fd).st_blocks * _BLOCK_BYTES

    def check(self, size_bytes: int, available_bytes: int | None) -> None:
        """Refuse what would take more memory than ``available_bytes``; a slot on disk takes none."""
        missing = size_bytes - self.held_bytes
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
        with self._taking(size_bytes):
            _take_room(self._fd, before, max(size_bytes, os.fstat(self._fd).st_size))
        if touch:
            new = self.view(size_bytes)[before:]
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(new)), 0, len(new))

    @contextlib.contextmanager
    def _taking(self, size_bytes: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            where = "on disk" if self._on_disk else "in memory"
            raise NoRoom(
                f"cannot hold a snapshot of {_mib(size_bytes)} {where}: {error.strerror}; "
                "do give the container more memory, or the journal a larger volume"
            ) from error

    def begin(self, size_bytes: int) -> memoryview:
        """The first bytes, to be filled part by part, each once it was made ready: new memory is slow to be had, and
        what fills it need not wait for all of it."""
        if self._on_disk or not _populates():
            self.reserve(size_bytes)
            return self.view(size_bytes)
        if not self.room:
            self.give_back()  # what somebody began, and did not end: nobody has a view of it
        with self._taking(size_bytes):
            if size_bytes > self.room:
                os.ftruncate(self._fd, size_bytes)
        if self._map is None or len(self._map) < size_bytes:
            self._map = mmap.mmap(self._fd, size_bytes)
        return memoryview(self._map)[:size_bytes]

    def make_ready(self, start: int, end: int) -> None:
        """Room for a part of what was begun, of which several may be made ready at a time. The kernel makes the pages
        and maps them; where it has none it says so, instead of ending the process at the first write to them."""
        if self._on_disk or self._map is None or not _populates():
            return
        first = start - start % mmap.PAGESIZE
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + first
        if _LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(end - first), _POPULATE_WRITE):
            with self._taking(end):  # older kernels do it so, and others say which error it is
                os.posix_fallocate(self._fd, first, end - first)

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


def _nameless(rank: int, number: int) -> Slot:
    return Slot.create(f"resilient-{rank}-{number}")


def create_arena(
    rank: int, directory: str | os.PathLike[str], in_memory: Callable[[int, int], Slot] = _nameless
) -> list[Slot]:
    """Every slot of one rank; that on disk lies in ``directory``, the others are made by ``in_memory``."""
    return [Slot.create_on_disk(directory) if number == SPILL else in_memory(rank, number) for number in range(SLOTS)]


def create_arenas(
    ranks: int, directory: str | os.PathLike[str], in_memory: Callable[[int, int], Slot] = _nameless
) -> dict[int, list[Slot]]:
    """Every slot of every rank: its own, then those that are one for all ranks."""
    shared = [
        Slot.create_on_disk(directory) if number in ON_DISK else Slot.create("resilient-whole")
        for number in range(SLOTS, DESCRIPTORS)
    ]
    return {rank: create_arena(rank, directory, in_memory) + shared for rank in range(ranks)}


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"


def _populates() -> bool:
    """Whether the system makes a part of a file in memory ready."""
    return sys.platform == "linux"


def _take_room(fd: int, before: int, size_bytes: int) -> None:
    """By writing, where the system cannot without (macOS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size_bytes)
        return
    zeros = bytes(_PIECE_BYTES)
    while before < size_bytes:
        before += os.pwrite(fd, zeros[: size_bytes - before], before)
