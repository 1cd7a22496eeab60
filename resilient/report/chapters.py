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
    submission: str
    pod: str
    node: str
    started_s: float
    resumed_step: int | None
    """0: from the beginning; ``None``: not known, or it did not get so far."""
    resumed_from: str
    """"memory", a checkpoint, or empty."""
    refused: tuple[tuple[str, str], ...]
    """What was not restored from, and why."""
    steps_lost: int | None
    """Steps of the attempt before that had to be done again."""
    highest_step: int
    ended: str
    """One of "finished", "failed", "asked to leave", "ended", "cut off", "running"."""
    judgement: Judgement | None
    decided: str
    standstill: Standstill | None
    """Before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the newest supervisor exited."""

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
class Story:
    """A run, as its journals tell it."""

    run: str
    submissions: tuple[str, ...]
    command: str
    ranks: int | None
    supervisors: int
    attempts: tuple[AttemptStory, ...]
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
    notes: tuple[str, ...]
    started_s: float
    last_s: float
    exit: Ending | None
    probably: str
    """Without an exit: what the last entries make probable."""
    unread: int
    """Lines of the journals that could not be read."""
    problems: tuple[str, ...]
