# SPDX-License-Identifier: Apache-2.0
"""``resilient simulate``: what the controllers would do, as a timeline, as JSON, or as kubectl would show it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.kube_indexes import format_indexes
from resilient.core.kube_job import Job, JobCondition, Pod
from resilient.core.kube_jobset import JobSet
from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending, Simulation, told_codes
from resilient.durations import format_duration
from resilient.errors import SettingsError
from resilient.kubernetes.documents import read_file
from resilient.kubernetes.endings import check_endings, parse_ending, parse_suspension, read_endings
from resilient.kubernetes.pod_vectors import Answer, answers
from resilient.kubernetes.simulated import Workload, find_workload
from resilient.report.as_kubectl import kubectl_lines
from resilient.report.entries import whole
from resilient.report.journals import find_journals
from resilient.report.lives import Life
from resilient.report.tables import PlainConsole, print_line, print_table

_DIFFERS: Final = 1
_CUT_OFF: Final = 137
"""How a supervisor ended that wrote no exit: probably."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line asks for."""

    files: Sequence[str]
    name: str
    endings: Sequence[str]
    endings_file: str | None
    journal: str | None
    suspensions: Sequence[str]


def simulate_command(asked: Asked, form: str) -> int:
    """Simulate the workload in these files, and print what becomes of it."""
    workload = find_workload([document for path in asked.files for document in read_file(path)], asked.name)
    endings = [parse_ending(text) for text in asked.endings]
    endings += read_endings(asked.endings_file) if asked.endings_file else []
    endings += journal_endings(asked.journal) if asked.journal else []
    check_endings(endings, workload)
    done = simulate(workload.spec, endings, [parse_suspension(text) for text in asked.suspensions])
    if form == "json":
        print(json.dumps(as_json(workload, done), indent=2))
        return 0
    console = PlainConsole()
    for line in kubectl_lines(done) if form == "kubectl" else ():
        print_line(line, console)
    if form == "timeline":
        _print_timeline(workload, done, console)
    return 0


def vectors_command(path: str, *, as_json: bool) -> int:
    """Evaluate the cases of a file; 1 if any comes out differently."""
    found = list(answers(path))
    wrong = sum(bool(answer.differences) for answer in found)
    if as_json:
        print(json.dumps([_answer(answer) for answer in found], indent=2))
    else:
        rows = [[known["name"], str(known["action"]), str(known["counted"]), known["agrees"]] for known in _rows(found)]
        console = PlainConsole()
        print_table(("CASE", "ACTION", "COUNTED", "AGREES"), rows, console)
        print_line(f"{len(found) - wrong} of {len(found)} cases agree", console)
    return _DIFFERS if wrong else 0


def _rows(found: Sequence[Answer]) -> Iterator[Mapping[str, Any]]:
    for answer in found:
        yield {**_answer(answer), "agrees": f"no: {'; '.join(answer.differences)}" if answer.differences else "yes"}


def _answer(answer: Answer) -> dict[str, Any]:
    outcome = answer.outcome
    return {
        "name": answer.name,
        "action": outcome.action.value if outcome.action else None,
        "counted": outcome.counted,
        "message": outcome.message,
        "rule": outcome.rule,
        "agrees": not answer.differences,
        "differences": list(answer.differences),
    }


def journal_endings(target: str) -> list[Ending]:
    """How the pods of a run ended, by its journal: one ending for each supervisor that is not alive."""
    lives = find_journals(target).lives
    began_s = min(life.started_s for life in lives)
    endings = [_life_ending(life, began_s) for life in lives if not life.alive]
    if not endings:
        raise SettingsError(f"cannot simulate {target}: no supervisor of it has ended yet; give endings by --ending")
    return endings


def _life_ending(life: Life, began_s: float) -> Ending:
    code = whole(life.exit, "code") if life.exit is not None else None
    index = whole(life.start, "index")
    return Ending(at_s=life.last_s - began_s, codes={"": _CUT_OFF if code is None else code}, index=index or 0)


def _print_timeline(workload: Workload, done: Simulation, console: PlainConsole) -> None:
    print_line(f"Simulated: {workload.kind} {workload.spec.namespace}/{workload.name}. No cluster was asked.", console)
    rows = [[format_duration(entry.at_s), entry.event, entry.subject, entry.what] for entry in done.entries]
    print_table(("TIME", "EVENT", "OBJECT", "WHAT"), rows, console)
    for line in closing(done):
        print_line(line, console)


