# SPDX-License-Identifier: Apache-2.0
"""One pass of the Job controller over a Job: what it counts, which pods it makes and deletes, when it looks again.

Facts from Kubernetes' ``pkg/controller/job/job_controller.go`` and ``indexed_job_utils.go`` (1.31 to 1.36). Why a Job
ends is decided in :mod:`resilient.core.kube_ending`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from resilient.core.kube_backoff import remaining_s
from resilient.core.kube_ending import FAILURE_TARGET, SUCCESS_MET, Seen, ending_of, failed_indexes_of, look_at, outcome
from resilient.core.kube_job import Job, JobCondition, Pod, PodPhase
from resilient.core.kube_kubelet import new_containers

OWN_CONTROLLER: Final = "kubernetes.io/job-controller"
MOST_PODS_AT_ONCE: Final = 500
"""So many are made in one pass."""
_TERMINAL: Final = {FAILURE_TARGET: "Failed", SUCCESS_MET: "Complete"}
"""What a Job becomes once none of its pods is terminating."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The Job after the pass, and what was done to its pods."""

    job: Job
    created: tuple[Pod, ...] = ()
    deleted: tuple[Pod, ...] = ()
    wake_in_s: float | None = None
    """When to look again although nothing happens until then."""


def is_left_alone(job: Job) -> bool:
    """Whether the controller does nothing about it (any more)."""
    return job.end is not None or job.spec.managed_by not in (None, OWN_CONTROLLER)


def sync(job: Job, now_s: float) -> Pass:
    """Look at the Job once."""
    if is_left_alone(job):
        return Pass(job=job)
    seen = look_at(job)
    failed_indexes = failed_indexes_of(seen)
    waiting = _awaiting_replacement(seen, failed_indexes)
    job = _with_failures_in_a_row(seen)
    if job.started_s is None and not job.spec.suspended:
        job = dataclasses.replace(job, started_s=now_s)
    seen = dataclasses.replace(seen, job=job)
    ending = ending_of(seen, failed_indexes, now_s)
    done = _ended(job, now_s) if ending is not None else _with_pods_made(seen, failed_indexes, waiting, now_s)
    if ending is None and _is_complete(seen, done.job.active):
        message = "Reached expected number of succeeded pods"
        ending = JobCondition(type=SUCCESS_MET, reason="CompletionsReached", message=message, at_s=now_s)
        # One that is complete is neither suspended nor resumed any more.
        as_before = dataclasses.replace(done.job, was_suspended=job.was_suspended, started_s=job.started_s)
        done = dataclasses.replace(done, job=as_before)
    job = dataclasses.replace(_with_counted(done.job, seen, ending, waiting), failed_indexes=failed_indexes)
    if ending is not None:
        job = _with_conclusion(job, ending, now_s)
    return dataclasses.replace(done, job=job, wake_in_s=_sooner(done.wake_in_s, job, now_s))


def _with_failures_in_a_row(seen: Seen) -> Job:
    """The record by which a new pod is delayed, ignored failures included; a success wipes out what came before it."""
    job = seen.job
    succeeded = [pod.ended_s for pod in seen.succeeded]
    failed = [pod.ended_s for pod, _ in seen.failed]
    count, last_s = job.failures_in_a_row, job.last_failure_s
    if succeeded:
        count, last_s = 0, None
        failed = [moment for moment in failed if moment > max(succeeded)]
    if failed and job.spec.backoff_limit_per_index is None:
        count, last_s = count + len(failed), max(failed)
    return dataclasses.replace(job, failures_in_a_row=count, last_failure_s=last_s)


def _awaiting_replacement(seen: Seen, failed_indexes: frozenset[int]) -> Mapping[int, Pod]:
    """For each index the failed pod that hands its counters to the next one, and is not counted before that is made."""
    waiting: dict[int, Pod] = {}
    if seen.spec.backoff_limit_per_index is None:
        return waiting
    settled = seen.succeeded_indexes | failed_indexes | seen.taken
    for pod, _ in seen.failed:
        if pod.index is None or pod.index in settled:
            continue
        before = waiting.get(pod.index)
        if before is None or (_failures(before) <= _failures(pod) and pod.ended_s >= before.ended_s):
            waiting[pod.index] = pod
    return waiting


