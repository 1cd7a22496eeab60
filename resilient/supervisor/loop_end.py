# SPDX-License-Identifier: Apache-2.0
"""Where a loop ends: ranks come to it one by one, and what each waits for there is decided once all have, or cannot."""

from __future__ import annotations

from collections.abc import Callable


class LoopEnd:
    """The end of one loop of an attempt; a script may have several."""

    def __init__(self, ranks: int, *, together: Callable[[int], None], apart: Callable[[], None]) -> None:
        """``together`` is called once all ranks are there with the same step, and ``apart`` once that cannot be."""
        self._ranks = ranks
        self._together = together
        self._apart = apart
        self._reached: dict[int, int] = {}
        """The step that each rank has come with."""
        self._gone: set[int] = set()
        self._released = False

    def launched(self) -> None:
        """A new attempt: nobody is there yet."""
        self._reached.clear()
        self._gone.clear()
        self._released = False

    @property
    def begun(self) -> bool:
        """A rank has done all steps: the others do so as well, and no boundary is left."""
        return bool(self._reached)

    def begin_loop(self, rank: int) -> bool:
        """A rank begins a loop, and with it leaves the end of the one before; True where nobody is left there."""
        if self._reached.pop(rank, None) is None or self._reached:
            return False
        self._released = False
        return True

    def reached(self, rank: int, step: int) -> None:
        """A rank has done all steps, ``step`` being the last."""
        self._reached[rank] = step
        if list(self._reached.values()) == [step] * self._ranks:
            self._together(step)
        else:
            self._release_the_rest()

    def left(self, rank: int) -> None:
        """A worker ended with 0: a last state of all ranks will not come any more."""
        self._gone.add(rank)
        self._release_the_rest()

    def _release_the_rest(self) -> None:
        incomplete = 0 < len(self._reached) < self._ranks
        if incomplete and len(self._reached.keys() | self._gone) == self._ranks and not self._released:
            self._released = True
            self._apart()
