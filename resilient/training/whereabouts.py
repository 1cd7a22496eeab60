# SPDX-License-Identifier: Apache-2.0
"""Where a rank is in its data: as its host reads it off the board, and as its last words tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from resilient.core.batch import MOST_SAMPLES, Batch
from resilient.link.board import (
    BEFORE,
    EPOCH,
    EXACT,
    FETCHES,
    FIRST,
    LAST,
    LOADER,
    OF,
    SIZE,
    TOGETHER,
    Board,
    row_base,
)
from resilient.training.position import Position, Source


class Whereabouts:
    """Says on the board which batch is asked for. On the hot path of a step: two words written, one read."""

    def __init__(self, board: Board, index: int, source: Source) -> None:
        self._board = board
        self._index = index
        self._source = source
        self._words = board.words
        self._first = row_base(index) + FIRST
        self._last = row_base(index) + LAST

    def begin_step(self) -> None:
        """What is asked for from now on belongs to another step."""
        self._words[self._first] = 0

    def begin_epoch(self, position: Position) -> None:
        """Batches are counted from the beginning of this position's epoch."""
        words, base = self._words, row_base(self._index)
        words[self._first] = 0  # the batches of a step that began in the epoch before are not told of
        words[base + EPOCH], words[base + BEFORE] = position.epoch, position.before
        words[base + TOGETHER] = self._source.together
        words[base + OF], words[base + SIZE] = self._source.of, self._source.size
        words[base + LOADER] = EXACT if self._source.exact else FETCHES

    def ask(self, number: int) -> None:
        """This batch of the epoch is fetched."""
        words = self._words
        words[self._last] = number + 1
        if not words[self._first]:
            words[self._first] = number + 1

    def told(self, messages: Sequence[str], *, used: int) -> Batch | None:
        """The batch, with what is in it, that an exception with these messages is about; ``used``: those that came."""
        batch, source = self._board.batch(self._index), self._source
        fetching = batch is not None and self._words[self._last] > used
        if (failed := source.failed(messages, fetching=fetching)) is not None:
            batch = replace(self.batch(failed.number), sample=failed.sample, fetching=True)
        elif batch is not None and fetching:
            batch = replace(self.batch(batch.numbers[-1]), fetching=True)
        if batch is None:
            return None
        samples = [sample for number in batch.numbers[:MOST_SAMPLES] for sample in source.samples(number)]
        more = max(0, len(samples) - MOST_SAMPLES)
        return replace(batch, samples=tuple(samples[:MOST_SAMPLES]), more=more)

    def batch(self, number: int) -> Batch:
        """One of the present epoch."""
        words, base = self._words, row_base(self._index)
        return Batch(
            epoch=words[base + EPOCH],
            first=number,
            before=words[base + BEFORE],
            together=words[base + TOGETHER],
            exact=self._source.exact,
            of=self._source.of,
            size=self._source.size,
        )
