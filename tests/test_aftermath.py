# SPDX-License-Identifier: Apache-2.0
"""What probably ended a supervisor that left no exit, by its last entries and its controller's counters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from resilient.checkpoint.files import Store
from resilient.checkpoint.recall import recall
from resilient.checkpoint.store import open_store
from resilient.core.aftermath import (
    CONTAINER_OOM,
    Counters,
    Likely,
    Shortage,
    Trace,
    as_past,
    is_short,
    probable_end,
    read_trace,
)

QUIET = Shortage(wall_s=96.0, memory_used=50.0, memory_limit=100.0, oom_kills=2.0, disk_used_fraction=0.5)
TRACE = Trace(started_s=0.0, last_s=100.0, pod="train-0", counters=Counters(failures=3, ignored=1), oom_kills=2.0)
THEN = replace(TRACE, sample=QUIET)
IGNORED, COUNTED = Counters(failures=3, ignored=2), Counters(failures=4, ignored=1)


def after(counters: Counters | None = None, asked_by: str = "", **sample: float) -> tuple[Likely, str]:
    """The guess for a supervisor whose last sample was another."""
    found = probable_end(replace(THEN, asked_by=asked_by, sample=replace(QUIET, **sample)), counters)
    return found.likely, found.why


def test_the_last_samples_make_a_cause_probable() -> None:
    """Memory near its limit, a killer that had struck, a full disk; else nobody knows."""
    assert after(memory_used=97.0) == (
        Likely.OUT_OF_MEMORY,
        "probably out of memory: memory was at 97% of its limit 4 s before the last entry",
    )
    assert after(oom_kills=3.0)[0] is Likely.OUT_OF_MEMORY
    assert after(shm_used_fraction=1.0)[0] is after(disk_used_fraction=0.96)[0] is Likely.OUT_OF_SPACE
    assert after(asked_by="SIGTERM")[0] is Likely.LEAVING
    assert after() == (Likely.KILLED, "probably killed from outside: SIGKILL, an eviction or a lost node")
    assert probable_end(TRACE).likely is Likely.KILLED


def test_the_controllers_counters_tell_a_pod_that_went_from_a_container_that_died() -> None:
    """It ignores a disruption, and counts what it was not told to ignore; without a sample of memory this is all."""
    assert after(IGNORED)[0] is Likely.EVICTED
    assert after(IGNORED, memory_used=99.0)[0] is Likely.EVICTED, "a container that dies of memory is counted"
    assert after(IGNORED, disk_used_fraction=0.93)[1] == (
        "probably evicted: its disk was at 93% 4 s before the last entry"
    )
    assert after(COUNTED, memory_used=99.0)[0] is Likely.OUT_OF_MEMORY
    assert "the Job controller counted its end" in after(COUNTED)[1]


@pytest.mark.parametrize(
    "counters",
    [
        None,
        Counters(),
        Counters(failures=3),
        Counters(failures=3, ignored=1),
        Counters(failures=4, ignored=2),
        Counters(failures=3, ignored=3),
        Counters(failures=0, ignored=0),
    ],
)
def test_counters_that_do_not_tell_are_not_believed(counters: Counters | None) -> None:
    """Unknown, unchanged, both changed, or more than one end since."""
    assert after(counters) == after()


def test_only_memory_is_history() -> None:
    """Neither code nor device is to blame for an eviction."""
    found = probable_end(replace(THEN, sample=replace(QUIET, memory_used=99.0), node="node-a"))
    past = as_past(found, replace(THEN, node="node-a"))
    assert past is not None
    assert (past.fingerprint, past.node, past.rank) == (CONTAINER_OOM, "node-a", None)
    assert as_past(probable_end(THEN), THEN) is None


def test_a_shortage_is_worth_shipping_before_it_kills() -> None:
    """A little before it counts as probable."""
    assert not is_short(QUIET)
    assert not is_short(Shortage())
    assert is_short(replace(QUIET, memory_used=91.0))
    assert is_short(replace(QUIET, disk_used_fraction=0.91))


# The trace.


def entry(kind: str, at: float, **fields: object) -> dict[str, object]:
    return {"t": at, "m": at, "kind": kind, **fields}


LIFE = (
    entry("start", 10.0, pod="train-0", node="node-a", index=0, failure_count=3, ignored_count=1),
    entry("sample", 11.0, memory_used=1, memory_limit=100, oom_kills=2, shm_used_fraction=0.1, disk_used_fraction=0.5),
    entry("event", 20.0, event={"type": "Advanced", "step": 7}),
    entry("sample", 96.0, memory_used=97, memory_limit=100, oom_kills=2, shm_used_fraction=0.1, disk_used_fraction=0.5),
    entry("event", 100.0, event={"type": "LeaveAsked", "by": "SIGTERM"}),
)


def test_a_trace_is_that_of_the_last_supervisor() -> None:
    """A pod's journal may hold several; an exit ends one."""
    trace = read_trace([entry("start", 1.0, pod="old"), entry("exit", 2.0, code=195), *LIFE])
    assert trace is not None
    assert (trace.started_s, trace.last_s, trace.pod, trace.node, trace.index) == (10.0, 100.0, "train-0", "node-a", 0)
    assert (trace.counters, trace.asked_by, trace.exited) == (Counters(failures=3, ignored=1), "SIGTERM", False)
    assert (trace.oom_kills, trace.sample.wall_s, trace.sample.memory_used) == (2.0, 96.0, 97.0)
    again = read_trace([*LIFE, entry("exit", 101.0, code=196)])
    assert again is not None
    assert again.exited


