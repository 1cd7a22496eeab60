# SPDX-License-Identifier: Apache-2.0
"""The table is total, and every state that can be reached keeps the contract's invariants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from driving import CODE, DEVICE, KILLED, ONE, SETTLED, STOPPED, SUSPECT, code_of, drive, fail, raised

from resilient.core import events as ev
from resilient.core.commands import Command, EndGroup, Exit, OrderStop, RecordDebit, SetDeadline, StartWorkers
from resilient.core.evidence import Hang, Place
from resilient.core.exit_codes import NEEDS_DEBIT, OBSERVED_FAILURE, PREEMPTED, STOP, ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import TRANSITIONS, advance, begin, diagram
from resilient.core.policy import Terms

SMALL = Terms(restarts_per_fingerprint=1, restarts_between_commits=1, grace_s=30.0)

ALPHABET: tuple[ev.Event, ...] = (
    ev.Opened(next_attempt=4),
    ev.Opened(next_attempt=4, committed_step=1, ever_committed=True),
    ev.Opened(next_attempt=4, ever_committed=True),
    ev.Opened(next_attempt=4, debits=(ev.Debit(code=193, step=9),)),
    ev.OpenFailed(why="no answer", wrong=False),
    ev.OpenFailed(why="no such bucket", wrong=True),
    ev.Examined(),
    ev.Examined(refusal="a GPU is lost", do="cordon it"),
    ev.Announced(),
    ev.CannotRun(code=127, why="not found"),
    ev.HeartbeatOpened(),
    ev.Advanced(step=1),
    ev.Committed(step=1),
    *(
        ev.WorkerEnded(rank=rank, clean=clean, finished=finished)
        for rank in (0, 1)
        for clean, finished in ((True, True), (True, False), (False, False))
    ),
    ev.HangFound(hang=Hang(rank=0, place=Place.STEP, phase=None, silent_s=61, bound_s=60)),
    ev.Unusable(why="no checkpoint may be loaded"),
    ev.GroupEnded(),
    *(ev.Collected(evidence=evidence) for evidence in (DEVICE, SUSPECT, KILLED, CODE, STOPPED)),
    ev.LeaveAsked(by="SIGTERM"),
    ev.LeaveAsked(by="SIGTERM", urgent=True),
    ev.DeadlinePassed(),
    ev.SaveSettled(durable_step=0),
    ev.SaveSettled(durable_step=1),
    ev.Recorded(),
    ev.RecordFailed(why="disk full"),
    ev.Broken(why="KeyError"),
)


@dataclass(frozen=True)
class Seen:
    """What the path so far has seen: the facts that the invariants are about."""

    asked: bool = False
    stopped: bool = False
    done: frozenset[int] = frozenset()
    on_record: int | None = None
    waiting: int | None = None

    def after(self, event: ev.Event, commands: tuple[Command, ...], job: Job) -> Seen:
        seen = self
        if isinstance(event, ev.LeaveAsked) and job.phase is not Phase.ENDED:
            seen = replace(seen, asked=True)
        if isinstance(event, ev.WorkerEnded) and event.clean and (event.finished or not self.stopped):
            seen = replace(seen, done=seen.done | {event.rank})
        if isinstance(event, ev.Recorded):
            seen = replace(seen, on_record=self.waiting)
        for command in commands:
            if isinstance(command, StartWorkers):
                seen = replace(seen, stopped=False, done=frozenset())
            elif isinstance(command, (EndGroup, OrderStop)):
                seen = replace(seen, stopped=True)
            elif isinstance(command, RecordDebit):
                seen = replace(seen, waiting=command.debit.code, on_record=None)
        return seen


def same(job: Job, seen: Seen) -> tuple[Job, Seen]:
    """States that differ only in words and numbers which no decision reads are one."""
    ledger = replace(
        job.ledger,
        strikes=tuple(sorted(job.ledger.strikes, key=repr)),
        restarts=job.ledger.restarts if job.terms.max_restarts is not None else 0,
    )
    ending = None if job.ending is None else replace(job.ending, why="", do="")
    # Of `launch` it matters only whether there was one.
    return replace(job, attempt=0, launch=min(job.launch, 1), backoff_s=0.0, ledger=ledger, ending=ending), seen


def walk(start: Job, *, now: float = 0.0) -> Iterator[tuple[Job, Seen, ev.Event, Job, tuple[Command, ...]]]:
    """Every transition that can be reached from ``start`` with the alphabet, each once."""
    job, commands = begin(start, 0.0)
    todo = [(job, Seen().after(ev.Recorded(), commands, job))]
    known = {same(*todo[0])}
    while todo:
        job, seen = todo.pop()
        for event in ALPHABET:
            if isinstance(event, ev.WorkerEnded) and event.rank >= start.ranks:
                continue
            after, commands = advance(job, event, now)
            then = seen.after(event, commands, after)
            yield job, then, event, after, commands
            if same(after, then) not in known and after.phase is not Phase.ENDED:
                known.add(same(after, then))
                todo.append((after, then))


STARTS = {
    "two-ranks": Job(terms=SMALL, ranks=2, has_store=True),
    "no-store": Job(terms=SMALL, ranks=1),
    "kubernetes": Job(terms=replace(SMALL, in_kubernetes=True), ranks=1, has_store=True),
    "counters": Job(terms=replace(SMALL, in_kubernetes=True, counters_bound=True), ranks=1, has_store=True),
    "observe": Job(terms=replace(SMALL, observe=True, max_restarts=1), ranks=1, has_store=True),
    "capped": Job(terms=replace(SMALL, max_restarts=1), ranks=1, has_store=True),
}


def test_every_pair_of_phase_and_event_stands_in_the_table() -> None:
    """The table is total."""
    for phase in Phase:
        assert set(TRANSITIONS[phase]) == set(ev.EVENTS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("two-ranks", "no-store", "counters") else n for n in STARTS],
)
def test_the_invariants_hold_in_every_reachable_state(name: str) -> None:
    """Contract.md's invariants, on every transition that can be reached."""
    start = STARTS[name]
    count = 0
    for job, seen, event, after, commands in walk(start):
        count += 1
        assert after.phase in TRANSITIONS[job.phase][type(event)].to, (job.phase, event, after.phase)
        exits = [command for command in commands if isinstance(command, Exit)]
        assert bool(exits) == (after.phase is Phase.ENDED and job.phase is not Phase.ENDED)
        if seen.asked:
            assert not any(isinstance(command, StartWorkers) for command in commands), (job, event)
        for command in exits:
            check_exit(start, job, seen, command)
    assert count > 1000


