# SPDX-License-Identifier: Apache-2.0
"""What is done about a fault that comes back in one batch, as decisions: who recognises it, and when it is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from driving import BATCH, ONE, SETTLED, code_of, drive, fail, raised

from resilient.core import events as ev
from resilient.core.batch import MOST_SAMPLES, Batch, dealt_alike, in_common, is_sound, listed, same_place
from resilient.core.causes import Action, Cause, Confidence, Verdict
from resilient.core.classify import classify
from resilient.core.commands import Announce, Command, RecordDebit, SkipBatch
from resilient.core.evidence import Evidence, Past
from resilient.core.exit_codes import ExitCode
from resilient.core.fingerprint import fingerprint
from resilient.core.history import Now, on_record, reconsider, remember
from resilient.core.job import Phase
from resilient.core.ledger import Ledger
from resilient.core.on_code_fault import OnCodeFault
from resilient.core.policy import Terms, decide
from resilient.core.skipping import Skipping, goes_by, name_of, numbers_left_out, objection, why_not

FAULT = Verdict(
    cause=Cause.USER_CODE,
    action=Action.STOP,
    confidence=Confidence.LOW,
    rule="user-exception",
    why="the code of rank 0 raised an error",
    fingerprint="user-exception:Error@train.py:step",
    culprit=0,
    step=40,
    batch=BATCH,
)
TRAINED = Ledger(steps_known=True, highest_step=39)
STRUCK = TRAINED.struck(FAULT.fingerprint, 40)
NAMED = "batch 17 of epoch 2 (samples 544 to 575)"


def told(batch: Batch, skipping: Skipping, *, step: int = 40, past: tuple[Past, ...] = ()) -> ev.Collected:
    """A fault of the code in a batch."""
    return ev.Collected(evidence=raised("TypeError", step=step, batch=batch), skipping=skipping, past=past)


def fault(batch: Batch, skipping: Skipping, *, step: int = 40, past: tuple[Past, ...] = ()) -> tuple[ev.Event, ...]:
    """One attempt that fails in a batch."""
    end = (ev.WorkerEnded(rank=0, clean=False, finished=False), ev.GroupEnded())
    return (*end, told(batch, skipping, step=step, past=past))


def skips(commands: list[Command]) -> list[Batch]:
    """What is left out by these commands."""
    return [command.batch for command in commands if isinstance(command, SkipBatch)]


def said(commands: list[Command]) -> str:
    """What was announced last."""
    return [command.text for command in commands if isinstance(command, Announce)][-1]


BEGUN = (ev.HeartbeatOpened(), ev.Advanced(step=39))
AGAIN = ev.DeadlinePassed()


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (BATCH, NAMED),
        (replace(BATCH, sample=560), "batch 17 of epoch 2 (sample 560)"),
        (Batch(epoch=0, first=3), "batch 3 of epoch 0"),
        (Batch(epoch=0, first=3, samples=(7,)), "batch 3 of epoch 0 (sample 7)"),
        (Batch(epoch=1, first=8, count=4, samples=(9, 3)), "batches 8 to 11 of epoch 1 (samples 9, 3)"),
        (Batch(epoch=1, first=8, samples=(9, 3), more=5), "batch 8 of epoch 1 (samples 9, 3 and 5 more)"),
    ],
)
def test_a_batch_has_one_name(batch: Batch, name: str) -> None:
    """The same words everywhere, as short as can be."""
    assert str(batch) == name


def test_samples_are_listed_in_stretches() -> None:
    """However many there are, a person can read it."""
    assert listed([3, 17, *range(544, 576)]) == "3, 17, 544 to 575"
    assert listed(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10 and 14 more"


def test_a_batch_that_somebody_made_up_is_none() -> None:
    """It comes from a worker's file, a store or a journal."""
    assert is_sound(BATCH)
    made_up: list[dict[str, Any]] = [{"first": -1}, {"epoch": 1 << 60}, {"count": 0}, {"count": 1 << 40}, {"of": -1}]
    made_up += [{"samples": (-1,)}, {"sample": -5}, {"samples": (0,) * (MOST_SAMPLES + 1)}]
    assert not any(is_sound(replace(BATCH, **values)) for values in made_up)


def test_the_same_place_is_that_of_one_order() -> None:
    """Another epoch, or another number of ranks, has other samples under the same number."""
    assert same_place(BATCH, replace(BATCH, first=15, count=3))
    others: list[dict[str, Any]] = [
        {"first": 18},
        {"first": 16},
        {"epoch": 3},
        {"before": 4},
        {"together": 64},
        {"of": 9},
    ]
    assert not any(same_place(BATCH, replace(BATCH, **other)) for other in others)


