# SPDX-License-Identifier: Apache-2.0
"""The table is total, and every state that can be reached keeps the contract's invariants."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from driving import (
    BATCH,
    CODE,
    DEVICE,
    KILLED,
    STOPPED,
    SUSPECT,
    denial,
    of_rank,
    raised,
)

from resilient.core import commands as cm
from resilient.core import denials
from resilient.core import events as ev
from resilient.core.causes import Action
from resilient.core.commands import (
    Announce,
    Command,
    Dismiss,
    EndGroup,
    Exit,
    OrderStop,
    RecordDebit,
    RecordFinished,
    Settle,
    SkipBatch,
    StartWorkers,
)
from resilient.core.evidence import Hang, Place
from resilient.core.exit_codes import NEEDS_DEBIT, OBSERVED_FAILURE, PREEMPTED, RESTARTS, STOP, ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import TRANSITIONS, advance, begin, diagram
from resilient.core.policy import Decision, Terms
from resilient.core.skipping import Skipping
from resilient.core.usage import Usage

OF_STORE = (ev.Opened, ev.OpenFailed, ev.Announced, ev.Committed)
GOING = (Phase.SETTLING, Phase.RECORDING, Phase.YIELDING)
WORKING = (Phase.RUNNING, Phase.LEAVING, Phase.PAUSING)
ENOUGH = 1
"""Restarts beyond every budget in here: more of them change nothing."""
IN_BATCH = raised("TypeError", batch=BATCH)
SMALL = Terms(restarts_per_fingerprint=1, restarts_between_commits=1, grace_s=30.0, node="node-a")

ALPHABET: tuple[ev.Event, ...] = (
    ev.Opened(next_attempt=4),
    ev.Opened(next_attempt=4, committed_step=1, ever_committed=True),
    ev.Opened(next_attempt=4, ever_committed=True),
    ev.Opened(next_attempt=4, ever_committed=True, set_aside=("cannot use checkpoint 1-1: it was changed",)),
    ev.Opened(next_attempt=4, debits=(ev.Debit(code=193, step=9),)),
    ev.Opened(next_attempt=4, usage=Usage(restarts=1, restarts_since_commit=1)),
    ev.Opened(next_attempt=4, denials=(denial("node-a"),)),
    ev.Opened(next_attempt=4, denials=(denial("node-a"),), debits=(ev.Debit(code=198, step=0),) * 3),
    ev.OpenFailed(why="no answer", wrong=False),
    ev.OpenFailed(why="no such bucket", wrong=True),
    ev.Examined(),
    ev.Examined(refusal="a GPU is lost", do="cordon it"),
    ev.Examined(devices=("GPU-1",), listed=(denial("GPU-1", of_platform=True),)),
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
    ev.GroupEnded(held=(4242,)),
    *(ev.Collected(evidence=evidence) for evidence in (DEVICE, SUSPECT, KILLED, CODE, STOPPED)),
    *(ev.Collected(evidence=IN_BATCH, skipping=Skipping(allowed=1, skipped=known)) for known in ((), (BATCH,))),
    ev.LeaveAsked(by="SIGTERM"),
    ev.LeaveAsked(by="SIGTERM", urgent=True),
    ev.LeaveAsked(by="a notice", within_s=10.0),
    ev.LeaveExplained(why="Kubernetes: EvictionByEvictionAPI"),
    ev.DeadlinePassed(),
    ev.SaveSettled(durable_step=0),
    ev.SaveSettled(durable_step=1),
    ev.Recorded(),
    ev.RecordFailed(why="disk full"),
    ev.Broken(why="KeyError"),
)
OF_OTHERS: tuple[ev.Event, ...] = (
    ev.Assembled(attempt=7),
    *(ev.PeerGone(pod=1, why="x", leaving=code is None, code=code) for code in (None, 114, 127, 197)),
    ev.PeerAsked(pod=1, by="SIGTERM", within_s=30.0),
    ev.Dispersed(),
)
OF_LEADER: tuple[ev.Event, ...] = (
    *(replace(event, pod=0) for event in OF_OTHERS if isinstance(event, ev.PeerGone)),
    ev.Assembled(attempt=7),
    ev.EndOrdered(grace_s=5.0),
    *(
        ev.Dismissed(decision=Decision(code=code, why="x", do="y", pods=(1,)), yield_s=yield_s)
        for code, yield_s in ((0, 0.0), (1, 0.0), (114, 0.0), (114, 20.0), (194, 0.0), (197, 0.0))
    ),
)


@dataclass(frozen=True)
class Seen:
    """What the path so far has seen: the facts that the invariants are about."""

    asked: bool = False
    stopped: bool = False
    done: frozenset[int] = frozenset()
    on_record: int | None = None
    waiting: int | None = None
    broken: bool = False

    def after(self, event: ev.Event, commands: tuple[Command, ...], job: Job) -> Seen:
        seen = self
        if isinstance(event, ev.LeaveAsked) and job.phase is not Phase.ENDED:
            seen = replace(seen, asked=True)
        if isinstance(event, ev.WorkerEnded) and event.clean and (event.finished or not self.stopped):
            seen = replace(seen, done=seen.done | {event.rank})
        if isinstance(event, ev.Recorded):
            seen = replace(seen, on_record=self.waiting)
        if isinstance(event, ev.Broken) and job.phase is not Phase.ENDED:
            seen = replace(seen, broken=True)
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
    strikes = (replace(strike, batch=None, count=min(strike.count, ENOUGH)) for strike in job.ledger.strikes)
    ledger = replace(
        job.ledger,
        strikes=tuple(sorted(strikes, key=repr)),
        restarts=job.ledger.restarts if job.terms.max_restarts is not None else 0,
        restarts_since_commit=min(job.ledger.restarts_since_commit, ENOUGH),
    )
    ending = None if job.ending is None else replace(job.ending, why="", do="", suspect=None, fault=None)
    if job.terms.pods > 1:
        gone = tuple(ev.PeerGone(pod=peer.pod, why="") for peer in job.gone[:1])
        job = replace(job, gone=gone, yield_s=min(job.yield_s, 1.0), yield_until=min(job.yield_until, 1.0))
        if job.phase not in WORKING:
            job = replace(job, ended=frozenset())
        if job.phase in GOING:  # whose fault it was is decided, and no worker is left
            ledger = replace(ledger, strikes=(), spent=frozenset(), restarts_since_commit=0)
            job = replace(job, finished=frozenset())
            done = seen.done if len(seen.done) == job.ranks else frozenset[int]()
            seen = replace(seen, stopped=False, done=done)
    if job.leave_by is not None:  # only deadlines follow from who asked, and how soon it must end
        job = replace(job, leave_by="", leave_explained=False, must_end_at=0.0, leave_s=0.0)
    # Of `launch` it matters only whether there was one, and one only.
    return replace(job, attempt=0, launch=min(job.launch, 2), backoff_s=0.0, ledger=ledger, ending=ending), seen


def alphabet_of(start: Job) -> Iterator[ev.Event]:
    """What can happen there. Of several pods one judges, and for it any rank may be at fault."""
    several = start.terms.pods > 1
    for event in ALPHABET:
        if isinstance(event, ev.WorkerEnded) and event.rank >= start.ranks:
            continue
        if several and isinstance(event, (ev.Collected, *(() if start.has_store else OF_STORE))):
            continue
        yield event
    if several:
        yield from OF_LEADER if start.terms.follows else OF_OTHERS
    if start.terms.follows:
        yield from (ev.Collected(evidence=evidence) for evidence in (SUSPECT, KILLED))
    if start.terms.leads:
        yield from (ev.Collected(evidence=of_rank(evidence, 1)) for evidence in (KILLED, DEVICE, CODE))
        yield ev.Collected(evidence=KILLED)


def cannot_be(job: Job, event: ev.Event) -> bool:
    """No worker ends where none is left, and no pod is heard before one is there for it."""
    if isinstance(event, ev.WorkerEnded):
        return job.phase not in (*WORKING, Phase.STOPPING)
    return not job.met and isinstance(event, (ev.PeerGone, ev.PeerAsked, ev.EndOrdered, ev.Dismissed))


def walk(start: Job, *, now: float = 0.0) -> Iterator[tuple[Job, Seen, ev.Event, Job, tuple[Command, ...]]]:
    """Every transition that can be reached from ``start`` with the alphabet, each once."""
    job, commands = begin(start, 0.0)
    todo = [(job, Seen().after(ev.Recorded(), commands, job))]
    known = {same(*todo[0])}
    alphabet = tuple(alphabet_of(start))
    while todo:
        job, seen = todo.pop()
        for event in alphabet:
            if start.terms.pods > 1 and cannot_be(job, event):
                continue
            after, commands = advance(job, event, now)
            then = seen.after(event, commands, after)
            yield job, then, event, after, commands
            if (after is job and then is seen) or after.phase is Phase.ENDED:
                continue
            state = same(after, then)
            if state not in known:
                known.add(state)
                todo.append((after, then))


SLOW = ("two-ranks", "no-store", "counters", "follower-with-store")
STARTS = {
    "two-ranks": Job(terms=SMALL, ranks=2, has_store=True),
    "no-store": Job(terms=SMALL, ranks=1),
    "kubernetes": Job(terms=replace(SMALL, in_kubernetes=True), ranks=1, has_store=True),
    "counters": Job(terms=replace(SMALL, in_kubernetes=True, counters_bound=True), ranks=1, has_store=True),
    "observe": Job(terms=replace(SMALL, observe=True, max_restarts=1), ranks=1, has_store=True),
    "capped": Job(terms=replace(SMALL, max_restarts=1), ranks=1, has_store=True),
    "leader": Job(terms=replace(SMALL, in_kubernetes=True, pods=2), ranks=2),
    "follower": Job(terms=replace(SMALL, in_kubernetes=True, pods=2, pod=1), ranks=1),
    "follower-with-store": Job(terms=replace(SMALL, in_kubernetes=True, pods=2, pod=1), ranks=1, has_store=True),
}


def test_every_pair_of_phase_and_event_stands_in_the_table() -> None:
    """The table is total."""
    for phase in Phase:
        assert set(TRANSITIONS[phase]) == set(ev.EVENTS)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """A walk makes a million states and no cycle of references: looking for some takes as long as the walk."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in STARTS])
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
        if job.launch == 0 and any(isinstance(command, (StartWorkers, cm.Assemble)) for command in commands):
            check_start(job, event)
        for command in exits:
            check_exit(start, job, seen, command)
        if any(isinstance(command, SkipBatch) for command in commands):
            check_skip(job, event, after)
        if job.phase is Phase.JUDGING and after.phase in (Phase.BACKING_OFF, Phase.EXAMINING):
            check_restart(job, commands, after)
        if start.terms.pods > 1:
            check_pods(start, job, seen, event, commands)
        for debit in (command.debit for command in commands if isinstance(command, RecordDebit)):
            check_debit(after, debit)
    assert count > 1000


