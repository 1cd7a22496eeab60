# SPDX-License-Identifier: Apache-2.0
"""What each event does to a job: the functions behind the table in :mod:`resilient.core.machine`.

Every function takes the job, the event and the monotonic time, and returns the
job in its next phase with the commands for the loop. None of them acts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from resilient.core import events as ev
from resilient.core import policy
from resilient.core.classify import classify
from resilient.core.commands import (
    Announce,
    ClearDeadline,
    CollectEvidence,
    Command,
    EndGroup,
    Examine,
    Exit,
    OrderStop,
    RecordDebit,
    RecordFinished,
    SetDeadline,
    Settle,
    SkipBatch,
    StartWorkers,
)
from resilient.core.denials import suspect_of
from resilient.core.evidence import Evidence
from resilient.core.exit_codes import NEEDS_DEBIT, OBSERVED_FAILURE, RESTARTS, ExitCode
from resilient.core.grammar import going_on
from resilient.core.history import Now, reconsider
from resilient.core.job import Job, Phase
from resilient.core.policy import Decision
from resilient.core.suspicion import suspects_device

Step = tuple[Job, tuple[Command, ...]]

RESERVE_S: Final = 3.0
RESERVE_SHARE: Final = 0.3
"""Of the platform's grace so much, and no more than these seconds, is kept for putting the exit on record."""

FINISHED: Final = Decision(code=ExitCode.FINISHED, why="all steps are done", do="nothing")


def stay(job: Job, event: ev.Event, now: float) -> Step:
    return job, ()


def launch(job: Job) -> Step:
    job = replace(
        job,
        phase=Phase.RUNNING,
        launch=job.launch + 1,
        ended=frozenset(),
        finished=frozenset(),
    )
    return job, (ClearDeadline(), StartWorkers(attempt=job.attempt, launch=job.launch))


def examine(job: Job) -> Step:
    """Look at the machine before its workers are started."""
    return replace(job, phase=Phase.EXAMINING), (ClearDeadline(), Examine(suspect=job.launch > 0))


def cannot_run(job: Job, event: ev.CannotRun, now: float) -> Step:
    if job.ledger.highest_step > 0:
        return end(job, ExitCode.RESCHEDULE, event.why, "the command ran before; another node is tried", now)
    return end(job, event.code, event.why, "correct the command or the image", now)


def heartbeat_opened(job: Job, event: ev.HeartbeatOpened, now: float) -> Step:
    return replace(job, ledger=replace(job.ledger, steps_known=True)), ()


def advanced(job: Job, event: ev.Advanced, now: float) -> Step:
    if event.step <= job.ledger.highest_step:
        return job, ()
    return replace(job, ledger=job.ledger.advanced(event.step)), ()


def committed(job: Job, event: ev.Committed, now: float) -> Step:
    if event.step <= job.ledger.committed_step:
        return job, ()
    return replace(job, ledger=job.ledger.committed(event.step, now)), ()


def _note_end(job: Job, event: ev.WorkerEnded) -> Job:
    """A worker that ends with 0 before anybody was told to stop has finished: ``break`` is a normal end."""
    done = event.clean and (event.finished or job.phase is Phase.RUNNING)
    return replace(
        job,
        ended=job.ended | {event.rank},
        finished=job.finished | {event.rank} if done else job.finished,
    )


def worker_ended(job: Job, event: ev.WorkerEnded, now: float) -> Step:
    job = _note_end(job, event)
    if event.clean and len(job.ended) < job.ranks:
        return job, ()
    if event.clean:
        job = replace(job, ending=_finished(job, event))
    return _end_group(job)


def _finished(job: Job, last: ev.WorkerEnded) -> Decision:
    """Every worker ended with 0 by itself; ``break`` is a normal end, and is called by its name."""
    if last.finished:
        return FINISHED
    if not job.ledger.steps_known:
        return replace(FINISHED, why="every worker ended with 0")
    return replace(FINISHED, why=f"every worker ended by itself, after step {job.ledger.highest_step}")


