# SPDX-License-Identifier: Apache-2.0
"""The snapshots of all ranks: when they are taken, into which slot, and which of them are to be durable.

Every rank has two slots in memory. A snapshot is *whole* once every rank has published
its part of it as whole. The newest whole one is never overwritten, nor is one that is being
saved; when neither slot is free the next snapshot is skipped, on all ranks alike.
One that waits for a store that is away is not kept: memory goes on getting newer.

Where memory has no room, what has to become durable goes through a third slot, on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from resilient.checkpoint.requests import Saved
from resilient.core.cadence import NEVER, Cadence, target, wants_store
from resilient.link.board import NONE, SPILL, Board
from resilient.link.messages import Copied, NotTaken, Taken
from resilient.supervisor.agreement import MEMORY, Candidate
from resilient.supervisor.party import NO_SNAPSHOT, Orders
from resilient.supervisor.saving import Ask, Saving
from resilient.supervisor.slots import Slots, Whole

SHOWN_CHANGE: Final = 0.25
"""An automatic cadence is told again when it has changed by this share."""


@dataclass(slots=True)
class _Order:
    """A snapshot that was ordered and is not whole yet."""

    step: int
    slot: int
    saved: bool = False
    """It has to become durable, whatever the cadence says by then."""
    last: bool = False
    """Of the final or stopping boundary."""
    again: bool = False
    """Some rank will be able to take one soon."""
    copied: set[int] = field(default_factory=set)
    """Ranks that have their part in the slot, and will say whether it is what it was."""
    answered: dict[int, float | None] = field(default_factory=dict)
    """Stall in seconds by rank; ``None`` where it could not be taken."""


class Tiers:
    """Orders snapshots, and has them saved."""

    def __init__(
        self,
        board: Board,
        orders: Orders,
        *,
        ask: Ask,
        told: Callable[[str, dict[str, object]], None],
        committed: Callable[[int], None],
        settled: Callable[[int], None],
    ) -> None:
        self._board = board
        self._orders = orders
        self.slots = Slots(board)
        self._told = told
        self._committed = committed
        self.saving = Saving(board, self.slots, ask=ask, told=told, saved=self._saved, settled=settled)
        self.cadence: Cadence | None = None
        self.attempt = 0
        self._order: _Order | None = None
        self._naming = False
        """A boundary is being agreed on."""
        self._stop: int | None = None
        self._final: tuple[int, Callable[[int | None], None]] | None = None
        self._asked = False
        self._floor = 0
        self._shown: tuple[float | None, float | None] = (None, None)

    # One attempt.

    def start(self, attempt: int, cadence: Cadence | None) -> None:
        """New workers: nothing is ordered; what is whole stays."""
        self._orders.forget()
        self._naming = False
        self.attempt, self.cadence = attempt, cadence
        self._stop = self._final = None
        self._forget_order()
        self.saving.start()
        self.slots.full.clear()

    def train(self, cadence: Cadence, step: int) -> None:
        """All workers go on from ``step``, which needs no snapshot any more."""
        self.cadence, self._floor = cadence, step
        self.saving.train(step)

    def candidates(self) -> list[Candidate]:
        """What can be resumed from in memory."""
        return [
            Candidate(attempt=whole.attempt, step=whole.step, name=MEMORY, slot=whole.slot)
            for whole in self.slots.whole()
        ]

    def tick(self, now: float) -> None:
        """Order the next snapshot when it is due, and try again to save."""
        if self._final is not None:
            self._offer_final()
        elif self._stop is not None:
            self._offer_stop()
        elif self.cadence is not None and not self._naming:
            self._order_next(self.cadence, now)
        self.saving.tick(now)

    def _order_next(self, cadence: Cadence, now: float) -> None:
        """Name the next boundary; one that was named for later gives way to an earlier one."""
        order = self._order
        slot = self.slots.free() if order is None else order.slot
        entered = max(self._board.pulse(index).entered for index in range(self._board.rows))
        if slot is None and self.slots.full:
            slot = self.slots.on_disk()
        if slot == SPILL:  # the training waits for it, so it is for what has to become durable
            cadence = dataclasses.replace(cadence, memory=NEVER)
        wanted = self._target(cadence, entered, now)
        if slot is None or entered == 0 or wanted is None:
            return
        if order is not None and (order.answered or order.step <= wanted):
            return

        def choose(highest: int) -> int | None:
            if order is not None and highest > order.step:
                return order.step  # somebody has passed it already
            return self._target(cadence, highest, now)

        def named(step: int | None) -> None:
            self._naming = False
            if order is None or step != order.step:
                self._order = None if step is None else _Order(step, slot, saved=self._asked)
                self._asked = False

        self._naming = True
        self._orders.snapshot(choose, slot, named)

    def _target(self, cadence: Cadence, entered: int, now: float) -> int | None:
        reachable = max(entered, self._floor + 1)
        return reachable if self._asked else target(cadence, reachable, now)

    def save_soon(self) -> None:
        """Somebody asked for a checkpoint: the next boundary that all can reach."""
        self._asked = True

    def end(self) -> None:
        """The group is being ended: SIGTERM means leave now."""
        self._orders.end()

    # The last boundary.

    def stop(self, lowest: int) -> None:
        """Have all ranks leave together, after a step that all can reach."""

        def named(step: int) -> None:
            self._naming = False
            entered = min(self._board.pulse(index).entered for index in range(self._board.rows))
            if self._order is not None and entered <= self._order.step + 1:
                # Not every rank will take it: one that has published the step behind its boundary may still wait at
                # that one, and now finds this stop instead. Else it ends first.
                self._forget_order()
            self._stop = step
            self._offer_stop()

        self._naming = True
        self._orders.stop(lowest, NONE, named)

    def _offer_stop(self) -> None:
        if self._order is not None or self._stop is None:
            return
        newest = self.slots.newest
        is_there = newest is not None and (newest.attempt, newest.step) == (self.attempt, self._stop)
        if is_there or self.cadence is None or not self.cadence.has_store:
            self._orders.give_slot(NO_SNAPSHOT)
            self._order = _Order(self._stop, NO_SNAPSHOT, last=True)
            return
        slot = self.slots.for_last()
        if slot is not None:
            self._order = _Order(self._stop, slot, last=True)
            self._orders.give_slot(slot)

    @property
    def stopping(self) -> int | None:
        """The step after which all leave, once that is named."""
        return self._stop

    def finish(self, step: int, answer: Callable[[int | None], None]) -> None:
        """All ranks have done their last step; ``answer`` tells them where the last state goes."""
        self._orders.clear()
        self._forget_order()
        self._final = (step, answer)
        self._offer_final()

    def go_on(self) -> None:
        """Another loop begins after the end of one."""
        self._final = None
        self._forget_order()

    def _forget_order(self) -> None:
        self._order = None
        self.saving.judge()

    def _offer_final(self) -> None:
        if self._order is not None or self._final is None:
            return
        step, answer = self._final
        newest = self.slots.newest
        if newest is not None and (newest.attempt, newest.step) == (self.attempt, step):
            self.saving.want(newest)
            self._order = _Order(step, NO_SNAPSHOT, last=True)
            answer(None)
            return
        slot = self.slots.for_last()
        if slot is not None:
            self._order = _Order(step, slot, last=True)
            answer(slot)

    # What the ranks say.

    def copied(self, rank: int, message: Copied, now: float) -> None:
        """A rank has its part of the ordered snapshot, if nothing changed under its hands; that it says later."""
        order = self._order
        if order is None or (order.step, order.slot) != (message.step, message.slot):
            return
        self._note_metrics(rank, message)
        order.copied.add(rank)
        wanted = order.saved or (self.cadence is not None and wants_store(self.cadence, order.step, now))
        if wanted and len(order.copied) == self._board.rows and None not in order.answered.values():
            whole = Whole(attempt=self.attempt, step=order.step, slot=order.slot)
            order.saved = self.saving.write_ahead(whole, now) or order.saved

    def _note_metrics(self, rank: int, message: Copied | Taken) -> None:
        if rank == 0:
            whole = Whole(attempt=self.attempt, step=message.step, slot=message.slot)
            self.saving.note_metrics(whole, message.metrics)

    def taken(self, rank: int, message: Taken, now: float) -> None:
        """A rank has its part of the ordered snapshot."""
        self._note_metrics(rank, message)
        self._answered(rank, message.step, message.slot, message.stall_s, now)

    def missed(self, rank: int, message: NotTaken, now: float) -> None:
        """A rank could not take its part."""
        order = self._order
        if order is not None and (order.step, order.slot) == (message.step, message.slot):
            order.again = order.again or message.soon
            if message.full and message.slot != SPILL:
                self.slots.full.add(message.slot)
                order.again = True
            self.saving.judge()
            self._answered(rank, message.step, message.slot, None, now)

    def _answered(self, rank: int, step: int, slot: int, stall_s: float | None, now: float) -> None:
        order = self._order
        if order is None or (order.step, order.slot) != (step, slot):
            return
        order.answered[rank] = stall_s
        if len(order.answered) < self._board.rows:
            return
        if not order.last:
            self._order = None
            if self._stop is None:
                self._orders.clear()
        stalls = [stall for stall in order.answered.values() if stall is not None]
        newest = self.slots.newest
        if len(stalls) < self._board.rows or newest is None or (newest.step, newest.slot) != (step, slot):
            self._not_whole(order, now)
            return
        self._floor = max(self._floor, step)
        saving = order.last or order.saved or (self.cadence is not None and wants_store(self.cadence, step, now))
        if self.cadence is not None:
            self.cadence = self.cadence.took(step, now, max(stalls), saving=saving)
            self._show_cadence(self.cadence)
        self._told("snapshot", {"step": step, "slot": slot, "stall_s": round(max(stalls), 6)})
        if not self.saving.judge() and saving:
            self.saving.want(newest)
        self.saving.save_next(now, at_once=order.last)
        if self.cadence is not None and not order.last and self._stop is None and not self._naming:
            self._order_next(self.cadence, now)

    def _show_cadence(self, cadence: Cadence) -> None:
        """Journal what an automatic cadence has come to, when that changes."""
        memory_s = cadence.memory_s if cadence.memory is None else None
        durable_s = cadence.durable_s if cadence.durable is None and cadence.has_store else None
        shown = (memory_s, durable_s)
        if all(_is_near(new, old) for new, old in zip(shown, self._shown, strict=True)):
            return
        self._shown = shown
        self._told(
            "cadence",
            {
                "memory_s": memory_s and round(memory_s, 3),
                "durable_s": durable_s and round(durable_s, 3),
                "stall_s": round(cadence.stall_s, 6),
                "save_s": round(cadence.save_s, 3),
                "mttf_s": round(cadence.mttf_s, 1),
            },
        )

    def _not_whole(self, order: _Order, now: float) -> None:
        """Some rank has no part of it. What had to be saved is asked for again where that may help."""
        self.slots.void(order.slot)
        self.saving.judge()
        if order.last:  # nobody waits for another try
            self._told("save_failed", {"step": order.step, "why": "the last state could not be taken by every rank"})
            return
        if self.cadence is None:
            return
        wanted = order.saved or wants_store(self.cadence, order.step, now)
        self._asked = self._asked or (order.again and wanted)
        self.cadence = dataclasses.replace(self.cadence, taken_at=now)

    def _saved(self, reply: Saved) -> None:
        if self.cadence is not None:
            self.cadence = dataclasses.replace(self.cadence, save_s=reply.seconds)
        self._committed(reply.step)


def _is_near(new: float | None, old: float | None) -> bool:
    """Whether one need not be told again."""
    if new is None or old is None:
        return new is old
    return abs(new - old) <= SHOWN_CHANGE * old
