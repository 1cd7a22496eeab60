# SPDX-License-Identifier: Apache-2.0
"""What a preflight measures: facts, before anybody judges them.

Frozen words only, one class for each probe; they cross a pipe as JSON. ``None`` is
unknown, never fine. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient.core.denied import Denial

UNLIMITED: Final = -1
"""A limit that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """A probe that gave no facts."""

    why: str
    late: bool = False
    """It did not end within its time."""
    stuck: bool = False
    """The kernel held it: SIGKILL had no effect, or it waited where none can have any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the kernel says of limits, of memory and of shared memory."""

    open_files: int | None
    """Soft limit."""
    memlock: int | None
    """Soft limit."""
    processes_left: int | None
    """Processes and threads that the cgroup still allows, or ``UNLIMITED``."""
    infiniband: tuple[str, ...]
    """Names of RDMA devices."""
    memory_limit: int | None
    """Of the cgroup nearest to its limit; ``None`` where nothing limits."""
    memory_available: int | None
    """By the cgroup and by the host."""
    shm_size: int | None
    shm_free: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """A directory of this machine that was written to and read from."""

    path: str
    size: int | None = None
    free: int | None = None
    files_free_fraction: float | None = None
    kind: str = ""
    """``denied full missing failed``: how it could not be used; empty where it could."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """A checkpoint store in which one small object was made, read and deleted."""

    url: str
    """Without credentials."""
    kind: str = ""
    """The store's own word for what is wrong (``denied full missing unreachable ...``); empty where nothing is."""
    code: str = ""
    """The service's word for it."""
    why: str = ""
    seconds: float = 0.0
    """For all of it."""
    made_in: str = ""
    """The directory does not exist yet; it would be made in this one."""
    skew: float | None = None
    """By how much the store's clock is ahead of ours, beyond what the measurement leaves open."""
    state: int | None = None
    """Bytes in memory of one snapshot of all ranks, by the newest checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenyListFacts:
    """A platform's deny list."""

    url: str
    """Without credentials."""
    node: str | None = None
    """This one, where it is known."""
    entries: int = 0
    unread: int = 0
    """Lines that are no entries."""
    denials: tuple[Denial, ...] = ()
    """Of this node, and of devices: some of them may be elsewhere."""
    why: str = ""
    """Why it could not be read; empty where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameFacts:
    """One host name, and what it resolves to."""

    name: str
    addresses: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesFacts:
    """Host names of peers."""

    names: tuple[NameFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeFacts:
    """One device that was given a multiplication whose answer is known."""

    device: str
    wrong: int | None = None
    """Elements that differ from the answer; ``None`` where it gave none."""
    why: str = ""
    """Why it gave none."""
    free: int | None = None
    """Memory of the device before the check."""
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    """torch, and the devices that it computes on."""

    version: str
    cuda: str | None
    """Version of the CUDA runtime that torch was built for."""
    devices: tuple[ComputeFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduceFacts:
    """A sum over some ranks of this machine."""

    backend: str
    ranks: int
    right: bool
    seconds: float
