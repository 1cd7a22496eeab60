# SPDX-License-Identifier: Apache-2.0
"""The workers of all pods as pod 0 has them: their rows as if they were on its own board, boundaries that all go to,
and words from and to each. What lies behind is told by the pod that has them."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from resilient.core import wire
from resilient.core.batch import Batch
from resilient.link.board import ROW, SLOT_WORDS, Board, Pulse, SlotRecord, row_base
from resilient.link.messages import FROM_WORKER, FromWorker
from resilient.supervisor.party import Choose, Party
from resilient.supervisor.pod_words import (
    LEADER,
    Answered,
    Clear,
    Entered,
    Gate,
    GiveSlot,
    Name,
    OfWorkers,
    Rows,
    Said,
    Tell,
    Void,
)
from resilient.supervisor.spread import Spread, Submit

Say = Callable[[int, object], None]
"""A word to one pod."""
Pods = Callable[[], Collection[int]]
"""Those that are there, without our own."""


class WorldBoard(Board):
    """The rows of the own workers where they are, and a copy of all others."""

    @classmethod
    def over(cls, local: Board, pods: int, say: Say) -> WorldBoard:
        """For ``pods`` with as many workers as ``local`` has rows."""
        made = cls.create(local.rows * pods)
        made._local = local
        made._say = say
        made._voids = dict.fromkeys(range(1, pods), 0)
        return made

    def __init__(self, fd: int, rows: int) -> None:
        super().__init__(fd, rows)
        self._local: Board = self
        self._say: Say = lambda pod, word: None
        self._voids: dict[int, int] = {}
        """How many slots each pod was told to void."""

    def pod_of(self, index: int) -> int:
        """Where a rank has its worker."""
        return index // self._local.rows

    def _is_here(self, index: int) -> bool:
        return index < self._local.rows and self._local is not self

    def mirror(self, pod: int, words: Sequence[int], acted: int) -> None:
        """Take over what a pod says of its rows; a slot that it does not know yet to be void stays void."""
        per_row = ROW if acted >= self._voids[pod] else SLOT_WORDS
        first = row_base(pod * self._local.rows)
        for base in range(0, len(words), ROW):
            self.words[first + base : first + base + per_row] = array("q", words[base : base + per_row])

    def forget(self, pod: int) -> None:
        """It is gone, with all that its workers had."""
        self.mirror(pod, [0] * (ROW * self._local.rows), self._voids[pod])

    def pulse(self, index: int) -> Pulse:
        return self._local.pulse(index) if self._is_here(index) else super().pulse(index)

    def batch(self, index: int) -> Batch | None:
        return self._local.batch(index) if self._is_here(index) else super().batch(index)

    def counts(self) -> list[tuple[int, int]]:
        return [*self._local.counts(), *super().counts()]

    def record(self, index: int, slot: int, *, judged: bool = True) -> SlotRecord | None:
        if self._is_here(index):
            return self._local.record(index, slot, judged=judged)
        return super().record(index, slot, judged=judged)

    def void(self, index: int, slot: int) -> None:
        if self._is_here(index):
            self._local.void(index, slot)
            return
        super().void(index, slot)
        pod = self.pod_of(index)
        self._voids[pod] += 1
        self._say(pod, Void(pod=0, address=LEADER, number=self._voids[pod], rank=index, slot=slot))

    def publish(self, index: int, record: SlotRecord, *, judged: bool = True) -> None:
        if self._is_here(index):
            self._local.publish(index, record, judged=judged)
        else:
            super().publish(index, record, judged=judged)

    def reset_rows(self) -> None:
        self._local.reset_rows()
        super().reset_rows()


@dataclass(frozen=True, slots=True)
class _Order:
    """One boundary that is to be named."""

    choose: Choose
    slot: int
    stop: bool
    then: Callable[[int | None], None]


class WorldOrders:
    """Names boundaries over all pods, one after the other: each pod is asked to let nobody past one and to say how far
    its workers are; then all are told the one that all can reach. Meanwhile whoever comes to a boundary waits."""

    def __init__(self, local: Board, say: Say, pods: Pods) -> None:
        self._party = Party(local)
        self._local = local
        self._say = say
        self._pods = pods
        self._waiting: deque[_Order] = deque()
        self._gate = 0
        self._asked: set[int] = set()
        self._highest = 0
        self._busy = False

    def snapshot(self, choose: Choose, slot: int, then: Callable[[int | None], None]) -> None:
        """Name the boundary of a snapshot."""
        self._order(_Order(choose, slot, False, then))

    def stop(self, lowest: int, slot: int, then: Callable[[int], None]) -> None:
        """Name the one at which all leave."""

        def named(step: int | None) -> None:
            assert step is not None, "a stop always has a boundary"
            then(step)

        self._order(_Order(lambda entered: max(entered, lowest), slot, True, named))

    def give_slot(self, slot: int) -> None:
        self._party.give_slot(slot)
        self._tell(GiveSlot(pod=0, address=LEADER, slot=slot))

    def clear(self) -> None:
        self._party.clear()
        self._tell(Clear(pod=0, address=LEADER))

    def end(self) -> None:
        """The group is being ended: nobody is waited for, and nobody waits."""
        self._stop_asking()
        self._party.end()

    def forget(self) -> None:
        self._stop_asking()
        self._local.clear_orders()

    def _stop_asking(self) -> None:
        if self._busy:
            self._party.name(None, 0, stop=False)
        self._waiting.clear()
        self._busy = False

    def _order(self, order: _Order) -> None:
        self._waiting.append(order)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        if not self._waiting:
            return
        self._busy = True
        self._gate += 1
        self._asked = {*self._pods()}
        self._tell(Gate(pod=0, address=LEADER, gate=self._gate))
        self._highest = self._party.block()
        self._look()

    def entered(self, pod: int, word: Entered) -> None:
        """A pod has said how far its workers are."""
        if self._busy and word.gate == self._gate and pod in self._asked:
            self._asked.discard(pod)
            self._highest = max(self._highest, word.step)
            self._look()

    def _look(self) -> None:
        if self._asked:
            return
        order = self._waiting.popleft()
        step = order.choose(self._highest)
        self._busy = False
        self._tell(Name(pod=0, address=LEADER, step=step, slot=order.slot, stop=order.stop))
        self._party.name(step, order.slot, stop=order.stop)
        order.then(step)
        if not self._busy:
            self._next()

    def _tell(self, word: object) -> None:
        for pod in self._pods():
            self._say(pod, word)


class World:
    """All of it, for one supervisor."""

    def __init__(
        self,
        local: Board,
        count: int,
        *,
        say: Say,
        pods: Pods,
        submit: Submit,
        heard: Callable[[int, FromWorker], None],
    ) -> None:
        self._say = say
        self._heard = heard
        self.board = WorldBoard.over(local, count, say)
        self.orders = WorldOrders(local, say, pods)
        self.spread = Spread(count, say=say, pods=pods, submit=submit)

    def tell(self, rank: int, message: object) -> None:
        """A word to a worker of another pod."""
        text = wire.encode(message).decode()
        self._say(self.board.pod_of(rank), Tell(pod=0, address=LEADER, rank=rank, text=text))

    def hear(self, pod: int, ranks: range, word: OfWorkers) -> bool:
        """What a pod says of its workers; False where that makes no sense."""
        match word:
            case Rows() if len(word.words) == ROW * len(ranks) and all(_fits(number) for number in word.words):
                self.board.mirror(pod, word.words, word.acted)
            case Said() if word.rank in ranks:
                try:
                    message = wire.decode(word.text, FROM_WORKER)
                except ValueError:
                    return False
                self._heard(word.rank, message)
            case Entered() if 0 <= word.step < _LARGEST >> 1:
                self.orders.entered(pod, word)
            case Answered():
                self.spread.answered(pod, word)
            case _:
                return False
        return True

    def lost(self, pod: int) -> None:
        """A pod is gone."""
        self.board.forget(pod)
        self.spread.lost(pod)

    def close(self) -> None:
        """Let go of the copy."""
        self.board.close()


_LARGEST: Final = (1 << 63) - 1


def _fits(word: int) -> bool:
    return -_LARGEST - 1 <= word <= _LARGEST