def test_a_sample_in_common_tells_nothing_where_chance_brings_it_about() -> None:
    """Two random batches of a small data set nearly always share one."""
    other = replace(BATCH, epoch=3, samples=(560, *range(31)))
    assert in_common(BATCH, other) == {560}
    assert not in_common(replace(BATCH, of=600), replace(other, of=600))
    assert not in_common(replace(BATCH, of=0), replace(other, of=0)), "how many there are is not known"
    whole = replace(BATCH, epoch=3, of=640)
    assert in_common(replace(BATCH, of=640), whole) == set(BATCH.samples), "one of 20 batches in a fixed order"
    assert not in_common(replace(BATCH, of=600), replace(whole, of=600))
    assert in_common(replace(BATCH, sample=560, of=640), replace(other, of=640)) == {560} & in_common(BATCH, other)


def test_the_same_sample_an_epoch_later_is_the_data() -> None:
    """At another step, in another batch: then it needs no restart to be confirmed, and it is named."""
    before = remember(FAULT, node=None, reached=39)
    later = replace(FAULT, step=700, batch=replace(BATCH, epoch=3, first=2, samples=(8, 560, 90_000)))
    verdict = reconsider(Now(verdict=later, reached=699), [before])
    assert (verdict.rule, verdict.cause, verdict.action) == ("same-sample-again", Cause.USER_DATA, Action.STOP)
    assert verdict.confirmed
    assert str(verdict.batch) == "batch 2 of epoch 3 (sample 560)"
    decision = decide(verdict, replace(TRAINED, highest_step=699), Terms(), 0.0)
    assert decision.code == ExitCode.CODE_FAULT
    assert "batch 2 of epoch 3 (sample 560)" in decision.why


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "user-exception:Other@train.py:step"},
        {"step": 700},
        {"batch": None},
        {"batch": replace(BATCH, samples=(1, 2, 3))},
    ],
    ids=["another fault", "the same step", "no batch known", "other samples"],
)
def test_anything_less_is_not_the_same_sample(other: dict[str, object]) -> None:
    """At the same step it is the policy that sees it come back."""
    before = replace(remember(FAULT, node=None, reached=39), **other)  # type: ignore[arg-type]  # fields of all types
    later = replace(FAULT, step=700, batch=replace(BATCH, epoch=3, samples=(8, 560, 90_000)))
    assert reconsider(Now(verdict=later, reached=699), [before]) == later


@pytest.mark.parametrize("cause", [Cause.DEVICE_FAULT, Cause.STORAGE, Cause.NETWORK_OR_PEER, Cause.PREEMPTED])
def test_no_batch_is_to_blame_for_the_machine(cause: Cause) -> None:
    """Nor for what was done to the process from outside, nor for what the script ruled."""
    allowed = Skipping(allowed=5)
    assert objection(FAULT, allowed) is None
    outside = fingerprint("sigkill", function="train.py:step")
    for other in (
        replace(FAULT, cause=cause),
        replace(FAULT, fingerprint=outside),
        replace(FAULT, ruled=True),
        replace(FAULT, device_grade=True),
    ):
        assert objection(other, allowed) == ""
        assert remember(other, node=None, reached=39).batch is None


@pytest.mark.parametrize(
    ("verdict", "skipping", "why"),
    [
        (FAULT, Skipping(), ""),
        (replace(FAULT, batch=None), Skipping(allowed=1), "not known"),
        (FAULT, Skipping(allowed=9, skipped=(BATCH,)), "left out already"),
        (FAULT, Skipping(allowed=1, skipped=(replace(BATCH, first=3),)), "skip_bad_batches=1 is spent"),
        (replace(FAULT, batch=replace(BATCH, count=2)), Skipping(allowed=1), "skip_bad_batches=1 is spent"),
        (replace(FAULT, batch=replace(BATCH, exact=False, fetching=True)), Skipping(allowed=1), "has to fetch it"),
    ],
)
def test_what_is_not_left_out_stops_the_job_and_says_why(verdict: Verdict, skipping: Skipping, why: str) -> None:
    """With the batch by its name, where there is one."""
    decision = decide(verdict, STRUCK, Terms(), 0.0, skipping)
    assert (decision.code, decision.skip) == (ExitCode.CODE_FAULT, None)
    assert why in decision.why
    assert verdict.batch is None or str(verdict.batch) in decision.why