def check_start(job: Job, event: ev.Event) -> None:
    """A node or device that is kept off is used only after three refusals in a row, or under --observe."""
    if isinstance(event, ev.Assembled):
        return  # after it was looked at
    assert isinstance(event, ev.Examined)
    own = job.denials if job.terms.in_kubernetes else ()
    if denials.concerning((*own, *event.listed), job.terms.node, event.devices):
        assert job.terms.observe or job.refusals >= denials.MOST_REFUSALS


def check_exit(start: Job, job: Job, seen: Seen, command: Exit) -> None:
    """The invariants that are about the exit itself."""
    code = command.code
    assert command.why
    assert command.do
    if start.terms.observe and code == OBSERVED_FAILURE:
        return
    assert (code == ExitCode.INTERNAL) >= seen.broken
    if code == ExitCode.FINISHED:
        assert len(seen.done) == start.ranks, "0 only when every worker ended with 0 by itself"
    if seen.asked:
        assert code in {ExitCode.FINISHED, ExitCode.INTERNAL} | PREEMPTED
    if code in NEEDS_DEBIT:
        assert (code == ExitCode.NODE_REFUSED) <= (job.launch <= 1), "only a start is refused"
        assert seen.on_record == code or start.terms.counters_bound, "no ignored exit without a recorded debit"
    if code in PREEMPTED:
        assert seen.asked


