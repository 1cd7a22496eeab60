# SPDX-License-Identifier: Apache-2.0
"""How several pods end: together where the run does, each in its turn, and by itself where it is asked to leave."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import (
    CODE,
    FOLLOWER,
    KILLED,
    LAUNCHED,
    LEADER,
    MOVED,
    SAVED,
    THREE,
    code_of,
    dismissals,
    drive,
    failed,
    in_kubernetes,
    kinds,
)

from resilient.core import events as ev
from resilient.core.commands import (
    Command,
    EndGroup,
    Exit,
    OrderStop,
    RecordDebit,
    RecordFinished,
    SetDeadline,
    StartWorkers,
)
from resilient.core.exit_codes import STOP, ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import advance
from resilient.core.policy import Decision

CRASH = ev.WorkerEnded(rank=1, clean=False, finished=False)
FINAL = (*sorted(STOP), ExitCode.CANNOT_EXECUTE, ExitCode.NOT_FOUND)
DONE = Decision(code=ExitCode.FINISHED, why="all steps are done", do="nothing")


# All end.


def stopped(start: Job, rank: int, *events: ev.Event) -> tuple[Job, list[Command]]:
    """A fault of the code before the first step, in the pod of this rank."""
    return drive(start, *LAUNCHED, ev.HeartbeatOpened(), *failed(CODE, rank), SAVED, *events)


def test_a_stop_ends_all_pods_at_once() -> None:
    """The first one waits until the others have heard it, and no longer than that takes."""
    job, told = stopped(THREE, 1)
    assert job.phase is Phase.YIELDING
    assert dismissals(told) == [(1, ExitCode.CODE_FAULT, 0.0), (2, ExitCode.CODE_FAULT, 0.0)]
    assert told[-1] == SetDeadline(at=10.0)
    for heard in (ev.Dispersed(), ev.DeadlinePassed()):
        assert code_of(stopped(THREE, 1, heard)[1]) == ExitCode.CODE_FAULT


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_in_kubernetes_the_pod_that_is_to_blame_stops_first(rank: int) -> None:
    """The controller acts upon whichever it sees: the others end 15 to 30 s later, one after the other."""
    job, told = stopped(in_kubernetes(THREE), rank)
    late = {0: job.yield_until} | {pod: yield_s for pod, _, yield_s in dismissals(told)}
    assert late.pop(rank) == 0.0
    assert all(15.0 <= seconds < 30.0 for seconds in late.values())
    assert len(set(late.values())) == 2


def test_the_first_pod_yields_for_its_time_although_all_have_heard() -> None:
    """That they have is no end of the culprit's yet."""
    job, told = stopped(in_kubernetes(THREE), 1, ev.Dispersed())
    assert (job.phase, told[-1]) == (Phase.YIELDING, SetDeadline(at=15.0))
    late, told = advance(job, ev.Dispersed(), 15.0)[0], list(advance(job, ev.Dispersed(), 15.0)[1])
    assert (late.phase, code_of(told)) == (Phase.ENDED, ExitCode.CODE_FAULT)
    assert code_of(list(advance(job, ev.DeadlinePassed(), 15.0)[1])) == ExitCode.CODE_FAULT


def test_a_pod_that_follows_yields_as_it_was_told() -> None:
    """Its workers end at once."""
    stop = ev.Dismissed(decision=replace(MOVED, code=ExitCode.CODE_FAULT), yield_s=20.0)
    job, told = drive(FOLLOWER, *LAUNCHED, stop)
    assert (job.phase, kinds(told[-1:])) == (Phase.STOPPING, {EndGroup})
    job, told = drive(FOLLOWER, *LAUNCHED, stop, ev.GroupEnded(), SAVED)
    assert (job.phase, told[-1]) == (Phase.YIELDING, SetDeadline(at=20.0))
    assert code_of(drive(FOLLOWER, *LAUNCHED, stop, ev.GroupEnded(), SAVED, ev.DeadlinePassed())[1]) == 114


FINISHING = (
    *LAUNCHED,
    ev.WorkerEnded(rank=1, clean=True, finished=True),
    ev.WorkerEnded(rank=0, clean=True, finished=True),
    ev.GroupEnded(),
    SAVED,
    ev.Recorded(),
)


def test_a_run_is_finished_once_the_workers_of_all_pods_are() -> None:
    """Then each pod ends with 0, and the first one puts it on record."""
    job, told = drive(LEADER, *FINISHING[:2])
    assert job.phase is Phase.RUNNING
    job, told = drive(LEADER, *FINISHING)
    assert RecordFinished in kinds(told)
    assert (job.phase, dismissals(told)) == (Phase.YIELDING, [(1, ExitCode.FINISHED, 0.0)])
    assert code_of(drive(LEADER, *FINISHING, ev.Dispersed())[1]) == ExitCode.FINISHED
    finished = (*LAUNCHED, ev.WorkerEnded(rank=0, clean=True, finished=True))
    job, told = drive(FOLLOWER, *finished)
    assert (job.phase, EndGroup in kinds(told)) == (Phase.RUNNING, False), "others may still need it started again"
    _, told = drive(FOLLOWER, *finished, ev.Dismissed(decision=DONE), ev.GroupEnded(), SAVED)
    assert (code_of(told), RecordFinished in kinds(told)) == (ExitCode.FINISHED, False)