def test_a_batch_that_has_to_be_fetched_is_left_out_by_counting_and_that_is_said() -> None:
    """As an iterable data set has no other way."""
    decision = decide(replace(FAULT, batch=replace(BATCH, exact=False)), STRUCK, Terms(), 0.0, Skipping(allowed=1))
    assert decision.skip is not None
    assert "once it has been fetched" in decision.why


def test_a_fault_that_comes_back_in_its_batch_leaves_it_out() -> None:
    """After the one restart that confirms it; then training goes on, and the next bad batch spends the next one."""
    one = Skipping(allowed=2)
    job, told = drive(ONE, *BEGUN, *fault(BATCH, one))
    assert not skips(told)
    assert "to see whether it comes back" in said(told)
    job, told = drive(ONE, *BEGUN, *fault(BATCH, one), AGAIN, *fault(BATCH, one))
    assert (job.phase, skips(told)) == (Phase.BACKING_OFF, [BATCH])
    assert f"{NAMED}, which is left out by all ranks (skip_bad_batches: 1 of 2)" in said(told)
    # The batch after it is bad as well, and fails at the very same step: it is confirmed by itself.
    second, two = replace(BATCH, first=18, samples=(1,)), Skipping(allowed=2, skipped=(BATCH,))
    events = (*BEGUN, *fault(BATCH, one), AGAIN, *fault(BATCH, one), AGAIN, *fault(second, two), AGAIN)
    _, told = drive(ONE, *events)
    assert skips(told) == [BATCH]
    _, told = drive(ONE, *events, *fault(second, two))
    assert skips(told) == [BATCH, second]
    third, spent = replace(BATCH, first=19, samples=()), Skipping(allowed=2, skipped=(BATCH, second))
    _, told = drive(ONE, *events, *fault(second, two), *(AGAIN, *fault(third, spent)) * 2, *SETTLED)
    assert code_of(told) == ExitCode.CODE_FAULT
    assert "in batch 19 of epoch 2, and skip_bad_batches=2 is spent" in said(told)


def test_before_the_first_step_no_batch_is_left_out() -> None:
    """There it is the code, whatever comes first."""
    _, told = drive(ONE, ev.HeartbeatOpened(), *fault(BATCH, Skipping(allowed=3), step=1), *SETTLED)
    assert code_of(told) == ExitCode.CODE_FAULT
    assert NAMED in said(told)


def test_a_symptom_with_two_owners_is_left_out_but_never_ends_the_job_by_itself() -> None:
    """The user has allowed the one; for the other, twice on one machine is not enough."""
    unclear = replace(FAULT, cause=Cause.AMBIGUOUS, action=Action.INVESTIGATE)
    assert decide(unclear, STRUCK, Terms(), 0.0, Skipping(allowed=1)).skip == BATCH
    assert decide(unclear, STRUCK, Terms(), 0.0).code == ExitCode.BUDGET_SPENT
    assert decide(unclear, STRUCK, Terms(in_kubernetes=True), 0.0).code == ExitCode.RESTART


def test_leaving_out_is_a_restart_like_any_other() -> None:
    """It comes out of the same budgets and the same time, and --observe does nothing of the kind."""
    allowed = Skipping(allowed=9)
    worn = replace(STRUCK, restarts_since_commit=20, restarts=20)
    assert decide(FAULT, worn, Terms(), 0.0, allowed).code == ExitCode.BUDGET_SPENT
    assert decide(FAULT, STRUCK, Terms(max_restarts=1), 0.0, allowed).code == ExitCode.BUDGET_SPENT
    assert decide(FAULT, replace(STRUCK, held_s=90_000.0), Terms(), 0.0, allowed).code == ExitCode.BUDGET_SPENT
    assert decide(FAULT, STRUCK, Terms(observe=True), 0.0, allowed).skip is None
    assert decide(FAULT, STRUCK, Terms(on_code_fault=OnCodeFault.RESTART), 0.0, allowed).skip == BATCH


def test_a_batch_goes_on_record_with_the_exit() -> None:
    """The one of the fault that ended the pod, so that another pod recognises the sample."""
    start = replace(ONE, has_store=True, terms=Terms(in_kubernetes=True))
    elsewhere = (*fault(BATCH, Skipping()), AGAIN, *fault(replace(BATCH, first=3), Skipping(), step=20))
    _, told = drive(start, ev.Opened(next_attempt=1), *BEGUN, *elsewhere, *SETTLED)
    (debit,) = (command.debit for command in told if isinstance(command, RecordDebit))
    assert (debit.code, debit.batch) == (ExitCode.RESTART, replace(BATCH, first=3))
    (past,) = on_record([debit])
    assert (past.batch, past.step) == (replace(BATCH, first=3), 20)


