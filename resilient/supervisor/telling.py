# SPDX-License-Identifier: Apache-2.0
"""What is told of a decision where people look at the pod: one line for programs, one sentence for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from resilient.core.causes import Verdict
from resilient.core.commands import Announce
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job
from resilient.core.pod_report import RESTARTED, Report, fitting, reason_of
from resilient.kubernetes import termination
from resilient.supervisor.scene import Scene

_NORMAL: Final[Collection[int | None]] = (ExitCode.FINISHED, ExitCode.PREEMPTED_SAVED)
_CHARS: Final = 2000


def line(scene: Scene, job: Job, verdict: Verdict | None, why: str, do: str, *, code: int | None) -> bytes:
    """The termination message, or the same line of a decision that ends nothing, which has no ``code``."""
    return termination.message(
        code,
        scene.redactor.clean(why, _CHARS),
        scene.redactor.clean(do, _CHARS),
        run=scene.place.run_id,
        submission=scene.submission,
        attempt=job.attempt,
        step=job.ledger.highest_step,
        rank=verdict.culprit if verdict else None,
        rule=verdict.rule if verdict else None,
        node=(verdict.node if verdict else None) or scene.platform.node,
        device=verdict.device.short if verdict and verdict.device else None,
        journal=str(scene.journal_dir),
    )


def of_verdict(scene: Scene, job: Job, said: Announce) -> Report:
    """What is told of a verdict as soon as it is there, whatever comes of it."""
    code, why = job.ending.code if job.ending else None, said.text.removesuffix(f"; {said.do}")
    return report(scene, line(scene, job, said.verdict, why, said.do, code=code), why, said.do, code=code, last=False)


def report(scene: Scene, data: bytes, why: str, do: str, *, code: int | None, last: bool) -> Report:
    """The same for the pod's annotation and an Event; ``data`` is the line."""
    ends = "" if code is None else f"exit code {code}: "
    return Report(
        annotation=data.decode().rstrip("\n"),
        reason=RESTARTED if code is None else reason_of(termination.exit_name(code)),
        note=fitting(scene.redactor.clean(f"{ends}{why}; {do}", _CHARS)),
        warning=code not in _NORMAL,
        last=last,
    )
