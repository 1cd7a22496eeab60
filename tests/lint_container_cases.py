# SPDX-License-Identifier: Apache-2.0
"""For each row about ports, probes, variables and rights, manifests of no training that have just that wrong."""

from __future__ import annotations

from typing import Any, Final

from lint_manifests import BACKUP, edited
from lint_pod_cases import copy

_POD: Final = "spec.template.spec"
AT: Final = "spec.template.spec.containers[0]"
SECURITY: Final = f"{AT}.securityContext"


def pod(**fields: Any) -> Any:
    """The Job whose pod has these fields."""
    return edited(BACKUP, *((f"{_POD}.{name}", value) for name, value in fields.items()))


def ports(*found: Any, **of_the_pod: Any) -> Any:
    """The Job whose container has these ports."""
    return edited(copy(ports=list(found)), *((f"{_POD}.{name}", value) for name, value in of_the_pod.items()))


def live(**probe: Any) -> Any:
    """The Job whose container has this probe."""
    return copy(livenessProbe={"exec": {"command": ["true"]}, **probe})


def source(**found: Any) -> Any:
    """The Job with one variable from this source."""
    return copy(env=[{"name": "A", "valueFrom": found}])


_HTTP: Final = {"httpGet": {"port": 80}}
_SYSCTL: Final = {"name": "net.core.somaxconn", "value": "1024"}
_LOWERED: Final = {"allowPrivilegeEscalation": False}

