# SPDX-License-Identifier: Apache-2.0
"""The snapshots of all ranks, in memory and on their way to the store.

Every rank has two slots. A snapshot is *whole* once every rank has published its
part of it. The newest whole one is never overwritten, nor is one that is being
saved; when neither slot is free the next snapshot is skipped, on all ranks alike.
One that waits for a store that is away is not kept: memory goes on getting newer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from resilient.checkpoint.requests import Failed, Reply, Save, Saved, SlotFile
from resilient.core.cadence import Cadence, target, wants_store
from resilient.link.board import NONE, SLOTS, Board, SlotRecord
from resilient.supervisor.agreement import Candidate
from resilient.supervisor.party import NO_SNAPSHOT, Party

Ask = Callable[[Callable[[int], Save], Callable[[Reply], None]], None]
RETRY_S: Final = 10.0
"""Between tries to save after the saver's own retries have failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A snapshot that all ranks have."""

    attempt: int
    step: int
    slot: int


@dataclass(slots=True)
class _Order:
    """A snapshot that was ordered and is not whole yet."""

    step: int
    slot: int
    saved: bool = False
    """It has to become durable, whatever the cadence says."""
    last: bool = False
    """Of the final or stopping boundary."""
    answered: dict[int, float | None] = field(default_factory=dict)
    """Stall in seconds by rank; ``None`` where it could not be taken."""


def find_whole(board: Board) -> list[Whole]:
    """Every snapshot that all ranks have, newest first."""
    found = []
    for slot in range(SLOTS):
        records = [board.record(index, slot) for index in range(board.rows)]
        parts = {(record.attempt, record.step) for record in records if record is not None}
        if None not in records and len(parts) == 1:
            attempt, step = parts.pop()
            found.append(Whole(attempt=attempt, step=step, slot=slot))
    return sorted(found, key=lambda whole: (whole.attempt, whole.step), reverse=True)


