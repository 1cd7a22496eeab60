# SPDX-License-Identifier: Apache-2.0
"""What several pods have seen becomes one evidence, in which each worker stands where it belongs."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from driving import KILLED, raised
from filled import filled

from resilient.core import wire
from resilient.core.classify import classify
from resilient.core.evidence import UNNAMED, ErrorLink, ErrorRecord, Evidence, Hang, Place, RankEvidence
from resilient.core.rules import RULES
from resilient.core.testimony import is_of, of_pod, shortened, shorter, together
from resilient.supervisor import pod_words
from resilient.supervisor.mailbox import LETTER_LIMIT

HANG = Hang(rank=1, place=Place.STEP, phase=None, silent_s=61, bound_s=60, where="train.py:41 in loss")
ERROR = ErrorRecord(chain=(ErrorLink(type="ValueError", message="x"),), monotonic_s=12.5, wall_s=99.5, rank=1)


def seen(*ranks: int, hang: Hang | None = None) -> Evidence:
    return Evidence(ranks=tuple(RankEvidence(rank=rank, exit_code=1, error=ERROR) for rank in ranks), hang=hang)


def test_a_pod_speaks_by_the_ranks_of_the_run() -> None:
    """Of its own first worker on; a worker that a log does not name stays unnamed, and the hang moves as well."""
    told = of_pod(seen(0, 1, UNNAMED, hang=HANG), first=8, node="node-b")
    assert [rank.rank for rank in told.ranks] == [8, 9, UNNAMED]
    assert told.hang == replace(HANG, rank=9)
    assert of_pod(seen(0), first=8, node=None).hang is None


def test_a_machine_is_named_once() -> None:
    """By the pod, unless the evidence knows better."""
    ranks = (RankEvidence(rank=0), RankEvidence(rank=1, node="from-a-log"))
    told = of_pod(Evidence(ranks=ranks), first=0, node="node-b")
    assert [rank.node for rank in told.ranks] == ["node-b", "from-a-log"]


def test_no_clock_of_one_machine_is_read_on_another() -> None:
    """Monotonic time begins anew on each; wall time is said in the error record itself."""
    [rank] = of_pod(seen(1), first=4, node=None).ranks
    assert rank.error == replace(ERROR, monotonic_s=None)


def test_all_ranks_stand_in_their_order_and_ended_as_the_first_pod_saw() -> None:
    """What a pod has seen of the order among its own says nothing of the others."""
    own, other = of_pod(seen(0, 1), first=0, node="a"), of_pod(seen(0, 1), first=2, node="b")
    other = replace(other, ranks=tuple(replace(rank, order=rank.rank - 2) for rank in other.ranks))
    found = together([other, own], order=[3, 0, 2], world_size=4)
    assert [(rank.rank, rank.node, rank.order) for rank in found.ranks] == [
        (0, "a", 1), (1, "a", None), (2, "b", 2), (3, "b", 0),
    ]  # fmt: skip
    assert found.world_size is None, "all are there"


def test_a_pod_that_says_nothing_is_missed() -> None:
    """The verdict is to know of how many ranks it hears."""
    assert together([seen(0, 1)], order=[], world_size=4).world_size == 4


def test_what_is_counted_is_the_worst_that_any_pod_has_seen() -> None:
    """Unknown where nobody knows it; what was announced and what is known of devices is said by all."""
    whole = filled(Evidence)
    none = Evidence(ranks=())
    more = replace(none, oom_kills=2, shm_used_fraction=0.9, disk_used_fraction=0.0, announced=("b",))
    less = replace(none, oom_kills=0, shm_used_fraction=0.5, announced=("a",), pod_devices=whole.pod_devices)
    found = together([less, none, more], order=[], world_size=3)
    assert (found.oom_kills, found.shm_used_fraction, found.disk_used_fraction) == (2, 0.9, 0.0)
    assert (found.announced, found.pod_devices) == (("a", "b"), whole.pod_devices)
    assert together([none, none], order=[], world_size=2) == replace(none, world_size=2)


def test_one_hang_is_told_of() -> None:
    """Whichever pod has found it."""
    assert together([seen(0), seen(1, hang=HANG)], order=[], world_size=2).hang == HANG


def test_a_fault_of_another_pod_is_found_where_it_was() -> None:
    """The culprit is the rank of the run, on the machine of its pod."""
    victim = of_pod(Evidence(ranks=(RankEvidence(rank=0, signal=15, stopped=True),)), first=0, node="node-a")
    culprit = of_pod(KILLED, first=1, node="node-b")
    verdict = classify(together([victim, culprit], order=[1, 0], world_size=2), RULES)
    assert (verdict.rule, verdict.culprit, verdict.node) == ("sigkill", 1, "node-b")


@pytest.mark.parametrize("field", [field.name for field in fields(Evidence) if field.name not in ("ranks", "hang")])
def test_nothing_is_lost_on_the_way_to_the_first_pod(field: str) -> None:
    """But the order and the clock, which mean nothing there."""
    evidence = filled(Evidence)
    assert getattr(of_pod(evidence, first=3, node="x"), field) == getattr(evidence, field)


# Less of it.


def long_evidence(workers: int, characters: int) -> Evidence:
    """As much as workers may leave behind, which takes twelve bytes a character on the wire."""
    text = "\U0001f525" * characters
    [one] = raised("ValueError").ranks
    assert one.error is not None
    error = replace(one.error, traceback=text, chain=(ErrorLink(type="ValueError", message=text),))
    rank = replace(one, error=error, stderr_tail=text, stdout_tail=text, nccl_log=text, kernel_log=text)
    return Evidence(ranks=tuple(replace(rank, rank=number) for number in range(workers)), hang=HANG)


def test_texts_are_cut_to_their_ends_and_messages_to_their_beginnings() -> None:
    """That is where the words are that a rule reads."""
    rank = replace(raised("ValueError").ranks[0], stderr_tail="abcdef", stdout_tail="abc", kernel_log="abcd")
    error = replace(ERROR, traceback="uvwxyz", chain=(ErrorLink(type="ValueError", message="abcdef"),))
    [cut] = shortened(Evidence(ranks=(replace(rank, error=error, nccl_log="abcdef"),)), 3).ranks
    assert (cut.stderr_tail, cut.stdout_tail, cut.nccl_log, cut.kernel_log) == ("def", "abc", "def", "bcd")
    assert cut.error is not None
    assert (cut.error.traceback, cut.error.message) == ("xyz", "abc")


def test_what_fits_is_told_whole() -> None:
    """And each time that it does not, there is less of it."""
    evidence = long_evidence(2, 100_000)
    assert shorter(evidence)[0] == evidence
    sizes = [len(wire.encode(less)) for less in shorter(evidence)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("workers", [1, 64, 4096])
def test_there_is_always_a_testimony_that_fits(workers: int) -> None:
    """The first pod waits for it as long as this one lives."""
    last = shorter(long_evidence(workers, 2000))[-1]
    word = pod_words.Testified(pod=1023, address="pod-1023-" + "f" * 16, launch=10**6, evidence=last)
    line = wire.encode(word)
    assert len(line) <= LETTER_LIMIT
    assert wire.decode(line, pod_words.TO_LEADER) == word
    assert [rank.rank for rank in last.ranks] == list(range(workers))
    assert {rank.exit_code for rank in last.ranks} == {1}
    assert last.hang == HANG


# Whose it is.


@pytest.mark.parametrize(
    ("ranks", "hang", "own"),
    [
        ((2, 3), None, True),
        ((3, 2), None, True),
        ((2,), None, True),
        ((), None, True),
        ((2, UNNAMED, UNNAMED), None, True),
        ((2, 3), 3, True),
        ((1, 2), None, False),
        ((2, 4), None, False),
        ((-2,), None, False),
        ((2, 2), None, False),
        ((2, 3), 1, False),
        ((2, 3), UNNAMED, False),
    ],
)
def test_a_pod_speaks_of_its_own_workers_only(ranks: tuple[int, ...], hang: int | None, own: bool) -> None:
    """And of each once: what contradicts itself is not judged."""
    found = seen(*ranks, hang=None if hang is None else replace(HANG, rank=hang))
    assert is_of(found, range(2, 4)) is own
