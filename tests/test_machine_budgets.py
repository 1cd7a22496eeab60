# SPDX-License-Identifier: Apache-2.0
"""What the state machine does once a budget is spent: of a fault, of a submission in all its pods, or of time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import KILLED, ONE, SETTLED, UNKNOWN, code_of, drive, fail

from resilient.core import events as ev
from resilient.core.commands import RecordDebit
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Phase
from resilient.core.policy import Terms
from resilient.core.usage import Usage


def test_progress_refills_the_budget_of_a_fingerprint() -> None:
    """A crash that comes back after progress starts on the first rung again."""
    crash = (*fail(KILLED), ev.DeadlinePassed())
    events = [event for step in range(1, 9) for event in (*crash, ev.Advanced(step=step))]
    job, told = drive(ONE, ev.HeartbeatOpened(), *events)
    assert job.phase is Phase.RUNNING
    assert code_of(told) is None


def test_the_same_crash_without_progress_spends_the_budget() -> None:
    """Three restarts in place, then 116 outside Kubernetes."""
    crash = (*fail(KILLED), ev.DeadlinePassed())
    _, told = drive(ONE, ev.HeartbeatOpened(), *crash * 3, *fail(KILLED), *SETTLED)
    assert code_of(told) == ExitCode.BUDGET_SPENT


@pytest.mark.parametrize(
    ("debits", "code"),
    [((), ExitCode.RESTART), ((193,), ExitCode.RESCHEDULE), ((193, 194), ExitCode.BUDGET_SPENT)],
)
def test_inside_kubernetes_a_spent_rung_climbs(debits: tuple[int, ...], code: ExitCode) -> None:
    """193, then 194, then 116, by what earlier containers put on record."""
    start = replace(ONE, has_store=True, terms=Terms(in_kubernetes=True))
    opened = ev.Opened(next_attempt=5, debits=tuple(ev.Debit(code=debit, step=0) for debit in debits))
    crash = (*fail(KILLED), ev.DeadlinePassed())
    _, told = drive(start, opened, *crash * 3, *fail(KILLED), *SETTLED)
    assert code_of(told) == code


def test_a_pod_goes_on_with_the_restarts_of_those_before_it() -> None:
    """Twenty in all between two commits, whatever came back: one that is left here, then the ladder."""
    start = replace(ONE, has_store=True, terms=Terms(in_kubernetes=True))
    used = ev.Opened(next_attempt=5, committed_step=7, usage=Usage(restarts=40, restarts_since_commit=19))
    one, other = (*fail(KILLED), ev.DeadlinePassed()), fail(UNKNOWN)
    _, told = drive(start, used, *one, *other, *SETTLED)
    assert code_of(told) == ExitCode.RESTART
    (debit,) = (command.debit for command in told if isinstance(command, RecordDebit))
    assert debit.usage == Usage(restarts=42, restarts_since_commit=21)
    job, told = drive(start, used, *one, ev.Committed(step=8), *other)
    assert (job.phase, job.ledger.usage(0.0)) == (Phase.BACKING_OFF, Usage(restarts=42, restarts_since_commit=1))


def test_time_without_progress_bounds_every_code() -> None:
    """A day of holding devices without a committed step is 116, whatever the fault."""
    start = replace(ONE, has_store=True)
    _, told = drive(start, ev.Opened(next_attempt=2, committed_step=7, usage=Usage(held_s=90000.0)))
    assert code_of(told) == ExitCode.BUDGET_SPENT
    job, told = drive(start, ev.Opened(next_attempt=2, usage=Usage(held_s=90000.0)))
    assert job.phase is Phase.RUNNING, "where no step is known the clock does not judge"


def test_steps_that_are_done_again_are_no_progress() -> None:
    """In a new container the ladder climbs although it works its way up from an older checkpoint."""
    start = replace(ONE, has_store=True, terms=Terms(in_kubernetes=True))
    opened = ev.Opened(next_attempt=5, committed_step=51, debits=(ev.Debit(code=193, step=60),))
    again = [event for step in (52, 60) for event in (ev.Advanced(step=step),)]
    crash = (*again, *fail(KILLED), ev.DeadlinePassed())
    _, told = drive(start, opened, ev.HeartbeatOpened(), *crash * 3, *again, *fail(KILLED), *SETTLED)
    assert code_of(told) == ExitCode.RESCHEDULE


def test_the_restarts_of_a_fault_are_those_of_all_pods() -> None:
    """A fresh container is the next rung, and no new start of the first one; progress or another fault is."""
    kubernetes = replace(ONE, terms=Terms(in_kubernetes=True), has_store=True)
    crash = (*fail(KILLED), ev.DeadlinePassed())
    _, told = drive(kubernetes, ev.Opened(next_attempt=1), ev.HeartbeatOpened(), *crash * 3, *fail(KILLED), *SETTLED)
    (recorded,) = [command.debit for command in told if isinstance(command, RecordDebit)]
    assert (recorded.code, recorded.strikes) == (ExitCode.RESTART, 3)
    again = (ev.Opened(next_attempt=2, debits=(recorded,)), ev.HeartbeatOpened())
    _, told = drive(kubernetes, *again, *fail(KILLED), *SETTLED)
    assert code_of(told) == ExitCode.RESCHEDULE
    for better in ((ev.Advanced(step=1), *fail(KILLED)), fail(UNKNOWN)):
        job, told = drive(kubernetes, *again, *better, ev.DeadlinePassed())
        assert (job.phase, code_of(told)) == (Phase.RUNNING, None)
