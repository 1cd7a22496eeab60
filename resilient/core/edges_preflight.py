# SPDX-License-Identifier: Apache-2.0
"""What the outcome of a preflight does to a job."""

from __future__ import annotations

from dataclasses import replace

from resilient.core import events as ev
from resilient.core.commands import Announce, Command, SetDeadline
from resilient.core.edges import Step, end, launch
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase


def examined(job: Job, event: ev.Examined, now: float) -> Step:
    """A node that fails at the start is refused; one that fails after a suspicion is left, which says why it failed."""
    notes: tuple[Command, ...] = ()
    if event.refusal is not None and not job.terms.observe:
        code = ExitCode.RESCHEDULE if job.launch else ExitCode.NODE_REFUSED
        return end(job, code, event.refusal, event.do, now)
    if event.refusal is not None:
        notes = (Announce(text=f"{event.refusal}; started all the same (--observe)"),)
    if job.launch:
        return replace(job, phase=Phase.BACKING_OFF), (*notes, SetDeadline(at=now + job.backoff_s))
    job, commands = launch(job)
    return job, (*notes, *commands)