def check_exit(start: Job, job: Job, seen: Seen, command: Exit) -> None:
    """The invariants that are about the exit itself."""
    code = command.code
    assert command.why
    assert command.do
    if start.terms.observe and code == OBSERVED_FAILURE:
        return
    if code == ExitCode.FINISHED:
        assert len(seen.done) == start.ranks, "0 only when every worker ended with 0 by itself"
    if seen.asked:
        assert code in {ExitCode.FINISHED, ExitCode.INTERNAL} | PREEMPTED
    if code in NEEDS_DEBIT:
        assert (code == ExitCode.NODE_REFUSED) <= (job.launch == 0), "only a start is refused"
        assert seen.on_record == code or start.terms.counters_bound, "no ignored exit without a recorded debit"
    if code in PREEMPTED:
        assert seen.asked


@pytest.mark.parametrize("name", STARTS)
def test_every_state_has_a_way_out_that_is_taken_without_luck(name: str) -> None:
    """With workers that die of the same crash and a store that fails, no job goes on for ever."""
    start = STARTS[name]
    for failing in (True, False):
        job, commands = begin(start, 0.0)
        for _ in range(200):
            event = answer(commands, failing=failing)
            if event is None:
                break
            job, commands = advance(job, event, 0.0)
        assert job.phase is Phase.ENDED