def test_0_is_not_taken_on_trust() -> None:
    """A worker here has not finished, whatever the first pod says."""
    _, told = drive(FOLLOWER, *LAUNCHED, ev.Dismissed(decision=DONE), ev.GroupEnded(), SAVED)
    assert code_of(told) == ExitCode.INTERNAL
    assert code_of(drive(FOLLOWER, ev.Dismissed(decision=DONE))[1]) == ExitCode.INTERNAL


WHERE: dict[Phase, tuple[ev.Event, ...]] = {
    Phase.RUNNING: LAUNCHED,
    Phase.STOPPING: (*LAUNCHED, CRASH),
    Phase.JUDGING: (*LAUNCHED, *failed(KILLED)[:2]),
    Phase.BACKING_OFF: (*LAUNCHED, *failed(KILLED)),
    Phase.ASSEMBLING: (),
}


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("phase", WHERE)
def test_what_one_pod_ends_the_run_with_all_end_with(phase: Phase, code: int) -> None:
    """Its configuration is that of all; the others are told, and none is started again."""
    assert drive(LEADER, *WHERE[phase])[0].phase is phase
    ends = (ev.PeerGone(pod=1, why="no such file", code=code), ev.GroupEnded(), SAVED, ev.Dispersed())
    _, told = drive(LEADER, *WHERE[phase], *ends)
    [left] = [command for command in told if isinstance(command, Exit)]
    assert (left.code, left.why) == (code, "pod 1: no such file")
    _, told = drive(FOLLOWER, *LAUNCHED, ev.PeerGone(pod=0, why="no such file", code=code), ev.GroupEnded(), SAVED)
    assert code_of(told) == code


# Asked to leave.


@pytest.mark.parametrize("start", [LEADER, FOLLOWER])
def test_whoever_is_asked_to_leave_waits_for_nobody(start: Job) -> None:
    """While the pods assemble there is nothing to save; with workers one common step is."""
    job, told = drive(start, ev.LeaveAsked(by="SIGTERM"))
    assert job.phase is Phase.SETTLING
    _, told = drive(start, ev.LeaveAsked(by="SIGTERM"), ev.Assembled(), SAVED, ev.Recorded())
    assert code_of(told) == ExitCode.PREEMPTED_UNSAVED
    assert StartWorkers not in kinds(told)
    job, told = drive(start, *LAUNCHED, ev.LeaveAsked(by="SIGTERM"))
    assert (job.phase, OrderStop in kinds(told)) == (Phase.LEAVING, True)


@pytest.mark.parametrize("late", [(), (SAVED,)])
def test_what_others_decide_does_not_overtake_the_request_to_leave(late: tuple[ev.Event, ...]) -> None:
    """What fails then is its consequence."""
    asked = (*LAUNCHED, ev.LeaveAsked(by="SIGTERM"), ev.DeadlinePassed())
    for heard in (ev.Dismissed(decision=MOVED), ev.Dismissed(decision=DONE), ev.PeerGone(pod=0, why="x", code=114)):
        events = (ev.GroupEnded(), *late, heard) if late else (heard, ev.GroupEnded())
        _, told = drive(FOLLOWER, *asked, *events, SAVED, ev.Recorded())
        assert code_of(told) == ExitCode.PREEMPTED_UNSAVED, heard


def test_a_pod_that_yields_goes_when_it_is_asked_to() -> None:
    """The controller ends it, after the one that is to blame: that is no failure of its own. Finished is finished."""
    asked = ev.LeaveAsked(by="SIGTERM")
    job, told = stopped(in_kubernetes(THREE), 1, asked)
    assert (job.phase, kinds(told[-1:])) == (Phase.RECORDING, {RecordDebit})
    assert code_of(stopped(in_kubernetes(THREE), 1, asked, ev.Recorded())[1]) == ExitCode.PREEMPTED_UNSAVED
    assert code_of(drive(LEADER, *FINISHING, asked)[1]) == ExitCode.FINISHED
    stop = ev.Dismissed(decision=replace(MOVED, code=ExitCode.CODE_FAULT), yield_s=20.0)
    gone = (stop, ev.GroupEnded(), SAVED, asked, ev.Recorded())
    _, told = drive(FOLLOWER, *LAUNCHED, *gone)
    (exit_,) = (command for command in told if isinstance(command, Exit))
    assert (exit_.code, exit_.do) == (ExitCode.PREEMPTED_UNSAVED, MOVED.do)
    assert exit_.why.startswith(f"{MOVED.why}; asked to leave by SIGTERM")


