# SPDX-License-Identifier: Apache-2.0
"""The host's hand on the board: naming one boundary for all ranks (see :mod:`resilient.link.board`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from resilient.link.board import ATTENTION, END, NONE, NOTHING, PENDING, SNAPSHOT_SLOT, SNAPSHOT_STEP, STOP_STEP, Board

NO_SNAPSHOT: Final = -2
"""Value of ``SNAPSHOT_SLOT`` that says: leave without one."""
Choose = Callable[[int], int | None]
_VISIBLE_S: Final = 0.001
"""Far longer than any processor keeps a store to itself; there is nothing to wait on but time."""


class Party:
    """Names boundaries. One at a time: a new order replaces one that is still outstanding."""

    def __init__(self, board: Board, settle: Callable[[], None] = lambda: time.sleep(_VISIBLE_S)) -> None:
        self._words = board.words
        self._board = board
        self._settle = settle

    def snapshot(self, choose: Callable[[int], int | None], slot: int) -> int | None:
        """Order a snapshot into ``slot`` at the boundary that ``choose`` picks, given the highest step entered."""
        return self._name(choose, slot, stop=False)

    def stop(self, lowest: int, slot: int) -> int:
        """Order all ranks to leave at the first boundary they can all reach; ``slot`` may still be ``NONE``."""
        step = self._name(lambda entered: max(entered, lowest), slot, stop=True)
        assert step is not None, "a stop always has a boundary"
        return step

    def give_slot(self, slot: int) -> None:
        """Name the slot of a stop that was ordered without one; ``NO_SNAPSHOT``: leave without."""
        self._words[SNAPSHOT_SLOT] = slot

    def clear(self) -> None:
        """The order is carried out, or dropped; whoever is blocked stays so."""
        if not self._words[PENDING]:
            self._attend(NOTHING)
        self._words[SNAPSHOT_STEP] = self._words[SNAPSHOT_SLOT] = NONE

    def end(self) -> None:
        """From now on SIGTERM means: leave, wherever you are."""
        self._words[END] = 1

    def _attend(self, step: int) -> None:
        # At the end a worker that could not leave where it was signalled has every boundary looked at.
        self._words[ATTENTION] = 0 if self._words[END] else step

    def block(self) -> int:
        """Let nobody past a boundary until :meth:`name`; the highest step that somebody has entered."""
        self._words[PENDING] = 1
        self._words[ATTENTION] = 0
        self._settle()
        return max(self._board.pulse(index).entered for index in range(self._board.rows))

    def name(self, step: int | None, slot: int, *, stop: bool) -> None:
        """Name the boundary that all go to, or none, and let them go on."""
        words = self._words
        if step is not None:
            words[SNAPSHOT_STEP], words[SNAPSHOT_SLOT] = step, slot
            if stop:
                words[STOP_STEP] = step
        self._attend(NOTHING if step is None else step)
        words[PENDING] = 0

    def _name(self, choose: Callable[[int], int | None], slot: int, *, stop: bool) -> int | None:
        step = choose(self.block())
        self.name(step, slot, stop=stop)
        return step


class Orders(Protocol):
    """Naming boundaries where the workers of other pods may have to be asked first: ``then`` is told, at once or later,
    and not at all if the attempt ends before."""

    def snapshot(self, choose: Choose, slot: int, then: Callable[[int | None], None]) -> None:
        """As :meth:`Party.snapshot`."""

    def stop(self, lowest: int, slot: int, then: Callable[[int], None]) -> None:
        """As :meth:`Party.stop`."""

    def give_slot(self, slot: int) -> None:
        """As :meth:`Party.give_slot`."""

    def clear(self) -> None:
        """As :meth:`Party.clear`."""

    def end(self) -> None:
        """As :meth:`Party.end`."""

    def forget(self) -> None:
        """New workers: nothing is ordered, and nobody is asked any more."""


class OneParty:
    """All workers are this pod's."""

    def __init__(self, board: Board) -> None:
        self._party = Party(board)
        self._board = board
        self.give_slot = self._party.give_slot
        self.clear = self._party.clear
        self.end = self._party.end

    def snapshot(self, choose: Choose, slot: int, then: Callable[[int | None], None]) -> None:
        """Name it, and say so."""
        then(self._party.snapshot(choose, slot))

    def stop(self, lowest: int, slot: int, then: Callable[[int], None]) -> None:
        """Name it, and say so."""
        then(self._party.stop(lowest, slot))

    def forget(self) -> None:
        """Nothing is ordered."""
        self._board.clear_orders()