def closing(done: Simulation) -> Iterator[str]:
    """How things stand when nothing happens any more."""
    for job in done.jobs:
        running = sum(pod.is_running for pod in job.pods)
        indexes = f", failed indexes {format_indexes(job.failed_indexes)}" if job.failed_indexes else ""
        counts = f"pods: {running} running, {job.succeeded} succeeded, {job.failed} counted as failed{indexes}"
        yield f"Job {job.spec.name}: {_end(job.end, not job.pods_made, job.spec.suspended)}; {counts}"
    if done.jobset is not None:
        jobset = done.jobset
        counts = f"restarts of the set: {jobset.restarts}, counted: {jobset.counted}"
        begun = any(job.pods_made for job in done.jobs)
        yield f"JobSet {jobset.spec.name}: {_end(jobset.end, not begun, jobset.spec.suspended)}; {counts}"
    for ending in done.unused[:10]:
        yield f"Did not happen, as no pod was left for it: {_told(ending)}"
    if len(done.unused) > 10:
        yield f"Nor did {len(done.unused) - 10} others."


def _end(condition: JobCondition | None, not_begun: bool, suspended: bool) -> str:
    if condition is None:
        return "not started" if not_begun else "suspended" if suspended else "not over"
    return f"{condition.type} ({condition.reason}) after {format_duration(condition.at_s)}"


def _told(ending: Ending) -> str:
    place = "every index" if ending.index is None else f"index {ending.index}"
    named = {name or "the main container": code for name, code in ending.codes.items()}
    return f"{place} of {ending.job or 'its Job'}: {told_codes(named)} at {format_duration(ending.at_s)}"


def as_json(workload: Workload, done: Simulation) -> dict[str, Any]:
    """The same for programs; what the API has too has the API's names."""
    return {
        "simulated": True,
        "kind": workload.kind,
        "name": workload.name,
        "namespace": workload.spec.namespace,
        "ended_s": done.ended_s,
        "entries": [
            {"at_s": entry.at_s, "event": entry.event, "object": entry.subject, "job": entry.job, "what": entry.what}
            for entry in done.entries
        ],
        "jobs": [_job(job) for job in done.jobs],
        "jobset": None if done.jobset is None else _jobset(done.jobset),
        "unused": [_told(ending) for ending in done.unused],
    }


def _job(job: Job) -> dict[str, Any]:
    per_index = job.spec.backoff_limit_per_index is not None
    return {
        "name": job.spec.name,
        "status": {
            "active": job.active,
            "suspended": job.was_suspended,
            "succeeded": job.succeeded,
            "failed": job.failed,
            "terminating": sum(pod.is_terminating for pod in job.pods),
            "completedIndexes": format_indexes(job.completed_indexes),
            "failedIndexes": format_indexes(job.failed_indexes) if per_index else None,
            "conditions": [_condition(condition) for condition in job.conditions],
        },
        "pods": [_pod(pod, per_index) for pod in job.pods],
    }


def _pod(pod: Pod, per_index: bool) -> dict[str, Any]:
    return {
        "name": pod.name,
        "index": pod.index,
        "phase": pod.phase.value,
        "created_s": pod.created_s,
        "finished_s": pod.finished_s,
        "restarts": pod.restarts,
        "exit_codes": {run.name: run.exit_code for run in pod.containers},
        "job-index-failure-count": pod.failure_count if per_index else None,
        "job-index-ignored-failure-count": pod.ignored_count if per_index else None,
    }


def _jobset(jobset: JobSet) -> dict[str, Any]:
    return {
        "name": jobset.spec.name,
        "status": {
            "restarts": jobset.restarts,
            "restartsCountTowardsMax": jobset.counted,
            "terminalState": jobset.end.type if jobset.end else "",
            "conditions": [_condition(condition) for condition in jobset.conditions],
        },
    }


def _condition(condition: JobCondition) -> dict[str, Any]:
    reason = {"reason": condition.reason, "message": condition.message}
    return {"type": condition.type, "status": "True", **reason, "at_s": condition.at_s}
