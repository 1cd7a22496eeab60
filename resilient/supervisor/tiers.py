# SPDX-License-Identifier: Apache-2.0
"""The snapshots of all ranks, in memory and on their way to the store.

Every rank has two slots in memory. A snapshot is *whole* once every rank has published
its part of it. The newest whole one is never overwritten, nor is one that is being
saved; when neither slot is free the next snapshot is skipped, on all ranks alike.
One that waits for a store that is away is not kept: memory goes on getting newer.

Where memory has no room, what has to become durable goes through a third slot, on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from resilient.checkpoint.requests import Failed, Reply, Save, Saved
from resilient.core.cadence import NEVER, Cadence, target, wants_store
from resilient.core.retention import Rules
from resilient.link.board import NONE, SPILL, Board
from resilient.link.messages import NotTaken, Taken
from resilient.supervisor.agreement import MEMORY, Candidate
from resilient.supervisor.party import NO_SNAPSHOT, Party
from resilient.supervisor.slots import Slots, Whole

Ask = Callable[[Callable[[int], Save], Callable[[Reply], None]], None]
SHOWN_CHANGE: Final = 0.25
"""An automatic cadence is told again when it has changed by this share."""
MOST_TOLD: Final = 5
"""Reasons why old checkpoints could not be deleted: they are mostly the same."""
RETRY_S: Final = 10.0
"""Between tries to save after the saver's own retries have failed."""