def _leave_s(job: Job) -> float:
    """How long leaving may take, from the request to the exit."""
    return job.terms.grace_s if job.leave_s is None else job.leave_s


def _reserve_s(job: Job) -> float:
    return min(RESERVE_S, RESERVE_SHARE * _leave_s(job))


def worker_left(job: Job, event: ev.WorkerEnded, now: float) -> Step:
    job = _note_end(job, event)
    return _end_group(job) if len(job.ended) == job.ranks else (job, ())


def _end_group(job: Job, grace_s: float | None = None) -> Step:
    grace = job.terms.stop_grace_s if grace_s is None else grace_s
    return replace(job, phase=Phase.STOPPING), (ClearDeadline(), EndGroup(grace_s=grace))


def ended_late(job: Job, event: ev.WorkerEnded, now: float) -> Step:
    return _note_end(job, event), ()


def hang_found(job: Job, event: ev.HangFound, now: float) -> Step:
    if job.terms.observe:
        text = f"rank {event.hang.rank} stands still, at {event.hang.where or 'unknown'}; left alone (--observe)"
        return job, (Announce(text=text),)
    return _end_group(job)


def unusable(job: Job, event: ev.Unusable, now: float) -> Step:
    return end(job, ExitCode.CONFIG_FAULT, event.why, "correct it, or start over with --fresh", now)


def group_ended(job: Job, event: ev.GroupEnded, now: float) -> Step:
    """All are gone: finished, leaving, ending for a reason known before, or a fault to judge."""
    if job.ending is not None and job.ending.code == ExitCode.INTERNAL:
        return _exit(job)
    if job.leave_by is not None and job.ending is None and len(job.finished) == job.ranks:
        job = replace(job, ending=FINISHED)
    if job.leave_by is not None or job.ending is not None:
        return _settle(job, now)
    if event.held:
        return _settle(replace(job, ending=_stuck(job, event.held)), now)
    return replace(job, phase=Phase.JUDGING), (CollectEvidence(),)


def _stuck(job: Job, held: tuple[int, ...]) -> Decision:
    """Whoever is to blame: beside processes that still hold the devices no others can be started here."""
    return Decision(
        code=OBSERVED_FAILURE if job.terms.observe else ExitCode.RESCHEDULE,
        why=f"processes {', '.join(map(str, held))} do not end, as the kernel holds them: a mount or a driver is dead",
        do="have the node and its mounts looked at",
    )


def _settle(job: Job, now: float) -> Step:
    return replace(job, phase=Phase.SETTLING), (_settled_by(job, now), Settle())


def _settled_by(job: Job, now: float) -> SetDeadline:
    return SetDeadline(at=now + job.terms.settle_s if job.must_end_at is None else job.must_end_at - _reserve_s(job))


def collected(job: Job, event: ev.Collected, now: float) -> Step:
    verdict = reconsider(_now(job, event.evidence), event.past)
    decision = policy.decide(verdict, job.ledger, job.terms, now, event.skipping)
    announce = Announce(text=f"{going_on(decision.why)}; {decision.do}", verdict=verdict, do=decision.do)
    if decision.code is not None:
        moves = decision.code == ExitCode.RESCHEDULE and job.terms.in_kubernetes  # elsewhere nothing would
        decision = replace(
            decision,
            fault=job.ledger.strike(verdict.fingerprint, verdict.step or 0, verdict.batch),
            suspect=suspect_of(verdict, event.evidence, job.terms.node) if moves else None,
        )
        job, commands = end_by(job, decision, now)
        return job, (announce, *commands)
    job = replace(
        job,
        phase=Phase.BACKING_OFF,
        attempt=job.attempt + 1,
        ledger=job.ledger.struck(verdict.fingerprint, verdict.step or 0, verdict.batch)
        if decision.skip is None
        else job.ledger.skipped(verdict.fingerprint),
    )
    told: tuple[Command, ...] = (announce,)
    if decision.skip is not None:
        told = (announce, SkipBatch(batch=decision.skip, why=verdict.why))
    if suspects_device(verdict):
        job, commands = examine(replace(job, backoff_s=decision.delay_s))
        return job, (*told, *commands)
    return job, (*told, SetDeadline(at=now + decision.delay_s))