CASES: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "port-number": (
        (ports({"containerPort": 70_000}), f"{AT}.ports[0].containerPort: Invalid value: 70000: must be between 1 and"),
        (ports({"name": "http"}), f"{AT}.ports[0].containerPort: Required value"),
        (
            ports({"containerPort": 80, "hostPort": -1}),
            f"{AT}.ports[0].hostPort: Invalid value: -1: must be between 1 and 65535, inclusive",
        ),
    ),
    "port-name": (
        (ports({"name": "metrics_port", "containerPort": 80}), "must contain only alpha-numeric characters (a-z, 0-9)"),
        (ports({"name": "rendezvous-server", "containerPort": 80}), "must be no more than 15 bytes"),
        (ports({"name": "29500", "containerPort": 80}), "must contain at least one letter (a-z)"),
        (ports({"name": "a--b", "containerPort": 80}), "must not contain consecutive hyphens"),
        (ports({"name": "a-", "containerPort": 80}), "must not begin or end with a hyphen"),
        (
            ports({"name": "a", "containerPort": 80}, {"name": "a", "containerPort": 81}),
            f'{AT}.ports[1].name: Duplicate value: "a"',
        ),
    ),
    "port-protocol": (
        (
            ports({"containerPort": 80, "protocol": "tcp"}),
            f'{AT}.ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"',
        ),
    ),
    "host-port-taken": (
        (
            ports({"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80, "protocol": "TCP"}),
            f'{AT}.ports[1].hostPort: Duplicate value: "TCP//80"',
        ),
        (
            edited(
                ports({"containerPort": 80, "hostPort": 80}),
                (
                    f"{_POD}.containers.1",
                    {"name": "b", "image": "b", "ports": [{"containerPort": 1, "hostPort": 80}]},
                ),
            ),
            'containers[1].ports[0].hostPort: Duplicate value: "TCP//80"',
        ),
        (ports({"containerPort": 80}, {"containerPort": 80}, hostNetwork=True), 'Duplicate value: "TCP//80"'),
    ),
    "host-port-differs": (
        (
            ports({"containerPort": 29_500, "hostPort": 29_501}, hostNetwork=True),
            f"{AT}.ports[0].hostPort: Invalid value: 29501: must match `containerPort` when `hostNetwork` is true",
        ),
    ),
    "handler-count": (
        (copy(livenessProbe={"periodSeconds": 5}), f"{AT}.livenessProbe: Required value: must specify a handler type"),
        (live(**_HTTP), f"{AT}.livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type"),
        (copy(lifecycle={"preStop": {}}), f"{AT}.lifecycle.preStop: Required value: must specify a handler type"),
    ),
    "handler-command": ((live(exec={}), f"{AT}.livenessProbe.exec.command: Required value"),),
    "handler-port": (
        (
            copy(readinessProbe={"httpGet": {"path": "/"}}),
            f"{AT}.readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (copy(startupProbe={"tcpSocket": {"port": "8080"}}), "must contain at least one letter (a-z)"),
        (copy(livenessProbe={"grpc": {"port": 99_999}}), f"{AT}.livenessProbe.grpc.port: Invalid value: 99999"),
    ),
    "handler-scheme": (
        (copy(livenessProbe={"httpGet": {"port": 80, "scheme": "http"}}), 'supported values: "HTTP", "HTTPS"'),
    ),
    "handler-header": (
        (
            copy(livenessProbe={"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": ""}]}}),
            "a valid HTTP header must consist of",
        ),
    ),
    "handler-sleep": (
        (
            copy(lifecycle={"preStop": {"sleep": {"seconds": 31}}}),
            f"{AT}.lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than "
            "terminationGracePeriodSeconds (30)",
        ),
    ),
    "probe-negative": (
        (live(periodSeconds=-1), f"{AT}.livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal"),
    ),
    "probe-successes": (
        (live(successThreshold=2), f"{AT}.livenessProbe.successThreshold: Invalid value: 2: must be 1"),
        (copy(startupProbe={**_HTTP, "successThreshold": 3}), "startupProbe.successThreshold: Invalid value: 3"),
    ),
    "probe-grace": (
        (live(terminationGracePeriodSeconds=0), "Invalid value: 0: must be greater than 0"),
        (
            copy(readinessProbe={**_HTTP, "terminationGracePeriodSeconds": 5}),
            "Invalid value: 5: must not be set for readinessProbes",
        ),
    ),
    "variable-name": (
        (copy(env=[{"value": "1"}]), f"{AT}.env[0].name: Required value"),
        (copy(env=[{"name": "A=B", "value": "1"}]), "must consist only of printable ASCII characters other than '='"),
        (
            copy(envFrom=[{"prefix": "ä", "secretRef": {"name": "a"}}]),
            f'{AT}.envFrom[0].prefix: Invalid value: "ä": a valid environment variable name',
        ),
    ),
    "variable-source": (
        (
            copy(env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
            'valueFrom: Invalid value: "": may not be specified when `value` is not empty',
        ),
        (source(), f'{AT}.env[0].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`'),
        (
            source(fieldRef={"fieldPath": "metadata.name"}, secretKeyRef={"name": "a", "key": "b"}),
            'valueFrom: Invalid value: "": may not have more than one field specified at a time',
        ),
    ),
    "key-reference": (
        (source(secretKeyRef={"name": "token"}), f"{AT}.env[0].valueFrom.secretKeyRef.key: Required value"),
        (source(configMapKeyRef={"key": "a"}), 'configMapKeyRef.name: Invalid value: "": a lowercase RFC 1123'),
        (source(secretKeyRef={"name": "a", "key": "a/b"}), "a valid config key must consist of"),
        (source(secretKeyRef={"name": "a", "key": "..a"}), "must not start with '..'"),
    ),
    "environment-source": (
        (copy(envFrom=[{"secretRef": {}}]), f"{AT}.envFrom[0].secretRef.name: Required value"),
        (
            copy(envFrom=[{"prefix": "A_"}]),
            f'{AT}.envFrom: Invalid value: "": must specify one of: `configMapRef` or `secretRef`',
        ),
        (
            copy(envFrom=[{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]),
            f'{AT}.envFrom: Invalid value: "": may not have more than one field specified at a time',
        ),
        (copy(envFrom=[{"configMapRef": {"name": "A_b"}}]), "a lowercase RFC 1123 subdomain must consist of"),
    ),
    "field-unknown": (
        (
            source(fieldRef={"fieldPath": "spec.node"}),
            "error converting fieldPath: field label not supported: spec.node",
        ),
        (
            source(fieldRef={"fieldPath": "metadata.labels"}),
            'Unsupported value: "metadata.labels": supported values: "',
        ),
        (source(fieldRef={"fieldPath": "metadata.labels['a b']"}), 'fieldRef: Invalid value: "a b": name part must'),
        (source(fieldRef={"fieldPath": "metadata.name['a']"}), "field label does not support subscript"),
        (source(fieldRef={}), "fieldPath: Required value"),
        (source(resourceFieldRef={"resource": "limits.gpu"}), 'Unsupported value: "limits.gpu"'),
        (source(resourceFieldRef={"containerName": "copy"}), "resourceFieldRef.resource: Required value"),
    ),
    "privilege-contradiction": (
        (
            copy(securityContext={**_LOWERED, "privileged": True}),
            f"{SECURITY}: Invalid value: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
        (
            copy(securityContext={**_LOWERED, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}),
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
        ),
    ),
    "user-out-of-range": (
        (copy(securityContext={"runAsUser": -1}), f"{SECURITY}.runAsUser: Invalid value: -1: must be between 0 and"),
        (pod(securityContext={"fsGroup": 1 << 31}), "between 0 and 2147483647, inclusive"),
        (pod(securityContext={"supplementalGroups": [0, -5]}), "supplementalGroups[1]: Invalid value: -5"),
    ),
    "security-policy-unknown": (
        (
            pod(securityContext={"fsGroupChangePolicy": "Never"}),
            'spec.template.spec.securityContext.fsGroupChangePolicy: Unsupported value: "Never": supported values: '
            '"Always", "OnRootMismatch"',
        ),
    ),
    "security-profile": (
        (copy(securityContext={"seccompProfile": {}}), "type is required when seccompProfile is set"),
        (
            pod(securityContext={"seccompProfile": {"type": "runtime/default"}}),
            'supported values: "Localhost", "RuntimeDefault", "Unconfined"',
        ),
        (
            copy(securityContext={"seccompProfile": {"type": "Localhost"}}),
            f"{SECURITY}.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ),
        (
            copy(securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "/a"}}),
            'localhostProfile: Invalid value: "/a": must be a relative path',
        ),
        (
            copy(securityContext={"appArmorProfile": {"type": "Unconfined", "localhostProfile": "a"}}),
            "can only be set when AppArmor type is Localhost",
        ),
    ),
    "proc-mount": (
        (
            copy(securityContext={"procMount": "Unmasked"}),
            f'{SECURITY}.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`',
        ),
        (copy(securityContext={"procMount": "unmasked"}), 'supported values: "Default", "Unmasked"'),
    ),
    "sysctl-name": (
        (pod(securityContext={"sysctls": [{"name": "net..core", "value": "1"}]}), "must have at most 253 characters"),
        (pod(securityContext={"sysctls": [{"value": "1"}]}), "securityContext.sysctls[0].name: Required value"),
        (pod(securityContext={"sysctls": [_SYSCTL, _SYSCTL]}), 'Duplicate value: "net.core.somaxconn"'),
    ),
    "sysctl-of-the-host": (
        (
            pod(hostNetwork=True, securityContext={"sysctls": [_SYSCTL]}),
            "may not be specified when 'hostNetwork' is true",
        ),
        (
            pod(hostIPC=True, securityContext={"sysctls": [{"name": "kernel.shmmax", "value": "1"}]}),
            "may not be specified when 'hostIPC' is true",
        ),
    ),
    "host-namespaces": (
        (
            pod(shareProcessNamespace=True, hostPID=True),
            "spec.template.spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and",
        ),
        (
            pod(hostUsers=False, hostIPC=True),
            "spec.template.spec.HostIPC: Forbidden: when `pod.Spec.HostUsers` is false",
        ),
    ),
    "operating-system": (
        (
            pod(os={"name": "Linux"}),
            'spec.template.spec.os: Unsupported value: "Linux": supported values: "linux", "windows"',
        ),
        (pod(os={"name": ""}), "spec.template.spec.os.name: Required value: cannot be empty"),
    ),
}
