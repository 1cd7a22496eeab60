# SPDX-License-Identifier: Apache-2.0
"""What the story of a run consists of. Frozen words only; every text in them is one line without secrets."""

from __future__ import annotations

from dataclasses import dataclass

from resilient.report.lives import Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Standstill:
    """From a fault to the first new step."""

    seconds: float
    phases: tuple[tuple[str, float], ...]
    """In order; "detect" only where it took time: an exit is seen at once."""
    until: str
    """The last of them that was reached; "first step" where training went on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStory:
    """One launch of the workers."""

    number: int
    in_kubernetes: bool
    pod: str
    """Outside Kubernetes the machine."""
    node: str
    started_s: float
    resumed_step: int | None
    """0: from the beginning; ``None``: not known, or it did not get so far."""
    resumed_from: str
    """"memory", a checkpoint, or empty."""
    already_finished: bool
    """All steps had been done before: it had nothing to train."""
    refused: tuple[tuple[str, str], ...]
    """What was not restored from, and why."""
    steps_lost: int | None
    """Steps of the attempt before that had to be done again."""
    highest_step: int
    ended: str
    """One of "finished", "failed", "without a pod", "asked to leave", "ended", "cut off", "running"."""
    probably: str
    """What cut it off; empty where it was not."""
    judgement: Judgement | None
    decided: str
    standstill: Standstill | None
    """Before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the last supervisor exited."""

    code: int
    why: str
    do: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Automatic:
    """What automatic cadences came to; ``None`` where a cadence was given."""

    memory_s: float | None
    durable_s: float | None
    mttf_s: float
    """Mean time to failure that they expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """A submission before the one that is told."""

    submission: str
    started_s: float
    attempts: int
    resumed_step: int | None
    """Of its first attempt."""
    highest_step: int
    already_finished: bool
    exit: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPod:
    """A supervisor of another pod than the one whose attempts are told, which leads."""

    number: int
    in_kubernetes: bool
    pod: str
    node: str
    started_s: float
    exit: Ending | None
    probably: str
    """Without an exit: what its last entries make probable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One submission of a run, as its journals tell it."""

    target: str
    """What ``resilient explain`` was given."""
    run: str
    """The id that the run has in its checkpoint store; empty where it has none."""
    submission: str
    earlier: tuple[Earlier, ...]
    """The newest last; only the newest of them where there are many."""
    earlier_unlisted: int
    holder: str
    """Who holds the run, where the journal of that supervisor could not be read; else empty."""
    command: str
    ranks: int | None
    supervisors: int
    attempts: tuple[AttemptStory, ...]
    others: tuple[OtherPod, ...]
    """Of other pods, in order; only the newest that did not end like the run where there are many."""
    others_unlisted: int
    steps_known: bool
    highest_step: int
    committed_step: int
    checkpoints: int
    newest_checkpoint: str
    save_failures: int
    save_failed_why: str
    snapshots: int
    longest_stall_s: float
    automatic: Automatic | None
    stacks: int
    """Stacks of workers that the journal holds."""
    skipped: tuple[str, ...]
    """Batches that are left out because a fault came back in them; each as one sentence names it."""
    notes: tuple[str, ...]
    started_s: float
    last_s: float
    exit: Ending | None
    probably: str
    """Without an exit: what the last entries make probable."""
    unread: int
    """Lines of the journals that could not be read."""
    problems: tuple[str, ...]
