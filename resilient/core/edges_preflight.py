# SPDX-License-Identifier: Apache-2.0
"""What the outcome of a preflight does to a job, and what the deny lists do to its start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from resilient.core import denials
from resilient.core import events as ev
from resilient.core.commands import Announce, Command, SetDeadline
from resilient.core.denied import Denial
from resilient.core.edges import launch
from resilient.core.edges_ending import Step, end
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
    own, refusals = job.denials, job.refusals
    job = replace(job, devices=event.devices, denials=(), refusals=0)
    job, said = check_denials(job, (*event.listed, *own), refusals, now, guessed=job.refusals_guessed)
    if job.ending is not None:
        return job, (*notes, *said)
    job, commands = launch(job if not job.has_store else replace(job, devices=()), now)
    return job, (*notes, *said, *commands)


def check_denials(job: Job, listed: Iterable[Denial], refusals: int, now: float, *, guessed: bool = False) -> Step:
    """End a start on a node, or with a device, that a deny list names; what is said where it goes on all the same."""
    # The run's own list moves a pod; where nothing moves it, it would only keep a person from the one machine there is.
    counted = (denial for denial in listed if denial.of_platform or job.terms.in_kubernetes)
    denial = next(iter(denials.concerning(counted, job.terms.node, job.devices)), None)
    if denial is None:
        return job, ()
    if job.terms.observe or denials.overruled(refusals):
        return job, (Announce(text=denials.in_spite_of(denial, observe=job.terms.observe, guessed=guessed)),)
    why, do = denials.refusal(denial, refusals)
    return end(job, ExitCode.NODE_REFUSED, why, do, now)
