# SPDX-License-Identifier: Apache-2.0
"""What each event does to a job: the functions behind the table in :mod:`resilient.core.machine`.

Every function takes the job, the event and the monotonic time, and returns the
job in its next phase with the commands for the loop. None of them acts.
"""

from __future__ import annotations

from dataclasses import replace

from resilient.core import events as ev
from resilient.core import policy
from resilient.core.causes import Verdict
from resilient.core.classify import classify
from resilient.core.commands import (
    Announce,
    Assemble,
    ClearDeadline,
    Command,
    Dismiss,
    Examine,
    OrderStop,
    SetDeadline,
    SkipBatch,
    StartWorkers,
)
from resilient.core.denials import suspect_of
from resilient.core.edges_ending import FINISHED, Step, end, end_by, end_group, leaving_s, marked, reserve_s
from resilient.core.evidence import Evidence
from resilient.core.exit_codes import RESTARTS, ExitCode
from resilient.core.grammar import going_on
from resilient.core.history import Now, reconsider
from resilient.core.job import Job, Phase
from resilient.core.ledger import Ledger
from resilient.core.policy import Decision
from resilient.core.suspicion import suspects_device


def launch(job: Job, now: float) -> Step:
    """Start the workers, of several pods once all are there."""
    return start(job) if job.terms.pods == 1 else assemble(job, now)


def assemble(job: Job, now: float) -> Step:
    job = replace(job, phase=Phase.ASSEMBLING, met=True)
    return job, (SetDeadline(at=now + job.terms.pod_patience_s), Assemble())


