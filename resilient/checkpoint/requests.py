# SPDX-License-Identifier: Apache-2.0
"""What a supervisor asks of its saver, and the answers: all of it, as frozen words.

Each request carries a number that its answer repeats; answers may overtake each other,
because a long :class:`Save` keeps no small request waiting, least of all :class:`Judge`. The first request is
:class:`Open`. Closing the socket ends the saver, which finishes what was asked before, and drops what is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from resilient.checkpoint.layout import Debit, DenialRecord, FinishedMark
from resilient.core.aftermath import Trace
from resilient.core.batch import Batch
from resilient.core.retention import Rules
from resilient.core.usage import Usage
from resilient.link.board import Extent, SlotRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Hold the run and say what it has; :class:`Opened`."""

    id: int
    url: str
    submission: str
    index: int
    pod: str
    """Outside Kubernetes the name of the machine."""
    host: str
    pid: int
    """Of the supervisor."""
    journal: str
    """Directory of its journal, for whoever finds the run locked."""
    in_kubernetes: bool = False
    guest: bool = False
    """Another pod's supervisor holds the run, whoever asks puts on record only what is its own."""
    fresh: bool = False
    """Begin a new history: what earlier attempts saved is ignored from the next claim on, and kept.
    A submission that has done so once goes on with its own history when it is started again."""
    save_bandwidth: int | None = None
    """Bytes per second that all saving together may write; ``None``: as fast as it goes."""
    lock_patience_s: float = 75.0
    """For a holder of whom it cannot be seen at once whether it lives; a lease runs out after 60 s."""
    left_by: int | None = None
    """The attempt of a snapshot that the container before has left: whose is it?"""
    patience_s: float = 60.0
    """How long a store that does not answer is asked again; so in every request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Make an attempt ours before its workers train; :class:`Done`, or :class:`Failed` with ``conflict``."""

    id: int
    attempt: int
    began_from: str | None
    usage: Usage
    """Of the submission's budgets when it began."""
    claimed_s: float
    """Wall time."""
    token: str
    """Random: by it a saver that replaces a killed one knows what that one had claimed for us."""
    skipped: tuple[Batch, ...] = ()
    """Batches that it leaves out."""
    patience_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """Make a checkpoint of snapshots that lie whole in their slots, and prune older ones; :class:`Saved`. With ``part``
    only write its files, as the saver of one of the pods that make it together; :class:`Done`."""

    id: int
    attempt: int
    step: int
    world_size: int
    began_from: str | None
    records: tuple[SlotRecord, ...]
    """Of rank 0, 1, ...: of all, also of those whose slots other savers have."""
    versions: Mapping[str, str]
    determinism: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the training had measured last when the snapshots were taken."""
    rules: Rules = field(default_factory=Rules)
    """Which checkpoints stay. Not in :class:`Open`, which comes before the script has said what it wants."""
    ahead: int | None = None
    """A number by which :class:`Judge` will say whether the snapshots hold: until then the files are written, and
    nothing is committed. ``None``: they hold."""
    directory: str | None = None
    """In which the savers of several pods write, each the files that its ranks name; of this save alone, from
    ``layout.fresh_name``. The snapshots may be judged to hold once each of the other savers has said :class:`Done`: a
    file has its size before all of it is written. ``None``: a directory of the saver's own, for each try another."""
    part: bool = False
    """Another saver waits for the judgement, commits and prunes."""
    patience_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Commit what a :class:`Save` has written ahead, or drop it, and answer that with ``dropped``; :class:`Done`."""

    id: int
    ahead: int
    """Of that save; one that has ended already is not looked for."""
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Read a checkpoint into a slot of every rank that is this saver's and verify it; :class:`Fetched`."""

    id: int
    name: str
    world_size: int
    """Ranks of this run, in all pods."""
    slot: int
    """Of every such rank; of a checkpoint of another number of ranks, one that all ranks share."""
    available_bytes: int | None
    """Memory of this machine that is free for it; ``None``: unknown."""
    patience_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Put an exit on record; :class:`Done`."""

    id: int
    debit: Debit
    patience_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """Put an entry on the deny list; :class:`Done`."""

    id: int
    record: DenialRecord
    patience_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Write the finished mark; :class:`Done`."""

    id: int
    mark: FinishedMark
    patience_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ship:
    """Keep a copy of a segment of the journal, a file of this machine; :class:`Done`."""

    id: int
    pod: str
    number: int
    path: str
    patience_s: float = 10.0


Request = Open | Claim | Save | Judge | Fetch | Record | Deny | Finish | Ship


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """A checkpoint that can be tried."""

    name: str
    attempt: int
    step: int
    world_size: int
    began_from: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The run is held by this saver until it ends."""

    id: int
    run_id: str
    next_attempt: int
    checkpoints: tuple[CheckpointRef, ...]
    """Of the present history, the first to be tried first. Sizes agree; digests are the reader's to verify."""
    set_aside: tuple[str, ...]
    """A sentence for each checkpoint or record that is there and cannot be used."""
    debits: tuple[Debit, ...]
    """Of this submission and index, oldest first."""
    usage: Usage
    """What the submission has used of its budgets."""
    earlier: FinishedMark | None
    ever_committed: bool
    """Some record says that a step was saved; if ``checkpoints`` is empty all the same, something is wrong."""
    fresh_from: int = 0
    """The attempt with which the present history begins."""
    claim: str | None = None
    """The token under which the attempt that ``Open`` asks about is claimed; ``None``: nobody has."""
    skipped: tuple[Batch, ...] = ()
    """Batches that the present history leaves out."""
    denials: tuple[DenialRecord, ...] = ()
    """The run's deny list, whether its entries are in force or not."""
    before: Trace | None = None
    """The supervisor of this index before this one, inside Kubernetes."""
    notes: tuple[str, ...] = ()
    """What people should know besides: it costs no state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It is durable."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """It is a checkpoint."""

    id: int
    name: str
    attempt: int
    step: int
    size_bytes: int
    """Bytes that were written: what several ranks have alike counts once."""
    seconds: float
    """Until it was one, without the wait for :class:`Judge`."""
    prune_s: float = 0.0
    """What deleting others took afterwards."""
    pruned: tuple[str, ...] = ()
    not_pruned: tuple[str, ...] = ()
    """Why something could not be deleted; the next save tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """It lies whole in its slots."""

    id: int
    name: str
    records: tuple[SlotRecord, ...]
    """Of the ranks that are this saver's, in their order."""
    seconds: float
    size_bytes: int
    contents: Extent | None = None
    """What a slot that all ranks share begins with, and says what lies in it."""
    first: int = 0
    """The rank of the first record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """It could not be done."""

    id: int
    why: str
    answered: bool
    """The store answered: waiting does not cure it."""
    kind: str
    """``unreachable denied full missing refused conflict locked settings corrupt damaged dropped internal``."""

    @property
    def conflict(self) -> bool:
        """Somebody else did it first."""
        return self.kind == "conflict"


Reply = Opened | Done | Saved | Fetched | Failed

REQUESTS: Final[Mapping[str, type[Request]]] = {kind.__name__: kind for kind in get_args(Request)}
REPLIES: Final[Mapping[str, type[Reply]]] = {kind.__name__: kind for kind in get_args(Reply)}
