# SPDX-License-Identifier: Apache-2.0
"""Which snapshots lie in which slots, and which slot the next one may have.

A snapshot is *whole* once every rank has published its part of it as whole. The newest whole one is
never written over, nor is one that is being saved; on disk, where there is one slot only, one
that is durable may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from resilient.link.board import SLOTS, SPILL, Board


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A snapshot that all ranks have, or will have if none of them drops its part."""

    attempt: int
    step: int
    slot: int


class Slots:
    """The slots of all ranks, which are used alike."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.saving: Whole | None = None
        self.saved: Whole | None = None
        """What became durable last."""
        self.full: set[int] = set()
        """Those that memory has no room for."""

    def whole(self) -> list[Whole]:
        """Every snapshot that all ranks have, newest first."""
        found = []
        for slot in range(SLOTS):
            records = [self._board.record(index, slot) for index in range(self._board.rows)]
            parts = {(record.attempt, record.step) for record in records if record is not None}
            if None not in records and len(parts) == 1:
                attempt, step = parts.pop()
                found.append(Whole(attempt=attempt, step=step, slot=slot))
        return sorted(found, key=lambda whole: (whole.attempt, whole.step), reverse=True)

    @property
    def newest(self) -> Whole | None:
        """The newest that all ranks have."""
        return next(iter(self.whole()), None)

    def void(self, slot: int) -> None:
        """What lies in a slot is not to be used."""
        for index in range(self._board.rows):
            self._board.void(index, slot)

    def free(self) -> int | None:
        """One in memory."""
        kept = {whole.slot for whole in (self.newest, self.saving) if whole is not None}
        return next((slot for slot in range(SLOTS) if slot not in kept | self.full | {SPILL}), None)

    def on_disk(self) -> int | None:
        """The one on disk."""
        newest = self.newest
        is_needed = newest is not None and newest.slot == SPILL and newest != self.saved
        return None if is_needed or self._is_saving(SPILL) else SPILL

    def for_last(self) -> int | None:
        """One for a state that there will be no later one of: it is worth more than an older one."""
        slot = self.free()
        return SPILL if slot is None and self.full and not self._is_saving(SPILL) else slot

    def _is_saving(self, slot: int) -> bool:
        return self.saving is not None and self.saving.slot == slot
