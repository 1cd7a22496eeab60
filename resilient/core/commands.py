# SPDX-License-Identifier: Apache-2.0
"""What the state machine asks the supervisor's loop to do. The loop decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from resilient.core.batch import Batch
from resilient.core.causes import Verdict
from resilient.core.debit import Debit
from resilient.core.denied import Suspect
from resilient.core.evidence import Evidence
from resilient.core.policy import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStore:
    """Open the checkpoint store and answer ``Opened`` or ``OpenFailed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examine:
    """Look whether this machine can train and answer ``Examined``."""

    suspect: bool
    """A device may be to blame for a failure: look closer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorkers:
    """Launch all workers as this attempt."""

    attempt: int
    launch: int
    """1 for the first launch by this supervisor: ``TORCHELASTIC_RESTART_COUNT`` is one less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assemble:
    """Of several pods: wait for the others, or be there for the first; answer ``Assembled``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Testify:
    """Tell the first pod what this one has seen; its workers have ended."""

    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Dismiss:
    """Tell another pod how it ends."""

    pod: int
    decision: Decision
    yield_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberAttempt:
    """The store is known now: the workers that run are this attempt of the run."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStop:
    """Have all workers finish one common step, save there and leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndGroup:
    """SIGTERM to the workers and all that is theirs, SIGKILL after the grace; answer ``GroupEnded``."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectEvidence:
    """Answer ``Collected``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDeadline:
    """Answer ``DeadlinePassed`` at this time, in place of any deadline set before."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearDeadline:
    """No deadline runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Make the newest whole snapshot durable; answer ``SaveSettled``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipBatch:
    """Leave a batch out from the next launch on, on all ranks; nothing that comes of it is durable before it is on
    record."""

    batch: Batch
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDebit:
    """Put the coming exit on record; answer ``Recorded`` or ``RecordFailed``."""

    debit: Debit
    why: str
    suspect: Suspect | None = None
    """What goes on the run's deny list besides, as far as that can be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFinished:
    """Write the finished mark; answer ``Recorded`` or ``RecordFailed``."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell people and the journal what was decided, and why."""

    text: str
    verdict: Verdict | None = None
    do: str = ""
    """The end of the text that tells what is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """End the supervisor."""

    code: int
    why: str
    """One plain sentence."""
    do: str
    """What the reader can do, or what happens next."""
    unrecorded: bool = False
    """It could not be put on record, and the code is for that."""


Command = (
    OpenStore
    | Examine
    | Assemble
    | StartWorkers
    | Testify
    | Dismiss
    | NumberAttempt
    | OrderStop
    | EndGroup
    | CollectEvidence
    | SetDeadline
    | ClearDeadline
    | Settle
    | SkipBatch
    | RecordDebit
    | RecordFinished
    | Announce
    | Exit
)
