# SPDX-License-Identifier: Apache-2.0
"""Bringing a checkpoint of the store into memory, where the workers read it like any snapshot.

The saver does the reading, as soon as the store is open and while the workers are still starting:
they find in memory what they would have had to wait for, and have nothing to do with stores.

The memory that it takes is what the workers are about to need for the state itself, for gradients and all else. So it
is read into memory where that has room for it twice, else to disk, and into memory all the same where the disk is full;
and where little is left once all have loaded, that memory is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.checkpoint.requests import Failed, Fetch, Fetched, Reply, Request
from resilient.link.board import ON_DISK, SLOTS, SPILL, WHOLE, WHOLE_ON_DISK, Board, Extent
from resilient.supervisor.agreement import Candidate
from resilient.supervisor.samples import SPARE_BYTES, memory_available

Submit = Callable[[Callable[[int], Request], Callable[[Reply], None]], None]
Then = Callable[["Outcome"], None]
MOST_DEATHS: Final = 3
"""Savers that may die over one checkpoint before that counts as a store that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended: in a slot, or why not."""

    slot: int | None
    why: str = ""
    contents: Extent | None = None
    """What the slot begins with where all ranks share it."""
    unreachable: bool = False
    """The store did not answer for as long as it was asked, which says nothing of the checkpoint."""


class Fetching:
    """One checkpoint at a time."""

    def __init__(
        self,
        board: Board,
        submit: Submit,
        free_slot: Callable[[], int | None],
        journal: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self._board = board
        self._submit = submit
        self._free_slot = free_slot
        self._journal = journal
        self._candidate: Candidate | None = None
        self._ways: list[_Way] = []
        """Not tried yet for it."""
        self._deaths = 0
        self._outcome: Outcome | None = None
        self._then: Then | None = None
        self.slot: int | None = None
        """The slot that is being filled."""

    def begin(self, candidate: Candidate, patience_s: float) -> None:
        """Read ``candidate``; ``want`` asks for what became of it."""
        if self.slot is not None:
            return  # an earlier attempt's goes on
        self._candidate, self._outcome, self._then = candidate, None, None
        self._deaths = 0
        self._ways = _ways(WHOLE if self._is_of_others(candidate) else self._free_slot())
        self._ask(candidate, patience_s)

    def needless(self) -> list[int]:
        """Slots that may be emptied now that all ranks have loaded: one that they share, as there will be no other use
        of it, and any in memory where the training may need that more. What lay there is forgotten."""
        outcome, candidate = self._outcome, self._candidate
        if self.slot is not None or outcome is None or outcome.slot is None or candidate is None:
            return []
        if outcome.contents is None:
            if outcome.slot in ON_DISK or not self._is_there(candidate, outcome) or not self._is_scarce(outcome.slot):
                return []
            self._void(outcome.slot)
        self._outcome = None
        return [outcome.slot]

    def _is_scarce(self, slot: int) -> bool:
        """Whether memory has no room for the other slot, and for as much again that nobody has measured yet."""
        records = [self._board.record(index, slot) for index in range(self._board.rows)]
        free = _careful(memory_available(inherited=self._board.inherited_bytes), self._board.rows)
        return free is not None and free < sum(record.size for record in records if record is not None)

    def _is_of_others(self, candidate: Candidate) -> bool:
        return candidate.ranks not in (None, self._board.rows)

    def want(self, candidate: Candidate, patience_s: float, then: Then) -> None:
        """Have ``candidate`` in a slot; ``then`` is told, once it is known."""
        if self.slot is not None and not self._is_about(candidate):
            # What is being read for nobody ends first; there is one saver, and room for one.
            self._then = lambda outcome: self.want(candidate, patience_s, then)
            return
        if self._is_about(candidate) and self._outcome is not None and self._is_there(candidate, self._outcome):
            then(self._outcome)
            return
        self.begin(candidate, patience_s)
        self._then = then

    def known(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates, with what was read from the store under its own name and with the slot that it lies in."""
        outcome = self._outcome
        read = [
            replace(candidate, slot=outcome.slot, contents=outcome.contents)
            for candidate in candidates
            if outcome is not None and self._is_about(candidate) and self._is_there(candidate, outcome)
        ]
        slots = {candidate.slot for candidate in read}
        return read + [c for c in candidates if c.slot not in slots and c.name not in {one.name for one in read}]

    def _is_about(self, candidate: Candidate) -> bool:
        return self._candidate is not None and self._candidate.name == candidate.name

    def _is_there(self, candidate: Candidate, outcome: Outcome) -> bool:
        """Whether what was read has not been written over since."""
        if outcome.slot is None or outcome.contents is not None:
            return outcome.slot is not None  # that of all ranks is written here only
        records = [self._board.record(index, outcome.slot) for index in range(self._board.rows)]
        return all(r is not None and (r.attempt, r.step) == (candidate.attempt, candidate.step) for r in records)

    def _void(self, slot: int) -> None:
        for index in range(self._board.rows if slot < SLOTS else 0):
            self._board.void(index, slot)

    def _ask(self, candidate: Candidate, patience_s: float) -> None:
        way = self._ways.pop(0)
        self.slot = slot = way.slot
        self._void(slot)

        def request(number: int) -> Fetch:
            available = memory_available(inherited=self._board.inherited_bytes)
            return Fetch(
                id=number,
                name=candidate.name,
                world_size=self._board.rows,
                slot=slot,
                available_bytes=_careful(available, self._board.rows) if way.is_careful else available,
                patience_s=patience_s,
            )

        self._submit(request, lambda reply: self._answered(candidate, slot, patience_s, reply))

    def _answered(self, candidate: Candidate, slot: int, patience_s: float, reply: Reply) -> None:
        if isinstance(reply, Fetched):
            for index, record in enumerate(reply.records):
                self._board.publish(index, record)
            seconds = round(reply.seconds, 3)
            self._journal("fetched", {"name": reply.name, "seconds": seconds, "size_bytes": reply.size_bytes})
            self._end(Outcome(slot=slot, contents=reply.contents))
        elif isinstance(reply, Failed) and reply.kind == "full" and self._ways:
            self._ask(candidate, patience_s)
        elif isinstance(reply, Failed) and reply.kind == "internal" and not reply.answered:
            self._saver_died(candidate, slot, reply.why, patience_s)
        elif isinstance(reply, Failed):
            self._end(Outcome(slot=None, why=reply.why, unreachable=not reply.answered))

    def _saver_died(self, candidate: Candidate, slot: int, why: str, patience_s: float) -> None:
        """Ask the next one, with the slot on disk: it may have been killed for the memory that this takes."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            self._end(Outcome(slot=None, why=why, unreachable=True))
        else:
            self._ways = [_Way(slot=_on_disk(slot))]
            self._ask(candidate, patience_s)

    def _end(self, outcome: Outcome) -> None:
        self.slot, self._outcome = None, outcome
        then, self._then = self._then, None
        if then is not None:
            then(outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """Where to read it to."""

    slot: int
    is_careful: bool = False
    """Only if memory has room for more than that."""


def _ways(slot: int | None) -> list[_Way]:
    """In the order in which they are tried; ``slot`` is one in memory, if one is free."""
    if slot is None:
        return [_Way(slot=SPILL)]
    return [_Way(slot=slot, is_careful=True), _Way(slot=_on_disk(slot)), _Way(slot=slot)]


def _careful(available: int | None, ranks: int) -> int | None:
    """What may be taken of memory, so that as much again is left, and something for each rank beside its state."""
    return None if available is None else max(0, available - ranks * SPARE_BYTES) // 2


def _on_disk(slot: int) -> int:
    """The slot that takes no memory, in the place of another one."""
    return SPILL if slot < SLOTS else WHOLE_ON_DISK
