# SPDX-License-Identifier: Apache-2.0
"""Leaving bad batches out: which fault a batch may be to blame for, and how many the user gives up.

A batch is left out by all ranks, as a number of its epoch: none waits in a collective for another, and the step that
it would have made is made with the batch after it. The loader's order is not touched, so that every other batch has
the number, the samples and the random draws that it has without the skip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from resilient.core.batch import Batch, same_numbers, same_place
from resilient.core.causes import Cause, Verdict
from resilient.core.fingerprint import FROM_OUTSIDE, rule_of

MAY_BE_THE_BATCH: Final = frozenset(
    {
        Cause.USER_CODE,
        Cause.USER_DATA,
        Cause.NUMERIC_INSTABILITY,
        Cause.OUT_OF_MEMORY_DEVICE,
        Cause.AMBIGUOUS,
        Cause.FRAMEWORK_BUG,
        Cause.HANG_OR_COLLECTIVE_TIMEOUT,
    }
)
"""Causes behind which one batch can be: not those of the machine, the network, the store or the set-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipping:
    """What the user allows, and what is left out already."""

    allowed: int = 0
    """Batches, by ``skip_bad_batches``."""
    skipped: tuple[Batch, ...] = ()
    """Of this run, the oldest first."""

    @property
    def count(self) -> int:
        """Batches that are left out."""
        return sum(batch.count for batch in self.skipped)


NOTHING_SKIPPED: Final = Skipping()


def is_about_data(verdict: Verdict) -> bool:
    """Whether the batch in which it happened may be why."""
    outside = rule_of(verdict.fingerprint) in FROM_OUTSIDE
    return verdict.cause in MAY_BE_THE_BATCH and not (verdict.ruled or verdict.device_grade or outside)


def objection(verdict: Verdict, skipping: Skipping) -> str | None:
    """Why a batch in which a fault came back stays; empty where nobody asked for another thing, ``None`` if it goes."""
    batch = verdict.batch
    if not skipping.allowed or not is_about_data(verdict):
        return ""
    if batch is None:
        return "no batch can be left out, as which one it was is not known"
    if any(same_place(batch, other) for other in skipping.skipped):
        return "it had been left out already"
    if batch.fetching and not batch.exact:
        return "it cannot be left out, as this loader has to fetch it for that"
    if skipping.count + batch.count > skipping.allowed:
        return f"skip_bad_batches={skipping.allowed} is spent"
    return None


def numbers_left_out(skipped: Iterable[Batch], here: Batch) -> frozenset[int]:
    """Numbers of the batches that are left out of an epoch; ``here`` is one of it, as it is dealt now."""
    return frozenset(number for batch in skipped if same_numbers(batch, here) for number in batch.numbers)


def why_not(batch: Batch, here: Batch) -> str:
    """Why one that is on record stays, where it lies ahead in the epoch of ``here``, the next one; else empty."""
    units = (batch.together or batch.size, here.together or here.size)
    unit, now = units if all(units) else (1, 1)
    is_ahead = batch.before + (batch.numbers[-1] + 1) * unit > here.before + here.first * now
    if batch.epoch != here.epoch or same_numbers(batch, here) or not is_ahead:
        return ""
    if batch.of and here.of and batch.of != here.of:
        return f"the data set has {here.of} samples now, and had {batch.of}"
    if batch.size and here.size and batch.size != here.size:
        return f"a batch is {here.size} samples now, and was {batch.size}"
    return "another number of ranks deals the samples otherwise"


def goes_by(batch: Batch, name: str) -> bool:
    """Whether a person means this batch: by a sample in it, ``560``, or by ``EPOCH/BATCH``, ``2/17``."""
    epoch, slash, number = name.partition("/")
    if not all(part.isdecimal() and len(part) < 18 for part in ((epoch, number) if slash else (epoch,))):
        return False
    if slash:
        return batch.epoch == int(epoch) and int(number) in batch.numbers
    return int(epoch) in batch.known


def name_of(batch: Batch) -> str:
    """What it goes by: its sample where that is known, else its place."""
    return f"{batch.epoch}/{batch.first}" if batch.sample is None else str(batch.sample)
