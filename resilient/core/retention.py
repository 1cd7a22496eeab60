# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint to load first, and which may be deleted; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar


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


C = TypeVar("C", bound=Committed)


def restore_order(checkpoints: Iterable[C]) -> list[C]:
    """The checkpoints in the order in which a restore tries them.

    The attempt counts before the step: a pod that was given up for dead may still write
    later steps of its attempt, and the attempt that replaced it must win over them.
    Of two saves of one step the later try comes first.
    """
    return sorted(checkpoints, key=lambda c: (c.attempt, c.step, len(c.name), c.name), reverse=True)


def prunable(
    checkpoints: Iterable[Committed], *, keep: int, damaged: Collection[str] = (), in_use: Collection[str] = ()
) -> list[str]:
    """Names of the checkpoints that may be deleted, the oldest first.

    ``keep`` counts committed checkpoints that are not known to be damaged; at least one
    stays, whatever ``keep`` says. What is ``in_use`` (being read, or the one from which
    the present attempt began while it has saved nothing itself) stays beside these.
    A damaged one goes only when a good one newer than it exists: it may be all there is.
    """
    order = restore_order(checkpoints)
    good = [c.name for c in order if c.name not in damaged]
    kept = set(good[: max(keep, 1)]) | set(in_use)
    names = [c.name for c in order]
    older = names[names.index(good[0]) :] if good else []
    return [name for name in reversed(older) if name not in kept]
