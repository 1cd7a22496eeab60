# SPDX-License-Identifier: Apache-2.0
"""What the state machine decides about single faults, and about the end of workers that is none."""

from __future__ import annotations

from driving import CODE, ONE, SETTLED, code_of, drive, fail

from resilient.core import events as ev
from resilient.core.commands import SetDeadline, StartWorkers
from resilient.core.evidence import Hang, Place
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Phase
from resilient.core.machine import advance


def test_a_code_fault_before_the_first_step_stops_at_once() -> None:
    """114 in one attempt when steps are known."""
    _, told = drive(ONE, ev.HeartbeatOpened(), *fail(CODE), *SETTLED)
    assert code_of(told) == ExitCode.CODE_FAULT
    assert sum(isinstance(command, StartWorkers) for command in told) == 1


def test_a_code_fault_of_unknown_progress_is_confirmed_once() -> None:
    """114 in two attempts for a script that never imports us."""
    _, told = drive(ONE, *fail(CODE), ev.DeadlinePassed(), *fail(CODE), *SETTLED)
    assert code_of(told) == ExitCode.CODE_FAULT
    assert sum(isinstance(command, StartWorkers) for command in told) == 2


def test_a_hang_whose_workers_end_with_0_when_told_to_is_no_finish() -> None:
    """A script that swallows SIGTERM and exits 0 has not finished."""
    hang = ev.HangFound(hang=Hang(rank=0, place=Place.STEP, phase=None, silent_s=61, bound_s=60))
    job, _ = drive(ONE, hang, ev.WorkerEnded(rank=0, clean=True, finished=False), ev.GroupEnded())
    assert job.phase is Phase.JUDGING


def test_asked_to_leave_after_the_last_worker_finished_is_a_finish() -> None:
    """SIGTERM between the last exit and the finished mark does not undo the work."""
    done = ev.WorkerEnded(rank=0, clean=True, finished=False)
    _, told = drive(ONE, done, ev.LeaveAsked(by="SIGTERM"), ev.GroupEnded(), *SETTLED)
    assert code_of(told) == ExitCode.FINISHED


def test_a_command_that_ran_before_is_no_mistake_of_the_user() -> None:
    """127 only before the first step ever; afterwards the node is suspect."""
    _, told = drive(ONE, ev.CannotRun(code=127, why="no such file"), ev.GroupEnded(), *SETTLED)
    assert code_of(told) == ExitCode.NOT_FOUND
    _, told = drive(ONE, ev.Advanced(step=1), ev.CannotRun(code=127, why="no such file"), ev.GroupEnded(), *SETTLED)
    assert code_of(told) == ExitCode.RESCHEDULE


def test_who_leaves_less_time_counts() -> None:
    """A cloud that announces an end two minutes ahead gives more than the grace; SIGTERM after it gives that."""
    job, told = drive(ONE, ev.Opened(next_attempt=1), ev.LeaveAsked(by="a notice", within_s=120.0), now=0.0)
    first = [command.at for command in told if isinstance(command, SetDeadline)][-1]
    assert (job.phase, job.must_end_at, first) == (Phase.LEAVING, 120.0, 58.5)
    later, again = advance(job, ev.LeaveAsked(by="the same notice", within_s=120.0), 5.0)
    assert (later, again) == (job, ())
    job, commands = advance(job, ev.LeaveAsked(by="SIGTERM"), 10.0)
    assert job.must_end_at == 10.0 + job.terms.grace_s
    assert commands == (SetDeadline(at=10.0 + (job.terms.grace_s - 3.0) / 2),)
