# SPDX-License-Identifier: Apache-2.0
"""The preflight in the state machine: before the first workers, and before others once a device is suspected."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driving import CODE, KILLED, ONE, SETTLED, SUSPECT, UNKNOWN, code_of, drive, fail

from resilient.core import events as ev
from resilient.core.commands import Announce, Command, Examine, RecordDebit, SetDeadline, Settle, StartWorkers
from resilient.core.evidence import Evidence
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import advance, begin
from resilient.core.policy import Terms
from resilient.core.rule import died_of, left_behind

LOST = ev.Examined(refusal="this node failed its preflight: a GPU is lost", do="cordon it")


def after(job: Job, *events: ev.Event) -> tuple[Job, list[Command]]:
    """The job after exactly these events."""
    told: list[Command] = []
    for event in events:
        job, commands = advance(job, event, 0.0)
        told += commands
    return job, told


def kinds(commands: list[Command]) -> set[type[Command]]:
    return {type(command) for command in commands}


@pytest.mark.parametrize("has_store", [True, False])
def test_no_worker_starts_before_the_machine_was_looked_at(has_store: bool) -> None:
    """With a store it is opened first, so that a refusal can be put on record there."""
    job, commands = begin(replace(ONE, has_store=has_store), 0.0)
    if has_store:
        job, told = after(job, ev.Opened(next_attempt=1))
        commands = tuple(told)
    assert commands[-1] == Examine(suspect=False)
    job, told = after(job, ev.Examined())
    assert StartWorkers(attempt=1, launch=1) in told
    assert job.phase is Phase.RUNNING


def test_a_node_that_fails_is_refused_on_record() -> None:
    """198, with the reason, and nothing was started."""
    job, commands = begin(replace(ONE, has_store=True), 0.0)
    job, told = after(job, ev.Opened(next_attempt=1), LOST)
    debit = next(command for command in told if isinstance(command, RecordDebit))
    assert debit.debit.code == ExitCode.NODE_REFUSED
    assert "a GPU is lost" in debit.why
    job, told = after(job, ev.Recorded())
    assert code_of(told) == ExitCode.NODE_REFUSED
    assert StartWorkers not in kinds([*commands, *told])


def test_a_refusal_that_cannot_be_recorded_is_no_ignored_exit() -> None:
    """199 is counted by every controller, so that no loop is without a bound."""
    job, _ = begin(ONE, 0.0)
    _, told = after(job, LOST, ev.RecordFailed(why="disk full"))
    assert code_of(told) == ExitCode.INTERNAL


def test_a_suspected_device_is_looked_at_before_it_is_used_again() -> None:
    """The pause of the restart begins when the machine was found sound."""
    job, _ = drive(ONE)
    job, told = after(job, *fail(SUSPECT))
    assert told[-1] == Examine(suspect=True)
    assert job.phase is Phase.EXAMINING
    job, told = after(job, ev.Examined())
    assert (job.phase, kinds(told)) == (Phase.BACKING_OFF, {SetDeadline})
    job, told = after(job, ev.DeadlinePassed())
    assert StartWorkers(attempt=2, launch=2) in told


def test_a_suspicion_that_is_confirmed_moves_the_pod() -> None:
    """194, after the newest snapshot was made durable."""
    job, _ = drive(ONE, *fail(SUSPECT)[:2])
    job, _ = after(job, fail(SUSPECT)[2])
    job, told = after(job, LOST)
    assert Settle in kinds(told)
    _, told = after(job, *SETTLED)
    assert code_of(told) == ExitCode.RESCHEDULE


XID = "[ 1.5] NVRM: Xid (PCI:0000:05:00): {}, pid=7, name=python, Graphics Exception"


@pytest.mark.parametrize(
    ("evidence", "closer"),
    [
        (SUSPECT, True),
        (left_behind(XID.format(13), code=1), True),
        (left_behind(XID.format(31), code=1), True),
        (died_of("torch.AcceleratorError", "CUDA error: an illegal memory access was encountered"), True),
        (KILLED, False),
        (UNKNOWN, False),
        (CODE, False),
    ],
)
def test_only_a_doubtful_device_costs_a_preflight(evidence: Evidence, closer: bool) -> None:
    """Any other fault is restarted as fast as before."""
    job, _ = drive(ONE, ev.HeartbeatOpened(), ev.Advanced(step=1))
    job, told = after(job, *fail(evidence))
    assert job.phase is (Phase.EXAMINING if closer else Phase.BACKING_OFF)
    assert (Examine in kinds(told)) == closer


def test_under_observe_nothing_is_refused() -> None:
    """What was found is said, and the workers start."""
    job, _ = begin(replace(ONE, terms=Terms(observe=True)), 0.0)
    job, told = after(job, LOST)
    assert job.phase is Phase.RUNNING
    assert any(isinstance(command, Announce) and "a GPU is lost" in command.text for command in told)


def test_whoever_is_asked_to_leave_does_not_wait_for_the_preflight() -> None:
    """Preemption goes before everything."""
    job, _ = begin(ONE, 0.0)
    job, _ = after(job, ev.LeaveAsked(by="SIGTERM"))
    assert job.phase is Phase.SETTLING
    job, told = after(job, LOST)
    assert (job.phase, told) == (Phase.SETTLING, [])
