# SPDX-License-Identifier: Apache-2.0
"""What the Job controller makes of a failed pod, by the Job's ``podFailurePolicy``.

Facts from Kubernetes' ``pkg/controller/job/pod_failure_policy.go``: rules in order, the first that matches decides,
and what matches none is counted. Nothing is validated here: a rule that the API server would have refused (an unknown
action or operator) is passed over, as the controller passes over it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final


class Action(str, enum.Enum):
    """What a rule asks for."""

    FAIL_JOB = "FailJob"
    FAIL_INDEX = "FailIndex"
    IGNORE = "Ignore"
    COUNT = "Count"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """One container of a pod; without an exit code it has not terminated."""

    name: str
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCondition:
    """As ``DisruptionTarget=True``."""

    type: str
    status: str = "True"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """As much of a pod as a policy looks at. Sidecars are among the init containers."""

    namespace: str
    name: str
    phase: str = "Failed"
    is_deleted: bool = False
    """It has a deletion timestamp."""
    containers: tuple[ContainerStatus, ...] = ()
    init_containers: tuple[ContainerStatus, ...] = ()
    conditions: tuple[PodCondition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnExitCodes:
    """Some container, or the named one, ended with a code inside (In) or outside (NotIn) the list, but never 0."""

    operator: str
    values: frozenset[int]
    container_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """One rule. Where both requirements are there, the API server refuses it, and the controller reads exit codes."""

    action: str
    on_exit_codes: OnExitCodes | None = None
    on_pod_conditions: tuple[PodCondition, ...] = ()


Policy = tuple[PolicyRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of one failed pod."""

    action: Action | None = None
    """None where no rule matches."""
    counted: bool = True
    """Whether it counts towards ``backoffLimit``, or the limit of its index."""
    message: str | None = None
    """The Job's message, where it fails."""
    rule: int | None = None


_COUNTED: Final = Outcome()
_EVERY_ACTION: Final = frozenset(Action)


def is_failed(pod: PodStatus, *, only_failed: bool) -> bool:
    """Whether the controller takes a pod for a failed one; ``only_failed``: as with ``podReplacementPolicy: Failed``.

    Without that a pod counts from the moment it is deleted, as orphans never reach a phase of their own.
    """
    if pod.phase == "Failed":
        return True
    return not only_failed and pod.is_deleted and pod.phase != "Succeeded"


def match(policy: Policy | None, pod: PodStatus, actions: Collection[Action] = _EVERY_ACTION) -> Outcome:
    """What a policy says of a failed pod; ``actions`` are those that the cluster's feature gates allow."""
    for index, rule in enumerate(policy or ()):
        action = next((known for known in actions if known.value == rule.action), None)
        found = _found(rule, pod)
        if action is None or found is None:
            continue
        message = f"{found} matching {action.value} rule at index {index}" if action is Action.FAIL_JOB else None
        return Outcome(action=action, counted=action is not Action.IGNORE, message=message, rule=index)
    return _COUNTED


def _found(rule: PolicyRule, pod: PodStatus) -> str | None:
    """What matches, in the controller's words (JobSet can match them), or None."""
    if rule.on_exit_codes is not None:
        container = _first(pod.containers, rule.on_exit_codes) or _first(pod.init_containers, rule.on_exit_codes)
        if container is None:
            return None
        return (
            f"Container {container.name} for pod {pod.namespace}/{pod.name} failed with exit code {container.exit_code}"
        )
    condition = next((one for one in pod.conditions if one in rule.on_pod_conditions), None)
    return None if condition is None else f"Pod {pod.namespace}/{pod.name} has condition {condition.type}"


def _first(containers: Sequence[ContainerStatus], wanted: OnExitCodes) -> ContainerStatus | None:
    return next((container for container in containers if _ended_so(container, wanted)), None)


def _ended_so(container: ContainerStatus, wanted: OnExitCodes) -> bool:
    if container.exit_code in (None, 0) or wanted.container_name not in (None, container.name):
        return False
    return code_matches(wanted.operator, wanted.values, container.exit_code)


def code_matches(operator: str, values: frozenset[int], code: int | None) -> bool:
    """In or NotIn; an unknown operator matches nothing."""
    return {"In": code in values, "NotIn": code not in values}.get(operator, False)
