# SPDX-License-Identifier: Apache-2.0
"""What earlier faults of a run make of one that has two owners."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import ONE, SETTLED, code_of, drive, fail, raised

from resilient.core import events as ev
from resilient.core.aftermath import CONTAINER_OOM
from resilient.core.causes import Action, Cause, Confidence, Verdict
from resilient.core.commands import Announce, StartWorkers
from resilient.core.devices import DeviceId
from resilient.core.evidence import Evidence, Past, RankEvidence
from resilient.core.exit_codes import ExitCode
from resilient.core.fingerprint import fingerprint
from resilient.core.history import HISTORY_RULES, Now, on_record, reconsider, remember
from resilient.core.job import Job, Phase
from resilient.core.ledger import Ledger
from resilient.core.machine import advance
from resilient.core.on_code_fault import OnCodeFault
from resilient.core.policy import Terms, decide
from resilient.core.rules import RULES

UNCLEAR = Verdict(
    cause=Cause.AMBIGUOUS,
    action=Action.INVESTIGATE,
    confidence=Confidence.LOW,
    rule="cuda-memory-access",
    why="a kernel went wrong",
    fingerprint="cuda-memory-access",
    culprit=3,
    step=900,
)
NOW = Now(verdict=UNCLEAR, node="node-a", reached=900, ranks=8)
BEFORE = remember(UNCLEAR, node="node-a", reached=900)


def test_the_same_step_on_another_machine_is_the_code() -> None:
    """Fingerprint and step agree, the hardware does not."""
    verdict = reconsider(NOW, [replace(BEFORE, node="node-b")])
    assert (verdict.rule, verdict.cause, verdict.action) == ("same-step-elsewhere", Cause.USER_CODE, Action.STOP)
    assert verdict.confirmed, "that it came back is what one more restart would show"
    assert verdict.fingerprint == UNCLEAR.fingerprint
    assert UNCLEAR.why in verdict.why


@pytest.mark.parametrize(
    "other",
    [{"step": 901, "node": "node-b"}, {"fingerprint": "x", "node": "node-b"}, {"node": "node-a"}, {"node": None}],
)
def test_another_step_or_fault_or_no_other_machine_says_nothing(other: dict[str, object]) -> None:
    """Each of the three must be known to agree or differ."""
    assert reconsider(NOW, [replace(BEFORE, **other)]) == UNCLEAR  # type: ignore[arg-type]  # fields of all types


def test_the_same_step_for_the_third_time_asks_another_machine_and_then_it_is_the_code() -> None:
    """Even on one machine; twice is not enough. What a pod has restarted in place is on record with its exit."""
    assert reconsider(NOW, [BEFORE]) == UNCLEAR
    for past in ([BEFORE, BEFORE], [replace(BEFORE, times=2)]):
        verdict = reconsider(NOW, past)
        assert (verdict.rule, verdict.cause, verdict.action) == (
            "same-step-three-times",
            Cause.AMBIGUOUS,
            Action.RESCHEDULE,
        )
        assert not verdict.device_grade, "no machine is kept off for that"
    verdict = reconsider(NOW, [BEFORE, replace(BEFORE, times=2)])
    assert (verdict.rule, verdict.cause, verdict.confirmed) == ("same-step-every-time", Cause.USER_CODE, True)


def test_a_sigkill_after_a_container_that_ran_out_of_memory_is_probably_the_same() -> None:
    """It is restarted as before, but said; no other fault is changed by it, and nothing else changes a SIGKILL."""
    killed = replace(NOW, verdict=replace(UNCLEAR, rule="sigkill", fingerprint="sigkill"))
    lost = Past(fingerprint=CONTAINER_OOM, node="node-b")
    verdict = reconsider(killed, [lost])
    assert (verdict.rule, verdict.cause) == ("out-of-memory-before", Cause.OUT_OF_MEMORY_HOST)
    assert verdict.action is Action.RESTART_IN_PLACE
    assert reconsider(NOW, [lost]) == UNCLEAR
    same = Past(fingerprint="sigkill", step=900, node="node-b")
    assert reconsider(killed, [same, same, same]) == killed.verdict


def test_twice_before_the_first_step_is_the_set_up() -> None:
    """Where steps are known and none was ever made."""
    early = replace(NOW, verdict=replace(UNCLEAR, step=None), reached=0)
    before = remember(early.verdict, node=None, reached=0)
    verdict = reconsider(early, [before])
    assert (verdict.rule, verdict.cause) == ("twice-before-the-first-step", Cause.CONFIG_OR_ENVIRONMENT)
    unknown = replace(early, reached=None)
    assert reconsider(unknown, [replace(before, reached=None)]) == early.verdict
    away = replace(early, verdict=replace(early.verdict, cause=Cause.STORAGE, action=Action.RESTART_IN_PLACE))
    assert reconsider(away, [before]) == away.verdict


def faults(*steps: int, **more: object) -> list[Past]:
    """Earlier faults at these steps."""
    return [replace(BEFORE, **{"fingerprint": f"f{step}", "step": step, **more}) for step in steps]  # type: ignore[arg-type]  # of all fields


def test_one_device_at_ever_other_steps_is_the_device() -> None:
    """While the others had none; then no second look is needed."""
    verdict = reconsider(NOW, faults(100, 500))
    assert (verdict.rule, verdict.action, verdict.device_grade) == ("one-device-again", Action.RESCHEDULE, True)
    bug = replace(NOW, verdict=replace(UNCLEAR, cause=Cause.USER_CODE, action=Action.STOP))
    assert reconsider(bug, faults(100, 500)).action is Action.STOP
    assert reconsider(bug, faults(100, 300, 500)).device_grade


@pytest.mark.parametrize(
    ("now", "past"),
    [
        (NOW, faults(100)),
        (NOW, faults(100, 900)),
        (NOW, [*faults(100), *faults(500, rank=4)]),
        (NOW, [*faults(100), *faults(500, node="node-b")]),
        (replace(NOW, ranks=1), faults(100, 500)),
        (replace(NOW, verdict=replace(UNCLEAR, culprit=None)), faults(100, 500)),
        (replace(NOW, verdict=replace(UNCLEAR, cause=Cause.STORAGE)), faults(100, 500)),
    ],
    ids=["too few", "a step twice", "another rank", "another node", "no others", "nobody to blame", "storage"],
)
def test_less_than_that_does_not_condemn_a_device(now: Now, past: list[Past]) -> None:
    """A healthy node must not be given up for chance."""
    assert not reconsider(now, past).device_grade


def test_a_device_is_known_by_its_uuid_wherever_its_rank_is() -> None:
    """Another one in its place is another device; where one of the two is unknown its rank and machine count."""
    now = replace(NOW, verdict=replace(UNCLEAR, device=DeviceId(uuid="GPU-1", bus="0000:05:00.0")))
    assert remember(now.verdict, node="node-b", reached=900).device == "GPU-1"
    assert remember(UNCLEAR, node="node-b", reached=900).device is None
    assert reconsider(now, faults(100, 500, device="GPU-1", rank=4)).device_grade
    assert not reconsider(now, faults(100, 500, device="GPU-2")).device_grade
    assert not reconsider(now, [*faults(100, device="GPU-1"), *faults(500, device="GPU-2")]).device_grade
    assert reconsider(now, [*faults(100, device="GPU-1", rank=4), *faults(500)]).device_grade
    assert reconsider(NOW, faults(100, 500, device="GPU-1")).device_grade
    assert not reconsider(NOW, faults(100, 500, device="GPU-1", rank=4)).device_grade


@pytest.mark.parametrize("rule", ["sigkill", "sigkill-while-loading", "sigterm", "not-started"])
def test_what_is_done_to_a_process_from_outside_tells_nothing_by_coming_back(rule: str) -> None:
    """Neither of a device nor of the code, at one step or several, nor does it count among the faults of one."""
    killed = replace(NOW, verdict=replace(UNCLEAR, fingerprint=fingerprint(rule, function="train.py:step")))
    again = replace(BEFORE, fingerprint=killed.verdict.fingerprint, step=killed.verdict.step)
    assert reconsider(killed, faults(100, 500)) == killed.verdict
    assert reconsider(killed, [again, again]) == killed.verdict
    assert reconsider(replace(killed, reached=0), [replace(again, reached=0)]) == killed.verdict
    assert not reconsider(NOW, [*faults(100), *faults(500, fingerprint=rule)]).device_grade
    assert any(each.id == rule for each in RULES)


def test_verdicts_on_hardware_and_rulings_are_not_reconsidered() -> None:
    """They need no history."""
    for verdict in (replace(UNCLEAR, device_grade=True), replace(UNCLEAR, ruled=True)):
        assert reconsider(replace(NOW, verdict=verdict), [BEFORE, BEFORE]) == verdict


def test_each_row_has_a_reason_and_a_source() -> None:
    """As any other rule has."""
    assert len({rule.id for rule in HISTORY_RULES}) == len(HISTORY_RULES)
    assert all(rule.why and rule.source.startswith("https://") for rule in HISTORY_RULES)


def test_what_another_pod_put_on_record_changes_the_verdict() -> None:
    """A debit counts like a fault of this supervisor's; a preemption is none."""
    crash = Evidence(ranks=(RankEvidence(rank=0, signal=11, order=0, step=9),))
    reached = Ledger(steps_known=True, highest_step=8)
    job = Job(terms=Terms(node="node-b"), ranks=2, phase=Phase.JUDGING, ledger=reached)
    _, commands = advance(job, ev.Collected(evidence=crash), 1.0)
    (verdict,) = (each.verdict for each in commands if isinstance(each, Announce) and each.verdict is not None)
    assert verdict.rule == "sigsegv"
    debit = ev.Debit(code=194, step=8, fault_step=9, fingerprint=verdict.fingerprint, node="node-a")
    _, commands = advance(job, ev.Collected(evidence=crash, past=on_record([debit])), 1.0)
    assert any("another machine" in each.text for each in commands if isinstance(each, Announce))
    assert not on_record([replace(debit, code=195), replace(debit, fingerprint="")])


