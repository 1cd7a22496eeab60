# SPDX-License-Identifier: Apache-2.0
"""For each row about a pod that the API server refuses, manifests of no training that have just that wrong."""

from __future__ import annotations

from typing import Any, Final

from lint_manifests import BACKUP, edited

_POD: Final = "spec.template.spec"
_COPY: Final = f"{_POD}.containers.0"
MOUNT: Final = {"name": "data", "mountPath": "/data"}
VOLUME: Final = {"name": "data", "emptyDir": {}}


def copy(**fields: Any) -> Any:
    """The Job whose container has these fields."""
    return edited(BACKUP, *((f"{_COPY}.{name}", value) for name, value in fields.items()))


def look(resources: Any) -> Any:
    """The Job whose init container asks for these; who asks for devices itself would be taken for a training."""
    return edited(BACKUP, (f"{_POD}.initContainers.0.resources", resources))


def restart_rule(action: str = "Restart", **codes: Any) -> Any:
    """The Job whose container has one restart rule."""
    rule = {"action": action, "exitCodes": codes} if codes else {"action": action}
    return copy(restartPolicy="Never", restartPolicyRules=[rule])


CASES: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "pod-containers-missing": (
        (edited(BACKUP, (f"{_POD}.containers", [])), "spec.template.spec.containers: Required value"),
    ),
    "container-name": (
        (copy(name="Copy"), "a lowercase RFC 1123 label must consist of"),
        (copy(name="look"), 'spec.template.spec.containers[0].name: Duplicate value: "look"'),
        (copy(name=""), "spec.template.spec.containers[0].name: Required value"),
    ),
    "pod-deadline": (
        (edited(BACKUP, (f"{_POD}.activeDeadlineSeconds", 0)), "Invalid value: 0: must be between 1 and 2147483647"),
    ),
    "init-container-probe": tuple(
        (
            edited(BACKUP, (f"{_POD}.initContainers.0.{name}", {"exec": {"command": ["true"]}})),
            f"spec.template.spec.initContainers[0].{name}: Forbidden: may not be set for init containers without",
        )
        for name in ("livenessProbe", "readinessProbe", "startupProbe")
    ),
    "container-image-spaces": (
        (copy(image="busybox\n"), 'image: Invalid value: "busybox\\n": must not have leading or trailing whitespace'),
    ),
    "container-image-missing": ((copy(image=""), "spec.template.spec.containers[0].image: Required value"),),
    "message-policy-unknown": (
        (copy(terminationMessagePolicy="Log"), 'supported values: "FallbackToLogsOnError", "File"'),
    ),
    "pull-policy-unknown": ((copy(imagePullPolicy="always"), 'supported values: "Always", "IfNotPresent", "Never"'),),
    "volume-name": (
        (edited(BACKUP, (f"{_POD}.volumes", [VOLUME, VOLUME])), 'volumes[1].name: Duplicate value: "data"'),
        (edited(BACKUP, (f"{_POD}.volumes", [{"emptyDir": {}}])), "volumes[0].name: Required value"),
        (edited(BACKUP, (f"{_POD}.volumes", [{"name": "a_b"}])), "a lowercase RFC 1123 label"),
    ),
    "mount-volume-unknown": (
        (copy(volumeMounts=[MOUNT]), 'containers[0].volumeMounts[0].name: Not found: "data"'),
        (copy(volumeMounts=[{"mountPath": "/data"}]), "volumeMounts[0].name: Required value"),
    ),
    "mount-path": (
        (edited(copy(volumeMounts=[MOUNT, MOUNT]), (f"{_POD}.volumes", [VOLUME])), '"/data": must be unique'),
        (edited(copy(volumeMounts=[{"name": "data"}]), (f"{_POD}.volumes", [VOLUME])), "mountPath: Required value"),
    ),
    "container-restart-policy": (
        (
            copy(restartPolicyRules=[{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]),
            "containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
        ),
        (copy(restartPolicy="no"), 'supported values: "Always", "Never", "OnFailure"'),
    ),
    "restart-rules-over-20": (
        (
            copy(
                restartPolicy="Never",
                restartPolicyRules=[{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}] * 21,
            ),
            "restartPolicyRules: Too many: 21: must have at most 20 items",
        ),
    ),
    "restart-rule-action": (
        (restart_rule("Stop", operator="In", values=[1]), 'supported values: "Restart", "RestartAllContainers"'),
    ),
    "restart-rule-codes-missing": ((restart_rule(), "exitCodes: Required value: must be specified"),),
    "restart-rule-operator": ((restart_rule(operator="Equals", values=[1]), 'Unsupported value: "Equals"'),),
    "restart-rule-values-over-255": (
        (restart_rule(operator="In", values=list(range(256))), "exitCodes.values: Too many: 256"),
    ),
    "quantity-malformed": (
        (copy(resources={"limits": {"memory": "16 GB"}}), "quantities must match the regular expression"),
        (look({"limits": {"nvidia.com/gpu": "0.5"}}), "must be an integer"),
        (copy(resources={"requests": {"cpu": "-1"}}), "must be greater than or equal to 0"),
        (
            edited(BACKUP, (f"{_POD}.volumes", [{"name": "data", "emptyDir": {"sizeLimit": "20 GB"}}])),
            "volumes[0].emptyDir.sizeLimit: Invalid value: quantities must match the regular expression",
        ),
    ),
    "resource-name": (
        (
            copy(resources={"limits": {"gpu": 1}}),
            'resources.limits[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified',
        ),
        (copy(resources={"requests": {"storage": "1Gi"}}), '"storage": must be a standard resource for containers'),
        (copy(resources={"limits": {"a b": 1}}), 'limits[a b]: Invalid value: "a b": name part must consist of'),
        (
            look({"limits": {f"{'a' * 250}.io/b": 1}}),
            "doesn't follow extended resource name standard",
        ),
    ),
    "huge-pages": (
        (copy(resources={"limits": {"hugepages-2Mi": "4Mi"}}), "resources: Forbidden: HugePages require cpu or memory"),
        (
            copy(resources={"limits": {"hugepages-2Mi": "3Mi", "memory": "1Gi"}}),
            'limits[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi',
        ),
    ),
    "device-limit-missing": (
        (
            copy(resources={"requests": {"hugepages-2Mi": "2Mi", "memory": "1Gi"}}),
            "resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (look({"requests": {"example.com/card": 1}}), "Limit must be set for non overcommitable resources"),
    ),
    "request-over-limit": (
        (
            copy(resources={"requests": {"memory": "2Gi"}, "limits": {"memory": "2000M"}}),
            "less than or equal to memory",
        ),
        (look({"requests": {"a.io/b": 1}, "limits": {"a.io/b": 2}}), "must be equal to a.io/b limit of 2"),
    ),
}
