# SPDX-License-Identifier: Apache-2.0
"""How far each rank was in its collectives, by torch's recorder and its watchdog, and the rank that did not come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervised import Folder, training

from resilient.core.causes import Cause
from resilient.core.classify import classify
from resilient.core.collectives import Collectives, Suspect, absent, from_recorder, from_watchdog
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Hang, Place, RankEvidence

WATCHDOG = (
    "[rank4]:[E703 15:37:17.178360488 ProcessGroupNCCL.cpp:1987] [PG ID 0 PG GUID 0(default_pg) Rank 4] Received a "
    "dump signal due to a collective timeout from  rank 7 and we will try our best to dump the debug info. "
    "Last enqueued NCCL work: 56118, last completed NCCL work: 56117.This is most likely caused by incorrect usages"
)
OLDER = (
    "[rank3]:[E227 16:30:43.526290891 ProcessGroupNCCL.cpp:1785] [PG ID 2 PG GUID 3 Rank 3] Exception (either an "
    "error or timeout) detected by watchdog at work: 32, last enqueued NCCL work: 32, last completed NCCL work: 31."
)
OLDEST = (
    "[Rank 5] Exception detected by watchdog at work: 18, last enqueued NCCL work: 18, last completed NCCL work: -1."
)
NUMBERED = OLDER.replace("PG ID 2 PG GUID 3", "PG 3")
NAMED = NUMBERED.replace("PG 3", "PG 3 (tensor)").replace("NCCL work", "work")


def entry(number: Any, *, group: str = "default_pg", state: str = "scheduled", **more: Any) -> dict[str, Any]:
    """One entry of a recorder's dump, as torch 2.13 writes it."""
    return {
        "collective_seq_id": number,
        "input_sizes": [[1024]],
        "is_p2p": False,
        "pg_id": 0,
        "process_group": ["0", group],
        "profiling_name": "nccl:all_reduce",
        "state": state,
        **more,
    }


def dump(*entries: Any, **more: Any) -> str:
    return json.dumps({"entries": list(entries), "version": "2.10", **more})


def at(enqueued: int, operation: str | None = None, *, group: str = "default_pg") -> list[Collectives]:
    return [Collectives(group=group, enqueued=enqueued, operation=operation)]


def test_the_recorder_says_how_far_each_group_is() -> None:
    """The last collective of each group, and what the recorder itself counts as completed, number or text."""
    status = {"0": {"last_completed_collective": "3", "last_enqueued_collective": "5"}}
    text = dump(
        entry(4, state="completed"),
        entry(5),
        entry(9, is_p2p=True),
        entry(2, group="tensor", pg_id=7, state="completed"),
        pg_status=status,
    )
    assert from_recorder(text) == (
        Collectives(group="default_pg", enqueued=5, completed=3, operation="nccl:all_reduce [[1024]]"),
        Collectives(group="tensor", enqueued=2, completed=2, operation="nccl:all_reduce [[1024]]"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[" * 100_000, '{"entries": 3}', dump(3, None, [], {}),
        dump(entry("x")), dump(entry(1 << 80)), dump(entry(True)), dump(entry(1, process_group=3)),
        dump(entry(1, process_group=[])), dump(entry(1, process_group=[None])),
    ],
)  # fmt: skip
def test_a_dump_of_another_form_says_nothing(text: str) -> None:
    """It comes from a worker: whatever it is, it is no reason to fail."""
    assert from_recorder(text) == ()


NAMES = st.sampled_from(["entries", "pg_status", "0", "process_group", "collective_seq_id", "is_p2p", "pg_id"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@given(ANYTHING)
def test_no_dump_breaks_the_reader(data: Any) -> None:
    """Any JSON, with the recorder's own names in it."""
    from_recorder(json.dumps({"entries": [data, {**entry(1), "pg_id": 0}], "pg_status": data}))


def test_a_dump_of_many_groups_is_bounded() -> None:
    """A worker makes as many groups as it likes."""
    assert len(from_recorder(dump(*(entry(1, group=f"group {number}") for number in range(100))))) == 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WATCHDOG, Collectives(group="default_pg", enqueued=56118, completed=56117)),
        (OLDER, Collectives(group="3", enqueued=32, completed=31)),
        (OLDEST, Collectives(group="default_pg", enqueued=18, completed=-1)),
        (NUMBERED, Collectives(group="3", enqueued=32, completed=31)),
        (NAMED, Collectives(group="tensor", enqueued=32, completed=31)),
    ],
)
def test_the_watchdog_says_it_on_stderr(text: str, expected: Collectives) -> None:
    """Releases of torch word it differently; the last line of a group counts."""
    assert from_watchdog(f"step 1\n{text}\nmore\n") == (expected,)
    assert from_watchdog("last enqueued NCCL work: one\n") == ()


def test_the_rank_that_is_behind_is_named() -> None:
    """All others wait in a collective that it did not come to."""
    places = {0: at(57, "nccl:all_reduce"), 1: at(57, "nccl:all_reduce"), 2: at(56, "nccl:barrier")}
    assert absent(places) == Suspect(
        rank=2, why="rank 2 had come to 56 when the others waited in collective 57 of default_pg (nccl:all_reduce)"
    )


