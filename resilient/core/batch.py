# SPDX-License-Identifier: Apache-2.0
"""Batches by their place in the data: the one that a fault struck, and those that are left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

MOST_SAMPLES: Final = 256
"""Of a batch so many are written down."""
MOST_OUT: Final = 1000
"""Batches that a run may leave out: who has more of them has a data set to correct."""
MOST_NOTED: Final = 8192
"""Samples that are written down of all of these; of the oldest only the numbers stay."""
MOST_CHANCE: Final = 0.05
"""Two batches that have a sample in common tell something only where chance brings that about less often."""
_HIGHEST: Final = 1 << 53
_MOST_COUNT: Final = 1 << 20
_SHOWN: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of an epoch, or several that make up one step. Epochs and batches are counted from 0."""

    epoch: int
    first: int
    """Its number in the epoch, the same on every rank."""
    count: int = 1
    """So many, one after the other."""
    before: int = 0
    """Samples of the epoch that other numbers of ranks had used: numbers of batches count from there."""
    together: int = 0
    """Samples that one batch of every rank makes up, where a DistributedSampler deals them."""
    exact: bool = False
    """The loader can leave it out without fetching it."""
    fetching: bool = False
    """It was being fetched when the fault struck."""
    sample: int | None = None
    """The one sample that the fault is about, where that is known: its index in the data set."""
    samples: tuple[int, ...] = ()
    """Indices of those that the rank had in it, at most ``MOST_SAMPLES``; empty where they are not known."""
    more: int = 0
    """Further ones."""
    of: int = 0
    """Samples that the data set has; 0: not known."""
    size: int = 0
    """Samples that the loader puts into a batch of one rank; 0: not known, or not always as many."""

    def __str__(self) -> str:
        last = self.first + self.count - 1
        which = f"batch {self.first}" if self.count == 1 else f"batches {self.first} to {last}"
        return f"{which} of epoch {self.epoch}{_listed(self)}"

    @property
    def numbers(self) -> range:
        """Of its batches in the epoch."""
        return range(self.first, self.first + self.count)

    @property
    def known(self) -> frozenset[int]:
        """Samples of which one is to blame."""
        return frozenset(self.samples if self.sample is None else (self.sample,))


def is_sound(batch: Batch) -> bool:
    """Whether what somebody wrote down can be a batch."""
    numbers = [value for field in fields(batch) if type(value := getattr(batch, field.name)) is int]
    in_range = all(0 <= number < _HIGHEST for number in (*numbers, *batch.samples))
    return in_range and 1 <= batch.count <= _MOST_COUNT and len(batch.samples) <= MOST_SAMPLES


def same_numbers(one: Batch, other: Batch) -> bool:
    """Whether a number means the same batch to both, as far as is known: of one epoch, and dealt alike."""
    alike = (one.epoch, one.before, one.together) == (other.epoch, other.before, other.together)
    counts = ((one.of, other.of), (one.size, other.size))
    return alike and all(not (mine and theirs) or mine == theirs for mine, theirs in counts)


def same_place(one: Batch, other: Batch) -> bool:
    """Whether both are, or have, the same batch of the same epoch."""
    return same_numbers(one, other) and one.first <= other.numbers[-1] and other.first <= one.numbers[-1]


def dealt_alike(batch: Batch, counts: Iterable[tuple[int, int]]) -> Batch:
    """The batch with the ``of`` and ``size`` that all ranks have; with 0 where they have different ones, by which they
    would not all come to the same."""
    known = tuple(counts)
    of, size = {of for of, _ in known}, {size for _, size in known}
    return replace(batch, of=of.pop() if len(of) == 1 else 0, size=size.pop() if len(size) == 1 else 0)


def shortened(batches: Iterable[Batch]) -> tuple[Batch, ...]:
    """These batches with ``MOST_NOTED`` samples at most, those of the newest, which stand last."""
    left = MOST_NOTED
    kept = []
    for batch in reversed(tuple(batches)):
        noted = batch.samples[:left]
        left -= len(noted)
        kept.append(replace(batch, samples=noted, more=batch.more + len(batch.samples) - len(noted)))
    return tuple(reversed(kept))


def in_common(one: Batch, other: Batch) -> frozenset[int]:
    """Samples that two batches share, beyond what chance would bring about."""
    mine, theirs = one.known, other.known
    # Of batches in random order so many are expected; one that comes whole again is one of all that there are.
    expected = len(mine) if mine == theirs else len(mine) * len(theirs)
    return mine & theirs if expected <= MOST_CHANCE * max(one.of, other.of) else frozenset()


def same_data(one: Batch, other: Batch) -> bool:
    """Whether a fault in both may well be of the same sample."""
    return same_place(one, other) or bool(in_common(one, other))


def narrowed(batch: Batch, other: Batch) -> Batch:
    """The batch with the one sample that it shares with another, where there is exactly one."""
    common = in_common(batch, other)
    return replace(batch, sample=next(iter(common))) if len(common) == 1 else batch


def listed(samples: Iterable[int], more: int = 0) -> str:
    """``3, 17, 544 to 575 and 12 more``."""
    stretches: list[list[int]] = []
    for sample in samples:
        if stretches and sample == stretches[-1][-1] + 1:
            stretches[-1][1:] = [sample]
        else:
            stretches.append([sample])
    said = [" to ".join(map(str, stretch)) for stretch in stretches[:_SHOWN]]
    more += sum(stretch[-1] - stretch[0] + 1 for stretch in stretches[_SHOWN:])
    return ", ".join(said) + (f" and {more} more" if more else "")


def _listed(batch: Batch) -> str:
    if batch.sample is not None:
        return f" (sample {batch.sample})"
    if not batch.samples:
        return ""
    noun = "sample" if len(batch.samples) == 1 and not batch.more else "samples"
    return f" ({noun} {listed(batch.samples, batch.more)})"