def start(job: Job) -> Step:
    job = replace(
        job,
        phase=Phase.RUNNING,
        launch=job.launch + 1,
        ended=frozenset(),
        finished=frozenset(),
        gone=(),
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
    if job.terms.follows or (event.clean and len(job.ended) < job.ranks):
        return job, ()  # what becomes of the others is for the first pod to say
    if event.clean:
        job = replace(job, ending=_finished(job, event))
    return end_group(job)


def _finished(job: Job, last: ev.WorkerEnded) -> Decision:
    """Every worker ended with 0 by itself; ``break`` is a normal end, and is called by its name."""
    if last.finished:
        return FINISHED
    if not job.ledger.steps_known:
        return replace(FINISHED, why="every worker ended with 0")
    return replace(FINISHED, why=f"every worker ended by itself, after step {job.ledger.highest_step}")


def worker_left(job: Job, event: ev.WorkerEnded, now: float) -> Step:
    job = _note_end(job, event)
    return end_group(job) if len(job.ended) == job.ranks else (job, ())


def ended_late(job: Job, event: ev.WorkerEnded, now: float) -> Step:
    return _note_end(job, event), ()


def hang_found(job: Job, event: ev.HangFound, now: float) -> Step:
    if job.terms.observe:
        text = f"rank {event.hang.rank} stands still, at {event.hang.where or 'unknown'}; left alone (--observe)"
        return job, (Announce(text=text),)
    if job.terms.follows:
        return job, ()
    return end_group(job)


def unusable(job: Job, event: ev.Unusable, now: float) -> Step:
    return end(job, ExitCode.CONFIG_FAULT, event.why, "correct it, or start over with --fresh", now)


def collected(job: Job, event: ev.Collected, now: float) -> Step:
    verdict = reconsider(_now(job, event.evidence), event.past)
    decision = policy.decide(verdict, job.ledger, job.terms, now, event.skipping)
    announce = Announce(text=f"{going_on(decision.why)}; {decision.do}", verdict=verdict, do=decision.do)
    if decision.code is not None:
        moves = decision.code == ExitCode.RESCHEDULE and job.terms.in_kubernetes  # elsewhere nothing would
        pods = _pods_of(job, verdict)
        here = job.terms.node if job.terms.pods == 1 or pods == (job.terms.pod,) else None
        decision = replace(
            decision,
            fault=job.ledger.strike(verdict.fingerprint, verdict.step or 0, verdict.batch),
            suspect=suspect_of(verdict, event.evidence, verdict.node or here) if moves else None,
            pods=pods,
        )
        return _leave(job, decision, verdict, announce, now)
    job = replace(
        job,
        phase=Phase.BACKING_OFF,
        attempt=job.attempt + 1,
        ledger=_struck(job, verdict) if decision.skip is None else job.ledger.skipped(verdict.fingerprint),
    )
    told: tuple[Command, ...] = (announce,)
    if decision.skip is not None:
        told = (announce, SkipBatch(batch=decision.skip, why=verdict.why))
    if suspects_device(verdict):
        job, commands = examine(replace(job, backoff_s=decision.delay_s))
        return job, (*told, *commands)
    return job, (*told, SetDeadline(at=now + decision.delay_s))


def _struck(job: Job, verdict: Verdict) -> Ledger:
    return job.ledger.struck(verdict.fingerprint, verdict.step or 0, verdict.batch)


def _pods_of(job: Job, verdict: Verdict) -> tuple[int, ...] | None:
    """Where the culprit runs, if it is known who that is."""
    if verdict.culprit is None or job.terms.pods == 1:
        return None
    return (verdict.culprit * job.terms.pods // job.ranks,)


def _leave(job: Job, decision: Decision, verdict: Verdict, announce: Announce, now: float) -> Step:
    """Of several pods only those leave that it is about, and the others wait until they are replaced; all leave where
    nobody can be named, or where the whole run ends."""
    others: tuple[Dismiss, ...] = ()
    if job.terms.leads and decision.code in RESTARTS:
        about = [pod for pod in range(1, job.terms.pods) if decision.is_about(pod)]
        others = tuple(Dismiss(pod=pod, decision=decision) for pod in about)
        if not decision.is_about(job.terms.pod):
            ledger = _struck(job, verdict)
            ledger = replace(ledger, spent=ledger.spent | {int(decision.code or 0)})
            job, commands = assemble(replace(job, attempt=job.attempt + 1, ledger=ledger), now)
            who = ", ".join(f"pod {pod}" for pod in about)
            waits = f"all workers are started again once {who} {'is' if len(about) == 1 else 'are'} replaced"
            return job, (replace(announce, text=f"{announce.text}; {waits}"), *others, *commands)
    job, commands = end_by(job, decision, now)
    return job, (announce, *others, *commands)


def _now(job: Job, evidence: Evidence) -> Now:
    """The fault as the attempt's own evidence shows it."""
    return Now(
        verdict=classify(evidence, job.rules),
        node=job.terms.node,
        reached=job.ledger.highest_step if job.ledger.steps_known else None,
        ranks=job.ranks,
    )


def launch_again(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    return launch(job, now)


def asked_running(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    job = marked(job, event, now)
    return replace(job, phase=Phase.LEAVING), (_boundary_by(job, now), OrderStop())


def asked_pausing(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """The boundary is named already."""
    job = marked(job, event, now)
    return replace(job, phase=Phase.LEAVING), (_boundary_by(job, now),)


def _boundary_by(job: Job, now: float) -> SetDeadline:
    """Half of what is left is for the step, the other half for saving it."""
    until = now + leaving_s(job) if job.must_end_at is None else job.must_end_at
    return SetDeadline(at=now + (until - now - reserve_s(job)) / 2)


def asked_again(job: Job, event: ev.LeaveAsked, now: float) -> Step:
    """A second Ctrl-C wants out now; whoever leaves less time than the first to ask has less than that."""
    if event.urgent:
        return boundary_missed(job, ev.DeadlinePassed(), now)
    sooner = marked(job, event, now)
    return (job, ()) if sooner.must_end_at == job.must_end_at else (sooner, (_boundary_by(sooner, now),))


def boundary_missed(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    """Somebody did not reach the boundary in time: the newest whole snapshot has to do."""
    return end_group(job, grace_s=min(job.terms.stop_grace_s, leaving_s(job) / 10))
