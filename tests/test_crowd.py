# SPDX-License-Identifier: Apache-2.0
"""Many ranks, one root cause: who did not come, who died alike, and what no clock decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence

ILLEGAL = "CUDA error: an illegal memory access was encountered"
ECC = "CUDA error: uncorrectable ECC error encountered"


def died(rank: int, name: str, message: str, node: str | None = None) -> RankEvidence:
    """A rank that died of an exception."""
    record = ErrorRecord(chain=(ErrorLink(type=name, message=message),))
    return RankEvidence(rank=rank, exit_code=1, order=rank, error=record, node=node)


def waited(rank: int, number: int = 7, kind: str = "ALLREDUCE", group: str = "") -> RankEvidence:
    """A rank that the watchdog ended."""
    said = (
        f"[rank{rank}]:[E1123 10:11:12.130 ProcessGroupNCCL.cpp:670] {group}[Rank {rank}] Watchdog caught collective "
        f"operation timeout: WorkNCCL(SeqNum={number}, OpType={kind}, Timeout(ms)=600000) ran for 600081 milliseconds\n"
    )
    return RankEvidence(rank=rank, signal=6, order=rank, stderr_tail=said)


def judge(*ranks: RankEvidence, world_size: int | None = None) -> Verdict:
    """The verdict on these ranks."""
    return classify(Evidence(ranks=ranks, world_size=world_size))


def test_the_culprits_node_is_named_and_its_victims_are_counted() -> None:
    """One sentence tells all of it."""
    closed = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
    verdict = judge(
        *(died(rank, "RuntimeError", closed, "node-a") for rank in range(3)),
        died(3, "torch.AcceleratorError", ECC, "node-b"),
    )
    assert (verdict.rule, verdict.culprit, verdict.node) == ("cuda-ecc", 3, "node-b")
    assert "on node-b" in verdict.why
    assert verdict.why.endswith("; 3 other ranks suffered from it")


def test_the_same_cuda_error_on_all_ranks_is_the_codes() -> None:
    """Boards do not break together."""
    verdict = judge(*(died(rank, "torch.AcceleratorError", ILLEGAL) for rank in range(8)))
    assert (verdict.rule, verdict.action, verdict.culprit) == ("cuda-alike-everywhere", Action.STOP, None)
    assert verdict.why.endswith("; 7 other ranks alike")


@pytest.mark.parametrize("others", [1, 7])
def test_the_same_error_on_few_ranks_is_anybodys(others: int) -> None:
    """One of two, one of eight: a second look."""
    ranks = [died(0, "torch.AcceleratorError", ILLEGAL)]
    ranks += [died(rank, "RuntimeError", "NCCL communicator was aborted on rank 1.") for rank in range(1, others + 1)]
    verdict = judge(*ranks)
    assert (verdict.rule, verdict.action, verdict.culprit) == ("cuda-memory-access", Action.INVESTIGATE, 0)


def test_ranks_that_are_not_listed_count_as_well() -> None:
    """Two of eight are not nearly all, although both that are listed say the same."""
    ranks = [died(rank, "torch.AcceleratorError", ILLEGAL) for rank in range(2)]
    assert judge(*ranks).rule == "cuda-alike-everywhere"
    assert judge(*ranks, world_size=8).rule == "cuda-memory-access"


def test_an_ecc_error_on_all_ranks_stays_one() -> None:
    """With evidence of a device nobody is alike."""
    assert judge(*(died(rank, "torch.AcceleratorError", ECC) for rank in range(4))).device_grade


def test_a_crash_with_the_same_signal_everywhere_is_the_codes() -> None:
    """And on one of four it is anybody's."""
    crashed = [RankEvidence(rank=rank, signal=11, order=rank) for rank in range(4)]
    assert judge(*crashed).rule == "crash-alike-everywhere"
    stopped = [replace(rank, signal=9, stopped=True) for rank in crashed[1:]]
    assert judge(crashed[0], *stopped).rule == "sigsegv"


def test_the_lone_rank_that_did_not_report_is_the_suspect() -> None:
    """Also where it is not even listed."""
    for verdict in (judge(*map(waited, (0, 1, 3)), world_size=4), judge(*map(waited, (0, 1, 3)), RankEvidence(rank=2))):
        assert (verdict.rule, verdict.cause) == ("watchdog-timeout", Cause.HANG_OR_COLLECTIVE_TIMEOUT)
        assert verdict.culprit == 2
        assert "rank 2 alone did not report it" in verdict.why


def test_where_all_report_or_several_are_silent_nobody_is_named() -> None:
    """A guess at a rank would be worse than none."""
    assert judge(*map(waited, range(4))).culprit is None
    assert judge(*map(waited, (0, 1)), world_size=4).culprit is None


def test_the_rank_that_fell_behind_is_the_suspect() -> None:
    """Its queue holds fewer collectives than everybody else's."""
    line = (
        "[rank{0}]:[E1123 10:11:12.130 ProcessGroupNCCL.cpp:1834] [PG ID 0 PG GUID 0(default_pg) Rank {0}] Timeout at "
        "NCCL work: 610, last enqueued NCCL work: {1}, last completed NCCL work: 609.\n"
    )
    ranks = [
        replace(waited(rank), stderr_tail=waited(rank).stderr_tail + line.format(rank, 609 if rank == 2 else 616))
        for rank in range(4)
    ]
    verdict = judge(*ranks)
    assert verdict.culprit == 2
    assert "had come to collective 609 when all others were at 616 or beyond" in verdict.why


def test_the_barrier_names_who_is_missing() -> None:
    """torch says it itself."""
    said = "[Rank 0]: Ranks 3 failed to pass monitoredBarrier in 2000 ms"
    verdict = judge(
        died(0, "RuntimeError", said), RankEvidence(rank=1, stopped=True), RankEvidence(rank=3, stopped=True)
    )
    assert verdict.culprit == 3


@pytest.mark.parametrize(
    "ranks",
    [
        (waited(0, 7, "ALLREDUCE"), waited(1, 7, "BROADCAST")),
        (waited(0, 7, group="[PG ID 0 PG GUID 0 Rank 0] "), waited(1, 9, group="[PG ID 0 PG GUID 0 Rank 1] ")),
    ],
    ids=["kind", "number"],
)
def test_ranks_that_waited_for_different_collectives_blame_the_code(ranks: tuple[RankEvidence, ...]) -> None:
    """No device makes a rank call another collective."""
    assert judge(*ranks).rule == "collective-desync"


@pytest.mark.parametrize(
    "ranks",
    [
        (waited(0), waited(1)),
        (waited(0, 96120), waited(1, 6408)),
        (waited(0, 7, group="[PG ID 0 PG GUID 0 Rank 0] "), waited(1, 9, group="[PG ID 2 PG GUID 5 Rank 1] ")),
    ],
    ids=["same", "of two groups that are not named", "of two groups"],
)
def test_the_same_collective_or_another_group_is_no_disagreement(ranks: tuple[RankEvidence, ...]) -> None:
    """Numbers are those of a group."""
    assert judge(*ranks).rule == "watchdog-timeout"
