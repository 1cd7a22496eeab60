# SPDX-License-Identifier: Apache-2.0
"""How a job ends: its workers, then its newest snapshot, then the record, then the exit; and who may hurry it.

Like :mod:`resilient.core.edges`: functions behind the table, none of which acts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from resilient.core import events as ev
from resilient.core import policy
from resilient.core.commands import (
    ClearDeadline,
    CollectEvidence,
    Command,
    Dismiss,
    EndGroup,
    Exit,
    RecordDebit,
    RecordFinished,
    SetDeadline,
    Settle,
)
from resilient.core.exit_codes import NEEDS_DEBIT, OBSERVED_FAILURE, RESTARTS, STOP, ExitCode
from resilient.core.job import Job, Phase
from resilient.core.policy import Decision

Step = tuple[Job, tuple[Command, ...]]

RESERVE_S: Final = 3.0
RESERVE_SHARE: Final = 0.3
"""Of the platform's grace so much, and no more than these seconds, is kept for putting the exit on record."""

YIELD_S: Final = 15.0
DISPERSE_S: Final = 10.0
"""How long other pods have to hear how they end."""
_BETWEEN: Final = (Phase.EXAMINING, Phase.ASSEMBLING)
"""Two attempts, if there was one."""
FOR_ALL: Final = STOP | {
    ExitCode.FINISHED,
    ExitCode.PEER_FAILED,
    ExitCode.CANNOT_EXECUTE,
    ExitCode.NOT_FOUND,
    OBSERVED_FAILURE,
}
"""With these the pods of a run end together."""

FINISHED: Final = Decision(code=ExitCode.FINISHED, why="all steps are done", do="nothing")


def stay(job: Job, event: ev.Event, now: float) -> Step:
    return job, ()


def leaving_s(job: Job) -> float:
    """How long leaving may take, from the request to the exit."""
    return job.terms.grace_s if job.leave_s is None else job.leave_s


def reserve_s(job: Job) -> float:
    return min(RESERVE_S, RESERVE_SHARE * leaving_s(job))


def end_group(job: Job, grace_s: float | None = None) -> Step:
    grace = job.terms.stop_grace_s if grace_s is None else grace_s
    return replace(job, phase=Phase.STOPPING), (ClearDeadline(), EndGroup(grace_s=grace))


def settle(job: Job, now: float) -> Step:
    return replace(job, phase=Phase.SETTLING), (_settled_by(job, now), Settle())


def _settled_by(job: Job, now: float) -> SetDeadline:
    return SetDeadline(at=now + job.terms.settle_s if job.must_end_at is None else job.must_end_at - reserve_s(job))


def group_ended(job: Job, event: ev.GroupEnded, now: float) -> Step:
    """All are gone: finished, leaving, ending for a reason known before, or a fault to judge."""
    if job.ending is not None and job.ending.code == ExitCode.INTERNAL:
        return _exit(job, now)
    goes = job.leave_by is not None or (job.terms.leads and job.gone)
    # Where pod 0 leads it knows alone whether the ranks of all pods have finished.
    if goes and job.ending is None and len(job.finished) == job.ranks and not job.terms.follows:
        job = replace(job, ending=FINISHED)
    if job.leave_by is not None or job.ending is not None:
        return settle(job, now)
    if event.held:
        return settle(replace(job, ending=_stuck(job, event.held)), now)
    return replace(job, phase=Phase.JUDGING), (CollectEvidence(),)


def _stuck(job: Job, held: tuple[int, ...]) -> Decision:
    """Whoever is to blame: beside processes that still hold the devices no others can be started here."""
    return Decision(
        code=OBSERVED_FAILURE if job.terms.observe else ExitCode.RESCHEDULE,
        why=f"processes {', '.join(map(str, held))} do not end, as the kernel holds them: a mount or a driver is dead",
        do="have the node and its mounts looked at",
    )


def marked(job: Job, event: ev.LeaveAsked, now: float) -> Job:
    """Leaving outranks every ending but "finished" and "internal": what fails now is its consequence."""
    keep = job.ending is not None and job.ending.code in (ExitCode.FINISHED, ExitCode.INTERNAL)
    leave_s = job.terms.grace_s if event.within_s is None else event.within_s
    by = job.leave_by if job.leave_explained else event.by
    job = replace(job, leave_by=by, ending=job.ending if keep else None, yield_s=0.0)
    if job.must_end_at is not None and job.must_end_at <= now + leave_s:
        return job
    return replace(job, must_end_at=now + leave_s, leave_s=leave_s)


