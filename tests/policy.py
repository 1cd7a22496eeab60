# SPDX-License-Identifier: Apache-2.0
"""What the Job controller does with a failed pod, by the Job's ``podFailurePolicy``.

After Kubernetes' own description and source: `pkg/controller/job/pod_failure_policy.go` and
https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy. It owns nothing but that
evaluation: rules in order, the first match decides, no match is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of the Job, and the index of the rule that says so."""

    action: str
    rule: int | None = None


COUNTED = Outcome(action="Count")


def evaluate(policy: Json, status: Json) -> Outcome:
    """The controller's answer to a pod that has ended with this status."""
    for index, rule in enumerate(policy["rules"]):
        if _matches(rule, status):
            return Outcome(action=rule["action"], rule=index)
    return COUNTED


def _matches(rule: Json, status: Json) -> bool:
    if "onExitCodes" in rule:
        # Init containers too, and native sidecars are among them; a container that ended well never matches.
        ended = [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]
        return any(_exit_matches(rule["onExitCodes"], container) for container in ended)
    return any(
        (wanted["type"], wanted["status"]) == (condition["type"], condition["status"])
        for wanted in rule["onPodConditions"]
        for condition in status.get("conditions", ())
    )


def _exit_matches(requirement: Json, container: Json) -> bool:
    terminated = container.get("state", {}).get("terminated")
    if terminated is None or terminated["exitCode"] == 0:
        return False
    if requirement.get("containerName", container["name"]) != container["name"]:
        return False
    listed = terminated["exitCode"] in requirement["values"]
    return listed if requirement["operator"] == "In" else not listed


def pod_status(
    code: int, *, container: str, conditions: Sequence[str] = (), sidecars: Mapping[str, int] | None = None
) -> Json:
    """The status of a pod whose container ended with this code; conditions are true ones."""
    return {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": [_ended(container, code)],
        "initContainerStatuses": [_ended(name, sidecar_code) for name, sidecar_code in (sidecars or {}).items()],
        "conditions": [{"type": name, "status": "True"} for name in conditions],
    }


def _ended(name: str, code: int) -> Json:
    return {"name": name, "state": {"terminated": {"exitCode": code}}}