CODE = replace(UNCLEAR, cause=Cause.USER_CODE, action=Action.STOP)
TRAINED = Ledger(steps_known=True, highest_step=1000)


@pytest.mark.parametrize(
    ("told", "ledger", "code"),
    [
        (OnCodeFault.CONFIRM, TRAINED, None),
        (OnCodeFault.CONFIRM, TRAINED.struck(CODE.fingerprint, 900), ExitCode.CODE_FAULT),
        (OnCodeFault.CONFIRM, Ledger(steps_known=True), ExitCode.CODE_FAULT),
        (OnCodeFault.STOP, TRAINED, ExitCode.CODE_FAULT),
        (OnCodeFault.RESTART, TRAINED, None),
        (OnCodeFault.RESTART, TRAINED.struck(CODE.fingerprint, 900), None),
        (OnCodeFault.RESTART, Ledger(steps_known=True), None),
    ],
)
def test_the_user_says_what_a_fault_of_the_code_does(told: OnCodeFault, ledger: Ledger, code: int | None) -> None:
    """Confirmed by one restart unless told otherwise; ``resilient.Stop`` is heard in any case."""
    terms = Terms(on_code_fault=told)
    assert decide(CODE, ledger, terms, 0.0).code == code
    assert decide(replace(CODE, ruled=True), ledger, terms, 0.0).code == ExitCode.CODE_FAULT


def test_a_code_fault_at_another_step_is_not_confirmed() -> None:
    """The same exception at another step climbs the ladder as an ambiguous fault: the one restart is spent."""
    faults = (*fail(raised("TypeError", step=2)), ev.DeadlinePassed(), *fail(raised("TypeError", step=1)), *SETTLED)
    for in_kubernetes, code in ((False, ExitCode.BUDGET_SPENT), (True, ExitCode.RESTART)):
        start = replace(ONE, terms=Terms(in_kubernetes=in_kubernetes))
        _, told = drive(start, ev.HeartbeatOpened(), ev.Advanced(step=1), *faults)
        assert code_of(told) == code
        assert sum(isinstance(command, StartWorkers) for command in told) == 2


def test_a_code_fault_after_progress_is_confirmed_anew() -> None:
    """What trained on in between had its cause cured, or was chance: each such fault gets its own one restart."""
    events: list[ev.Event] = [ev.HeartbeatOpened(), ev.Advanced(step=1)]
    for step in range(2, 7):
        events += [*fail(raised("TypeError", step=step)), ev.DeadlinePassed(), ev.Advanced(step=step)]
    job, told = drive(ONE, *events)
    assert (job.phase, code_of(told)) == (Phase.RUNNING, None)
