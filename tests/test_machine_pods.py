# SPDX-License-Identifier: Apache-2.0
"""What the machines of several pods decide: the first one judges for all, the others do as it says and testify."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import (
    CODE,
    DEVICE,
    FOLLOWER,
    KILLED,
    LAUNCHED,
    LEADER,
    MOVED,
    SAVED,
    SUSPECT,
    THREE,
    UNKNOWN,
    code_of,
    dismissals,
    drive,
    failed,
    in_kubernetes,
    kinds,
)

from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core.commands import (
    Announce,
    Assemble,
    Dismiss,
    EndGroup,
    Examine,
    RecordDebit,
    SetDeadline,
    StartWorkers,
)
from resilient.core.evidence import Evidence, Hang, Place
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase

CRASH = ev.WorkerEnded(rank=1, clean=False, finished=False)


# Together.


@pytest.mark.parametrize("start", [LEADER, FOLLOWER])
def test_no_worker_starts_before_all_pods_are_there(start: Job) -> None:
    """The machine is looked at first; the others are waited for as long as a person allows."""
    job, told = drive(start)
    assert job.phase is Phase.ASSEMBLING
    assert told[-2:] == [SetDeadline(at=start.terms.pod_patience_s), Assemble()]
    assert StartWorkers not in kinds(told)
    job, told = drive(start, *LAUNCHED)
    assert job.phase is Phase.RUNNING
    assert told[-1] == StartWorkers(attempt=1, launch=1)


def test_the_first_pod_numbers_the_attempts() -> None:
    """One that was replaced goes on with the number of all."""
    _, told = drive(FOLLOWER, ev.Assembled(attempt=7))
    assert told[-1] == StartWorkers(attempt=7, launch=1)


def test_a_fault_of_another_pods_rank_restarts_all() -> None:
    """Once all workers have ended, and all pods are there again."""
    job, told = drive(LEADER, *LAUNCHED, *failed(KILLED))
    assert (job.phase, job.attempt) == (Phase.BACKING_OFF, 2)
    assert {EndGroup, Announce} <= kinds(told)
    job, told = drive(LEADER, *LAUNCHED, *failed(KILLED), ev.DeadlinePassed())
    assert job.phase is Phase.ASSEMBLING
    assert told[-1] == Assemble()
    job, told = drive(LEADER, *LAUNCHED, *failed(KILLED), ev.DeadlinePassed(), ev.Assembled())
    assert told[-1] == StartWorkers(attempt=2, launch=2)
    assert job.ledger.restarts == 1


def test_a_pod_that_follows_leaves_its_faults_to_the_first() -> None:
    """It ends its workers when it is told to, with the grace that all get."""
    hang = ev.HangFound(hang=Hang(rank=0, place=Place.STEP, phase=None, silent_s=61, bound_s=60))
    crash = ev.WorkerEnded(rank=0, clean=False, finished=False)
    job, told = drive(FOLLOWER, *LAUNCHED, hang, crash)
    assert job.phase is Phase.RUNNING
    assert EndGroup not in kinds(told)
    job, told = drive(FOLLOWER, *LAUNCHED, crash, ev.EndOrdered(grace_s=2.5))
    assert (job.phase, told[-1]) == (Phase.STOPPING, EndGroup(grace_s=2.5))


def test_a_pod_that_follows_testifies_and_never_judges() -> None:
    """What it has seen goes to the first pod, and it waits for the next launch with an empty ledger."""
    before, _ = drive(FOLLOWER, *LAUNCHED)
    job, told = drive(FOLLOWER, *LAUNCHED, ev.EndOrdered(grace_s=5.0), ev.GroupEnded(), ev.Collected(evidence=CODE))
    assert told[-3] == cm.Testify(evidence=CODE)
    assert told[-1] == Assemble()
    assert Announce not in kinds(told)
    assert (job.phase, job.ledger) == (Phase.ASSEMBLING, before.ledger)


def test_a_pod_that_follows_looks_at_a_device_that_may_be_why() -> None:
    """Before it is used again, and without a pause: how long all wait is for the first pod to say."""
    seen = (ev.EndOrdered(grace_s=5.0), ev.GroupEnded(), ev.Collected(evidence=SUSPECT))
    job, told = drive(FOLLOWER, *LAUNCHED, *seen)
    assert told[-4:] == [cm.Testify(evidence=SUSPECT), *told[-3:-2], Examine(suspect=True), SetDeadline(at=0.0)]
    assert job.phase is Phase.BACKING_OFF
    job, told = drive(FOLLOWER, *LAUNCHED, *seen, ev.DeadlinePassed())
    assert (job.phase, told[-1]) == (Phase.ASSEMBLING, Assemble())


# One pod leaves, the others wait for it.


def test_only_the_pod_of_the_culprit_is_moved() -> None:
    """It is told why, the fault is counted, and the run goes on once it was replaced."""
    seen = replace(DEVICE, ranks=(replace(DEVICE.ranks[0], node="node-b"),))
    job, told = drive(in_kubernetes(LEADER), *LAUNCHED, *failed(seen))
    [dismissed] = [command for command in told if isinstance(command, Dismiss)]
    assert (dismissed.pod, dismissed.decision.code, dismissed.yield_s) == (1, ExitCode.RESCHEDULE, 0.0)
    assert dismissed.decision.suspect is not None
    assert dismissed.decision.suspect.name == "node-b"
    assert (job.phase, job.attempt, code_of(told)) == (Phase.ASSEMBLING, 2, None)
    assert [strike.count for strike in job.ledger.strikes] == [1]
    assert ExitCode.RESCHEDULE in job.ledger.spent
    job, told = drive(in_kubernetes(LEADER), *LAUNCHED, *failed(DEVICE), ev.Assembled())
    assert told[-1] == StartWorkers(attempt=2, launch=2)


def test_no_node_is_kept_off_for_what_was_seen_on_another() -> None:
    """Where it is not known on which one that was, none is."""
    start = replace(LEADER, terms=replace(LEADER.terms, in_kubernetes=True, node="node-a"))
    for rank, name in ((0, "node-a"), (1, None)):
        _, told = drive(start, *LAUNCHED, *failed(DEVICE, rank), SAVED)
        suspects = [command.suspect for command in told if isinstance(command, RecordDebit)]
        suspects += [command.decision.suspect for command in told if isinstance(command, Dismiss)]
        assert [suspect and suspect.name for suspect in suspects] == [name]


def test_the_first_pod_is_moved_like_any_other() -> None:
    """The others wait for the one that comes in its place."""
    job, told = drive(in_kubernetes(LEADER), *LAUNCHED, *failed(DEVICE, rank=0), SAVED, ev.Recorded())
    assert (code_of(told), job.phase, dismissals(told)) == (ExitCode.RESCHEDULE, Phase.ENDED, [])
    assert [command.debit.code for command in told if isinstance(command, RecordDebit)] == [ExitCode.RESCHEDULE]


def test_what_comes_back_in_another_pod_climbs() -> None:
    """A fresh container, another node, the end: by what the first pod has asked of the other one."""
    job = in_kubernetes(LEADER)
    crash = (*failed(KILLED), ev.DeadlinePassed(), ev.Assembled())
    events: tuple[ev.Event, ...] = (*LAUNCHED, ev.HeartbeatOpened(), *crash * 3, *failed(KILLED))
    _, told = drive(job, *events)
    assert dismissals(told) == [(1, ExitCode.RESTART, 0.0)]
    events = (*events, ev.Assembled(), *failed(KILLED))
    _, told = drive(job, *events)
    assert dismissals(told) == [(1, ExitCode.RESTART, 0.0), (1, ExitCode.RESCHEDULE, 0.0)]
    events = (*events, ev.Assembled(), *failed(KILLED), SAVED, ev.Dispersed(), ev.DeadlinePassed())
    _, told = drive(job, *events)
    assert (dismissals(told)[-1][:2], code_of(told)) == ((1, ExitCode.BUDGET_SPENT), ExitCode.BUDGET_SPENT)


def test_where_nobody_is_to_blame_all_leave() -> None:
    """A fresh container for each, as nobody knows which of them needs it."""
    job = in_kubernetes(THREE)
    nobody = (*failed(Evidence(ranks=())), ev.DeadlinePassed(), ev.Assembled())
    leaving = (*nobody, *failed(Evidence(ranks=())), SAVED, ev.Recorded())
    job, told = drive(job, *LAUNCHED, ev.HeartbeatOpened(), *leaving)
    assert dismissals(told) == [(1, ExitCode.RESTART, 0.0), (2, ExitCode.RESTART, 0.0)]
    assert code_of(told) == ExitCode.RESTART


def test_a_pod_that_is_dismissed_puts_its_exit_on_record() -> None:
    """The codes that a controller may ignore are taken by nobody without a debit."""
    _, told = drive(FOLLOWER, *LAUNCHED, ev.Dismissed(decision=MOVED), ev.GroupEnded(), SAVED)
    [debit] = [command for command in told if isinstance(command, RecordDebit)]
    assert (debit.debit.code, debit.why) == (ExitCode.RESCHEDULE, MOVED.why)
    assert code_of(told) is None
    gone = (ev.Dismissed(decision=MOVED), ev.GroupEnded(), SAVED, ev.Recorded())
    assert code_of(drive(FOLLOWER, *LAUNCHED, *gone)[1]) == ExitCode.RESCHEDULE
    lost = (*gone[:-1], ev.RecordFailed(why="disk full"))
    assert code_of(drive(FOLLOWER, *LAUNCHED, *lost)[1]) == ExitCode.INTERNAL


# A pod goes.


@pytest.mark.parametrize("code", [None, ExitCode.RESCHEDULE, ExitCode.PREEMPTED_SAVED, ExitCode.INTERNAL, 0])
@pytest.mark.parametrize("leaving", [True, False])
def test_a_pod_that_goes_spends_nothing_here(leaving: bool, code: int | None) -> None:
    """What the others die of is its absence: they start again once there is another one, with the budgets they had."""
    before, _ = drive(LEADER, *LAUNCHED)
    gone = ev.PeerGone(pod=1, why="asked to leave by SIGTERM", leaving=leaving, code=code)
    job, told = drive(LEADER, *LAUNCHED, gone)
    assert (job.phase, kinds(told[-1:])) == (Phase.STOPPING, {EndGroup})
    events = (gone, ev.GroupEnded(), ev.Collected(evidence=KILLED))
    job, told = drive(LEADER, *LAUNCHED, *events)
    assert (job.phase, job.attempt, job.ledger) == (Phase.ASSEMBLING, 2, before.ledger)
    [said] = [command for command in told if isinstance(command, Announce)]
    assert ("pod 1 leaves: " if leaving else "pod 1 is gone: ") in said.text
    assert said.verdict is None
    job, told = drive(LEADER, *LAUNCHED, *events, ev.Assembled())
    assert (told[-1], job.gone) == (StartWorkers(attempt=2, launch=2), ())


@pytest.mark.parametrize("heard", [ev.GroupEnded(), None])
def test_that_a_pod_has_gone_may_be_heard_after_its_peers_died(heard: ev.Event | None) -> None:
    """The connection breaks before anybody says why."""
    gone = ev.PeerGone(pod=1, why="its supervisor ended without a word")
    events = (heard, gone) if heard else (gone, ev.GroupEnded())
    died = ev.WorkerEnded(rank=0, clean=False, finished=False)
    job, _ = drive(LEADER, *LAUNCHED, died, *events, ev.Collected(evidence=KILLED))
    assert (job.phase, job.ledger.restarts) == (Phase.ASSEMBLING, 0)


def test_a_first_pod_that_goes_is_waited_for() -> None:
    """Those that follow end their workers and are there for the next one."""
    events = (ev.PeerGone(pod=0, why="the store of pod 0 is gone"), ev.GroupEnded(), ev.Collected(evidence=KILLED))
    job, told = drive(FOLLOWER, *LAUNCHED, *events)
    assert (job.phase, told[-1]) == (Phase.ASSEMBLING, Assemble())
    job, told = drive(FOLLOWER, *LAUNCHED, *events, ev.Assembled(attempt=9))
    assert told[-1] == StartWorkers(attempt=9, launch=2)


def test_a_loop_of_pods_that_go_ends_with_time() -> None:
    """Nothing is spent, but the clock over everything runs."""
    terms = replace(LEADER.terms, max_time_without_progress_s=3600.0)
    gone = (ev.PeerGone(pod=1, why="the node is gone"), ev.GroupEnded(), ev.Collected(evidence=KILLED))
    events = (*LAUNCHED, ev.HeartbeatOpened(), *gone, SAVED, ev.Dispersed())
    assert code_of(drive(replace(LEADER, terms=terms), *events, now=3601.0)[1]) == ExitCode.BUDGET_SPENT


@pytest.mark.parametrize("start", [LEADER, FOLLOWER])
@pytest.mark.parametrize("launched", [True, False])
def test_a_pod_does_not_wait_for_ever(start: Job, launched: bool) -> None:
    """197, on record, with who was missing: whoever is may need what this one holds."""
    crash = (*failed(UNKNOWN), ev.DeadlinePassed()) if start is LEADER else (
        ev.EndOrdered(grace_s=5.0), ev.GroupEnded(), ev.Collected(evidence=UNKNOWN),
    )  # fmt: skip
    before = (*LAUNCHED, *crash) if launched else ()
    ends = (ev.DeadlinePassed(awaited="pod 1" if start is LEADER else ""), *((SAVED,) if launched else ()))
    job, told = drive(start, *before, *ends)
    assert job.phase is Phase.RECORDING
    [debit] = [command for command in told if isinstance(command, RecordDebit)]
    assert debit.debit.code == ExitCode.PEER_FAILED
    missing = "pod 1 did not come" if start is LEADER else "pod 0, which leads, was away"
    assert debit.why == f"{missing} for 30 min"
    _, told = drive(start, *before, *ends, ev.Recorded(), ev.Dispersed())
    assert code_of(told) == ExitCode.PEER_FAILED
    assert dismissals(told) == ([(1, ExitCode.PEER_FAILED, 0.0)] if start is LEADER else [])


def test_a_pod_of_many_does_not_blame_the_first_for_another() -> None:
    """What is missed may be a third one, for which the first has waited as well."""
    job, _ = drive(replace(FOLLOWER, terms=replace(FOLLOWER.terms, pods=3)), ev.DeadlinePassed())
    assert job.ending is not None
    assert "pod 0, which leads, was away or waited for others for " in job.ending.why