class Tiers:
    """Orders snapshots, has them saved, and knows what is durable."""

    def __init__(
        self,
        board: Board,
        *,
        ask: Ask,
        told: Callable[[str, dict[str, object]], None],
        committed: Callable[[int], None],
        settled: Callable[[int], None],
    ) -> None:
        self._board = board
        self._party = Party(board)
        self._ask = ask
        self._told = told
        self._committed = committed
        self._settled = settled
        self.cadence: Cadence | None = None
        self.can_save: bool | None = False
        """The store is open and the attempt is ours; ``None``: that is being found out."""
        self.attempt = 0
        self.began_from: dict[int, str | None] = {}
        """The checkpoint that each attempt began from."""
        self.versions: Mapping[str, str] = {}
        self.determinism: Mapping[str, str] = {}
        self.durable_step = 0
        self._order: _Order | None = None
        self._stop: int | None = None
        self._final: tuple[int, Callable[[int | None], None]] | None = None
        self._wanted: Whole | None = None
        self._saving: Whole | None = None
        self._retry_at = 0.0
        self._settling = False
        self._asked = False
        self._floor = 0

    # One attempt.

    def start(self, attempt: int, cadence: Cadence | None) -> None:
        """New workers: nothing is ordered; what is whole stays."""
        self._board.clear_orders()
        self.attempt, self.cadence = attempt, cadence
        self._order = self._stop = self._final = None
        self._settling = False

    def train(self, cadence: Cadence, step: int) -> None:
        """All workers go on from ``step``, which needs no snapshot any more."""
        self.cadence, self._floor = cadence, step
        # What is durable beyond it was refused, or is another history's.
        self.durable_step = min(self.durable_step, step)

    def candidates(self) -> list[Candidate]:
        """What can be resumed from in memory."""
        return [
            Candidate(attempt=whole.attempt, step=whole.step, name="memory", slot=whole.slot)
            for whole in find_whole(self._board)
        ]

    def set_aside(self, slot: int) -> None:
        """What lies in a slot failed verification."""
        for index in range(self._board.rows):
            self._board.void(index, slot)

    def tick(self, now: float) -> None:
        """Order the next snapshot when it is due, and try again to save."""
        if self._final is not None:
            self._offer_final()
        elif self._stop is not None:
            self._offer_stop()
        elif self.cadence is not None:
            self._order_next(self.cadence, now)
        if now >= self._retry_at:
            self._save_next(now)
        self._settle_on()

    def _order_next(self, cadence: Cadence, now: float) -> None:
        """Name the next boundary; one that was named for later gives way to an earlier one."""
        order = self._order
        slot = self._free_slot() if order is None else order.slot
        entered = max(self._board.pulse(index).entered for index in range(self._board.rows))
        wanted = self._target(cadence, entered, now)
        if slot is None or entered == 0 or wanted is None:
            return
        if order is not None and (order.answered or order.step <= wanted):
            return

        def choose(highest: int) -> int | None:
            if order is not None and highest > order.step:
                return order.step  # somebody has passed it already
            return self._target(cadence, highest, now)

        step = self._party.snapshot(choose, slot)
        if order is None or step != order.step:
            self._order = None if step is None else _Order(step, slot, saved=self._asked)
            self._asked = False

    def _target(self, cadence: Cadence, entered: int, now: float) -> int | None:
        reachable = max(entered, self._floor + 1)
        return reachable if self._asked else target(cadence, reachable, now)

    def save_soon(self) -> None:
        """Somebody asked for a checkpoint: the next boundary that all can reach."""
        self._asked = True

    def _free_slot(self) -> int | None:
        whole = find_whole(self._board)
        busy = {kept.slot for kept in (whole[0] if whole else None, self._saving) if kept is not None}
        free = [slot for slot in range(SLOTS) if slot not in busy]
        return free[0] if free else None

    def end(self) -> None:
        """The group is being ended: SIGTERM means leave now."""
        self._party.end()

    # The last boundary.

    def stop(self, lowest: int) -> int:
        """Have all ranks leave together; returns the step after which they do."""
        self._order = None
        self._stop = self._party.stop(lowest, NONE)
        self._offer_stop()
        return self._stop

    def _offer_stop(self) -> None:
        if self._order is not None or self._stop is None:
            return
        newest = next(iter(find_whole(self._board)), None)
        is_there = newest is not None and (newest.attempt, newest.step) == (self.attempt, self._stop)
        if is_there or self.cadence is None or not self.cadence.has_store:
            self._party.give_slot(NO_SNAPSHOT)
            self._order = _Order(self._stop, NO_SNAPSHOT, last=True)
            return
        slot = self._free_slot()
        if slot is not None:
            self._order = _Order(self._stop, slot, last=True)
            self._party.give_slot(slot)

    def finish(self, step: int, answer: Callable[[int | None], None]) -> None:
        """All ranks have done their last step; ``answer`` tells them where the last state goes."""
        self._party.clear()
        self._order = None
        self._final = (step, answer)
        self._offer_final()

    def _offer_final(self) -> None:
        if self._order is not None or self._final is None:
            return
        step, answer = self._final
        newest = next(iter(find_whole(self._board)), None)
        if newest is not None and (newest.attempt, newest.step) == (self.attempt, step):
            self._wanted = newest
            self._order = _Order(step, NO_SNAPSHOT, last=True)
            answer(None)
            return
        slot = self._free_slot()
        if slot is not None:
            self._order = _Order(step, slot, last=True)
            answer(slot)

    # What the ranks say.

    def taken(self, rank: int, step: int, slot: int, stall_s: float | None, now: float) -> None:
        """A rank has its part of the ordered snapshot, or (``None``) could not take it."""
        order = self._order
        if order is None or (order.step, order.slot) != (step, slot):
            return
        order.answered[rank] = stall_s
        if len(order.answered) < self._board.rows:
            return
        if not order.last:
            self._order = None
            self._party.clear()
        stalls = [stall for stall in order.answered.values() if stall is not None]
        newest = next(iter(find_whole(self._board)), None)
        if len(stalls) < self._board.rows or newest is None or (newest.step, newest.slot) != (step, slot):
            self.set_aside(slot)
            if self.cadence is not None:
                self.cadence = dataclasses.replace(self.cadence, taken_at=now)
            return
        self._floor = max(self._floor, step)
        saving = order.last or order.saved or (self.cadence is not None and wants_store(self.cadence, step, now))
        if self.cadence is not None:
            self.cadence = self.cadence.took(now, max(stalls), saving=saving)
        self._told("snapshot", {"step": step, "slot": slot, "stall_s": round(max(stalls), 6)})
        if saving:
            self._wanted = newest
        if order.last or now >= self._retry_at:
            self._save_next(now)
        if self.cadence is not None and not order.last:
            self._order_next(self.cadence, now)

    # The store.

    def _save_next(self, now: float) -> None:
        if self._wanted is None or self._saving is not None or not self.can_save:
            return
        # While the store was away snapshots went on: the newest is saved, not the one that was wanted then.
        wanted = next(iter(find_whole(self._board)), None)
        self._wanted = None
        if wanted is None:
            return
        records = [self._board.record(index, wanted.slot) for index in range(self._board.rows)]
        self._saving = wanted
        files = tuple(_file(rank, record) for rank, record in enumerate(records) if record is not None)

        def request(number: int) -> Save:
            return Save(
                id=number,
                attempt=wanted.attempt,  # which may have ended meanwhile
                step=wanted.step,
                world_size=self._board.rows,
                began_from=self.began_from.get(wanted.attempt),
                files=files,
                versions=self.versions,
                determinism=self.determinism,
            )

        self._ask(request, lambda reply: self._save_answered(wanted, reply, now))

    def _save_answered(self, wanted: Whole, reply: Reply, now: float) -> None:
        self._saving = None
        if isinstance(reply, Saved):
            self.durable_step = max(self.durable_step, reply.step)
            self._told(
                "checkpoint",
                {
                    "name": reply.name,
                    "attempt": reply.attempt,
                    "step": reply.step,
                    "seconds": round(reply.seconds, 3),
                    "size_bytes": reply.size_bytes,
                    "pruned": list(reply.pruned),
                },
            )
            self._committed(reply.step)
        elif isinstance(reply, Failed):
            self._told("save_failed", {"step": wanted.step, "why": reply.why})
            if reply.kind == "corrupt":
                self.set_aside(wanted.slot)
            elif self._wanted is None and (not self._settling or (not reply.answered and reply.kind == "internal")):
                # At the end there is time for one thing: another saver, where the one before was killed.
                self._wanted = wanted
                self._retry_at = now + RETRY_S
        self._settle_on()

    def settle(self, now: float) -> None:
        """Make the newest whole snapshot durable, then say what is."""
        self._settling = True
        newest = next(iter(find_whole(self._board)), None)
        is_saved = newest is not None and self._saving == newest
        if newest is not None and newest.step > self.durable_step and not is_saved:
            self._wanted = newest
            self._save_next(now)
        self._settle_on()

    def _settle_on(self) -> None:
        if not self._settling or self._saving is not None:
            return
        if self._wanted is not None and self.can_save is not False and self._wanted.step > self.durable_step:
            self._save_next(self._retry_at)
            if not self._settling or self._saving is not None or self._wanted is not None:
                return
        self._settling = False
        self._settled(self.durable_step)


def _file(rank: int, record: SlotRecord) -> SlotFile:
    return SlotFile(rank=rank, slot=record.slot, size=record.size, digest=record.digest)
