# SPDX-License-Identifier: Apache-2.0
"""What the events of other pods do to a job. The first pod of a run leads: it waits for the others, judges what all
have seen, and says how each goes on. The others start and end workers when it says so, and testify."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from resilient.core import events as ev
from resilient.core import policy
from resilient.core.classify import classify
from resilient.core.commands import Announce, OrderStop, SetDeadline, Testify
from resilient.core.edges import assemble, examine, start
from resilient.core.edges import collected as judged
from resilient.core.edges_ending import Step, end, end_by, end_group
from resilient.core.exit_codes import STOP, ExitCode
from resilient.core.job import Job, Phase
from resilient.core.suspicion import suspects_device

_FINAL: Final = STOP | {ExitCode.CANNOT_EXECUTE, ExitCode.NOT_FOUND}
"""With these a pod ends the whole run, whoever decided it."""


def assembled(job: Job, event: ev.Assembled, now: float) -> Step:
    return start(job if event.attempt is None else replace(job, attempt=event.attempt))


def not_assembled(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    """Waiting for longer helps nobody: whoever is missing may not come as long as we hold what it needs."""
    patience_s = job.terms.pod_patience_s
    waited = f"{patience_s / 60:.0f} min" if patience_s >= 120 else f"{patience_s:.0f} s"
    if job.terms.leads:
        who = f"{event.awaited or 'another pod of the run'} did not come"
    else:
        who = "pod 0, which leads, was away" + (" or waited for others" if job.terms.pods > 2 else "")
    do = "look at the pod that is missing; the run goes on once all are there"
    return end(job, ExitCode.PEER_FAILED, f"{who} for {waited}", do, now)


def peer_gone(job: Job, event: ev.PeerGone, now: float) -> Step:
    """The collectives have lost a pod: nobody gets on without it. What it ends the run with, all do."""
    if event.code in _FINAL:
        return _end_with(job, event, now)
    return end_group(replace(job, gone=(*job.gone, event)))


def peer_gone_meanwhile(job: Job, event: ev.PeerGone, now: float) -> Step:
    """Why an attempt has ended may be heard after its workers had to be; what is decided already stays."""
    if event.code in _FINAL and job.leave_by is None and job.ending is None:
        return _end_with(job, event, now)
    return replace(job, gone=(*job.gone, event)), ()


def peer_gone_idle(job: Job, event: ev.PeerGone, now: float) -> Step:
    return _end_with(job, event, now) if event.code in _FINAL else (job, ())


def _end_with(job: Job, event: ev.PeerGone, now: float) -> Step:
    decision = policy.Decision(
        code=event.code, why=f"pod {event.pod}: {event.why}", do="see what that pod says", pods=(event.pod,)
    )
    return end_by(job, decision, now)


def peer_asked(job: Job, event: ev.PeerAsked, now: float) -> Step:
    """Half of what that pod has left is for the step, the other half for saving it."""
    leaves = ev.PeerGone(pod=event.pod, why=f"it was asked to leave by {event.by}", leaving=True)
    job = replace(job, phase=Phase.PAUSING, gone=(*job.gone, leaves))
    return job, (SetDeadline(at=now + event.within_s / 2), OrderStop())


def end_ordered(job: Job, event: ev.EndOrdered, now: float) -> Step:
    return end_group(job, grace_s=event.grace_s)


def collected(job: Job, event: ev.Collected, now: float) -> Step:
    """A pod that does not lead testifies; its machine is looked at before it is used again where that may be why."""
    if job.terms.follows:
        testimony = Testify(evidence=event.evidence)
        if suspects_device(classify(event.evidence, job.rules)):
            job, commands = examine(replace(job, backoff_s=0.0))
        else:
            job, commands = assemble(job, now)
        return job, (testimony, *commands)
    return _without(job, now) if job.gone else judged(job, event, now)


def _without(job: Job, now: float) -> Step:
    """What the others died of is that a pod has gone. That spends nothing here: a pod is counted by its controller."""
    late = policy.too_long(job.ledger, job.terms, now)
    if late is not None:
        return end_by(job, late, now)
    who = "; ".join(f"pod {peer.pod} {'leaves' if peer.leaving else 'is gone'}: {peer.why}" for peer in job.gone)
    told = Announce(text=f"{who}; all workers are started again once it is replaced")
    job, commands = assemble(replace(job, attempt=job.attempt + 1), now)
    return job, (told, *commands)


def dismissed_settling(job: Job, event: ev.Dismissed, now: float) -> Step:
    """A pod that was asked to leave hears that the run was finished all the same."""
    done = event.decision.code == ExitCode.FINISHED and len(job.finished) == job.ranks
    return (replace(job, ending=event.decision), ()) if done and job.leave_by is not None else (job, ())


def dismissed(job: Job, event: ev.Dismissed, now: float) -> Step:
    """The first pod has decided; it is taken at its word but for the one thing that is known better here."""
    decision = event.decision
    if job.leave_by is not None or job.ending is not None:
        return job, ()  # it goes already, because it was asked to or for a reason of its own
    if decision.code == ExitCode.FINISHED and len(job.finished) < job.ranks:
        do = "please report it with the journal"
        return end(job, ExitCode.INTERNAL, "pod 0 said that all is done, and workers here had not finished", do, now)
    return end_by(replace(job, yield_s=event.yield_s), decision, now)
