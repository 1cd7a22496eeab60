# SPDX-License-Identifier: Apache-2.0
"""What kubectl would print about simulated Jobs and pods, marked as simulated.

The columns, words and ages are those of kubectl's printers; moments are told from the start of the simulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from resilient.core.kube_indexes import format_indexes
from resilient.core.kube_job import ContainerRun, Job, Pod
from resilient.core.kube_jobset import JobSet
from resilient.core.kube_timeline import Entry, Simulation

MARK: Final = "(simulated)"
_INDENT: Final = "  "
_GAP, _WIDE_GAP = 2, 3
_AGES: Final = (
    (120, "{s}s"),
    (600, "{m}m{ms}s"),
    (10_800, "{m}m"),
    (28_800, "{h}h{hm}m"),
    (172_800, "{h}h"),
    (691_200, "{d}d{dh}h"),
)
"""Below so many seconds kubectl writes an age like that, without parts that are 0; above in days."""


def kubectl_lines(done: Simulation) -> Iterator[str]:
    """All commands and their answers, at the end of the simulation."""
    if done.jobset is not None:
        yield from _answer("kubectl get jobsets", _table(_JOBSET_HEAD, [_jobset_row(done.jobset, done.ended_s)]))
    yield from _answer("kubectl get jobs", _table(_JOB_HEAD, [_job_row(job, done.ended_s) for job in done.jobs]))
    pods = [_pod_row(pod, done.ended_s) for job in done.jobs for pod in job.pods]
    yield from _answer("kubectl get pods", _table(_POD_HEAD, pods))
    for job in done.jobs:
        yield from _answer(f"kubectl describe job {job.spec.name}", _described(job, done))


_JOB_HEAD: Final = ("NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE")
_POD_HEAD: Final = ("NAME", "READY", "STATUS", "RESTARTS", "AGE")
_JOBSET_HEAD: Final = ("NAME", "TERMINALSTATE", "RESTARTS", "COMPLETED", "SUSPENDED", "AGE")


def human_age(seconds: float) -> str:
    """As kubectl rounds it."""
    whole = int(seconds)
    parts = {
        "s": whole,
        "m": whole // 60,
        "ms": whole % 60,
        "h": whole // 3600,
        "hm": whole // 60 % 60,
        "d": whole // 86_400,
        "dh": whole // 3600 % 24,
    }
    form = next((form for below_s, form in _AGES if whole < below_s), "{d}d")
    text = form.format(**parts)
    for nothing in ("m0s", "h0m", "d0h"):
        text = f"{text.removesuffix(nothing)}{nothing[0]}" if text.endswith(nothing) else text
    return text


def _answer(command: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"$ {command}   {MARK}"
    yield from lines or ["No resources found."]
    yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], gap: int = _WIDE_GAP) -> list[str]:
    if not rows:
        return []
    everything = [head, *rows]
    widths = [max(map(len, column)) + gap for column in zip(*everything, strict=True)]
    return ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in everything]


def _job_row(job: Job, now_s: float) -> list[str]:
    spec, end = job.spec, job.end
    status = "Suspended" if job.was_suspended else "Running"
    if end is not None:
        status = end.type
    elif job.conditions:
        status = job.conditions[-1].type
    if spec.completions is not None:
        completions = f"{job.succeeded}/{spec.completions}"
    else:
        completions = f"{job.succeeded}/1" + (f" of {spec.parallelism}" if spec.parallelism > 1 else "")
    complete = job.condition("Complete")
    ends_s = complete.at_s if complete else now_s
    duration = "" if job.started_s is None else human_age(ends_s - job.started_s)
    return [spec.name, status, completions, duration, human_age(now_s - job.created_s)]


def _jobset_row(jobset: JobSet, now_s: float) -> list[str]:
    end = jobset.end
    completed = "True" if end is not None and end.type == "Completed" else ""
    suspended = str(jobset.spec.suspended).lower()
    state = end.type if end else ""
    return [jobset.spec.name, state, str(jobset.restarts), completed, suspended, human_age(now_s)]


def _pod_row(pod: Pod, now_s: float) -> list[str]:
    mains = [run for run in pod.containers if not run.is_init]
    ready = sum(pod.is_running and run.exit_code is None and not _backs_off(run, now_s) for run in mains)
    last_s = max((run.last_end_s for run in pod.containers if run.last_end_s is not None), default=None)
    restarts = str(pod.restarts) if last_s is None else f"{pod.restarts} ({human_age(now_s - last_s)} ago)"
    return [pod.name, f"{ready}/{len(mains)}", _pod_status(pod, now_s), restarts, human_age(now_s - pod.created_s)]


def _backs_off(run: ContainerRun, now_s: float) -> bool:
    return run.exit_code is None and run.backed_off_s is not None and run.backed_off_s > now_s


def _pod_status(pod: Pod, now_s: float) -> str:
    """The reason that kubectl finds: of the pod's deletion, of its init containers, of the first container."""
    mains = [run for run in pod.containers if not run.is_init]
    if pod.deleted_s is not None:
        return "Terminating"
    if not pod.is_running and all(run.exit_code is None for run in mains):
        return "Init:Error"
    if any(_backs_off(run, now_s) for run in mains):
        return "CrashLoopBackOff"
    if any(run.exit_code for run in mains):
        return "Error"
    return "Running" if pod.is_running else "Completed"