def test_what_nobody_vouches_for_is_no_trace() -> None:
    """Wrong types, numbers without bounds and words that are none."""
    assert read_trace([]) is None
    assert read_trace([{"kind": "start", "t": "now"}, {"kind": "start", "t": float("nan")}]) is None
    wild = read_trace(
        [
            entry("start", 10.0, pod="../x", node=["a"], index=-1, failure_count=True),
            entry("sample", 11.0, memory_used="x", memory_limit=None, oom_kills=1e300),
            entry("event", 12.0, event={"type": "LeaveAsked", "by": "\x1b[31m[red]"}),
            entry("event", 13.0, event=["LeaveAsked"]),
        ]
    )
    assert wild is not None
    assert (wild.pod, wild.node, wild.index, wild.counters) == ("", None, None, Counters())
    assert (wild.asked_by, wild.sample) == ("somebody", Shortage(wall_s=11.0))
    assert probable_end(wild).likely is Likely.LEAVING


# What was shipped.


def ship(store: Store, pod: str, number: int, *entries: dict[str, object]) -> None:
    data = b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in entries)
    store.create(f"journal/sub/{pod}/{number}.jsonl", data)


def test_the_newest_of_this_index_is_found_among_others(tmp_path: Path) -> None:
    """By its first piece, where the last ones do not say whose they are."""
    store = open_store(str(tmp_path))
    notes: list[str] = []
    assert recall(store, "sub", 0, notes) is None
    ship(store, "train-0-a", 1, entry("start", 1.0, pod="train-0-a", index=0), entry("exit", 2.0))
    ship(store, "train-0-b", 10, *LIFE[:2])
    for number in (20, 30, 40):
        ship(store, "train-0-b", number, entry("sample", float(number), memory_used=number, memory_limit=100))
    ship(store, "train-1-c", 50, entry("start", 50.0, pod="train-1-c", index=1))
    store.create("journal/sub/train-1-c/x.jsonl", b"")
    found = recall(store, "sub", 0, notes)
    assert found is not None
    assert (found.pod, found.started_s, found.last_s, found.sample.memory_used) == ("train-0", 10.0, 40.0, 40.0)
    assert (found.exited, notes) == (False, [])
    other = recall(store, "sub", 1, notes)
    assert other is not None
    assert other.pod == "train-1-c"
    assert recall(store, "another", 0, notes) is None


def test_pieces_that_are_damaged_are_passed_over(tmp_path: Path) -> None:
    """Torn lines are left out; what is too long is noted, and the start goes on."""
    store = open_store(str(tmp_path))
    notes: list[str] = []
    ship(store, "train-0", 1, *LIFE)
    store.create("journal/sub/train-0/2.jsonl", b'{"kind":"sample","t":\n\xff\xfe\n"kind":"exit"\n')
    found = recall(store, "sub", 0, notes)
    assert found is not None
    assert (found.last_s, found.exited, notes) == (100.0, False, [])
    with open(tmp_path / "journal/sub/train-0/3.jsonl", "wb") as file:
        file.truncate(9 << 20)
    assert recall(store, "sub", 0, notes) is None
    assert "how the supervisor before ended is not known: cannot read" in notes[0]
