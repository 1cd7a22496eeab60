# SPDX-License-Identifier: Apache-2.0
"""Evidence: what was seen of a failed attempt, before anybody judges it.

Frozen words only. Every text in here has passed the redaction boundary
(:mod:`resilient.core.redact`) before it was put in. What could not be read is
``None``: unknown, never fine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from resilient.core.batch import Batch
from resilient.core.collectives import Collectives
from resilient.core.devices import DeviceEvidence
from resilient.core.pod_status import PodDevice


class Ruling(str, enum.Enum):
    """What the user's own code ruled, by raising ``resilient.Stop`` and its siblings."""

    STOP = "stop"
    RETRY = "retry"
    RESCHEDULE = "reschedule"


class Place(str, enum.Enum):
    """Where a worker was, by its heartbeat."""

    UNKNOWN = "unknown"
    """It never opened a heartbeat."""
    OUTSIDE = "outside"
    """Between steps: set-up, data, evaluation, the user's own saves."""
    STEP = "step"
    """Inside the decorated step."""
    FINISHED = "finished"
    """After the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLink:
    """One exception of a chain."""

    type: str
    """Qualified name; builtins without their module, e.g. ``ValueError``, ``torch.OutOfMemoryError``."""
    message: str
    bases: tuple[str, ...] = ()
    """Qualified names of its base classes, nearest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecord:
    """The exception that ended a worker, as the worker itself (or torchelastic) wrote it down."""

    chain: tuple[ErrorLink, ...]
    """The exception first, then its causes and contexts, members of groups and
    ``CheckpointException.failures``; never empty."""
    traceback: str = ""
    frame: str | None = None
    """Innermost frame of the user's own code: ``train.py:41 in loss``."""
    function: str | None = None
    """The same frame without its line, for fingerprints: ``train.py:loss``."""
    rank: int | None = None
    host: str | None = None
    step: int | None = None
    monotonic_s: float | None = None
    wall_s: float | None = None
    ruling: Ruling | None = None
    batch: Batch | None = None
    """The batch that it was at, where ``run.batches`` gave it."""

    @property
    def type(self) -> str:
        return self.chain[0].type

    @property
    def message(self) -> str:
        return self.chain[0].message


UNNAMED: Final = -1
"""The rank of a worker that a log does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """What is known of one worker of the attempt."""

    rank: int
    """``UNNAMED`` where a log does not say which."""
    node: str | None = None
    """The machine it ran on, where that is known."""
    exit_code: int | None = None
    """As the process gave it; ``None`` where a signal ended it or it was still alive."""
    signal: int | None = None
    """The signal that ended it, as a positive number."""
    order: int | None = None
    """0 for the worker that was seen to end first, 1 for the next."""
    not_started: str | None = None
    """Why the system gave no process for it: there was none."""
    stopped: bool = False
    """It ended only after the group was told to stop: not the one to blame by its exit."""
    outlived: bool = False
    """A log goes on for long after this error, so that its process may well have lived on."""
    error: ErrorRecord | None = None
    stderr_tail: str = ""
    stdout_tail: str = ""
    nccl_log: str = ""
    """The end of NCCL's own log, where it was not printed."""
    kernel_log: str = ""
    """What the kernel has logged about its devices since the attempt began."""
    step: int | None = None
    """The step it had entered last (1 for the first of the run)."""
    completed: int | None = None
    """The step it had completed last."""
    place: Place = Place.UNKNOWN
    batch: Batch | None = None
    """The batch that it was at, unless its step was done already."""
    collectives: tuple[Collectives, ...] = ()
    """How far it was in each of its groups; empty where nobody has said."""
    devices: tuple[DeviceEvidence, ...] = ()
    """Those that it uses, or must be taken to use; empty where nothing is known of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """A worker that stood still beyond its bound."""

    rank: int
    """The rank that is stuck elsewhere than its peers, else the one that stood still longest."""
    place: Place
    phase: str | None
    """Name of the ``run.phase`` it was in."""
    silent_s: float
    bound_s: float
    where: str | None = None
    """Innermost Python frame of the stuck rank, from faulthandler: ``train.py:41 in loss``."""
    waits: bool = False
    """It stands in a collective, so that another one is to blame if there is one elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An earlier fault of the run."""

    fingerprint: str
    step: int | None = None
    """Step the culprit had entered."""
    times: int = 1
    """It struck there."""
    reached: int | None = None
    """Highest step of the run by then; ``None`` where its steps were unknown."""
    node: str | None = None
    rank: int | None = None
    """The culprit, where there was one."""
    device: str | None = None
    """UUID of the one that it was on, where that is known."""
    batch: Batch | None = None
    """The batch that it was at, where that may be why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything collected about one ended attempt."""

    ranks: tuple[RankEvidence, ...]
    hang: Hang | None = None
    oom_kills: int | None = None
    """By how much the cgroup's ``oom_kill`` counter rose during the attempt."""
    shm_used_fraction: float | None = None
    disk_used_fraction: float | None = None
    """Of the file system that holds the journal."""
    from_log: bool = False
    """Read from a log that somebody kept: streams are merged, and endings, ranks and lines may be missing."""
    announced: tuple[str, ...] = ()
    """What the cloud, or Kubernetes, had announced for the machine or the pod by then."""
    pod_devices: tuple[PodDevice, ...] = ()
    """How the kubelet finds the devices of the pod, where we may ask for it."""
    world_size: int | None = None
    """How many ranks the run had, where that is known to differ from those that are listed."""
