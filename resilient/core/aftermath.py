# SPDX-License-Identifier: Apache-2.0
"""What became of a supervisor that left no exit: a guess from its last entries, and said as one.

Exit code 137 never says whether the OOM killer, an eviction or a lost node ended a container. The last samples of its
journal may, and inside Kubernetes so do the counters of its index: a controller counts a container that died, and is
told to ignore a pod that was disrupted.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.evidence import Past

NEARLY_FULL: Final = 0.95
EVICTS_AT: Final = 0.9
"""Of a disk: the kubelet's default for ``nodefs.available``."""
CONTAINER_OOM: Final = "container-out-of-memory"
"""The fingerprint of a container that probably ran out of memory as a whole."""
_ASKED_BY: Final = re.compile(r"[A-Za-z][A-Za-z ]{0,39}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


class Likely(str, enum.Enum):
    """What probably ended it."""

    OUT_OF_MEMORY = "out of memory"
    OUT_OF_SPACE = "out of space"
    EVICTED = "evicted"
    """Or preempted, or its node was lost: the pod went, whatever the container did."""
    LEAVING = "killed while it left"
    KILLED = "killed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the controller of an index has counted by now; ``None``: unknown."""

    failures: int | None = None
    ignored: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The last sample of a journal."""

    wall_s: float | None = None
    """When it was taken."""
    memory_used: float | None = None
    memory_limit: float | None = None
    oom_kills: float | None = None
    shm_used_fraction: float | None = None
    disk_used_fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What the journal of a supervisor says of its end. Times are of the wall clock."""

    started_s: float
    last_s: float
    """Its last entry."""
    pod: str = ""
    node: str | None = None
    index: int | None = None
    counters: Counters = Counters()
    """When it started."""
    asked_by: str = ""
    oom_kills: float | None = None
    """By its first sample."""
    sample: Shortage = Shortage()
    exited: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """A guess, with its reason."""

    likely: Likely
    why: str
    """One sentence that begins with "probably"."""


def probable_end(trace: Trace, counters: Counters | None = None) -> Aftermath:
    """How a supervisor that wrote no exit has ended; ``counters``: those of the start that follows it, if any does."""
    disrupted, counted = _moved(trace.counters, counters or Counters())
    before = "" if trace.sample.wall_s is None else f" {max(0.0, trace.last_s - trace.sample.wall_s):.0f} s before the "
    before += "last entry" if before else ""
    memory, disk = _memory(trace), trace.sample.disk_used_fraction or 0.0
    if disrupted:
        # An exit that is ignored is not counted either; without a record of it that takes a store that was away.
        why = "probably evicted or preempted, or its node was lost, or the store was while it left: "
        why += "the Job controller did not count its end"
        if disk >= EVICTS_AT:
            why = f"probably evicted: its disk was at {disk:.0%}{before}"
        return Aftermath(likely=Likely.EVICTED, why=why)
    if memory:
        return Aftermath(likely=Likely.OUT_OF_MEMORY, why=f"probably out of memory: {memory}{before}")
    if space := _space(trace.sample):
        return Aftermath(likely=Likely.OUT_OF_SPACE, why=f"probably out of space: {space}{before}")
    if trace.asked_by:
        why = f"probably killed before it was done leaving: it had been asked to by {trace.asked_by}"
        return Aftermath(likely=Likely.LEAVING, why=why)
    if counted:
        why = "probably killed in its container by a SIGKILL that nothing explains: the Job controller counted its end"
        return Aftermath(likely=Likely.KILLED, why=why)
    why = "probably killed from outside: SIGKILL, an eviction or a lost node"
    return Aftermath(likely=Likely.KILLED, why=why)


def is_short(sample: Shortage) -> bool:
    """Whether a supervisor may soon be killed for what it lacks: then its journal is worth shipping at once."""
    used, limit = sample.memory_used, sample.memory_limit
    short_of_memory = used is not None and bool(limit) and used >= EVICTS_AT * (limit or math.inf)
    fractions = (sample.shm_used_fraction, sample.disk_used_fraction)
    return short_of_memory or any((fraction or 0.0) >= EVICTS_AT for fraction in fractions)


def as_past(aftermath: Aftermath, trace: Trace) -> Past | None:
    """What the classifier should remember of it: that memory ran out. Neither code nor device is to blame for more."""
    if aftermath.likely is not Likely.OUT_OF_MEMORY:
        return None
    return Past(fingerprint=CONTAINER_OOM, node=trace.node)


def read_trace(entries: Iterable[Mapping[str, object]]) -> Trace | None:
    """The last supervisor that wrote these entries; nobody vouches for them."""
    trace: Trace | None = None
    for entry in entries:
        wall_s = _number(entry, "t")
        if wall_s is None:
            continue
        if entry.get("kind") == "start" or trace is None:
            trace = _begun(entry, wall_s)
        trace = _told(replace(trace, last_s=max(trace.last_s, wall_s)), entry, wall_s)
    return trace


def shortage_of(sample: Mapping[str, object], wall_s: float | None = None) -> Shortage:
    """What a sample says, as it stands in a journal."""
    names = ("memory_used", "memory_limit", "oom_kills", "shm_used_fraction", "disk_used_fraction")
    return Shortage(wall_s=wall_s, **{name: _number(sample, name) for name in names})


def _begun(entry: Mapping[str, object], wall_s: float) -> Trace:
    pod, node, index = entry.get("pod"), entry.get("node"), _number(entry, "index")
    return Trace(
        started_s=wall_s,
        last_s=wall_s,
        pod=pod if isinstance(pod, str) and _NAME.fullmatch(pod) else "",
        node=node if isinstance(node, str) and _NAME.fullmatch(node) else None,
        index=None if index is None else int(index),
        counters=Counters(failures=_count(entry, "failure_count"), ignored=_count(entry, "ignored_count")),
    )


def _told(trace: Trace, entry: Mapping[str, object], wall_s: float) -> Trace:
    kind = entry.get("kind")
    if kind == "exit":
        return replace(trace, exited=True)
    if kind == "sample":
        sample = shortage_of(entry, wall_s)
        first = sample.oom_kills if trace.oom_kills is None else trace.oom_kills
        return replace(trace, sample=sample, oom_kills=first)
    event = entry.get("event")
    if kind == "event" and isinstance(event, Mapping) and event.get("type") == "LeaveAsked" and not trace.asked_by:
        by = event.get("by")
        return replace(trace, asked_by=by if isinstance(by, str) and _ASKED_BY.fullmatch(by) else "somebody")
    return trace


def _moved(then: Counters, now: Counters) -> tuple[bool, bool]:
    """Whether the one end between two starts was ignored by the controller, or counted; neither where it is unknown."""
    if None in (then.failures, then.ignored, now.failures, now.ignored):
        return False, False
    failures, ignored = (now.failures or 0) - (then.failures or 0), (now.ignored or 0) - (then.ignored or 0)
    return (failures, ignored) == (0, 1), (failures, ignored) == (1, 0)


def _memory(trace: Trace) -> str:
    used, limit = trace.sample.memory_used, trace.sample.memory_limit
    if used is not None and limit and used / limit >= NEARLY_FULL:
        return f"memory was at {used / limit:.0%} of its limit"
    struck = (trace.sample.oom_kills or 0) > (trace.oom_kills or 0)
    return "the kernel's OOM killer had struck by" if struck else ""


def _space(sample: Shortage) -> str:
    for fraction, name in (
        (sample.shm_used_fraction, "/dev/shm"),
        (sample.disk_used_fraction, "the disk of the journal"),
    ):
        if fraction is not None and fraction >= NEARLY_FULL:
            return f"{name} was at {fraction:.0%}"
    return ""


def _number(entry: Mapping[str, object], name: str) -> float | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1 << 62 else None


def _count(entry: Mapping[str, object], name: str) -> int | None:
    number = _number(entry, name)
    return None if number is None else int(number)
