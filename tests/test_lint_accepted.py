# SPDX-License-Identifier: Apache-2.0
"""What the API server takes, however odd it looks, the linter has nothing to say about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lint_claim_cases import claims, led
from lint_container_cases import live, pod, ports, source
from lint_manifests import BACKUP, MORE, RUNTIME, RUNTIME_JOB, WRONG, edited, findings, places
from lint_pod_cases import copy
from lint_spec_cases import apart, devices, mount, on_nodes, scratch, sources, spread, tolerated, volume

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_TERM = {"topologyKey": "zone", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}
_ITEMS = [{"key": "a", "path": "a/b..c", "mode": 0o400}]
ACCEPTED: dict[str, Any] = {
    "ports of the host without its number": ports({"containerPort": 29_500, "name": "c10d"}, hostNetwork=True),
    "ports of the host": ports({"containerPort": 29_500, "hostPort": 29_500}, hostNetwork=True),
    "one number by two protocols": ports(
        {"containerPort": 53, "hostPort": 53}, {"containerPort": 53, "hostPort": 53, "protocol": "UDP"}
    ),
    "one port of the node after another": edited(
        ports({"containerPort": 80, "hostPort": 80}),
        ("spec.template.spec.initContainers.0.ports", [{"containerPort": 80, "hostPort": 80}]),
    ),
    "name servers of its own": pod(
        dnsPolicy="None",
        dnsConfig={
            "nameservers": ["1.1.1.1", "2001:db8::1", "010.0.0.1"],
            "searches": [".", "_tcp.example.com."],
            "options": [{"name": "ndots", "value": "2"}],
        },
    ),
    "the node's name servers": pod(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"),
    "one port twice, but of the pod": ports({"containerPort": 80}, {"containerPort": 80}),
    "what others than Kubernetes name": copy(
        resources={"limits": {"memory": "1Gi", "hugepages-1Gi": "2Gi", "ephemeral-storage": 1, "a.kubernetes.io/b": 1}}
    ),
    "names": pod(hostname="node-0", subdomain="train", setHostnameAsFQDN=True),
    "an alias with dots": pod(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["a.example.com"]}]),
    "a probe with zeros": live(initialDelaySeconds=0, successThreshold=0, periodSeconds=0),
    "a probe by a name": copy(readinessProbe={"httpGet": {"port": "http"}, "successThreshold": 3}),
    "a hook that sleeps": edited(
        pod(terminationGracePeriodSeconds=60),
        ("spec.template.spec.containers.0.lifecycle", {"preStop": {"sleep": {"seconds": 60}}}),
    ),
    "a hook that does not": copy(lifecycle={"preStop": {"sleep": {"seconds": 0}}, "postStart": None}),
    "a probe of a sidecar": edited(
        BACKUP,
        ("spec.template.spec.initContainers.0.restartPolicy", "Always"),
        ("spec.template.spec.initContainers.0.startupProbe", {"tcpSocket": {"port": 80}}),
    ),
    "a negative grace": pod(terminationGracePeriodSeconds=-1),
    "odd names of variables": copy(env=[{"name": "1 a/b:c"}, {"name": "A", "value": "", "valueFrom": None}]),
    "a key of a file": source(fileKeyRef={"volumeName": "a", "path": "b", "key": "c"}),
    "fields of the pod": copy(
        env=[
            {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['A.io/B']"}}},
            {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "requests.hugepages-2Mi"}}},
        ]
    ),
    "variables that come together": copy(envFrom=[{"secretRef": {"name": "a.b", "optional": True}}]),
    "rights": copy(
        securityContext={
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["SYS_ADMIN"], "drop": ["ALL"]},
            "runAsUser": 0,
            "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/a.json"},
            "appArmorProfile": {"type": "RuntimeDefault"},
        }
    ),
    "rights of the pod": pod(
        securityContext={
            "fsGroup": 2_147_483_647,
            "fsGroupChangePolicy": "OnRootMismatch",
            "sysctls": [{"name": "net/core/somaxconn", "value": "1"}, {"name": "kernel.shm_rmid_forced", "value": "0"}],
        },
        os={"name": "linux"},
    ),
    "what is unmasked in a namespace of its own": edited(
        pod(hostUsers=False), ("spec.template.spec.containers.0.securityContext", {"procMount": "Unmasked"})
    ),
    "a volume without a type": pod(volumes=[{"name": "data", "emptyDir": None}]),
    "a mode in JSON": volume(secret={"secretName": "a", "defaultMode": 420, "items": _ITEMS}),
    "a place of the node": volume(hostPath={"path": "/a..b", "type": ""}),
    "a claim of its own": scratch(accessModes=["ReadWriteOnce"], resources={"requests": {"storage": "1Ti"}}),
    "several sources": sources(
        {"secret": {"name": "a", "items": _ITEMS}},
        {"configMap": {"name": "a"}},
        {"serviceAccountToken": {"path": "token"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ),
    "below in a volume": mount(subPath="a/..b", mountPropagation="HostToContainer"),
    "as nobody writes": mount(readOnly=True, recursiveReadOnly="IfPossible", subPathExpr="$(POD)/a"),
    "as the node sees it": edited(
        mount(mountPropagation="Bidirectional"),
        ("spec.template.spec.containers.0.securityContext", {"privileged": True}),
    ),
    "a device": devices({"name": "data", "devicePath": "/dev/a"}),
    "any taint": tolerated(operator="Exists"),
    "a taint for a time": tolerated(key="a.io/b", value="c", effect="NoExecute", tolerationSeconds=-1),
    "a taint by its number": tolerated(key="a", operator="Gt", value="5"),
    "spread in two ways": spread(
        {"minDomains": 2, "matchLabelKeys": ["b"], "labelSelector": {"matchLabels": {"a": "b"}}},
        {"whenUnsatisfiable": "ScheduleAnyway", "nodeAffinityPolicy": "Ignore"},
    ),
    "apart from others": apart(**_TERM),
    "near to others": pod(affinity={"podAffinity": {_PREFERRED: [{"weight": 100, "podAffinityTerm": _TERM}]}}),
    "on large nodes": on_nodes({"key": "gpus", "operator": "Gt", "values": ["4"]}, {"key": "a", "operator": "Exists"}),
    "on one node": pod(
        affinity={
            "nodeAffinity": {
                _REQUIRED: {
                    "nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}
                    ]
                },
                _PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}],
            }
        }
    ),
    "a gate": pod(schedulingGates=[{"name": "example.com/quota"}], nodeSelector={"a.io/b": ""}),
    "a device by its claim": edited(
        pod(resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "gpu.example"}]),
        ("spec.template.spec.containers.0.resources", {"claims": [{"name": "gpu", "request": "one"}]}),
    ),
    "a leader with room for its label": led(**{"metadata.name": "b" * 24, "spec.network": {"subdomain": "b"}}),
    "a claim of the set": claims("data", retentionPolicy={"whenDeleted": "Retain"}),
    "a claim of the set that goes with it": claims("d" * 55, retentionPolicy={}),
    "a claim of a runtime, that a TrainJob may mount": edited(
        RUNTIME,
        ("spec.template.spec.volumeClaimPolicies", claims("data", "models")["spec"]["volumeClaimPolicies"]),
        (f"{RUNTIME_JOB}.template.spec.containers.0.volumeMounts.{MORE}", {"name": "data", "mountPath": "/datasets"}),
    ),
    "a name of its own": pod(serviceAccountName="train.er", priorityClassName="high", preemptionPolicy="Never"),
}
TOLERATED = {"container-unnamed", "container-unnamed-among-others"}
"""Warnings that a policy in its shortest form cannot be without."""


@pytest.mark.parametrize("name", ACCEPTED)
def test_nothing_is_said_about_what_is_accepted(name: str) -> None:
    """No row is for it."""
    assert [finding.detail for finding in findings(ACCEPTED[name]) if finding.row.id not in TOLERATED] == []


@given(st.sampled_from(places(ACCEPTED)), WRONG)
def test_no_pod_is_too_wrong_to_be_judged(place: tuple[str, str], value: Any) -> None:
    """Whatever stands in whatever field, the linter answers."""
    name, path = place
    findings(edited(ACCEPTED[name], (path, value)))
