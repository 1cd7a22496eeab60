# SPDX-License-Identifier: Apache-2.0
"""The slots of this rank, and the memory that they take: bounded, said before it is taken, never during a step."""

from __future__ import annotations

import ctypes
import resource
import threading
from collections.abc import Callable, Sequence
from typing import Final

import torch

from resilient.checkpoint.arena import NoRoom, Slot
from resilient.link.board import SPILL
from resilient.supervisor.samples import SPARE_BYTES, memory_available

SMALL_BYTES: Final = 64 << 20
"""Memory that is had within milliseconds; more of it is made ready while the training goes on."""
MARGIN: Final = 1.05
"""A snapshot may grow a little: its header, a counter, a generator."""


class Preparing(Exception):
    """The memory is being made ready; a later boundary will find it."""


class Arenas:
    """Makes room in slots, and maps them."""

    def __init__(
        self,
        fds: Sequence[int],
        *,
        ranks: int,
        say: Callable[[str], None],
        free_bytes: Callable[[], int | None] = memory_available,
    ) -> None:
        self.slots = [Slot.from_fd(fd, on_disk=number == SPILL) for number, fd in enumerate(fds)]
        self._ranks = ranks
        self._say = say
        self._free_bytes = free_bytes
        self._preparing: threading.Thread | None = None
        self._refused: NoRoom | OSError | None = None
        """Why memory could not be made ready: for whoever asks next."""
        self._pinned: dict[int, tuple[int, int]] = {}
        self._cannot_pin = False

    def make_room(self, slot: int, size_bytes: int, *, at_once: bool) -> None:
        """Room for a snapshot. Raises :class:`NoRoom`, or :class:`Preparing` where getting it would hold training up
        and it need not be had ``at_once``."""
        if self._preparing is not None and not at_once and slot != SPILL and self._preparing.is_alive():
            raise Preparing("memory for snapshots is being made ready")  # its new pages are being cleared
        if self._preparing is not None and slot != SPILL:
            self._preparing.join()
            self._preparing = None
        arena = self.slots[slot]
        if size_bytes <= arena.room:
            return
        refused, self._refused = self._refused, None
        if refused is not None and slot != SPILL:
            raise refused
        wanted = int(size_bytes * MARGIN)
        if slot != SPILL:
            self._check(arena, wanted)
        if at_once or slot == SPILL or wanted - arena.room <= SMALL_BYTES:
            arena.reserve(wanted)
            return
        if self._preparing is None:
            self._preparing = threading.Thread(target=self._prepare, args=(wanted,), name="resilient-memory")
            self._preparing.start()
        raise Preparing(f"memory for snapshots of {size_bytes >> 20} MiB is being made ready")

    def view(self, slot: int, size_bytes: int, *, pinned: bool) -> memoryview:
        """The first bytes of a slot; ``pinned``: devices copy to it by themselves."""
        known = self._pinned.get(slot)
        if known is not None and known[1] < size_bytes:
            torch.cuda.cudart().cudaHostUnregister(self._pinned.pop(slot)[0])  # it is about to be mapped elsewhere
        view = self.slots[slot].view(size_bytes)
        if pinned and slot != SPILL and slot not in self._pinned and not self._cannot_pin:
            self._pin(slot)
        return view

    def _available(self) -> int | None:
        """This rank's share of what is free, as all ranks ask at the same step; less what a step takes at its peak and
        has given back by the boundary, and something for what nobody has measured."""
        available = self._free_bytes()
        return None if available is None else max(0, available // self._ranks - _given_back() - SPARE_BYTES)

    def _check(self, arena: Slot, wanted: int) -> None:
        arena.check(wanted, self._available())

    def _prepare(self, wanted: int) -> None:
        """Both slots in memory, as far as they fit; what does not is found, and said, when it is asked for."""
        memory = [slot for number, slot in enumerate(self.slots) if number != SPILL]
        available = self._available()
        free = "unknown" if available is None else f"{available >> 20} MiB"
        self._say(f"snapshots take {len(memory)} x {wanted >> 20} MiB of memory on this rank; free for it: {free}")
        for arena in memory:
            try:
                if arena.room < wanted:
                    self._check(arena, wanted)
                    arena.reserve(wanted, touch=True)
            except (NoRoom, OSError) as error:
                self._refused = error
                return

    def _pin(self, slot: int) -> None:
        """Register the mapping with CUDA, whole and once; without that its copies would hold the training up."""
        whole = self.slots[slot].mapped()
        address, size = ctypes.addressof(ctypes.c_char.from_buffer(whole)), len(whole)
        if error := int(torch.cuda.cudart().cudaHostRegister(address, size, 0)):
            self._cannot_pin = True
            self._say(f"memory for snapshots cannot be pinned (CUDA error {error}): copies from devices are slower")
            return
        self._pinned[slot] = (address, size)


def _given_back() -> int:
    """Bytes that this process has held at its peak and does not hold now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    try:
        with open("/proc/self/statm", "rb") as statm:
            now = int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
    return max(0, peak - now)