def _failures(pod: Pod) -> int:
    return pod.failure_count + pod.ignored_count


def _ended(job: Job, now_s: float) -> Pass:
    """Every active pod gets SIGTERM."""
    pods = tuple(dataclasses.replace(pod, deleted_s=now_s) if pod.is_active else pod for pod in job.live)
    deleted = tuple(after for after, before in zip(pods, job.live, strict=True) if after is not before)
    return Pass(job=dataclasses.replace(job, live=pods, active=0), deleted=deleted)


def _suspended(job: Job, now_s: float) -> Pass:
    """The finalizer comes off first: a pod is neither counted nor evaluated, and what it knew of its index is lost.

    The start is forgotten as well (KEP-5440, on from 1.36), so that the time away is none of the deadline's.
    """
    done = _ended(job, now_s)
    names = {pod.name for pod in done.deleted}
    pods = (dataclasses.replace(pod, tracked=False) if pod.name in names else pod for pod in done.job.live)
    return dataclasses.replace(
        done, job=dataclasses.replace(done.job, live=tuple(pods), was_suspended=True, started_s=None)
    )


def _resumed(job: Job, now_s: float) -> Job:
    """The clock of the deadline begins anew."""
    if job.was_suspended and not job.spec.suspended:
        return dataclasses.replace(job, was_suspended=False, started_s=now_s)
    return job


def _with_pods_made(seen: Seen, failed_indexes: frozenset[int], waiting: Mapping[int, Pod], now_s: float) -> Pass:
    """New pods for what is missing, unless a delay holds them back; meanwhile the controller writes 0 for active."""
    job = _resumed(dataclasses.replace(seen.job, active=seen.active), now_s)
    if job.spec.suspended:
        return _suspended(job, now_s)
    excess = seen.active - _wanted(seen)
    if excess > 0:
        return _without_newest(job, excess, now_s)
    missing = min(-excess - _still_there(seen), MOST_PODS_AT_ONCE)
    if missing <= 0:
        return Pass(job=job)
    left_s = remaining_s(job.failures_in_a_row, job.last_failure_s, now_s)
    if left_s > 0:
        return Pass(job=dataclasses.replace(job, active=0), wake_in_s=left_s)
    indexes: Sequence[int | None] = [None] * missing
    if job.spec.is_indexed:
        pending = _first_pending(seen, failed_indexes, missing)
        delays = {index: _index_delay_s(waiting.get(index), now_s) for index in pending}
        indexes = [index for index in pending if delays[index] == 0]
        if delays and not indexes:
            return Pass(job=dataclasses.replace(job, active=0), wake_in_s=min(delays.values()))
    first = job.pods_made
    created = tuple(_new_pod(job, number, index, waiting, now_s) for number, index in enumerate(indexes, first))
    made, active = first + len(created), seen.active + len(created)
    return Pass(job=dataclasses.replace(job, live=job.live + created, pods_made=made, active=active), created=created)


def _without_newest(job: Job, count: int, now_s: float) -> Pass:
    """A pod that was being deleted has ended well although its replacement ran already: that is one too many."""
    active = [pod for pod in job.live if pod.is_active]
    names = {pod.name for pod in sorted(active, key=lambda pod: (-pod.created_s, -pod.restarts))[:count]}
    deleted = tuple(dataclasses.replace(pod, deleted_s=now_s, tracked=False) for pod in active if pod.name in names)
    by_name = {pod.name: pod for pod in deleted}
    live = tuple(by_name.get(pod.name, pod) for pod in job.live)
    return Pass(job=dataclasses.replace(job, live=live, active=len(active) - count), deleted=deleted)


