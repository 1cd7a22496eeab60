# SPDX-License-Identifier: Apache-2.0
"""What a job is told of that changes no phase: only what is said of it afterwards."""

from __future__ import annotations

from dataclasses import replace

from resilient.core import events as ev
from resilient.core.edges_ending import Step
from resilient.core.job import Job


def leave_explained(job: Job, event: ev.LeaveExplained, now: float) -> Step:
    """The signal said that the pod is to go; this says why. The first to be said stays."""
    if job.leave_by is None or job.leave_explained:
        return job, ()
    return replace(job, leave_by=f"{job.leave_by} ({event.why})", leave_explained=True), ()