def test_ranks_that_failed_alike_name_the_batch_without_the_samples_of_one() -> None:
    """Its number is the same on all, what is in it is not."""
    one = raised("TypeError", batch=BATCH).ranks[0]
    verdict = classify(Evidence(ranks=tuple(replace(one, rank=rank) for rank in range(8))))
    assert verdict.culprit is None
    assert str(verdict.batch) == "batch 17 of epoch 2"
    assert classify(Evidence(ranks=(one,))).batch == BATCH


def test_what_is_left_out_of_an_epoch() -> None:
    """By the numbers of its batches, where they count the same."""
    skipped = (BATCH, replace(BATCH, first=3, count=2, of=0), replace(BATCH, epoch=1, first=9))
    here = Batch(epoch=2, first=0, of=100_000, size=32)
    assert numbers_left_out(skipped, here) == {17, 3, 4}
    assert not numbers_left_out(skipped, replace(here, together=64))
    assert not numbers_left_out(skipped, replace(here, before=128))
    assert numbers_left_out(skipped, replace(here, of=99_999)) == {3, 4}, "of these it is not known"


SIZED = replace(BATCH, size=32)
HERE = Batch(epoch=2, first=17, of=SIZED.of, size=SIZED.size)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"of": 99_000}, "the data set has 99000 samples now, and had 100000"),
        ({"of": 99_000, "first": 18}, ""),
        ({"of": 99_000, "epoch": 3}, ""),
        ({"of": 0, "size": 0}, ""),
        ({"size": 16, "first": 35}, "a batch is 16 samples now, and was 32"),
        ({"size": 16, "first": 36}, ""),
        ({"together": 64, "first": 8}, "another number of ranks deals the samples otherwise"),
        ({"together": 64, "first": 9}, ""),
        ({"before": 575, "first": 0}, "another number of ranks deals the samples otherwise"),
        ({"before": 576, "first": 0}, ""),
    ],
)
def test_a_number_that_means_other_samples_leaves_nothing_out(changed: dict[str, Any], why: str) -> None:
    """A healthy batch would be lost without a word; what lies behind the next batch is nobody's business."""
    here = replace(HERE, **changed)
    assert why_not(SIZED, here) == why
    assert not why or not numbers_left_out([SIZED], here)
    assert not why or objection(replace(FAULT, batch=here), Skipping(allowed=2, skipped=(SIZED,))) is None


def test_what_ranks_do_not_have_alike_none_of_them_goes_by() -> None:
    """They would not all leave the same out."""
    assert dealt_alike(BATCH, [(640, 4), (640, 4)]) == replace(BATCH, of=640, size=4)
    assert dealt_alike(BATCH, [(640, 4), (644, 4)]) == replace(BATCH, of=0, size=4)
    assert dealt_alike(SIZED, [(640, 4), (640, 2)]) == replace(BATCH, of=640, size=0)
    assert dealt_alike(SIZED, []) == replace(BATCH, of=0)


def test_a_batch_goes_by_its_samples_and_its_place() -> None:
    """Where the one sample to blame is known, by no other; what is no such name is nobody's."""
    read = Batch(epoch=0, first=5, sample=77, samples=(70, 77))
    for name, meant in (("560", [BATCH]), ("77", [read]), ("2/17", [BATCH]), ("0/5", [read])):
        assert [batch for batch in (BATCH, read) if goes_by(batch, name)] == meant
    for name in ("70", "3", "2/16", "1/17", "x", "-1", "2/", "/17", "", "9" * 30, "2/17/1"):
        assert not any(goes_by(batch, name) for batch in (BATCH, read))
    assert [name_of(BATCH), name_of(read)] == ["2/17", "77"]


def test_a_fault_without_batch_is_judged_as_before() -> None:
    """A script that takes its data by itself."""
    _, told = drive(ONE, *BEGUN, *fail(raised("TypeError")), AGAIN, *fail(raised("TypeError")), *SETTLED)
    assert code_of(told) == ExitCode.CODE_FAULT
    assert said(told).endswith("(twice, at the same point); correct it and submit the job again")


def test_a_verdict_that_names_a_batch_says_how_to_leave_it_out() -> None:
    """Where that was not allowed; where it was and could not be, the reason is said instead."""
    twice = (*fail(raised("TypeError", batch=BATCH)), AGAIN, *fail(raised("TypeError", batch=BATCH)))
    _, told = drive(ONE, *BEGUN, *twice, *SETTLED)
    assert code_of(told) == ExitCode.CODE_FAULT
    assert said(told).endswith("; correct it and submit the job again, or leave the batch out: --skip-bad-batches 1")