def _wanted(seen: Seen) -> int:
    if seen.spec.completions is None:
        return seen.active if seen.successes else seen.spec.parallelism
    return max(0, min(seen.spec.completions - seen.successes, seen.spec.parallelism))


def _still_there(seen: Seen) -> int:
    """Those that must be gone before they are replaced."""
    return seen.terminating if seen.spec.only_failed_replaced else 0


def _first_pending(seen: Seen, failed_indexes: frozenset[int], count: int) -> list[int]:
    taken = seen.taken | seen.succeeded_indexes | failed_indexes
    if _still_there(seen):
        taken |= {pod.index for pod in seen.job.live if pod.is_terminating}
    pending = (index for index in range(seen.spec.completions or 0) if index not in taken)
    return [index for index, _ in zip(pending, range(count), strict=False)]


def _index_delay_s(before: Pod | None, now_s: float) -> float:
    return 0.0 if before is None else remaining_s(_failures(before) + 1, before.ended_s, now_s)


def _new_pod(job: Job, number: int, index: int | None, waiting: Mapping[int, Pod], now_s: float) -> Pod:
    before = waiting.get(index) if index is not None else None
    failures, ignored = (before.failure_count, before.ignored_count) if before else (0, 0)
    if before is not None:
        counted = outcome(job, before).counted
        failures, ignored = failures + counted, ignored + (not counted)
    place = "" if index is None else f"-{index}"
    return Pod(
        name=f"{job.spec.name}{place}-sim{number + 1:02d}",
        number=number,
        created_s=now_s,
        containers=new_containers(job.spec.template),
        index=index,
        failure_count=failures,
        ignored_count=ignored,
    )


def _is_complete(seen: Seen, active: int) -> bool:
    completions = seen.spec.completions
    return active == 0 and (seen.successes > 0 if completions is None else seen.successes >= completions)


def _with_counted(job: Job, seen: Seen, ending: JobCondition | None, waiting: Mapping[int, Pod]) -> Job:
    """Count what has ended, and take the finalizer off; of a Job that fails, whatever has not succeeded has failed."""
    kept = frozenset() if ending else frozenset(pod.name for pod in waiting.values())
    counted = {pod.name: said.counted for pod, said in seen.failed if pod.name not in kept}
    if ending is not None and ending.type == FAILURE_TARGET:
        rest = (pod for pod in job.live if pod.tracked and pod.phase is not PodPhase.SUCCEEDED)
        counted |= {pod.name: outcome(job, pod).counted for pod in rest}
    settled = counted.keys() | {pod.name for pod in seen.succeeded}
    if settled or ending is not None:
        pods = [
            dataclasses.replace(pod, tracked=False) if pod.tracked and (ending or pod.name in settled) else pod
            for pod in job.live
        ]
        past = tuple(pod for pod in pods if not pod.is_running and not pod.tracked and not pod.is_gone)
        live = tuple(pod for pod in pods if pod.is_running or pod.tracked)
        job = dataclasses.replace(job, live=live, past=job.past + past)
    return dataclasses.replace(
        job,
        failed=job.failed + sum(counted.values()),
        succeeded=seen.successes,
        completed_indexes=seen.succeeded_indexes,
    )


def _with_conclusion(job: Job, ending: JobCondition, now_s: float) -> Job:
    conditions = job.conditions if ending in job.conditions else (*job.conditions, ending)
    if not any(pod.is_terminating for pod in job.live):
        conditions = (*conditions, dataclasses.replace(ending, type=_TERMINAL[ending.type], at_s=now_s))
    return dataclasses.replace(job, conditions=conditions)


def _sooner(wake_in_s: float | None, job: Job, now_s: float) -> float | None:
    """At the deadline, where that comes before."""
    if job.spec.deadline_s is None or job.started_s is None or job.conditions or job.spec.suspended:
        return wake_in_s
    left_s = job.started_s + job.spec.deadline_s - now_s
    return left_s if wake_in_s is None else min(wake_in_s, left_s)