def _described(job: Job, done: Simulation) -> list[str]:
    spec, end = job.spec, job.condition("Complete")
    rows = [
        ("Name:", spec.name),
        ("Namespace:", spec.namespace),
        ("Parallelism:", str(spec.parallelism)),
        ("Completions:", "<unset>" if spec.completions is None else str(spec.completions)),
        ("Completion Mode:", "Indexed" if spec.is_indexed else "NonIndexed"),
        ("Suspend:", str(spec.suspended).lower()),
        ("Backoff Limit:", str(spec.backoff_limit)),
    ]
    if job.started_s is not None:
        rows.append(("Start Time:", f"+{human_age(job.started_s)} {MARK}"))
    if end is not None and job.started_s is not None:
        rows.append(("Completed At:", f"+{human_age(end.at_s)} {MARK}"))
        rows.append(("Duration:", human_age(end.at_s - job.started_s)))
    if spec.deadline_s is not None:
        rows.append(("Active Deadline Seconds:", f"{spec.deadline_s:g}s"))
    ready = sum(pod.is_active for pod in job.pods)
    counts = f"{job.active} Active ({ready} Ready) / {job.succeeded} Succeeded / {job.failed} Failed"
    rows.append(("Pods Statuses:", counts))
    if spec.is_indexed:
        rows.append(("Completed Indexes:", format_indexes(job.completed_indexes) or "<none>"))
    width = max(len(title) for title, _ in rows) + _GAP
    lines = [f"{title.ljust(width)}{value}" for title, value in rows]
    return [*lines, *_events([entry for entry in done.entries if entry.job == spec.name], done.ended_s)]


def _events(entries: Sequence[Entry], now_s: float) -> list[str]:
    """The Job controller's own; a real cluster forgets them after an hour."""
    rows = []
    for entry in entries:
        age = human_age(now_s - entry.at_s)
        rows += [[kind, reason, age, "job-controller", message] for kind, reason, message in _event(entry)]
    if not rows:
        return ["Events:  <none>"]
    head = [("Type", "Reason", "Age", "From", "Message")]
    rule = [tuple("-" * len(title) for title in head[0])]
    return ["Events:", *(f"{_INDENT}{line}" for line in _table(head[0], [*rule, *rows], _GAP))]


def _event(entry: Entry) -> Iterator[tuple[str, str, str]]:
    if entry.event == "created":
        yield from (("Normal", "SuccessfulCreate", f"Created pod: {name}") for name in entry.pods)
    elif entry.event == "deleted":
        yield from (("Normal", "SuccessfulDelete", f"Deleted pod: {name}") for name in entry.pods)
    elif entry.event == "suspended":
        yield "Normal", "Suspended", "Job suspended"
    elif entry.event == "resumed":
        yield "Normal", "Resumed", "Job resumed"
    elif entry.event == "condition" and entry.what.startswith("Complete"):
        yield "Normal", "Completed", "Job completed"
    elif entry.event == "condition" and entry.what.startswith("Failed ("):
        reason, _, message = entry.what.removeprefix("Failed (").partition("): ")
        yield "Warning", reason, message
