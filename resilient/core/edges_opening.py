# SPDX-License-Identifier: Apache-2.0
"""What the events of an opening do to a job: how the store is asked, what its answer changes, and when it is given up.

The answer may come in any phase: a script that names the store itself does so while its workers run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from resilient.core import events as ev
from resilient.core import policy
from resilient.core.commands import ClearDeadline, Command, NumberAttempt, OpenStore, SetDeadline
from resilient.core.denials import refusals_in_a_row
from resilient.core.edges import examine
from resilient.core.edges_ending import Step, end, end_by
from resilient.core.edges_preflight import check_denials
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase
from resilient.core.ledger import opening_ledger
from resilient.core.policy import Decision

_TOLD: Final = 2
"""Checkpoints that cannot be used: the others mostly have the same wrong with them."""


def begin(job: Job, now: float) -> Step:
    """The first step of a supervisor's life."""
    job = replace(job, ledger=replace(job.ledger, held_since=now))
    if job.has_store:
        return job, _open(job, now)
    return examine(replace(job, attempt=1))


def _open(job: Job, now: float) -> tuple[Command, ...]:
    """Whoever opens the store gives up by itself; the deadline is for a store that hangs, as a dead mount does."""
    return SetDeadline(at=now + job.terms.open_s), OpenStore()


def nothing_to_resume_from(set_aside: Sequence[str]) -> tuple[str, str]:
    """What is wrong where steps were committed and no checkpoint can be tried, and what to do."""
    if not set_aside:
        why = "steps of this run were committed, but its checkpoint directory lists none"
        return why, "check the checkpoint URL and its mount, or start with --fresh"
    why = f"no checkpoint of this run can be used: {'; '.join(set_aside[:_TOLD])}"
    return why, "restore what is named, use the release that wrote it, or start with --fresh"


def _learned(job: Job, event: ev.Opened, now: float) -> Job:
    """What the store knows counts from now on, and a launch that had no number of the run gets one that is free."""
    ledger = opening_ledger(
        job.ledger, committed_step=event.committed_step, usage=event.usage, debits=event.debits, now=now
    )
    return replace(job, attempt=max(job.attempt, event.next_attempt), ledger=ledger)


def _opened(job: Job, event: ev.Opened, now: float) -> Step:
    job = _learned(job, event, now)
    if event.ever_committed and event.committed_step == 0:
        return end(job, ExitCode.CONFIG_FAULT, *nothing_to_resume_from(event.set_aside), now)
    late = policy.too_long(job.ledger, job.terms, now)
    return end_by(job, late, now) if late else (job, ())


def prepared(job: Job, event: ev.Opened, now: float) -> Step:
    job, commands = _opened(job, event, now)
    if job.phase is not Phase.PREPARING:
        return job, commands
    if job.terms.follows and event.finished_step is not None:
        # Pod 0 may have ended already, and would be waited for in vain: its controller has no need of another one.
        why = f"the run was finished with step {event.finished_step}, before this pod had come"
        return end(job, ExitCode.FINISHED, why, "nothing", now)
    return examine(replace(job, denials=event.denials, refusals=refusals_in_a_row(event.debits)))


def opened_late(job: Job, event: ev.Opened, now: float) -> Step:
    starts = job.launch == 1 and not job.ledger.highest_step
    job, commands = _opened(job, event, now)
    said: tuple[Command, ...] = ()
    if job.phase is Phase.RUNNING and starts:  # the workers wait for the store before their first step
        job, said = check_denials(job, event.denials, refusals_in_a_row(event.debits), now)
    if job.phase is Phase.RUNNING:
        return job, (*said, ClearDeadline(), NumberAttempt(attempt=job.attempt))
    return job, (*commands, *said)


def opened_between(job: Job, event: ev.Opened, now: float) -> Step:
    """The launch that had named the store is gone already; the next one begins with what the store has said."""
    if job.leave_by is not None or job.ending is not None:
        return opened_quietly(job, event, now)
    return _opened(job, event, now)


def opened_quietly(job: Job, event: ev.Opened, now: float) -> Step:
    """Too late to train on it, but how the job leaves depends on what is durable, and is recorded under a free name."""
    return _learned(job, event, now), ()


def open_hung(job: Job, event: ev.DeadlinePassed, now: float) -> Step:
    why = f"the checkpoint store has not answered for {job.terms.open_s:.0f} s, and the call that asks it hangs"
    return end(job, ExitCode.RESTART, why, "a fresh container tries the store again; look at its mount", now)


def open_failed(job: Job, event: ev.OpenFailed, now: float) -> Step:
    if event.wrong:
        return end(job, ExitCode.CONFIG_FAULT, event.why, event.do or "correct the checkpoint URL or its settings", now)
    do = event.do or "a fresh container tries the store again"
    return end_by(job, Decision(code=ExitCode.RESTART, why=event.why, do=do, for_store=event.do), now)


def announced(job: Job, event: ev.Announced, now: float) -> Step:
    return replace(job, has_store=True), _open(job, now)
