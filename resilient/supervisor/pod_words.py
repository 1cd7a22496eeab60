# SPDX-License-Identifier: Apache-2.0
"""What the supervisors of a run's pods say to each other. Pod 0 leads; the others speak with it, and with nobody else.

Every word names the pod that says it and its address: the queue at which it is reached, a new one for each connection,
so that what an earlier container or connection has said is known for old. What comes from a peer is data like any
other: it is parsed by its types, and what contradicts itself is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from resilient.core.causes import Verdict
from resilient.core.evidence import Evidence, Hang
from resilient.core.policy import Decision

LEADER: Final = "pod-0"
"""The address of the first pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What all of them have."""

    pod: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Word):
    """It is there, and has no workers."""

    workers: int
    """How many it will start."""
    node: str | None
    version: str
    """Of resilient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives(Word):
    """Nothing but that."""

    outside: bool = False
    """One of its workers is outside of a step: others may wait for it inside one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Word):
    """A worker of this launch has ended."""

    launch: int
    rank: int
    """Of the run."""
    clean: bool
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hung(Word):
    """A worker stands still."""

    launch: int
    hang: Hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Testified(Word):
    """All workers of this launch have ended here; what was seen of them, by their ranks in the run."""

    launch: int
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard(Word):
    """It knows how it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Word):
    """It was asked to leave, and waits for all workers to come to one boundary."""

    by: str
    within_s: float
    """How long it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Word):
    """Its workers have ended, and it leaves: have what all have reached made durable, and answer :class:`Settled`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Word):
    """The rows of its workers on its board, as they are now; said before any word of a worker that is about them."""

    words: tuple[int, ...]
    acted: int
    """The last :class:`Void` that they show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(Word):
    """A word of a worker's."""

    rank: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered(Word):
    """Nobody passes a boundary there any more; the highest step that a worker has entered."""

    gate: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Word):
    """What its saver says to :class:`Ask`."""

    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(Word):
    """It will not be there any more."""

    why: str
    leaving: bool = False
    """It was asked to."""
    code: int | None = None
    """What it ends with, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(Word):
    """All are there: start workers."""

    attempt: int
    launch: int
    port: int
    """At which rank 0 will have the store of its process group."""
    run_id: str
    """What torchrun calls by that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Word):
    """End all workers, and testify."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell(Word):
    """A word for a worker."""

    rank: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate(Word):
    """Let no worker past a boundary, and answer :class:`Entered`."""

    gate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Name(Word):
    """The boundary that all go to; ``None``: there is none. Let them go on."""

    step: int | None
    slot: int
    stop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveSlot(Word):
    """The slot of a stop that was named without one."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear(Word):
    """What was ordered is done, or dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Void(Word):
    """What a rank has in a slot is not to be used."""

    number: int
    rank: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack(Word):
    """The memory of a slot is needed no more."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Word):
    """A request to its saver."""

    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSettings(Word):
    """What ``Run()`` was given."""

    run: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable(Word):
    """A checkpoint of this step is durable."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Word):
    """Nothing is being saved any more; the step of the newest durable checkpoint, 0 for none."""

    durable_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced(Word):
    """What was decided, for whoever reads the log."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Word):
    """How the pod ends that this is said to, and why."""

    decision: Decision
    verdict: Verdict | None
    yield_s: float


OfWorkers = Rows | Said | Entered | Answered
"""What pod 0 needs to have the workers of all pods as if they were its own."""
ForWorkers = Tell | Gate | Name | GiveSlot | Clear | Void | GiveBack | Ask | UseSettings | Durable
ToLeader = Joined | Lives | Ended | Hung | Testified | Heard | Asked | Settle | Left | OfWorkers
FromLeader = Lives | Begin | End | Leave | Left | Settled | Announced | ForWorkers

TO_LEADER: Final[Mapping[str, type[ToLeader]]] = {kind.__name__: kind for kind in get_args(ToLeader)}
FROM_LEADER: Final[Mapping[str, type[FromLeader]]] = {kind.__name__: kind for kind in get_args(FromLeader)}
