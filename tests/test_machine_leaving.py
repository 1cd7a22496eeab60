# SPDX-License-Identifier: Apache-2.0
"""Leaving in the state machine: what the exit says of the last step, and how the grace is shared out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import ONE, code_of, drive

from resilient.core import events as ev
from resilient.core.commands import Exit, RecordFinished, SetDeadline
from resilient.core.exit_codes import ExitCode
from resilient.core.machine import advance
from resilient.core.policy import Terms


@pytest.mark.parametrize(("durable", "code"), [(5, ExitCode.PREEMPTED_SAVED), (4, ExitCode.PREEMPTED_UNSAVED)])
def test_how_a_preempted_job_left_depends_on_what_is_durable(durable: int, code: ExitCode) -> None:
    """195 when the last step is durable, else 196."""
    _, told = drive(
        ONE,
        ev.HeartbeatOpened(),
        ev.Advanced(step=5),
        ev.LeaveAsked(by="SIGTERM"),
        ev.WorkerEnded(rank=0, clean=False, finished=False),
        ev.GroupEnded(),
        ev.SaveSettled(durable_step=durable),
        ev.Recorded(),
    )
    assert code_of(told) == code


@pytest.mark.parametrize(
    ("events", "durable", "why", "do"),
    [
        ((), 0, "nothing was saved, no step of it is known", "it begins anew, unless its script keeps checkpoints"),
        ((ev.HeartbeatOpened(), ev.Advanced(step=5)), 0, "step 5 was reached", "the run begins anew when"),
        ((ev.HeartbeatOpened(), ev.Advanced(step=5)), 4, "step 4 is saved", "the run goes on from there when"),
    ],
)
def test_it_is_said_from_where_a_start_goes_on(events: tuple[ev.Event, ...], durable: int, why: str, do: str) -> None:
    """Not from where nothing is saved; of a script without steps nothing is known."""
    leaving = ev.LeaveAsked(by="SIGTERM"), ev.WorkerEnded(rank=0, clean=False, finished=False)
    saved = ev.SaveSettled(durable_step=durable)
    job, _ = drive(ONE, *events, *leaving, ev.GroupEnded(), saved, ev.Recorded())
    assert job.ending is not None
    assert why in job.ending.why
    assert do in job.ending.do


def test_the_grace_of_the_platform_is_never_overrun() -> None:
    """Every deadline after SIGTERM lies inside the grace period."""
    terms = Terms(grace_s=20.0)
    _, told = drive(
        replace(ONE, terms=terms),
        ev.HeartbeatOpened(),
        ev.LeaveAsked(by="SIGTERM"),
        ev.DeadlinePassed(),
        ev.GroupEnded(),
        ev.DeadlinePassed(),
        now=100.0,
    )
    deadlines = [command.at for command in told if isinstance(command, SetDeadline)]
    assert len(deadlines) == 3
    assert all(100.0 < at < 120.0 for at in deadlines)
    assert deadlines == sorted(deadlines)


def test_a_second_sigterm_does_not_move_the_platforms_deadline() -> None:
    """The grace period runs from the first one."""
    job, _ = drive(ONE, ev.LeaveAsked(by="SIGTERM"), ev.DeadlinePassed(), now=0.0)
    job, _ = advance(job, ev.LeaveAsked(by="SIGTERM"), 20.0)
    assert job.must_end_at == job.terms.grace_s


def test_why_the_pod_is_to_go_is_said_with_who_asked() -> None:
    """Kubernetes' reason comes after the signal, once; without a request to leave it is nothing but evidence."""
    why = ev.LeaveExplained(why="Kubernetes: EvictionByEvictionAPI")
    asked = (ev.LeaveAsked(by="SIGTERM"), why, ev.LeaveExplained(why="another"), ev.LeaveAsked(by="SIGTERM"))
    _, told = drive(ONE, *asked, ev.DeadlinePassed(), ev.GroupEnded(), ev.SaveSettled(durable_step=0), ev.Recorded())
    [left] = [command for command in told if isinstance(command, Exit)]
    assert left.why.startswith("asked to leave by SIGTERM (Kubernetes: EvictionByEvictionAPI); ")
    assert advance(drive(ONE)[0], why, 0.0)[1] == ()
    assert drive(ONE, why)[0] == drive(ONE)[0]


@pytest.mark.parametrize("within_s", [None, 5.0, 120.0])
@pytest.mark.parametrize("grace_s", [1.0, 2.0, 5.0, 300.0])
def test_every_grace_leaves_time_for_each_part_of_leaving(grace_s: float, within_s: float | None) -> None:
    """Boundary, save and record each get a share of it, in this order; what a notice leaves is divided the same way."""
    _, told = drive(
        replace(ONE, terms=Terms(grace_s=grace_s)),
        ev.HeartbeatOpened(),
        ev.LeaveAsked(by="SIGTERM", within_s=within_s),
        ev.DeadlinePassed(),
        ev.GroupEnded(),
        ev.DeadlinePassed(),
    )
    boundary, saved, recorded = (command.at for command in told if isinstance(command, SetDeadline))
    assert 0.0 < boundary < saved < recorded < (within_s or grace_s)


FINISHING = (
    ev.Opened(next_attempt=1, committed_step=0, ever_committed=False), ev.HeartbeatOpened(), ev.Advanced(step=5),
    ev.Committed(step=3),
    ev.WorkerEnded(rank=0, clean=True, finished=True), ev.GroupEnded(),
)  # fmt: skip


@pytest.mark.parametrize("settled", [ev.SaveSettled(durable_step=3, reached_step=5), ev.DeadlinePassed()])
def test_a_final_state_that_is_not_durable_is_said(settled: ev.Event) -> None:
    """The work is done, so that it is 0; but it is not marked as finished, so that the lost steps can be made again."""
    job, told = drive(replace(ONE, has_store=True), *FINISHING, settled)
    assert job.ending is not None
    assert code_of(told) == ExitCode.FINISHED
    assert not [command for command in told if isinstance(command, RecordFinished)]
    assert "the final state, of step 5, is not durable: the last checkpoint is of step 3" in job.ending.why
    assert "start the run again: it goes on from step 3" in job.ending.do
