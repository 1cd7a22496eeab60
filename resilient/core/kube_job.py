# SPDX-License-Identifier: Apache-2.0
"""A Job and its pods, as the Job controller knows them: what is asked for, what is there, what has been counted.

Times are seconds of a simulated clock. Nothing here decides: :mod:`resilient.core.kube_sync` does.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from resilient.core.kube_pod_failure import ContainerStatus, PodCondition, PodStatus, Policy, is_failed

UNLIMITED: Final = 2_147_483_647
"""What ``backoffLimit`` is where only ``backoffLimitPerIndex`` is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRule:
    """A container's own rule: after such an exit the kubelet restarts it, or all containers of the pod, in place."""

    action: str
    operator: str
    values: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """As much of a container as decides what its exit leads to."""

    name: str
    is_init: bool = False
    restart_policy: str | None = None
    """Its own; None where the pod's holds."""
    restart_rules: tuple[RestartRule, ...] = ()

    @property
    def is_sidecar(self) -> bool:
        """A native one, which the kubelet ends when the others have ended."""
        return self.is_init and self.restart_policy == "Always"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTemplate:
    """What all pods of a Job are made from."""

    containers: tuple[Container, ...]
    """Init containers as well, in the order of the manifest; the first that is none is the main one."""
    restart_policy: str = "Never"
    grace_s: float = 30.0

    @property
    def main(self) -> Container:
        return next(container for container in self.containers if not container.is_init)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRule:
    """A rule of ``successPolicy``; None where a field is not given."""

    indexes: frozenset[int] | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A Job as the API server has it, defaults filled in."""

    name: str
    template: PodTemplate
    namespace: str = "default"
    completions: int | None = 1
    """None for a work queue, which is done with the first pod that succeeds."""
    parallelism: int = 1
    is_indexed: bool = False
    backoff_limit: int = 6
    backoff_limit_per_index: int | None = None
    max_failed_indexes: int | None = None
    policy: Policy | None = None
    success: tuple[SuccessRule, ...] | None = None
    only_failed_replaced: bool = False
    """``podReplacementPolicy: Failed``; with a failure policy there is no other."""
    deadline_s: float | None = None
    suspended: bool = False
    managed_by: str | None = None

    @property
    def most_pods(self) -> int:
        """So many run at once."""
        return self.parallelism if self.completions is None else min(self.parallelism, self.completions)


class PodPhase(str, enum.Enum):
    """As in ``status.phase``."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRun:
    """One container of one pod; without an exit code it runs, or waits to."""

    name: str
    is_init: bool = False
    exit_code: int | None = None
    restarts: int = 0
    last_code: int | None = None
    """Of the run before, where it was restarted in place."""
    last_end_s: float | None = None
    backoff_s: float = 0.0
    """The kubelet's delay before its next restart."""
    backed_off_s: float | None = None
    """When the kubelet restarts it, or restarted it last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod, as long as the API server has it."""

    name: str
    number: int
    """In the order of creation."""
    created_s: float
    containers: tuple[ContainerRun, ...]
    index: int | None = None
    failure_count: int = 0
    """The annotation: counted failures of its index before it."""
    ignored_count: int = 0
    phase: PodPhase = PodPhase.RUNNING
    conditions: tuple[PodCondition, ...] = ()
    deleted_s: float | None = None
    """Its deletion timestamp; until its containers have ended it is terminating."""
    finished_s: float | None = None
    tracked: bool = True
    """It has the Job's finalizer: it has not been counted yet."""

    @property
    def is_running(self) -> bool:
        return self.phase is PodPhase.RUNNING

    @property
    def is_active(self) -> bool:
        return self.deleted_s is None and self.is_running

    @property
    def is_terminating(self) -> bool:
        return self.deleted_s is not None and self.is_running

    @property
    def is_gone(self) -> bool:
        """One that was deleted is there until it has ended and is counted."""
        return self.deleted_s is not None and not self.is_running and not self.tracked

    @property
    def restarts(self) -> int:
        return sum(container.restarts for container in self.containers)

    @property
    def ended_s(self) -> float:
        """When it ended, as the controller reckons (``getFinishedTime``): its containers, else its deletion.

        Of a pod whose init container failed no container has ended; what is taken then is since when it is not ready,
        and it never was: its delay runs from its beginning.
        """
        if self.finished_s is not None and any(not run.is_init and run.exit_code is None for run in self.containers):
            return self.created_s
        known = (self.finished_s, self.deleted_s, self.created_s)
        return next(moment for moment in known if moment is not None)

    def status(self, namespace: str) -> PodStatus:
        """What a failure policy looks at."""
        runs = [(run.is_init, ContainerStatus(name=run.name, exit_code=run.exit_code)) for run in self.containers]
        return PodStatus(
            namespace=namespace,
            name=self.name,
            phase=self.phase.value,
            is_deleted=self.deleted_s is not None,
            containers=tuple(status for is_init, status in runs if not is_init),
            init_containers=tuple(status for is_init, status in runs if is_init),
            conditions=self.conditions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCondition:
    """Only true ones are kept."""

    type: str
    reason: str
    message: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A Job, its pods, and what its controller remembers of those that are counted."""

    spec: JobSpec
    live: tuple[Pod, ...] = ()
    """Pods that run, or have not been counted yet."""
    past: tuple[Pod, ...] = ()
    """Those that have ended and are counted; they stay for people to look at."""
    created_s: float = 0.0
    started_s: float | None = None
    """``None`` before it has begun, and while it is suspended."""
    failed: int = 0
    succeeded: int = 0
    completed_indexes: frozenset[int] = frozenset()
    failed_indexes: frozenset[int] = frozenset()
    active: int = 0
    """As in the status: 0 while a replacement waits, whoever else runs."""
    conditions: tuple[JobCondition, ...] = ()
    failures_in_a_row: int = 0
    """Failed pods since the last that succeeded, the ignored ones too: the exponent of the delay."""
    last_failure_s: float | None = None
    pods_made: int = 0
    was_suspended: bool = False
    """At the last pass: its condition Suspended is true."""

    def condition(self, kind: str) -> JobCondition | None:
        return next((condition for condition in self.conditions if condition.type == kind), None)

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All, in the order in which they were made."""
        return tuple(sorted((*self.past, *self.live), key=lambda pod: pod.number))

    @property
    def end(self) -> JobCondition | None:
        """The condition that ended it, if one has."""
        return self.condition("Failed") or self.condition("Complete")

    def is_failed(self, pod: Pod) -> bool:
        return not pod.is_active and is_failed(
            pod.status(self.spec.namespace), only_failed=self.spec.only_failed_replaced
        )
