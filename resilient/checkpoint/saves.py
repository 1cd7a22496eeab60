# SPDX-License-Identifier: Apache-2.0
"""Saves under way, some of which are begun before it is known whether their snapshot holds.

Those files are written while the training goes on towards the optimizer's step, which is where each rank finds
whether its part is what it was. Only then comes the judgement: the manifest is written, or the files are deleted.

One thread performs saves while another hears of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from resilient import retry
from resilient.checkpoint.requests import Judge, Save
from resilient.errors import CheckpointError, StoreError


class Dropped(CheckpointError):
    """A snapshot that was being saved turned out to be no snapshot."""

    kind = "dropped"


class Saves:
    """Those that are asked for and not done."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._judgements: dict[int, _Judgement] = {}
        """By the number of the request."""
        self._performed: _Judgement | None = None
        """Of the one that is being performed."""

    def expect(self, asked: Save) -> None:
        """A save will be performed: from now on it can be judged."""
        self._judgements[asked.id] = _Judgement(asked.ahead)

    def judge(self, asked: Judge) -> None:
        """Say whether what is written ahead, or will be, is a snapshot."""
        for judgement in [*self._judgements.values()]:
            if judgement.number == asked.ahead:
                judgement.give(whole=asked.whole)

    def leave(self) -> None:
        """Nobody judges any more, and nobody waits: no operation is tried again."""
        for judgement in [*self._judgements.values()]:
            judgement.give(whole=False)
            judgement.over.set()

    def check_wanted(self) -> None:
        """Raise :class:`Dropped` where what is being written is of no use: its slot is needed."""
        if self._performed is not None:
            self._performed.check()

    def wait(self, seconds: float) -> None:
        """Until so many seconds have passed, or what is being written is of no use, or nobody waits any more."""
        if (performed := self._performed) is not None:
            performed.over.wait(seconds)

    def perform(
        self, asked: Save, save: Callable[[Callable[[], None]], str], check: Callable[[], None]
    ) -> tuple[str, float]:
        """Make the checkpoint; its name, and the seconds that it took without the wait for the judgement.

        ``save`` is tried until it succeeds, and calls what it is given right before it commits; then ``check`` is
        called, which raises if the run is not ours any more.
        """
        begun_s = self._now()
        waited_s = 0.0
        self._performed = judgement = self._judgements[asked.id]

        def may_commit() -> None:
            nonlocal waited_s
            written_s = self._now()
            judgement.wait()
            waited_s += self._now() - written_s
            check()

        def once() -> str:
            judgement.check()
            return save(may_commit)

        try:
            name = retry.store_save(asked.patience_s, judgement.over, apart_s=lambda: waited_s)(once)
        except StoreError:
            judgement.check()  # that nobody wants it goes before why it could not be had
            raise
        finally:
            self._performed = None
            del self._judgements[asked.id]
        return name, self._now() - begun_s - waited_s


class _Judgement:
    """Whether every rank has found its part of a snapshot unchanged. The first word counts."""

    def __init__(self, number: int | None) -> None:
        """``number``: under which it will be given; ``None`` where that is known."""
        self.number = number
        self.over = threading.Event()
        """Set when no operation is to be tried again."""
        self._known = threading.Event()
        self._whole = False
        if number is None:
            self.give(whole=True)

    def give(self, *, whole: bool) -> None:
        if not self._known.is_set():
            self._whole = whole
            self._known.set()
            if not whole:
                self.over.set()

    def check(self) -> None:
        """Raise if it is known to be none."""
        if self._known.is_set() and not self._whole:
            raise Dropped("cannot save a snapshot: it was dropped while it was being written; the next one is saved")

    def wait(self) -> None:
        """Return once it is known to be one; raise once it is known to be none."""
        self._known.wait()
        self.check()
