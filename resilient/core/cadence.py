# SPDX-License-Identifier: Apache-2.0
"""When the next snapshot is due, and which one is made durable.

A cadence is a number of steps or a time. Step cadences name the next multiple, so
that ``every=100`` means 100, 200, ...; time cadences name the first boundary that
all ranks can reach. ``snapshot_every`` not given means as often as its cost allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

OVERHEAD_CAP: Final = 0.035
"""Share of training time that snapshots may cost: the cap of CheckFreq (FAST '21), 3.5 %."""
SHORTEST_S: Final = 0.05
"""No cadence of time is shorter: the host looks at the board about that often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """So many steps, or so many seconds; exactly one of them."""

    steps: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """What has been asked for, and when it was last done."""

    durable: Every
    memory: Every | None = None
    has_store: bool = False
    stall_s: float = 0.0
    """What a snapshot was measured to cost."""
    taken_at: float = 0.0
    """When the last snapshot was taken (or training began)."""
    saved_at: float = 0.0
    """When the last snapshot that went to the store was taken (or training began)."""

    def took(self, now: float, stall_s: float, *, saving: bool) -> Cadence:
        return replace(self, taken_at=now, stall_s=stall_s, saved_at=now if saving else self.saved_at)


def target(cadence: Cadence, entered: int, now: float) -> int | None:
    """The boundary to name, given the highest step that any rank has entered; ``None``: nothing is due yet."""
    if cadence.memory is not None:
        wanted = [_target(cadence.memory, cadence.taken_at, entered, now)]
    else:
        wanted = [_automatic(cadence, entered, now)]
    if cadence.has_store:
        wanted.append(_target(cadence.durable, cadence.saved_at, entered, now))
    due = [step for step in wanted if step is not None]
    return min(due) if due else None


def wants_store(cadence: Cadence, step: int, now: float) -> bool:
    """Whether the snapshot of ``step`` is to be made durable."""
    if not cadence.has_store:
        return False
    if cadence.durable.steps is not None:
        return step % cadence.durable.steps == 0
    return now - cadence.saved_at >= (cadence.durable.seconds or 0.0)


def _target(every: Every, last: float, entered: int, now: float) -> int | None:
    if every.steps is not None:
        first = max(entered, 1)
        return -(-first // every.steps) * every.steps
    return entered if now - last >= max(SHORTEST_S, every.seconds or 0.0) else None


def _automatic(cadence: Cadence, entered: int, now: float) -> int | None:
    pause = max(SHORTEST_S, cadence.stall_s / OVERHEAD_CAP)
    return max(entered, 1) if now - cadence.taken_at >= pause else None