@dataclass(slots=True)
class _Order:
    """A snapshot that was ordered and is not whole yet."""

    step: int
    slot: int
    saved: bool = False
    """It has to become durable, whatever the cadence says."""
    last: bool = False
    """Of the final or stopping boundary."""
    again: bool = False
    """Some rank will be able to take one soon."""
    answered: dict[int, float | None] = field(default_factory=dict)
    """Stall in seconds by rank; ``None`` where it could not be taken."""


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
        self.slots = Slots(board)
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
        self.rules = Rules()
        """Which checkpoints stay."""
        self._metrics: dict[Whole, Mapping[str, float]] = {}
        """What rank 0 had measured when it took what lies in a slot."""
        self.durable_step = 0
        self._order: _Order | None = None
        self._stop: int | None = None
        self._final: tuple[int, Callable[[int | None], None]] | None = None
        self._wanted: Whole | None = None
        self._adopted: Whole | None = None
        """What an earlier container took, as long as nobody trains on it."""
        self._retry_at = 0.0
        self._settling = False
        self._asked = False
        self._floor = 0
        self._shown: tuple[float | None, float | None] = (None, None)

    # One attempt.

    def start(self, attempt: int, cadence: Cadence | None) -> None:
        """New workers: nothing is ordered; what is whole stays."""
        self._board.clear_orders()
        self.attempt, self.cadence = attempt, cadence
        self._order = self._stop = self._final = None
        self._settling = False
        self.slots.full.clear()

    def train(self, cadence: Cadence, step: int) -> None:
        """All workers go on from ``step``, which needs no snapshot any more."""
        self.cadence, self._floor = cadence, step
        # What is durable beyond it was refused, or is another history's.
        self.durable_step = min(self.durable_step, step)
        adopted, self._adopted = self._adopted, None
        if adopted is not None and adopted == self.slots.newest and adopted.step > self.durable_step:
            self._wanted = adopted  # whoever took it could not save it any more

    def adopt(self, whole: Whole, began_from: str | None) -> None:
        """A snapshot of an earlier container lies in a slot; its attempt had begun from this checkpoint."""
        self._adopted = whole
        self.began_from[whole.attempt] = began_from

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
        elif self.cadence is not None:
            self._order_next(self.cadence, now)
        if now >= self._retry_at:
            self._save_next(now)
        self._settle_on()

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

    def end(self) -> None:
        """The group is being ended: SIGTERM means leave now."""
        self._party.end()

    # The last boundary.

    def stop(self, lowest: int) -> int:
        """Have all ranks leave together; returns the step after which they do."""
        entered = min(self._board.pulse(index).entered for index in range(self._board.rows))
        if self._order is not None and entered <= self._order.step:
            self._order = None  # not every rank will come to its boundary; else it ends first
        self._stop = self._party.stop(lowest, NONE)
        self._offer_stop()
        return self._stop

    def _offer_stop(self) -> None:
        if self._order is not None or self._stop is None:
            return
        newest = self.slots.newest
        is_there = newest is not None and (newest.attempt, newest.step) == (self.attempt, self._stop)
        if is_there or self.cadence is None or not self.cadence.has_store:
            self._party.give_slot(NO_SNAPSHOT)
            self._order = _Order(self._stop, NO_SNAPSHOT, last=True)
            return
        slot = self.slots.for_last()
        if slot is not None:
            self._order = _Order(self._stop, slot, last=True)
            self._party.give_slot(slot)

    def finish(self, step: int, answer: Callable[[int | None], None]) -> None:
        """All ranks have done their last step; ``answer`` tells them where the last state goes."""
        self._party.clear()
        self._order = None
        self._final = (step, answer)
        self._offer_final()

    def go_on(self) -> None:
        """Another loop begins after the end of one."""
        self._final = self._order = None

    def _offer_final(self) -> None:
        if self._order is not None or self._final is None:
            return
        step, answer = self._final
        newest = self.slots.newest
        if newest is not None and (newest.attempt, newest.step) == (self.attempt, step):
            self._wanted = newest
            self._order = _Order(step, NO_SNAPSHOT, last=True)
            answer(None)
            return
        slot = self.slots.for_last()
        if slot is not None:
            self._order = _Order(step, slot, last=True)
            answer(slot)

    # What the ranks say.

    def taken(self, rank: int, message: Taken, now: float) -> None:
        """A rank has its part of the ordered snapshot."""
        if rank == 0:
            fresh = Whole(attempt=self.attempt, step=message.step, slot=message.slot)
            self._metrics = {whole: known for whole, known in self._metrics.items() if whole.slot != fresh.slot}
            self._metrics[fresh] = message.metrics
        self._answered(rank, message.step, message.slot, message.stall_s, now)

    def missed(self, rank: int, message: NotTaken, now: float) -> None:
        """A rank could not take its part."""
        order = self._order
        if order is not None and (order.step, order.slot) == (message.step, message.slot):
            order.again = order.again or message.soon
            if message.full and message.slot != SPILL:
                self.slots.full.add(message.slot)
                order.again = True
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
                self._party.clear()
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
        if saving:
            self._wanted = newest
        if order.last or now >= self._retry_at:
            self._save_next(now)
        if self.cadence is not None and not order.last and self._stop is None:
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
        if order.last:  # nobody waits for another try
            self._told("save_failed", {"step": order.step, "why": "the last state could not be taken by every rank"})
            return
        if self.cadence is None:
            return
        wanted = order.saved or wants_store(self.cadence, order.step, now)
        self._asked = self._asked or (order.again and wanted)
        self.cadence = dataclasses.replace(self.cadence, taken_at=now)

    # The store.

    def _save_next(self, now: float) -> None:
        if self._wanted is None or self.slots.saving is not None or not self.can_save:
            return
        # While the store was away snapshots went on: the newest is saved, not the one that was wanted then.
        wanted = self.slots.newest
        self._wanted = None
        if wanted is None:
            return
        records = [self._board.record(index, wanted.slot) for index in range(self._board.rows)]
        self.slots.saving = wanted

        def request(number: int) -> Save:
            return Save(
                id=number,
                attempt=wanted.attempt,  # which may have ended meanwhile
                step=wanted.step,
                world_size=self._board.rows,
                began_from=self.began_from.get(wanted.attempt),
                records=tuple(record for record in records if record is not None),
                versions=self.versions,
                determinism=self.determinism,
                metrics=self._metrics.get(wanted, {}),
                rules=self.rules,
            )

        self._ask(request, lambda reply: self._save_answered(wanted, reply, now))

    def _save_answered(self, wanted: Whole, reply: Reply, now: float) -> None:
        self.slots.saving = None
        if isinstance(reply, Saved):
            self.durable_step = max(self.durable_step, reply.step)
            self.slots.saved = wanted
            if self.cadence is not None:
                self.cadence = dataclasses.replace(self.cadence, save_s=reply.seconds)
            self._told(
                "checkpoint",
                {
                    "name": reply.name,
                    "attempt": reply.attempt,
                    "step": reply.step,
                    "seconds": round(reply.seconds, 3),
                    "prune_s": round(reply.prune_s, 3),
                    "size_bytes": reply.size_bytes,
                    "pruned": list(reply.pruned),
                    "not_pruned": list(reply.not_pruned[:MOST_TOLD]),
                },
            )
            self._committed(reply.step)
        elif isinstance(reply, Failed):
            self._told("save_failed", {"step": wanted.step, "why": reply.why})
            if reply.kind == "corrupt":
                self.slots.void(wanted.slot)
            elif self._wanted is None and (not self._settling or (not reply.answered and reply.kind == "internal")):
                # At the end there is time for one thing: another saver, where the one before was killed.
                self._wanted = wanted
                self._retry_at = now + RETRY_S
        self._settle_on()

    def settle(self, now: float) -> None:
        """Make the newest whole snapshot durable, then say what is."""
        self._settling = True
        newest = self.slots.newest
        is_saved = newest is not None and self.slots.saving == newest
        if newest is not None and newest.step > self.durable_step and not is_saved:
            self._wanted = newest
            self._save_next(now)
        self._settle_on()

    def _settle_on(self) -> None:
        if not self._settling or self.slots.saving is not None:
            return
        if self._wanted is not None and self.can_save is not False and self._wanted.step > self.durable_step:
            self._save_next(self._retry_at)
            if not self._settling or self.slots.saving is not None or self._wanted is not None:
                return
        self._settling = False
        self._settled(self.durable_step)


def _is_near(new: float | None, old: float | None) -> bool:
    """Whether one need not be told again."""
    if new is None or old is None:
        return new is old
    return abs(new - old) <= SHOWN_CHANGE * old