def test_a_finish_is_told_to_the_others_within_the_grace() -> None:
    """Whoever finished while it was asked to leave waits no longer for them than the platform allows."""
    terms = replace(LEADER.terms, grace_s=5.0)
    done = (ev.WorkerEnded(rank=rank, clean=True, finished=True) for rank in (0, 1))
    asked = ev.LeaveAsked(by="SIGTERM")
    events: tuple[ev.Event, ...] = (*LAUNCHED, asked, *done, ev.GroupEnded(), SAVED, ev.Recorded())
    job, told = drive(replace(LEADER, terms=terms), *events)
    assert (job.phase, dismissals(told)) == (Phase.YIELDING, [(1, ExitCode.FINISHED, 0.0)])
    told = told[told.index(OrderStop()) :]
    assert all(command.at < 5.0 for command in told if isinstance(command, SetDeadline))
    assert code_of(drive(replace(LEADER, terms=terms), *events, ev.DeadlinePassed())[1]) == ExitCode.FINISHED


# Defects.


def test_a_supervisor_that_failed_does_nothing_more_whatever_others_say() -> None:
    """It may have lost the run to another one, and must neither save nor record."""
    broken = (*LAUNCHED, ev.Broken(why="KeyError"))
    said: tuple[ev.Event, ...] = (ev.PeerGone(pod=1, why="x", code=114), ev.Dismissed(decision=MOVED))
    for start, heard in zip((LEADER, FOLLOWER), said, strict=True):
        job, told = drive(start, *broken, heard, ev.GroupEnded())
        assert (job.phase, code_of(told)) == (Phase.ENDED, ExitCode.INTERNAL)


def test_a_finish_stays_one_whatever_a_pod_ends_with_then() -> None:
    """The work of all is done."""
    late = ev.PeerGone(pod=1, why="x", code=ExitCode.CONFIG_FAULT)
    _, told = drive(LEADER, *FINISHING[:3], late, *FINISHING[3:], ev.Dispersed())
    assert code_of(told) == ExitCode.FINISHED


# A pod that leaves while the run is finished.

OWN_DONE = ev.WorkerEnded(rank=0, clean=True, finished=True)


def left_while_done(*events: ev.Event) -> tuple[Job, list[Command]]:
    """A pod that was asked to leave, and whose own workers have done all steps."""
    before = (ev.Assembled(attempt=1), ev.LeaveAsked(by="SIGTERM"), OWN_DONE, ev.GroupEnded())
    return drive(FOLLOWER, *before, *events)


def test_a_pod_that_leaves_has_not_finished_before_the_first_one_says_so() -> None:
    """Ranks of other pods may not have; it is replaced then, which a pod that ended with 0 never is."""
    job, told = left_while_done(ev.SaveSettled(durable_step=0), ev.Recorded())
    assert code_of(told) == ExitCode.PREEMPTED_UNSAVED
    assert job.phase is Phase.ENDED


def test_a_pod_that_leaves_hears_that_the_run_was_finished_all_the_same() -> None:
    """Then nobody has to come in its place."""
    _, told = left_while_done(ev.Dismissed(decision=DONE), ev.SaveSettled(durable_step=0))
    assert code_of(told) == ExitCode.FINISHED


def test_a_pod_whose_workers_had_not_finished_leaves_as_it_was_asked_to() -> None:
    """Whatever the first one says of the others."""
    before = (ev.Assembled(attempt=1), ev.LeaveAsked(by="SIGTERM"), replace(OWN_DONE, finished=False, clean=False))
    settled = (ev.GroupEnded(), ev.Dismissed(decision=DONE), ev.SaveSettled(durable_step=0), ev.Recorded())
    assert code_of(drive(FOLLOWER, *before, *settled)[1]) == ExitCode.PREEMPTED_UNSAVED


def test_a_pod_that_comes_after_the_end_has_nothing_to_wait_for() -> None:
    """By the mark of its own submission; the first pod may be gone for good."""
    start = replace(FOLLOWER, has_store=True)
    assert code_of(drive(start, ev.Opened(next_attempt=2, finished_step=9))[1]) == ExitCode.FINISHED
    job, told = drive(replace(LEADER, has_store=True), ev.Opened(next_attempt=2, finished_step=9))
    assert (job.phase, code_of(told)) == (Phase.ASSEMBLING, None), "its workers say whether more is asked for"


def test_a_pod_that_is_told_of_the_end_does_not_judge_what_is_saved() -> None:
    """A finished run that is started again saves nothing; pod 0 knows what is durable, and has said how it ended."""
    before = (
        ev.Opened(next_attempt=2),
        ev.Assembled(attempt=2),
        OWN_DONE,
        ev.Dismissed(decision=DONE),
        ev.GroupEnded(),
    )
    _, told = drive(replace(FOLLOWER, has_store=True), *before, ev.SaveSettled(durable_step=0, reached_step=9))
    [last] = [command for command in told if isinstance(command, Exit)]
    assert (last.code, last.why) == (ExitCode.FINISHED, DONE.why)