def check_pods(start: Job, job: Job, seen: Seen, event: ev.Event, commands: tuple[Command, ...]) -> None:
    """All start together, when they are all there; one of them judges, and nobody is told what is not so."""
    for command in commands:
        match command:
            case StartWorkers():
                assert isinstance(event, ev.Assembled)
            case cm.Testify():
                assert start.terms.follows
            case RecordFinished():
                assert start.terms.leads
            case Announce():
                assert command.verdict is None or start.terms.leads
            case Dismiss():
                assert start.terms.leads
                assert not seen.asked or command.decision.code == ExitCode.FINISHED
                assert command.decision.code != ExitCode.FINISHED or len(seen.done) == start.ranks
                assert command.yield_s == 0.0 or command.decision.code in STOP
            case Settle():
                assert not seen.broken, "the run may be another's"


def check_skip(job: Job, event: ev.Event, after: Job) -> None:
    """A batch is left out only where the user allows it, once, when its fault has come back, and by a restart."""
    assert isinstance(event, ev.Collected)
    assert not event.skipping.skipped, "the one that is allowed is spent"
    assert job.ledger.strikes, "the first time proves nothing"
    assert not job.ledger.never_ran, "before the first step ever the code is at fault"
    assert not job.terms.observe
    assert after.ledger.restarts == job.ledger.restarts + 1
    assert after.ledger.restarts_since_commit <= job.terms.restarts_between_commits


