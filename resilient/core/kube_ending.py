# SPDX-License-Identifier: Apache-2.0
"""Whether a Job is to end, and why: what the Job controller concludes from the pods that it sees.

Facts from Kubernetes' ``pkg/controller/job/job_controller.go``, ``indexed_job_utils.go`` and ``success_policy.go``. The
order of the checks is theirs, and so are reasons and messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient.core.kube_job import Job, JobCondition, JobSpec, Pod, PodPhase, SuccessRule
from resilient.core.kube_pod_failure import Action, Outcome, match

FAILURE_TARGET: Final = "FailureTarget"
SUCCESS_MET: Final = "SuccessCriteriaMet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Job with its pods sorted, once for each pass: there may be thousands."""

    job: Job
    active: int
    terminating: int
    taken: frozenset[int | None]
    """Indexes that have an active pod."""
    succeeded: tuple[Pod, ...]
    """Not counted yet, as in what follows."""
    failed: tuple[tuple[Pod, Outcome], ...]
    """With what the policy says of each."""

    @property
    def stops(self) -> tuple[str, ...]:
        """What FailJob rules say. The controller takes the first in the order of its cache, which is nobody's."""
        return tuple(said.message for _, said in self.failed if said.message is not None)

    @property
    def spec(self) -> JobSpec:
        return self.job.spec

    @property
    def succeeded_indexes(self) -> frozenset[int]:
        return self.job.completed_indexes | {pod.index for pod in self.succeeded if pod.index is not None}

    @property
    def successes(self) -> int:
        return len(self.succeeded_indexes) if self.spec.is_indexed else self.job.succeeded + len(self.succeeded)


def outcome(job: Job, pod: Pod) -> Outcome:
    """What the Job's policy says of a pod."""
    return match(job.spec.policy, pod.status(job.spec.namespace))


def look_at(job: Job) -> Seen:
    active = [pod for pod in job.live if pod.phase is PodPhase.RUNNING and pod.deleted_s is None]
    others = [pod for pod in job.live if pod.phase is not PodPhase.RUNNING or pod.deleted_s is not None]
    return Seen(
        job=job,
        active=len(active),
        terminating=sum(pod.is_terminating for pod in others),
        taken=frozenset(pod.index for pod in active),
        succeeded=tuple(pod for pod in others if pod.tracked and pod.phase is PodPhase.SUCCEEDED),
        failed=tuple((pod, outcome(job, pod)) for pod in others if pod.tracked and job.is_failed(pod)),
    )


def failed_indexes_of(seen: Seen) -> frozenset[int]:
    limit = seen.spec.backoff_limit_per_index
    if limit is None:
        return seen.job.failed_indexes
    new = {pod.index for pod, said in seen.failed if pod.index is not None and _index_fails(said, pod, limit)}
    return seen.job.failed_indexes | new


def _index_fails(said: Outcome, pod: Pod, limit: int) -> bool:
    return said.action is Action.FAIL_INDEX or (said.counted and pod.failure_count >= limit)


def ending_of(seen: Seen, failed_indexes: frozenset[int], now_s: float) -> JobCondition | None:
    """Why the Job is to end, if it is. What was decided once stays decided."""
    decided = seen.job.condition(SUCCESS_MET) or seen.job.condition(FAILURE_TARGET)
    if decided is not None:
        return decided
    failure = _failure(seen, failed_indexes, now_s)
    if failure is not None:
        return JobCondition(type=FAILURE_TARGET, reason=failure[0], message=failure[1], at_s=now_s)
    met = _success_rule(seen) if seen.spec.is_indexed else None
    if met is not None:
        message = f"Matched rules at index {met}"
        return JobCondition(type=SUCCESS_MET, reason="SuccessPolicy", message=message, at_s=now_s)
    return None


def _failure(seen: Seen, failed_indexes: frozenset[int], now_s: float) -> tuple[str, str] | None:
    """Reason and message, in the controller's order."""
    job, spec = seen.job, seen.spec
    if seen.stops:
        return "PodFailurePolicy", seen.stops[0]
    if job.failed + sum(said.counted for _, said in seen.failed) > spec.backoff_limit or _restarted_too_often(job):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if _is_overdue(job, now_s):
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    if spec.backoff_limit_per_index is None or not spec.is_indexed:
        return None
    if spec.max_failed_indexes is not None and len(failed_indexes) > spec.max_failed_indexes:
        return "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes"
    if failed_indexes and len(failed_indexes) + seen.successes >= (spec.completions or 0):
        return "FailedIndexes", "Job has failed indexes"
    return None


def _is_overdue(job: Job, now_s: float) -> bool:
    """Whether it has been active for too long; a suspended one is not, and has no start."""
    spec = job.spec
    if spec.deadline_s is None or job.started_s is None or spec.suspended:
        return False
    return now_s - job.started_s >= spec.deadline_s


def _restarted_too_often(job: Job) -> bool:
    """With ``restartPolicy: OnFailure`` the restarts of containers count as well."""
    if job.spec.template.restart_policy != "OnFailure":
        return False
    return sum(pod.restarts for pod in job.live if pod.is_running) >= max(1, job.spec.backoff_limit)


def _success_rule(seen: Seen) -> int | None:
    succeeded = seen.succeeded_indexes
    rules = seen.spec.success or ()
    return next((index for index, rule in enumerate(rules) if succeeded and _is_met(rule, succeeded)), None)


def _is_met(rule: SuccessRule, succeeded: frozenset[int]) -> bool:
    if rule.indexes is None:
        return rule.count is not None and len(succeeded) >= rule.count
    there = len(rule.indexes & succeeded)
    return bool(rule.indexes) and (there == len(rule.indexes) or (rule.count is not None and there >= rule.count))
