# SPDX-License-Identifier: Apache-2.0
"""What can happen to a job, as the supervisor's state machine hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient.core.debit import Debit as Debit
from resilient.core.denied import Denial
from resilient.core.evidence import Evidence, Hang, Past
from resilient.core.policy import Decision
from resilient.core.skipping import NOTHING_SKIPPED, Skipping
from resilient.core.usage import NOTHING_USED, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The store answered: what it knows of the run."""

    next_attempt: int
    committed_step: int = 0
    """Step of the newest checkpoint, 0 where there is none."""
    ever_committed: bool = False
    """Some record says that a step was committed, whatever the listing shows."""
    set_aside: tuple[str, ...] = ()
    """Why checkpoints and records that are there cannot be used."""
    usage: Usage = NOTHING_USED
    """Of the budgets, by earlier attempts of this submission."""
    debits: tuple[Debit, ...] = ()
    denials: tuple[Denial, ...] = ()
    """Entries of the run's deny list that are in force."""
    finished_step: int | None = None
    """By its mark this very submission has finished the run, with that step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFailed:
    """The store could not be opened, after the patience it was due."""

    why: str
    wrong: bool
    """It answered, and the settings or its content are wrong: nothing will cure that by waiting."""
    do: str = ""
    """What is to be done about it, where that is known better than from ``wrong``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """The preflight is over."""

    refusal: str | None = None
    """What is wrong with this node; ``None``: nothing that keeps it from training."""
    do: str = ""
    devices: tuple[str, ...] = ()
    """UUIDs of the devices that can be seen here."""
    listed: tuple[Denial, ...] = ()
    """What the platform's deny list says of this node and these devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A worker's ``Run`` named the store; until then none was known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotRun:
    """The command does not exist (127), is not executable (126), or is a script that is not there (115)."""

    code: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatOpened:
    """A worker constructed its ``Run``: from now on steps are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """All workers have completed this step, and none before had got so far."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A checkpoint of this step is durable."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnded:
    """A worker process is gone."""

    rank: int
    clean: bool
    """It ended with 0, and not in the middle of its loop."""
    finished: bool
    """Its heartbeat says that all steps were done (or that an earlier submission had done them)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HangFound:
    """A worker stands still beyond its bound; stacks are already taken."""

    hang: Hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """The workers' settings contradict, or the store holds checkpoints and none may be loaded."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEnded:
    """No worker and no process of theirs is left, but for those that cannot be ended."""

    held: tuple[int, ...] = ()
    """Processes on which SIGKILL has no effect: the kernel holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The evidence of the attempt that ended, and earlier faults of the run, the oldest first."""

    evidence: Evidence
    past: tuple[Past, ...] = ()
    skipping: Skipping = NOTHING_SKIPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveAsked:
    """SIGTERM (preemption, ``kubectl delete``), a notice of the cloud's, Ctrl-C, or ``resilient stop``."""

    by: str
    urgent: bool = False
    """Asked for a second time, by a person."""
    within_s: float | None = None
    """How long the platform leaves, where it has said so; else the grace that we are told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveExplained:
    """Kubernetes has said why the pod is to go."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The deadline that the present phase had set."""

    awaited: str = ""
    """The pods that others wait for, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSettled:
    """Nothing is being saved any more."""

    durable_step: int
    """Step of the newest durable checkpoint, 0 for none."""
    reached_step: int | None = None
    """Step that the last workers stood at; ``None`` where they never trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What was to be put on record is durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFailed:
    """It is not."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The supervisor itself failed, or lost the run to another one."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """All pods of the run are there. The first one finds that out, and tells the others."""

    attempt: int | None = None
    """Its number, where another pod has given it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGone:
    """Another pod is not there any more, or will not be for long."""

    pod: int
    why: str
    leaving: bool = False
    """It was asked to leave, and said so: nothing of it has failed."""
    code: int | None = None
    """What it has said that it ends with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAsked:
    """Another pod was asked to leave: all workers are to come to one boundary, while it has time."""

    pod: int
    by: str
    within_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOrdered:
    """The first pod has all workers ended, those of this pod too."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dismissed:
    """The first pod has decided how this one ends."""

    decision: Decision
    yield_s: float = 0.0
    """For so long it stays, so that the pod that is to blame ends before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispersed:
    """All pods that were dismissed have heard it, or are gone."""


Event = (
    Opened
    | OpenFailed
    | Examined
    | Announced
    | CannotRun
    | HeartbeatOpened
    | Advanced
    | Committed
    | WorkerEnded
    | HangFound
    | Unusable
    | GroupEnded
    | Collected
    | LeaveAsked
    | LeaveExplained
    | DeadlinePassed
    | SaveSettled
    | Recorded
    | RecordFailed
    | Broken
    | Assembled
    | PeerGone
    | PeerAsked
    | EndOrdered
    | Dismissed
    | Dispersed
)

EVENTS: Final[tuple[type[Event], ...]] = (
    Opened,
    OpenFailed,
    Examined,
    Announced,
    CannotRun,
    HeartbeatOpened,
    Advanced,
    Committed,
    WorkerEnded,
    HangFound,
    Unusable,
    GroupEnded,
    Collected,
    LeaveAsked,
    LeaveExplained,
    DeadlinePassed,
    SaveSettled,
    Recorded,
    RecordFailed,
    Broken,
    Assembled,
    PeerGone,
    PeerAsked,
    EndOrdered,
    Dismissed,
    Dispersed,
)
