# SPDX-License-Identifier: Apache-2.0
"""Cases for the evaluation of a podFailurePolicy, each a policy, a pod and what the Job controller makes of it.

The format is that of data made from Kubernetes' own tests: a JSON list of ``{"name", "pod_failure_policy", "pod",
"expected": {"action", "count_failed", "job_fail_message_contains"}}``; ``feature_gates`` may switch FailIndex off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.kube_pod_failure import (
    Action,
    ContainerStatus,
    Outcome,
    PodStatus,
    is_failed,
    match,
)
from resilient.errors import SettingsError
from resilient.kubernetes.documents import read_file
from resilient.kubernetes.job_specs import failure_policy, pod_conditions
from resilient.kubernetes.parts import Part

_UNEVALUATED: Final = Outcome(counted=False)
"""Of a pod that has not failed (yet)."""
_FAIL_INDEX_GATE: Final = "JobBackoffLimitPerIndex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One case, and what comes of it."""

    name: str
    outcome: Outcome
    differences: tuple[str, ...]
    """In which ways that is not what was expected."""


def answers(path: str) -> Iterator[Answer]:
    """Evaluate every case of a file."""
    documents = read_file(path)
    if len(documents) != 1 or not isinstance(documents[0].data, list):
        raise SettingsError(f"cannot read the cases in {path}: it is not one list; give a JSON list of cases")
    for number, case in enumerate(Part(document=documents[0], data=documents[0].data).items()):
        name = case.at("name").text(f"case {number}")
        if not (case.at("pod").is_there and case.at("expected").is_there):
            raise case.wrong(
                "has no pod or no expected outcome", "give cases of the Job controller; manifest --check has the others"
            )
        outcome = _evaluated(case)
        yield Answer(name=name, outcome=outcome, differences=tuple(_differences(case.at("expected").data, outcome)))


def _evaluated(case: Part) -> Outcome:
    policy = case.at("pod_failure_policy")
    rules = failure_policy(policy) if policy.is_there else None
    pod = _pod(case.at("pod"))
    if not is_failed(pod, only_failed=rules is not None):
        return _UNEVALUATED
    gates = case.at("feature_gates").data
    is_closed = isinstance(gates, dict) and gates.get(_FAIL_INDEX_GATE) is False
    return match(rules, pod, set(Action) - {Action.FAIL_INDEX} if is_closed else set(Action))


def _pod(part: Part) -> PodStatus:
    metadata, status = part.at("metadata"), part.at("status")
    return PodStatus(
        namespace=metadata.at("namespace").text(),
        name=metadata.at("name").text(),
        phase=status.at("phase").text("Failed"),
        is_deleted=metadata.at("deletionTimestamp").is_there,
        containers=_containers(status.at("containerStatuses")),
        init_containers=_containers(status.at("initContainerStatuses")),
        conditions=pod_conditions(status.at("conditions")),
    )


def _containers(part: Part) -> tuple[ContainerStatus, ...]:
    return tuple(
        ContainerStatus(
            name=one.at("name").text(),
            # What Go reads where nothing is written is 0.
            exit_code=(terminated.at("exitCode").whole(least=-(1 << 31)) or 0) if terminated.is_there else None,
        )
        for one in part.items()
        for terminated in (one.at("state", "terminated"),)
    )


def _differences(expected: Mapping[str, Any], outcome: Outcome) -> Iterator[str]:
    action = outcome.action.value if outcome.action else None
    if "action" in expected and expected["action"] != action:
        yield f"action {action}, expected {expected['action']}"
    if "count_failed" in expected and expected["count_failed"] is not outcome.counted:
        yield f"counted {outcome.counted}, expected {expected['count_failed']}"
    if "job_fail_message_contains" in expected:
        wanted = expected["job_fail_message_contains"]
        if not (outcome.message is None if wanted is None else str(wanted) in (outcome.message or "")):
            yield f"message {outcome.message!r}, expected {wanted!r}"
