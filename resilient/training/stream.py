# SPDX-License-Identifier: Apache-2.0
"""Endless batches from a source, epoch after epoch, less those that are left out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from resilient.core.batch import MOST_SAMPLES, Batch
from resilient.core.skipping import numbers_left_out, why_not
from resilient.errors import SettingsError
from resilient.link.board import Board
from resilient.training import rng
from resilient.training.position import Position, Source, Tree
from resilient.training.signals import leaving_later
from resilient.training.whereabouts import Whereabouts

_GONE: Final = object()


@functools.cache
def _unseen() -> Board:
    """The board of streams that no host looks at."""
    return Board.create(1)


class Stream:
    """Batches, and the position in them."""

    def __init__(
        self,
        source: Source,
        position: Position,
        *,
        skipped: Sequence[Batch] = (),
        board: tuple[Board, int] | None = None,
        say: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``board``, and our row of it, show where we are; ``say`` is told what is left out here, and ``warn`` what no
        rank leaves out although it is on record."""
        self._source = source
        self._begun = position
        """Where the epoch was begun by this process."""
        self._used = position.used
        self._epoch: Iterator[Any] | None = None
        self._torn = False
        """Its iterator has ended, or stands behind a batch that failed: whoever comes again begins there anew."""
        self._skipped = tuple(skipped)
        self._out: frozenset[int] = frozenset()
        """Numbers of this epoch's batches that are left out."""
        self._say = say
        self._warn = warn
        self._warned: set[Batch] = set()
        self.where = Whereabouts(*(board or (_unseen(), 0)), source)

    def position(self) -> Position:
        """Where a run that is interrupted now has to go on."""
        if self._used == self._begun.used:
            return self._begun
        return replace(self._begun, used=self._used, **self._source.found())

    def next(self, now: Tree | None) -> Any:
        """The next batch; ``now``, where given, is what the generators are put to before it is fetched."""
        ask = self.where.ask
        if self._torn:
            self._let_go()
        while True:
            if self._epoch is None:
                self._epoch = self._open(now)
                now = None
            number = self._used
            while number in self._out:
                number += 1
            ask(number)
            try:
                batch = next(self._epoch, _GONE) if number == self._used else self._beyond(number)
            except BaseException:
                self._torn = True
                raise
            if batch is not _GONE:
                self._used = number + 1
                return batch
            if not number and not self._begun.before:
                raise SettingsError("cannot train: the loader gives no batch; check data set, batch size, drop_last")
            epoch = self._begun.epoch + 1
            self._begun, self._used = replace(self._begun, epoch=epoch, used=0, before=0, start=None, own=None), 0
            self._let_go()

    def told(self, messages: Sequence[str]) -> Batch | None:
        """The batch that an exception with these messages, of itself and of its causes, is about."""
        return self.where.told(messages, used=self._used)

    def _open(self, now: Tree | None) -> Iterator[Any]:
        begun = self._begun = self.position()
        source = self._source
        if now is None and self._used:
            now = rng.capture()  # this process has left the epoch before, and comes back to it
        self.where.begin_epoch(begun)
        here = self.where.batch(self._used)
        self._out = numbers_left_out(self._skipped, here)
        for batch in self._skipped:
            if batch not in self._warned and (why := why_not(batch, here)):
                self._warned.add(batch)
                self._warn(
                    f"{batch} is not left out: {why}, so that other samples go by its number; take what is bad out of "
                    "the data, or raise skip_bad_batches, as it counts anew where it comes back"
                )
        return source.open(begun, now, self._out)

    def _beyond(self, number: int) -> Any:
        """The batch of this number, behind those that are left out."""
        assert self._epoch is not None, "an epoch that is open"
        left_out = range(self._used, number)
        for _ in left_out if not self._source.exact else ():
            next(self._epoch, None)
        batch = next(self._epoch, _GONE)
        for each in left_out:
            samples = self._source.samples(each)
            named = replace(
                self.where.batch(each), samples=samples[:MOST_SAMPLES], more=max(0, len(samples) - MOST_SAMPLES)
            )
            self._say(f"left out {named}" + ("" if self._source.exact else ", once it had been fetched"))
        return batch

    def close(self) -> None:
        """Let go of the iterator and its workers."""
        self._source.close()
        self._let_go()

    def _let_go(self) -> None:
        with leaving_later():  # a DataLoader's iterator waits for its workers where it is finalized
            self._epoch, self._torn = None, False