def test_the_rank_that_does_something_else_is_named() -> None:
    """At the same number two agree against one; of two ranks nobody can say which is wrong."""
    places = {0: at(5, "gloo:all_reduce"), 1: at(5, "gloo:broadcast"), 2: at(5, "gloo:all_reduce")}
    found = absent(places)
    assert found is not None
    assert found.why == "rank 1 called gloo:broadcast where the others called gloo:all_reduce in default_pg"
    del places[2]
    assert absent(places) is None


@pytest.mark.parametrize(
    "places",
    [
        {},
        {0: at(5)},
        {0: at(5), 1: at(5)},
        {0: at(5), 1: at(4), 2: at(4)},
        {0: at(5), 1: at(4, group="tensor")},
        {0: at(5, "a"), 1: at(5, "b"), 2: at(5, "c")},
        {0: at(5, "a"), 1: at(5, None), 2: at(5, "a")},
    ],
)
def test_nobody_is_named_where_nothing_tells_one_from_the_others(places: dict[int, list[Collectives]]) -> None:
    """Two that are behind, groups that differ, a rank that nobody knows anything of."""
    assert absent(places) is None


def test_a_verdict_about_victims_names_the_rank_that_did_not_come() -> None:
    """Ranks that were ended before they could time out themselves have said nothing else."""
    late = ErrorRecord(chain=(ErrorLink(type="RuntimeError", message="Timed out waiting 2000ms for recv operation"),))
    ranks = (
        RankEvidence(rank=0, exit_code=1, order=0, error=late, collectives=tuple(at(9))),
        RankEvidence(rank=1, signal=15, order=1, stopped=True, collectives=tuple(at(9))),
        RankEvidence(rank=2, signal=15, order=2, stopped=True, collectives=tuple(at(8))),
    )
    verdict = classify(Evidence(ranks=ranks))
    assert (verdict.rule, verdict.culprit) == ("gloo-timeout", 2)
    assert verdict.why.endswith(
        "rank 2 had come to 8 when the others waited in collective 9 of default_pg, and is the suspect"
    )
    silent = tuple(RankEvidence(rank=rank.rank, signal=15, stopped=True, order=1) for rank in ranks[1:])
    assert classify(Evidence(ranks=(ranks[0], *silent))).culprit is None


def test_a_hang_names_the_rank_that_called_something_else() -> None:
    """All three wait in a collective, so that the stacks blame whoever has waited longest."""
    operations = ("gloo:all_reduce", "gloo:broadcast", "gloo:all_reduce")
    ranks = tuple(
        RankEvidence(rank=rank, signal=9, order=rank, stopped=True, collectives=tuple(at(9, operation)))
        for rank, operation in enumerate(operations)
    )
    verdict = classify(Evidence(ranks=ranks, hang=Hang(rank=0, place=Place.STEP, phase=None, silent_s=90, bound_s=60)))
    assert (verdict.cause, verdict.culprit) == (Cause.HANG_OR_COLLECTIVE_TIMEOUT, 1)
    assert "rank 1 called gloo:broadcast where the others called gloo:all_reduce" in verdict.why


BODY = """
import datetime, threading
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
dist.init_process_group("gloo")

def fault(step):
    if step == 2:  # not before all are there
        _set_pg_timeout(datetime.timedelta(seconds=4))
    if step == 2 and dist.get_rank() == 1:
        threading.Event().wait()
    dist.all_reduce(torch.ones(3))
"""


def test_a_real_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    """Three ranks over gloo: one stands still in its own code, one times out, one is ended while it waits."""
    folder = Folder(tmp_path)
    ended = folder.run("--nproc-per-node", "3", "--max-restarts", "0", folder.script(training(BODY)))
    [collected] = [entry["event"] for entry in ended.entries("event") if entry["event"]["type"] == "Collected"]
    told = {rank["rank"]: rank["collectives"] for rank in collected["evidence"]["ranks"]}
    assert {rank: groups[0]["group"] for rank, groups in told.items()} == dict.fromkeys(range(3), "default_pg")
    assert told[1][0]["enqueued"] == told[0][0]["enqueued"] - 1 == told[2][0]["enqueued"] - 1
    [verdict] = [
        command["verdict"] for entry in ended.entries("event") for command in entry["commands"]
        if command.get("verdict")
    ]  # fmt: skip
    assert (verdict["rule"], verdict["culprit"]) == ("gloo-timeout", 1)
    assert "rank 1 had come to" in ended.termination["why"]


MISMATCH = """
import torch.distributed as dist
dist.init_process_group("gloo")

def fault(step):
    if step == 2 and dist.get_rank() == 2:
        dist.reduce(torch.ones(3), dst=2)
    dist.all_reduce(torch.ones(3))
"""


def test_a_real_rank_that_calls_something_else_is_named(tmp_path: Path) -> None:
    """All ranks stand still in a collective of the same number; one of them called another."""
    folder = Folder(tmp_path)
    script = folder.script(training(MISMATCH))
    ended = folder.run("--nproc-per-node", "3", "--max-restarts", "0", "--hang-floor", "5s", script)
    assert ended.rules == ["hang-in-step"]
    words = "rank 2 called gloo:reduce [[3]] where the others called gloo:all_reduce [[3]] in default_pg"
    assert words in ended.termination["why"]
