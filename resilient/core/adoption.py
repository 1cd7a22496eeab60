# SPDX-License-Identifier: Apache-2.0
"""Rung 3 of the ladder from memory: which exits leave a snapshot behind, and which snapshot the next container takes.

What a container leaves is of use to the very next one of the same pod, in the same run, and to nobody else: a table of
objections says to whom not, in words for people. Whether its bytes are sound is for those who read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from resilient.core.batch import Batch
from resilient.core.contract_policy import RESTARTED_IN_PLACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What an attempt has been claimed with, whether the store ever heard of that or not."""

    token: str
    began_from: str | None
    """A checkpoint."""
    skipped: tuple[Batch, ...]
    """Batches that it leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A snapshot that outlived its container, as its supervisor has put it on record there."""

    submission: str
    index: int
    pod: str
    """Its uid: a pod that replaces it may have the same name."""
    run: str
    ranks: int
    attempt: int
    step: int
    origin: Origin
    """Of the attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """Who finds it, and what the store says by then."""

    submission: str
    index: int
    pod: str
    run: str
    ranks: int
    fresh_from: int
    """The attempt with which the present history began."""
    claim: str | None
    """The token under which the snapshot's attempt is claimed; ``None``: nobody has."""
    skipped: tuple[Batch, ...]
    """Batches that are on record as left out."""
    newest: tuple[int, int] | None
    """Attempt and step of the newest checkpoint."""


def _places(batches: tuple[Batch, ...]) -> set[tuple[int, ...]]:
    """Which they are: what else is noted of a batch is shortened as others join it."""
    return {(batch.epoch, batch.first, batch.count, batch.before, batch.together) for batch in batches}


def _of_another(what: str) -> Callable[[Kept, Present], str]:
    return lambda kept, present: f"it is that of another {what}"


_OBJECTIONS: Final[tuple[tuple[Callable[[Kept, Present], bool], Callable[[Kept, Present], str]], ...]] = (
    (lambda kept, present: kept.submission != present.submission, _of_another("submission")),
    (lambda kept, present: kept.index != present.index, _of_another("index")),
    (lambda kept, present: kept.pod != present.pod, _of_another("pod")),
    (lambda kept, present: kept.run != present.run, _of_another("run")),
    (
        lambda kept, present: kept.ranks != present.ranks,
        lambda kept, present: f"it was taken by {kept.ranks} ranks, and there are {present.ranks} now",
    ),
    (
        lambda kept, present: kept.attempt < present.fresh_from,
        lambda kept, present: f"a new history has begun with attempt {present.fresh_from}",
    ),
    (
        lambda kept, present: present.claim not in (None, kept.origin.token),
        lambda kept, present: f"attempt {kept.attempt} has been claimed by somebody else",
    ),
    (
        lambda kept, present: not _places(kept.origin.skipped) <= _places(present.skipped),
        lambda kept, present: "it was made without a batch that is not on record as left out",
    ),
    (
        lambda kept, present: present.newest is not None and present.newest > (kept.attempt, kept.step),
        lambda kept, present: "a newer checkpoint is there, of step {1} of attempt {0}".format(*present.newest or ()),
    ),
)
"""The first that holds is told."""


def outlives(code: int) -> bool:
    """Whether the snapshot in memory is left to the container that follows this exit."""
    return code in RESTARTED_IN_PLACE


def objection(kept: Kept, present: Present) -> str | None:
    """Why it is not gone on from, or ``None``."""
    return next((why(kept, present) for holds, why in _OBJECTIONS if holds(kept, present)), None)


def told_adopted(attempt: int | None, step: int | None, why: str | None) -> str:
    """What became of what the container before had left; ``attempt`` is ``None`` where that says nothing of itself."""
    if attempt is None or step is None:
        return f"what the container before had left in memory was not adopted, and is removed: {why}"
    snapshot = f"the snapshot of step {step} of attempt {attempt}, left in memory by the container before"
    return f"adopted {snapshot}" if why is None else f"{snapshot}, was not adopted, and is removed: {why}"


def told_kept(attempt: int, step: int, why: str | None) -> str:
    """What is left to the next container."""
    snapshot = f"the snapshot of step {step} of attempt {attempt}"
    if why is None:
        return f"{snapshot} is left in memory to the next container"
    return f"{snapshot} could not be left in memory to the next container: {why}"
