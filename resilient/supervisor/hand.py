# SPDX-License-Identifier: Apache-2.0
"""What a pod that does not lead does for the first one: with its board, its workers, its slots and its saver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from resilient.checkpoint.requests import Failed, Fetch, Fetched, Judge, Reply, Request, Save
from resilient.core import wire
from resilient.link.board import DESCRIPTORS, SLOTS, Board, row_base
from resilient.link.messages import FROM_HOST, FromWorker
from resilient.supervisor.party import Party
from resilient.supervisor.pod_words import (
    Answered,
    Ask,
    Clear,
    Durable,
    Entered,
    ForWorkers,
    Gate,
    GiveBack,
    GiveSlot,
    Name,
    Rows,
    Said,
    Tell,
    UseSettings,
    Void,
)
from resilient.supervisor.samples import memory_available
from resilient.supervisor.spread import Submit

_SPREAD: Final[Mapping[str, type[Save | Judge | Fetch]]] = {"Save": Save, "Judge": Judge, "Fetch": Fetch}
"""What the memory of all ranks is needed for."""


class Hand:
    """Of one pod."""

    def __init__(
        self,
        board: Board,
        first: int,
        *,
        tell: Callable[[int, object], None],
        submit: Submit,
        give_back: Callable[[int], None],
        use: Callable[[Mapping[str, str]], None],
        durable: Callable[[int], None],
        wake: Callable[[], None],
        say: Callable[..., bool],
    ) -> None:
        """``first`` is the rank of the pod's first worker; ``wake`` has all of them look at the board; ``say`` makes a
        word to pod 0 of a class and its fields."""
        self._board = board
        self._first = first
        self._party = Party(board)
        self._tell = tell
        self._submit = submit
        self._give_back = give_back
        self._use = use
        self._durable = durable
        self._wake = wake
        self._say = say
        self._acted = 0
        self._shown: tuple[int, ...] = ()

    def connected(self) -> None:
        """Pod 0 knows nothing of us yet, or no more."""
        self._acted, self._shown = 0, ()

    def said(self, rank: int, message: FromWorker) -> None:
        """A worker has said something, which is about what its row shows."""
        self.show()
        self._say(Said, rank=self._first + rank, text=wire.encode(message).decode())

    def show(self) -> None:
        """Tell what the rows are, if they have changed."""
        words = self._rows()
        if words != self._shown and self._say(Rows, words=words, acted=self._acted):
            self._shown = words

    def _rows(self) -> tuple[int, ...]:
        """As they were at one moment: a worker may be writing to them."""
        rows = self._board.words[row_base(0) : row_base(self._board.rows)]
        words = tuple(rows)
        while words != (again := tuple(rows)):
            words = again
        return words

    def do(self, word: ForWorkers) -> None:
        """What pod 0 asks for."""
        _DO[type(word)](self, word)

    def _gate(self, word: Gate) -> None:
        step = self._party.block()
        self.show()
        self._say(Entered, gate=word.gate, step=step)

    def _name(self, word: Name) -> None:
        self._party.name(word.step, word.slot, stop=word.stop)
        if word.stop:
            self._wake()

    def _free(self, word: GiveBack) -> None:
        if 0 <= word.slot < DESCRIPTORS:
            self._give_back(word.slot)

    def release(self) -> None:
        """Pod 0 will not name what it had asked for."""
        self._party.name(None, 0, stop=False)

    def _is_ours(self, rank: int) -> bool:
        return 0 <= rank - self._first < self._board.rows

    def _pass_on(self, word: Tell) -> None:
        with contextlib.suppress(ValueError):  # the worker would not know either what is meant
            message = wire.decode(word.text, FROM_HOST)
            if self._is_ours(word.rank):
                self._tell(word.rank - self._first, message)

    def _void(self, word: Void) -> None:
        if self._is_ours(word.rank) and 0 <= word.slot < SLOTS:
            self._board.void(word.rank - self._first, word.slot)
        self._acted, self._shown = word.number, ()
        self.show()

    def _ask(self, word: Ask) -> None:
        request = _request(word.text)
        if request is None:
            why = "pod 0 asks for what is not for this pod to do; this is a bug of resilient, please report it"
            self._answer(word, Failed(id=0, why=why, answered=True, kind="internal"))
            return
        if isinstance(request, Fetch):
            request = replace(request, available_bytes=_less(request.available_bytes, memory_available()))
            for index in range(self._board.rows if request.slot < SLOTS else 0):
                self._board.void(index, request.slot)
        asked: Request = request
        self._submit(lambda number: replace(asked, id=number), lambda reply: self._answer(word, reply))

    def _answer(self, word: Ask, reply: Reply) -> None:
        if isinstance(reply, Fetched):
            for index, record in enumerate(reply.records):
                self._board.publish(index, record)
            self.show()
        self._say(Answered, number=word.number, text=wire.encode(reply).decode())


def _request(text: str) -> Save | Judge | Fetch | None:
    try:
        return wire.decode(text, _SPREAD)
    except ValueError:
        return None


def _less(theirs: int | None, ours: int | None) -> int | None:
    """What may be taken of memory here: pod 0 knows how careful it is, and this pod what it has."""
    known = [value for value in (theirs, ours) if value is not None]
    return min(known, default=None)


_DO: Final[Mapping[type[ForWorkers], Callable[[Hand, Any], None]]] = {
    Tell: Hand._pass_on,
    Gate: Hand._gate,
    Name: Hand._name,
    GiveSlot: lambda hand, word: hand._party.give_slot(word.slot),
    Clear: lambda hand, word: hand._party.clear(),
    Void: Hand._void,
    GiveBack: Hand._free,
    Ask: Hand._ask,
    UseSettings: lambda hand, word: hand._use(word.run),
    Durable: lambda hand, word: hand._durable(word.step),
}
