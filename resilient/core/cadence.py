# SPDX-License-Identifier: Apache-2.0
"""When the next snapshot is due, and which one is made durable.

A cadence is a number of steps, a time, or automatic. Step cadences name the next multiple, so
that ``every=100`` means 100, 200, ..., or the first snapshot after one that went by; time
cadences name the first boundary that all ranks can reach. An automatic one is a time that
follows from what saving costs, how often the run fails and how long it takes to come back:
see :mod:`resilient.core.interval`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from resilient.core.interval import aupy, mttf

OVERHEAD_CAP: Final = 0.035
"""Share of training time that snapshots may cost: the cap of CheckFreq (FAST '21), 3.5 %."""
SHORTEST_S: Final = 0.05
"""No cadence of time is shorter: the host looks at the board about that often."""
SAVING_SHARE: Final = 0.1
"""What a second of saving in the background is taken to cost the training, which it takes memory bandwidth and storage
from: an assumption, as the steps themselves vary more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """So many steps, or so many seconds; exactly one of them."""

    steps: int | None = None
    seconds: float | None = None


NEVER: Final = Every(seconds=float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """What has been asked for, what was measured, and when it was last done."""

    durable: Every | None
    """``None``: automatic; and so for ``memory``."""
    memory: Every | None = None
    has_store: bool = False
    stall_s: float = 0.0
    """What a snapshot was measured to cost."""
    save_s: float = 0.0
    """How long it was measured to take until one was durable."""
    recovery_s: float = 0.0
    """How long it was measured to take until training went on."""
    failures: int = 0
    """Which the run had in ``ran_s``."""
    ran_s: float = 0.0
    """For how long it has trained by the last snapshot."""
    taken_at: float = 0.0
    """When the last snapshot was taken (or training began)."""
    saved_at: float = 0.0
    """When the last snapshot that went to the store was taken (or training began)."""
    saved_step: int = 0
    """Its step (or the one that training began from)."""

    def took(self, step: int, now: float, stall_s: float, *, saving: bool) -> Cadence:
        """A snapshot was taken."""
        ran_s = self.ran_s + max(0.0, now - self.taken_at)
        saved_at, saved_step = (now, step) if saving else (self.saved_at, self.saved_step)
        return replace(self, taken_at=now, stall_s=stall_s, saved_at=saved_at, saved_step=saved_step, ran_s=ran_s)

    @property
    def mttf_s(self) -> float:
        """Mean time to failure, as far as it is known."""
        return mttf(self.failures, self.ran_s)

    @property
    def memory_s(self) -> float:
        """The automatic time between snapshots."""
        return max(SHORTEST_S, aupy(self.mttf_s, self.stall_s, self.recovery_s), self.stall_s / OVERHEAD_CAP)

    @property
    def durable_s(self) -> float:
        """The automatic time between checkpoints; one is never begun before the one before is durable."""
        cost_s = self.stall_s + SAVING_SHARE * self.save_s
        return max(SHORTEST_S, aupy(self.mttf_s, cost_s, self.recovery_s), cost_s / OVERHEAD_CAP, self.save_s)


def target(cadence: Cadence, entered: int, now: float) -> int | None:
    """The boundary to name, given the highest step that any rank has entered; ``None``: nothing is due yet."""
    wanted = [_target(_memory(cadence), cadence.taken_at, entered, now)]
    if cadence.has_store:
        wanted.append(_target(_durable(cadence), cadence.saved_at, entered, now))
    due = [step for step in wanted if step is not None]
    return min(due) if due else None


def wants_store(cadence: Cadence, step: int, now: float) -> bool:
    """Whether the snapshot of ``step`` is to be made durable."""
    if not cadence.has_store:
        return False
    durable = _durable(cadence)
    if durable.steps is not None:
        # At a multiple, or after one that went by while a snapshot for memory alone was taken.
        return step // durable.steps > cadence.saved_step // durable.steps
    return now - cadence.saved_at >= (durable.seconds or 0.0)


def _memory(cadence: Cadence) -> Every:
    return Every(seconds=cadence.memory_s) if cadence.memory is None else cadence.memory


def _durable(cadence: Cadence) -> Every:
    return Every(seconds=cadence.durable_s) if cadence.durable is None else cadence.durable


def _target(every: Every, last: float, entered: int, now: float) -> int | None:
    first = max(entered, 1)
    if every.steps is not None:
        return -(-first // every.steps) * every.steps
    return first if now - last >= max(SHORTEST_S, every.seconds or 0.0) else None