def _now(job: Job, evidence: Evidence) -> Now:
    """The fault as the attempt's own evidence shows it."""
    return Now(
        verdict=classify(evidence, job.rules),
        node=job.terms.node,
        reached=job.ledger.highest_step if job.ledger.steps_known else None,
        ranks=job.ranks,
    )


def launch_again(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    return launch(job)


def asked_idle(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """Asked to leave while no worker runs: save what there is, and go."""
    return _settle(_marked(job, event, now), now)


def asked_running(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    job = _marked(job, event, now)
    return replace(job, phase=Phase.LEAVING), (_boundary_by(job, now), OrderStop())


def _boundary_by(job: Job, now: float) -> SetDeadline:
    """Half of what is left is for the step, the other half for saving it."""
    until = now + _leave_s(job) if job.must_end_at is None else job.must_end_at
    return SetDeadline(at=now + (until - now - _reserve_s(job)) / 2)


def asked_busy(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    return _marked(job, event, now), ()


def asked_recording(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """The exit being recorded is overtaken by the request to leave, that one goes on record instead; asked once more
    nothing changes."""
    sooner = _marked(job, event, now)
    if job.leave_by is None:
        return _record(_left(sooner, job.ledger.committed_step), now)
    if sooner.must_end_at == job.must_end_at:
        return job, ()
    sooner = replace(sooner, ending=job.ending)
    return sooner, (_recorded_by(sooner, now),)


def asked_again(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """A second Ctrl-C wants out now; whoever leaves less time than the first to ask has less than that."""
    if event.urgent:
        return boundary_missed(job, ev.DeadlinePassed(), now)
    sooner = _marked(job, event, now)
    return (job, ()) if sooner.must_end_at == job.must_end_at else (sooner, (_boundary_by(sooner, now),))


def asked_settling(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """The save goes on, within what those who have asked leave of time."""
    job = _marked(job, event, now)
    return job, (_settled_by(job, now),)


def _marked(job: Job, event: ev.LeaveAsked, now: float) -> Job:
    """Leaving outranks every ending but "finished" and "internal": what fails now is its consequence."""
    keep = job.ending is not None and job.ending.code in (ExitCode.FINISHED, ExitCode.INTERNAL)
    leave_s = job.terms.grace_s if event.within_s is None else event.within_s
    by = job.leave_by if job.leave_explained else event.by
    job = replace(job, leave_by=by, ending=job.ending if keep else None)
    if job.must_end_at is not None and job.must_end_at <= now + leave_s:
        return job
    return replace(job, must_end_at=now + leave_s, leave_s=leave_s)


def boundary_missed(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    """Somebody did not reach the boundary in time: the newest whole snapshot has to do."""
    return _end_group(job, grace_s=min(job.terms.stop_grace_s, _leave_s(job) / 10))


def settled(job: Job, event: ev.SaveSettled, now: float) -> Step:
    job = _ended_with(job, event.durable_step, event.reached_step or 0)
    return _record(_left(job, event.durable_step, event.reached_step), now)


def settled_late(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    """The store has not answered in time: nothing is durable but what was before."""
    job = _ended_with(job, job.ledger.committed_step, job.ledger.highest_step)
    return _record(_left(job, job.ledger.committed_step), now)


def _ended_with(job: Job, durable_step: int, reached_step: int) -> Job:
    """A training that is done says so where its final state is not durable."""
    ending = job.ending
    if ending is None or ending.code != ExitCode.FINISHED or not job.has_store or durable_step >= reached_step:
        return job
    by_break = ending.why != FINISHED.why
    return replace(job, ending=policy.not_durable(ending, durable_step, reached_step, by_break=by_break))


def _left(job: Job, durable_step: int, reached_step: int | None = None) -> Job:
    """Fill in how a job that was asked to leave has left."""
    if job.leave_by is None or job.ending is not None:
        return job
    reached = job.ledger.highest_step if reached_step is None else reached_step
    return replace(
        job, ending=policy.left(job.leave_by, job.ledger, job.terms, durable_step=durable_step, reached=reached)
    )


def _record(job: Job, now: float) -> Step:
    """Put the ending on record where the contract asks for it, else exit. Of a final state that is lost nothing is on
    record, so that a new start makes it again."""
    ending = job.ending
    assert ending is not None, "nothing was decided"
    if ending.code == ExitCode.FINISHED and not ending.lost:
        what: Command = RecordFinished(step=job.ledger.highest_step)
    elif ending.code in NEEDS_DEBIT:
        fault = ending.fault or next(reversed(job.ledger.strikes), None)
        usage = job.ledger.usage(now)
        debit = ev.Debit(
            code=int(ending.code or 0),
            step=job.ledger.highest_step,
            fingerprint=fault.fingerprint if fault else "",
            node=job.terms.node,
            fault_step=fault.step if fault else None,
            times=fault.count if fault else 1,
            strikes=job.ledger.count(fault.fingerprint) if fault else 0,
            batch=fault.batch if fault else None,
            usage=usage.and_restarted() if ending.code in RESTARTS else usage,
        )
        what = RecordDebit(debit=debit, why=ending.why, suspect=ending.suspect)
    else:
        return _exit(job)
    return replace(job, phase=Phase.RECORDING), (_recorded_by(job, now), what)


def _recorded_by(job: Job, now: float) -> SetDeadline:
    until = now + job.terms.record_s if job.must_end_at is None else job.must_end_at - _reserve_s(job) / 3
    return SetDeadline(at=until)


def recorded(job: Job, event: ev.Recorded, now: float) -> Step:
    return _exit(job)


def record_failed(job: Job, event: ev.RecordFailed | ev.DeadlinePassed, now: float) -> Step:
    """No ignored exit without a debit, unless the controller's own counters bound the loop."""
    ending = job.ending
    assert ending is not None, "nothing was decided"
    why = event.why if isinstance(event, ev.RecordFailed) else "the store did not answer in time"
    if ending.code == ExitCode.FINISHED or job.terms.counters_bound:
        return _exit(replace(job, ending=policy.without_record(ending, why)))
    return _exit(replace(job, ending=policy.unrecorded(ending, why, has_store=job.has_store)))


def _exit(job: Job) -> Step:
    ending = job.ending
    assert ending is not None, "nothing was decided"
    assert ending.code is not None, "a restart is not an ending"
    last = Exit(code=ending.code, why=ending.why, do=ending.do, unrecorded=ending.unrecorded)
    return replace(job, phase=Phase.ENDED), (ClearDeadline(), last)


def broken(job: Job, event: ev.Broken, now: float) -> Step:
    why = f"the supervisor failed: {event.why}"
    return end(job, ExitCode.INTERNAL, why, "please report it with the journal", now)


def broken_last(job: Job, event: ev.Broken, now: float) -> Step:
    """Nothing is left to end: say it and go."""
    why = f"the supervisor failed: {event.why}"
    return _exit(replace(job, ending=Decision(code=ExitCode.INTERNAL, why=why, do="please report it with the journal")))


def end(job: Job, code: int, why: str, do: str, now: float) -> Step:
    return end_by(job, Decision(code=code, why=why, do=do), now)


def end_by(job: Job, decision: Decision, now: float) -> Step:
    """End for a reason: first the workers, then the newest snapshot, then the record, then the exit."""
    job = replace(job, ending=decision)
    if job.phase in (Phase.RUNNING, Phase.LEAVING):
        return _end_group(job)
    if job.phase is Phase.STOPPING:
        return job, ()
    if job.phase is Phase.JUDGING or (job.phase is Phase.EXAMINING and job.launch):
        return _settle(job, now)
    return _record(job, now)