def check_debit(job: Job, debit: ev.Debit) -> None:
    """The pod that comes next goes on from what this one has used, and from the restart that it is itself."""
    one = debit.code in RESTARTS
    assert debit.usage.restarts == job.ledger.restarts + one
    assert debit.usage.restarts_since_commit == job.ledger.restarts_since_commit + one


def check_restart(job: Job, commands: tuple[Command, ...], after: Job) -> None:
    """Invariant 6: a code verdict gets exactly one confirming restart in place. And no restart is beyond the budget of
    the submission, in whichever pods it was used."""
    assert job.terms.observe or after.ledger.restarts_since_commit <= job.terms.restarts_between_commits
    if job.terms.follows:
        return  # it is the first pod that has decided
    verdict = next(command.verdict for command in commands if isinstance(command, Announce) and command.verdict)
    skips = any(isinstance(command, SkipBatch) for command in commands)
    if verdict.action is Action.STOP and not skips and not job.terms.observe:
        assert not job.ledger.count(verdict.fingerprint)
        assert job.ledger.highest_step > 0 or not job.ledger.steps_known


@pytest.mark.parametrize("name", STARTS)
def test_every_state_has_a_way_out_that_is_taken_without_luck(name: str) -> None:
    """With workers that die of the same crash and a store that fails, no job goes on for ever."""
    start = STARTS[name]
    for failing in (True, False):
        job, commands = begin(start, 0.0)
        for _ in range(200):
            event = answer(commands, failing=failing, follows=start.terms.follows)
            if event is None:
                break
            job, commands = advance(job, event, 0.0)
        assert job.phase is Phase.ENDED


def answer(commands: tuple[Command, ...], *, failing: bool, follows: bool) -> ev.Event | None:
    """What a world of crashing workers answers to a command; there a pod that follows waits for one in vain."""
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
    if not follows:
        replies["Assemble"] = ev.Assembled()
    for command in reversed(commands):
        if type(command).__name__ in replies:
            return replies[type(command).__name__]
    return None


def test_stop_codes_leave_no_debit() -> None:
    """A permanent code needs none: nothing is started again."""
    assert not STOP & NEEDS_DEBIT


def test_the_diagram_names_every_phase() -> None:
    """The README's picture cannot forget one."""
    text = diagram()
    assert all(phase.name in text for phase in Phase)