def answer(commands: tuple[Command, ...], *, failing: bool) -> ev.Event | None:
    """What a world of crashing workers answers to a command."""
    replies: dict[str, ev.Event] = {
        "OpenStore": ev.Opened(next_attempt=1),
        "Examine": ev.Examined(),
        "StartWorkers": ev.WorkerEnded(rank=0, clean=False, finished=False),
        "EndGroup": ev.GroupEnded(),
        "CollectEvidence": ev.Collected(evidence=KILLED),
        "Settle": ev.SaveSettled(durable_step=0),
        "RecordDebit": ev.RecordFailed(why="503") if failing else ev.Recorded(),
        "SetDeadline": ev.DeadlinePassed(),
    }
    for command in reversed(commands):
        if type(command).__name__ in replies:
            return replies[type(command).__name__]
    return None


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


def test_a_code_fault_at_another_step_is_not_confirmed() -> None:
    """The same exception at a later step climbs the ladder as an ambiguous fault."""
    job, told = drive(
        ONE,
        ev.HeartbeatOpened(),
        ev.Advanced(step=1),
        *fail(raised("TypeError", step=2)),
        ev.DeadlinePassed(),
        *fail(raised("TypeError", step=1)),
    )
    assert code_of(told) is None
    assert job.phase is Phase.BACKING_OFF


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


def test_time_without_progress_bounds_every_code() -> None:
    """A day of holding devices without a committed step is 116, whatever the fault."""
    start = replace(ONE, has_store=True)
    _, told = drive(start, ev.Opened(next_attempt=2, committed_step=7, held_s=90000.0))
    assert code_of(told) == ExitCode.BUDGET_SPENT
    job, told = drive(start, ev.Opened(next_attempt=2, held_s=90000.0))
    assert job.phase is Phase.RUNNING, "where no step is known the clock does not judge"


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


def test_stop_codes_leave_no_debit() -> None:
    """A permanent code needs none: nothing is started again."""
    assert not STOP & NEEDS_DEBIT


def test_the_diagram_names_every_phase() -> None:
    """The README's picture cannot forget one."""
    text = diagram()
    assert all(phase.name in text for phase in Phase)


def test_a_command_that_ran_before_is_no_mistake_of_the_user() -> None:
    """127 only before the first step ever; afterwards the node is suspect."""
    _, told = drive(ONE, ev.CannotRun(code=127, why="no such file"), ev.GroupEnded(), *SETTLED)
    assert code_of(told) == ExitCode.NOT_FOUND
    _, told = drive(ONE, ev.Advanced(step=1), ev.CannotRun(code=127, why="no such file"), ev.GroupEnded(), *SETTLED)
    assert code_of(told) == ExitCode.RESCHEDULE


def test_steps_that_are_done_again_are_no_progress() -> None:
    """In a new container the ladder climbs although it works its way up from an older checkpoint."""
    start = replace(ONE, has_store=True, terms=Terms(in_kubernetes=True))
    opened = ev.Opened(next_attempt=5, committed_step=51, debits=(ev.Debit(code=193, step=60),))
    again = [event for step in (52, 60) for event in (ev.Advanced(step=step),)]
    crash = (*again, *fail(KILLED), ev.DeadlinePassed())
    _, told = drive(start, opened, ev.HeartbeatOpened(), *crash * 3, *again, *fail(KILLED), *SETTLED)
    assert code_of(told) == ExitCode.RESCHEDULE


def test_a_second_sigterm_does_not_move_the_platforms_deadline() -> None:
    """The grace period runs from the first one."""
    job, _ = drive(ONE, ev.LeaveAsked(by="SIGTERM"), ev.DeadlinePassed(), now=0.0)
    job, _ = advance(job, ev.LeaveAsked(by="SIGTERM"), 20.0)
    assert job.must_end_at == job.terms.grace_s


@pytest.mark.parametrize("grace_s", [1.0, 2.0, 5.0, 300.0])
def test_every_grace_leaves_time_for_each_part_of_leaving(grace_s: float) -> None:
    """Boundary, save and record each get a share of it, in this order."""
    _, told = drive(
        replace(ONE, terms=Terms(grace_s=grace_s)),
        ev.HeartbeatOpened(),
        ev.LeaveAsked(by="SIGTERM"),
        ev.DeadlinePassed(),
        ev.GroupEnded(),
        ev.DeadlinePassed(),
    )
    boundary, saved, recorded = (command.at for command in told if isinstance(command, SetDeadline))
    assert 0.0 < boundary < saved < recorded < grace_s
