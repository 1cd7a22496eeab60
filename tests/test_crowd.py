# SPDX-License-Identifier: Apache-2.0
"""Many ranks, one root cause: who did not come, who died alike, and what no clock decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.collectives import Collectives, from_watchdog
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Hang, Place, RankEvidence
from resilient.core.log_text import read_log

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


def timed_out(rank: int, enqueued: int, group: str, member: int) -> str:
    """What the watchdog of a process prints, by torch 2.5: it goes by its rank within the group."""
    head = f"[rank{rank}]:[E1123 10:11:12.130 ProcessGroupNCCL.cpp:"
    return (
        f"{head}629] [Rank {member}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=610, "
        f"OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.\n"
        f"{head}1834] [{group} Rank {member}] Timeout at NCCL work: 610, "
        f"last enqueued NCCL work: {enqueued}, last completed NCCL work: 609.\n"
    )


def from_both(texts: dict[int, str]) -> list[Verdict]:
    """The verdicts on what each rank printed: as the supervisor collects it, and as a log that somebody kept."""
    ranks = [
        RankEvidence(rank=rank, signal=6, order=rank, stderr_tail=text, collectives=from_watchdog(text))
        for rank, text in texts.items()
    ]
    return [judge(*ranks), classify(read_log("".join(texts.values())))]


ALL, TENSOR = "PG ID 0 PG GUID 0(default_pg)", "PG ID 1 PG GUID 3(tensor)"


@pytest.mark.parametrize("farthest", [616, 620])
def test_the_rank_that_fell_behind_is_the_suspect(farthest: int) -> None:
    """Its queue holds fewer collectives than everybody else's, however far ahead these are."""
    queues = {0: 616, 1: farthest, 2: 609, 3: 616}
    for verdict in from_both({rank: timed_out(rank, number, ALL, rank) for rank, number in queues.items()}):
        beyond = " or beyond" if farthest > 616 else ""
        assert verdict.culprit == 2
        assert f"rank 2 had come to 609 when the others waited in collective 616 of default_pg{beyond}," in verdict.why


def test_a_rank_goes_by_its_number_in_the_run_not_in_its_group() -> None:
    """The first process of a group need not be the first of the run."""
    queues = {4: 616, 5: 609, 6: 616}
    verdicts = from_both({rank: timed_out(rank, number, TENSOR, rank - 4) for rank, number in queues.items()})
    assert [verdict.culprit for verdict in verdicts] == [5, 5]


def test_a_rank_of_another_group_is_not_taken_for_one_that_told() -> None:
    """Ranks 1 to 3 told of a time-out as the members 0 to 2 of their group."""
    told = [replace(waited(rank - 1), rank=rank) for rank in (1, 2, 3)]
    verdict = judge(*told, RankEvidence(rank=0, stopped=True))
    assert verdict.why.endswith("rank 0 alone did not report it, and is the suspect")


def test_of_two_ranks_in_a_log_neither_is_behind() -> None:
    """It may lack the one that is."""
    verdicts = from_both({rank: timed_out(rank, 616 - rank, ALL, rank) for rank in range(2)})
    assert [verdict.culprit for verdict in verdicts] == [1, None]


def test_the_suspect_is_on_its_own_node() -> None:
    """Not on that of the rank whose stack was taken for the one that hangs."""
    places = {0: 9, 1: 9, 2: 8}
    ranks = tuple(
        RankEvidence(
            rank=rank,
            node=f"node-{rank}",
            signal=9,
            stopped=True,
            collectives=(Collectives(group="default_pg", enqueued=enqueued),),
        )
        for rank, enqueued in places.items()
    )
    verdict = classify(Evidence(ranks=ranks, hang=Hang(rank=0, place=Place.STEP, phase=None, silent_s=90, bound_s=60)))
    assert (verdict.culprit, verdict.node) == (2, "node-2")


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
