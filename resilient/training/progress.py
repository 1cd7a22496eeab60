# SPDX-License-Identifier: Apache-2.0
"""The step counter and the heartbeat: the hot path of a step, and nothing else."""

from __future__ import annotations

import functools
import inspect
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar

from resilient.core.grammar import with_article
from resilient.errors import ResilientError, SettingsError
from resilient.link import board as words_of
from resilient.link.board import ATTENTION, OUTSIDE, STEP, Board, row_base

P = ParamSpec("P")
R = TypeVar("R")

_OPEN: Final = 0
_INSIDE: Final = 1
"""Inside a step."""
_TAKEN: Final = 2
"""The step of this batch is done; the next needs the next batch."""
_FORKED: Final = 3
_UNBEGUN: Final = 4
"""Nothing was done since the restore; something is to be done right before the first step."""


class Progress:
    """Counts the steps of one run in this process and tells the board; all decorated functions share one counter."""

    def __init__(
        self,
        board: Board,
        index: int,
        *,
        begin: Callable[[], None],
        boundary: Callable[[int], None],
        fence: list[Callable[[], None] | None],
    ) -> None:
        """``fence`` has one element: what is called at the end of a step, if anything is."""
        self._words = board.words
        self._base = row_base(index)
        self._begin = begin
        self._act = boundary
        # One-element lists: the decorated function's closure reads and writes them without an attribute lookup.
        self._count = [0]
        self._gate = [_UNBEGUN]
        self._place = [OUTSIDE]
        self._driven = [False]
        self._fence = fence
        self.decorated = False
        self._left_after: int | None = None
        """Steps that were complete when one was left by ``SystemExit``."""
        _alive.add(self)

    def open(self) -> None:
        """Show the host that this worker has a heartbeat."""
        words, base = self._words, self._base
        words[base + words_of.SINCE_NS] = time.monotonic_ns()
        words[base + words_of.PLACE] = OUTSIDE
        words[base + words_of.OPEN] = 1

    @property
    def done(self) -> int:
        """Steps completed."""
        return self._count[0]

    @property
    def entered(self) -> int:
        """The step that was entered last."""
        return max(self._count[0], self._words[self._base + words_of.ENTERED])

    @property
    def driven(self) -> bool:
        """Whether a loop over ``run.batches`` is going on."""
        return self._driven[0]

    def resume(self, step: int) -> None:
        """Count on from a restored step."""
        self._count[0] = step
        self._words[self._base + words_of.DONE] = step
        self._words[self._base + words_of.ENTERED] = step

    def drive(self, by_batches: bool) -> None:
        """Say whether ``run.batches`` or the decorated call passes the boundaries."""
        self._driven[0] = by_batches
        self._words[self._base + words_of.LOOPING] = int(by_batches)
        if self._gate[0] == _TAKEN:
            self._gate[0] = _OPEN

    def pass_boundary(self) -> None:
        """Between two steps: publish the step to be entered, then look whether the host wants something here."""
        words, step = self._words, self._count[0]
        words[self._base + words_of.ENTERED] = step + 1
        if words[ATTENTION] <= step:
            self._act(step)
        self._gate[0] = _OPEN

    def finish(self) -> None:
        """All steps are done."""
        self.rest(words_of.FINISHED)

    def leave(self) -> None:
        """The interpreter ends in an orderly way: a loop that was left with ``break`` is over, one left out of the
        middle of a step is not, whatever the exit code says."""
        if self._gate[0] == _FORKED:
            return
        if self._left_after == self._count[0]:
            self._show(STEP)
        else:
            self._words[self._base + words_of.LOOPING] = 0

    def rest(self, place: int) -> int:
        """Where the worker is from now on when it is not in a step; gives where it was."""
        before, self._place[0] = self._place[0], place
        if self._gate[0] != _INSIDE:
            self._show(place)
        return before

    def _show(self, place: int) -> None:
        self._words[self._base + words_of.SINCE_NS] = time.monotonic_ns()
        self._words[self._base + words_of.PLACE] = place

    @contextmanager
    def phase(self, number: int) -> Iterator[None]:
        """The worker is in a named phase, also from within a step."""
        inside = self._gate[0] == _INSIDE
        before = self.rest(words_of.PHASE + number)
        if inside:
            self._show(words_of.PHASE + number)
        try:
            yield
        finally:
            self.rest(before)
            if inside:
                self._show(STEP)

    def wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function`` as a step. Three clock-and-word writes; measured by ``benchmarks/step_overhead.py``."""
        _refuse(function)
        self.decorated = True
        words, count, gate, place, driven = self._words, self._count, self._gate, self._place, self._driven
        at_place, at_since, at_done = (self._base + n for n in (words_of.PLACE, words_of.SINCE_NS, words_of.DONE))
        clock, passing, record, fence = time.monotonic_ns, self.pass_boundary, self._record, self._fence
        longest = 0

        @functools.wraps(function)
        def step(*args: P.args, **kwargs: P.kwargs) -> R:
            nonlocal longest
            if gate[0]:
                self._unlock()
            if not driven[0]:
                passing()
            gate[0] = _INSIDE
            words[at_since] = begun = clock()
            words[at_place] = STEP
            try:
                result = function(*args, **kwargs)
                if fence[0] is not None:
                    fence[0]()  # no optimizer stepped, and what follows may change the state by hand
            except BaseException as error:
                gate[0] = _OPEN
                self._show(place[0])
                if isinstance(error, SystemExit):
                    self._left_after = count[0]
                raise
            count[0] = done = count[0] + 1
            words[at_done] = done
            words[at_since] = ended = clock()
            words[at_place] = place[0]
            if ended - begun > longest:
                longest = record(ended - begun)
            gate[0] = _TAKEN if driven[0] else _OPEN
            return result

        return step

    def _record(self, took: int) -> int:
        """A step took longer than those before. The first of a process compiles and allocates, so it stands apart."""
        words, base = self._words, self._base
        if not words[base + words_of.FIRST_NS]:
            words[base + words_of.FIRST_NS] = took
            return 0
        words[base + words_of.LONGEST_NS] = max(took, words[base + words_of.LONGEST_NS])
        return words[base + words_of.LONGEST_NS]

    def _unlock(self) -> None:
        """Open the gate for the first step; any other closed gate is an error."""
        if self._gate[0] == _UNBEGUN:
            self._begin()
            return
        reason = {
            _INSIDE: "one decorated function was called inside another; decorate the outer one only",
            _TAKEN: "a step was made for this batch already; make one decorated function that does all of it",
            _FORKED: "this process was forked from the worker that owns the run; call it in the worker only",
        }[self._gate[0]]
        raise ResilientError(f"cannot begin a step: {reason}")

    def _disown(self) -> None:
        self._gate[0] = _FORKED
        self._fence[0] = None  # what is copied here is copied in the worker


_alive: weakref.WeakSet[Progress] = weakref.WeakSet()


def _after_fork() -> None:
    for progress in _alive:
        progress._disown()


os.register_at_fork(after_in_child=_after_fork)


def _refuse(function: object) -> None:
    name = getattr(function, "__name__", type(function).__name__)
    if not callable(function):
        raise SettingsError(f"cannot decorate {with_article(name)}: it is no function; write @run.step above yours")
    lazy = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_lazy(function) for is_lazy in lazy):
        raise SettingsError(f"cannot decorate {name}: calling it does not yet run it; decorate a plain function")