def asked_idle(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """Asked to leave while no worker runs: save what there is, and go."""
    return settle(marked(job, event, now), now)


def asked_busy(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    return marked(job, event, now), ()


def asked_settling(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """The save goes on, within what those who have asked leave of time."""
    job = marked(job, event, now)
    return job, (_settled_by(job, now),)


def asked_recording(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """The exit being recorded is overtaken by the request to leave, that one goes on record instead; asked once more
    nothing changes."""
    sooner = marked(job, event, now)
    if job.leave_by is None:
        return _record(_left(sooner, job.ledger.committed_step), now)
    if sooner.must_end_at == job.must_end_at:
        return job, ()
    sooner = replace(sooner, ending=job.ending)
    return sooner, (_recorded_by(sooner, now),)


def settled(job: Job, event: ev.SaveSettled, now: float) -> Step:
    job = _ended_with(job, event.durable_step, event.reached_step or 0)
    return _record(_left(job, event.durable_step, event.reached_step), now)


def settled_late(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    """The store has not answered in time: nothing is durable but what was before."""
    job = _ended_with(job, job.ledger.committed_step, job.ledger.highest_step)
    return _record(_left(job, job.ledger.committed_step), now)


def _ended_with(job: Job, durable_step: int, reached_step: int) -> Job:
    """A training that is done says so where its final state is not durable; of several pods the first one knows."""
    ending = None if job.terms.follows else job.ending
    if ending is None or ending.code != ExitCode.FINISHED or ending.lost:
        return job
    if not job.has_store or durable_step >= reached_step:
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
    if ending.code == ExitCode.FINISHED and not ending.lost and not job.terms.follows:
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
        return _exit(job, now)
    return replace(job, phase=Phase.RECORDING), (_recorded_by(job, now), what)


def _recorded_by(job: Job, now: float) -> SetDeadline:
    until = now + job.terms.record_s if job.must_end_at is None else job.must_end_at - reserve_s(job) / 3
    return SetDeadline(at=until)


def recorded(job: Job, event: ev.Recorded, now: float) -> Step:
    return _exit(job, now)


def record_failed(job: Job, event: ev.RecordFailed | ev.DeadlinePassed, now: float) -> Step:
    """No ignored exit without a debit, unless the controller's own counters bound the loop."""
    ending = job.ending
    assert ending is not None, "nothing was decided"
    why = event.why if isinstance(event, ev.RecordFailed) else "the store did not answer in time"
    if ending.code == ExitCode.FINISHED or job.terms.counters_bound:
        return _exit(replace(job, ending=policy.without_record(ending, why)), now)
    return _exit(replace(job, ending=policy.unrecorded(ending, why, has_store=job.has_store)), now)


def _exit(job: Job, now: float) -> Step:
    """Of several pods the first one tells the others where it ends them all; who is not to blame ends later."""
    ending = job.ending
    assert ending is not None, "nothing was decided"
    others = _dismissals(job, ending) if job.terms.leads and job.met and ending.code in FOR_ALL else ()
    yield_s = yields_s(job, ending, job.terms.pod) if job.terms.leads else job.yield_s
    if not others and not yield_s:
        return _quit(job)
    job = replace(job, phase=Phase.YIELDING, yield_until=now + yield_s)
    until = now + max(yield_s, DISPERSE_S if others else 0.0)
    if job.must_end_at is not None:
        until = min(until, job.must_end_at - reserve_s(job) / 6)
    return job, (*others, SetDeadline(at=until))


def _dismissals(job: Job, ending: Decision) -> tuple[Dismiss, ...]:
    """To all: a pod that leaves may still be there, and one that is gone hears nothing."""
    return tuple(
        Dismiss(pod=pod, decision=ending, yield_s=yields_s(job, ending, pod)) for pod in range(1, job.terms.pods)
    )


def yields_s(job: Job, ending: Decision, pod: int) -> float:
    """After a stop the Job controller acts on one of the pods that have failed, whichever it sees: that is to be the
    one that is to blame, so the others end 15 to 30 s later, one after the other."""
    if not job.terms.in_kubernetes or ending.code not in STOP or ending.is_about(pod):
        return 0.0
    return YIELD_S * (1 + pod / job.terms.pods)


def dispersed(job: Job, event: ev.Dispersed, now: float) -> Step:
    """All others have heard how they end."""
    if now < job.yield_until:
        return job, (SetDeadline(at=job.yield_until),)
    return _quit(job)


def yielded(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    return _quit(job)


def asked_yielding(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """A finished run has finished; else it is the controller that ends the pods, after the one that is to blame: by the
    code of whoever is asked to leave, and in the words of what ended the run, which does not go on from there."""
    after = _left(marked(job, event, now), job.ledger.committed_step)
    if job.ending is None or after.ending is None or after.ending == job.ending:
        return _quit(job)
    why = f"{job.ending.why}; {after.ending.why}"
    return _record(replace(after, ending=replace(after.ending, why=why, do=job.ending.do)), now)


def _quit(job: Job) -> Step:
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
    return _quit(replace(job, ending=Decision(code=ExitCode.INTERNAL, why=why, do="please report it with the journal")))


def end(job: Job, code: int, why: str, do: str, now: float) -> Step:
    return end_by(job, Decision(code=code, why=why, do=do), now)


def end_by(job: Job, decision: Decision, now: float) -> Step:
    """End for a reason: first the workers, then the newest snapshot, then the record, then the exit."""
    job = replace(job, ending=decision)
    if job.phase in (Phase.RUNNING, Phase.LEAVING, Phase.PAUSING):
        return end_group(job)
    if job.phase is Phase.STOPPING:
        return job, ()
    if job.phase is Phase.JUDGING or (job.phase in _BETWEEN and job.launch):
        return settle(job, now)
    return _record(job, now)
