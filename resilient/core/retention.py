# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint to load first, and which may be deleted; pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

METRICS: Final = 64
"""How many a run may have."""
_METRIC: Final = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """Checkpoints that stay because a metric of theirs is the best."""

    metric: str
    lowest: bool
    """Whether less is better."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of a run stays. A checkpoint stays if any of them keeps it."""

    keep: int = 3
    """The newest ones."""
    every: int | None = None
    """The first one at or after each multiple of so many steps."""
    best: Best | None = None


class Committed(Protocol):
    """A checkpoint that has its manifest."""

    @property
    def name(self) -> str:
        """``<attempt>-<step>``, of a later try ``<attempt>-<step>.<try>``."""

    @property
    def attempt(self) -> int:
        """The attempt that saved it."""

    @property
    def step(self) -> int:
        """The step after which it was taken."""


class Measured(Committed, Protocol):
    """A checkpoint that says what its training had measured."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last value of each metric when it was taken."""


C = TypeVar("C", bound=Committed)
M = TypeVar("M", bound=Measured)


def is_metric(name: str) -> bool:
    """Whether a metric may have this name: a letter, then at most 99 of letters, digits and ``_./-``."""
    return _METRIC.fullmatch(name) is not None


def restore_order(checkpoints: Iterable[C]) -> list[C]:
    """The checkpoints in the order in which a restore tries them.

    The attempt counts before the step: a pod that was given up for dead may still write
    later steps of its attempt, and the attempt that replaced it must win over them.
    Of two saves of one step the later try comes first.
    """
    return sorted(checkpoints, key=lambda c: (c.attempt, c.step, len(c.name), c.name), reverse=True)


def prunable(
    checkpoints: Iterable[Measured], rules: Rules, *, damaged: Collection[str] = (), in_use: Collection[str] = ()
) -> list[str]:
    """Names of the checkpoints that may be deleted, the oldest first.

    The rules count committed checkpoints that are not known to be damaged; at least one
    stays, whatever they say. What is ``in_use`` (the one from which the present attempt
    began, while it has saved nothing itself) stays beside these.
    A damaged one goes only when a good one newer than it exists: it may be all there is.
    """
    order = restore_order(checkpoints)
    good = [c for c in order if c.name not in damaged]
    kept = {c.name for c in (*good[: max(rules.keep, 1)], *_milestones(good, rules.every), *_best(good, rules.best))}
    names = [c.name for c in order]
    older = names[names.index(good[0].name) :] if good else []
    return [name for name in reversed(older) if name not in kept and name not in in_use]


def _milestones(order: list[M], every: int | None) -> Iterable[M]:
    """The first at or after each multiple: with a cadence in time hardly any step is a multiple itself."""
    first: dict[int, M] = {}
    for checkpoint in order if every else ():
        number = checkpoint.step // every if every else 0
        if number and (number not in first or checkpoint.step < first[number].step):
            first[number] = checkpoint
    return first.values()


def _best(order: list[M], best: Best | None) -> list[M]:
    """Of several with the same value the earliest: the later ones only repeat what was measured on that."""
    if best is None:
        return []
    first: dict[float, M] = {}
    for checkpoint in order:
        value = checkpoint.metrics.get(best.metric)
        if value is not None and (value not in first or checkpoint.step < first[value].step):
            first[value] = checkpoint
    ranked = sorted(first, reverse=not best.lowest)
    return [first[value] for value in ranked[: best.count]]
