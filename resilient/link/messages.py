# SPDX-License-Identifier: Apache-2.0
"""What a worker and its host say to each other: all of it, as frozen words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from resilient.core.batch import Batch
from resilient.core.collectives import Collectives
from resilient.link.board import Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A worker has constructed its ``Run``; the first thing it says."""

    rank: int
    world_size: int
    local_rank: int
    pid: int
    settings: Mapping[str, str]
    """What ``Run(...)`` was given, as text, by field name of ``Settings``."""
    started_ns: int
    """Monotonic clock when it was ready to say so."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that the state depends on, for the manifest."""
    determinism: Mapping[str, str] = field(default_factory=dict)
    """Settings on which it depends whether a resumed run has the same bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """The candidate that the host named was read and checked, and nothing written yet."""

    name: str
    ok: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The agreed candidate is loaded (or there was none); training may begin."""

    step: int
    read_s: float = 0.0
    """What reading and verifying it took."""
    load_s: float = 0.0
    """What putting it in place took."""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """``run.batches`` was asked for this many steps in all."""

    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseNamed:
    """``run.phase(name)`` is entered for the first time; ``PLACE`` will say ``PHASE + number``."""

    number: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A snapshot lies in a slot, and its record on the board; whether it is whole is known later, and said then."""

    step: int
    slot: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric when it was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A snapshot is whole in a slot (the board holds its record)."""

    step: int
    slot: int
    stall_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric when it was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTaken:
    """A snapshot that was ordered could not be taken here."""

    step: int
    slot: int
    why: str
    soon: bool = False
    """The next boundary may do: something is being made ready."""
    full: bool = False
    """The slot has no room, and will have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtEnd:
    """All steps are done: a slot for the last state, please (``FinalSlot`` answers)."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """The boundary at which everybody stops is reached; the worker ends now."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something the journal should have: a warning shown to the user."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Communicated:
    """How far it is in the collectives of its groups; said when it is asked, and before it dies of an exception."""

    groups: tuple[Collectives, ...]
    why: str = ""
    """Why nothing is known of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """``Run()`` refuses what it was given, before ``Hello``: no step was made in this attempt, and none will be."""


def ask_path(directory: str | os.PathLike[str], rank: int) -> Path:
    """The FIFO by which a supervisor asks for ``Communicated``: the link itself is read by the main thread only."""
    return Path(directory) / f"collectives-{rank}"


FromWorker = (
    Hello
    | Tried
    | Restored
    | Steps
    | PhaseNamed
    | Copied
    | Taken
    | NotTaken
    | AtEnd
    | Leaving
    | Note
    | Communicated
    | Refused
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Answer to ``Hello`` once all local workers have said it."""

    attempt: int
    checkpoints: str | None
    """The URL in force; ``None``: nothing is durable."""
    skipped: tuple[Batch, ...] = ()
    """Batches that every rank leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """Read and check this candidate, write nothing, answer ``Tried``."""

    name: str
    """``memory`` or the name of a checkpoint under ``checkpoints/``."""
    step: int
    slot: int
    """Slot of the arena in which it lies."""
    contents: Extent | None = None
    """What the slot begins with where all ranks share it: another number of ranks saved what lies in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """All ranks agree: load the candidate that was tried last, or start from nothing (``name`` empty)."""

    name: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """This worker must not train: end with the exit code, saying why."""

    code: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalSlot:
    """Where the last state goes; ``None``: it is not taken (no store, or no memory)."""

    slot: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyFinished:
    """The steps asked for were done by an earlier submission: end with 0, without a step."""

    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveEnded:
    """The state that was taken at the final or stopping boundary is durable, or could not be made so."""

    step: int
    ok: bool
    why: str = ""


FromHost = Begin | Try | Go | Refuse | FinalSlot | AlreadyFinished | SaveEnded

FROM_WORKER: Final[Mapping[str, type[FromWorker]]] = {kind.__name__: kind for kind in get_args(FromWorker)}
FROM_HOST: Final[Mapping[str, type[FromHost]]] = {kind.__name__: kind for kind in get_args(FromHost)}
