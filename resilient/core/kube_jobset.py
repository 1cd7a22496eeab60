# SPDX-License-Identifier: Apache-2.0
"""What the JobSet controller makes of child Jobs that have ended: fail, restart all, restart one, or be done.

Facts from JobSet's ``pkg/controllers/failure_policy.go`` and ``success_policy.go`` (0.12). The order is theirs: rules
first, and for each rule the Job that failed earliest among those that it fits.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from resilient.core.kube_job import Job, JobCondition, JobSpec


class SetAction(str, enum.Enum):
    """What a rule of a JobSet's failure policy asks for; the last two need its feature gate ``RestartJob``."""

    FAIL = "FailJobSet"
    RESTART = "RestartJobSet"
    RESTART_UNCOUNTED = "RestartJobSetAndIgnoreMaxRestarts"
    RESTART_JOB = "RestartJob"
    RESTART_JOB_UNCOUNTED = "RestartJobAndIgnoreMaxRestarts"


READY: Final = "Ready"
COUNTED: Final = frozenset({SetAction.RESTART, SetAction.RESTART_JOB})
RESTARTS_ALL: Final = frozenset({SetAction.RESTART, SetAction.RESTART_UNCOUNTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRule:
    """One rule; what is empty fits everything."""

    action: SetAction
    name: str = ""
    reasons: frozenset[str] = frozenset()
    messages: tuple[re.Pattern[str], ...] = ()
    targets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """A JobSet's; without one the first Job that fails ends the set."""

    max_restarts: int = 0
    rules: tuple[SetRule, ...] = ()
    waits_for_all: bool = False
    """``restartStrategy: BlockingRecreate``: no pod of the new set before every old one is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatedJob:
    """A template of the set, and of how many Jobs."""

    name: str
    job: JobSpec
    replicas: int = 1
    needs: tuple[tuple[str, str], ...] = ()
    """Other templates, and what all their Jobs must be: Ready or Complete."""

    def names(self, jobset: str) -> list[str]:
        return [f"{jobset}-{self.name}-{index}" for index in range(self.replicas)]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSetSpec:
    """As much of a JobSet as decides what becomes of it."""

    name: str
    replicated: tuple[ReplicatedJob, ...]
    namespace: str = "default"
    failure: FailurePolicy | None = None
    any_success: bool = False
    """``successPolicy.operator: Any``."""
    success_targets: frozenset[str] = frozenset()
    in_order: bool = False
    """``startupPolicyOrder: InOrder``: the Jobs of a template are made when those of the one before are ready."""
    suspended: bool = False
    left_to: str | None = None
    """Another controller that manages it, so that JobSet's does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSet:
    """A JobSet and what it has counted."""

    spec: JobSetSpec
    restarts: int = 0
    counted: int = 0
    """Restarts that count towards ``maxRestarts``."""
    job_restarts: Mapping[str, int] = field(default_factory=dict)
    conditions: tuple[JobCondition, ...] = ()

    @property
    def end(self) -> JobCondition | None:
        return self.conditions[-1] if self.conditions else None

    def template_of(self, job: str) -> str:
        return next(one.name for one in self.spec.replicated if job in one.names(self.spec.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVerdict:
    """What becomes of the set after a Job of it has failed."""

    jobset: JobSet
    job: str
    """The Job that decided."""
    action: SetAction | None
    """None where the set fails without a policy, or because it has been restarted often enough."""
    rule: int | None = None

    @property
    def is_end(self) -> bool:
        return self.jobset.end is not None


def judge(jobset: JobSet, failed: Sequence[Job], now_s: float) -> SetVerdict:
    """Apply the failure policy; ``failed`` are the Jobs of this attempt that have failed, one at least."""
    policy = jobset.spec.failure
    if policy is None:
        first = _earliest(failed)
        ended = _failed(jobset, "FailedJobs", "jobset failed due to one or more job failures", first, now_s)
        return SetVerdict(jobset=ended, job=first.spec.name, action=None)
    index, job = _matching(jobset, policy, failed)
    action = SetAction.RESTART if index is None else policy.rules[index].action
    name = job.spec.name
    if action is SetAction.FAIL:
        reason, message = "FailJobSetFailurePolicyAction", "applying FailJobSet failure policy action"
        return SetVerdict(jobset=_failed(jobset, reason, message, job, now_s), job=name, action=action, rule=index)
    if action in COUNTED and jobset.counted >= policy.max_restarts:
        message = "jobset failed due to reaching max number of restarts"
        ended = _failed(jobset, "ReachedMaxRestarts", message, job, now_s)
        return SetVerdict(jobset=ended, job=name, action=None, rule=index)
    jobset = dataclasses.replace(jobset, counted=jobset.counted + (action in COUNTED))
    if action in RESTARTS_ALL:
        jobset = dataclasses.replace(jobset, restarts=jobset.restarts + 1)
    else:
        restarts = {**jobset.job_restarts, name: jobset.job_restarts.get(name, 0) + 1}
        jobset = dataclasses.replace(jobset, job_restarts=restarts)
    return SetVerdict(jobset=jobset, job=name, action=action, rule=index)


def completed(jobset: JobSet, complete: Sequence[Job], now_s: float) -> JobSet:
    """The set, complete if the success policy says so of the Jobs that are."""
    spec = jobset.spec
    wanted = {
        name
        for one in spec.replicated
        if not spec.success_targets or one.name in spec.success_targets
        for name in one.names(spec.name)
    }
    there = wanted & {job.spec.name for job in complete}
    if not complete or len(there) < (1 if spec.any_success else len(wanted)):
        return jobset
    done = JobCondition(
        type="Completed", reason="AllJobsCompleted", message="jobset completed successfully", at_s=now_s
    )
    return dataclasses.replace(jobset, conditions=(*jobset.conditions, done))


def may_start(jobset: JobSet, one: ReplicatedJob, jobs: Mapping[str, Job]) -> bool:
    """Whether what it depends on has come far enough; a suspended set makes its Jobs in any order."""
    spec = jobset.spec
    templates = {other.name: other for other in spec.replicated}
    before = spec.replicated[: spec.replicated.index(one)] if spec.in_order and not spec.suspended else ()
    return all(
        all(_has_reached(jobs.get(name), status) for name in templates[other].names(spec.name))
        for other, status in (*one.needs, *((other.name, READY) for other in before))
        if other in templates
    )


def _has_reached(job: Job | None, status: str) -> bool:
    if job is None:
        return False
    if status == "Complete":
        return job.condition("Complete") is not None
    return job.end is not None or sum(pod.is_active for pod in job.live) + job.succeeded >= job.spec.most_pods


def _matching(jobset: JobSet, policy: FailurePolicy, failed: Sequence[Job]) -> tuple[int | None, Job]:
    for index, rule in enumerate(policy.rules):
        fitting = [job for job in failed if _fits(rule, job, jobset.template_of(job.spec.name))]
        if fitting:
            return index, _earliest(fitting)
    return None, _earliest(failed)


def _fits(rule: SetRule, job: Job, template: str) -> bool:
    end = job.end
    if end is None or (rule.reasons and end.reason not in rule.reasons):
        return False
    if rule.messages and not any(pattern.search(end.message) for pattern in rule.messages):
        return False
    return not rule.targets or template in rule.targets


def _earliest(failed: Sequence[Job]) -> Job:
    return min(failed, key=lambda job: job.end.at_s if job.end else 0.0)


def _failed(jobset: JobSet, reason: str, message: str, first: Job, now_s: float) -> JobSet:
    said = f"{message} (first failed job: {first.spec.name})"
    condition = JobCondition(type="Failed", reason=reason, message=said, at_s=now_s)
    return dataclasses.replace(jobset, conditions=(*jobset.conditions, condition))
