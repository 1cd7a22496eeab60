# SPDX-License-Identifier: Apache-2.0
"""For each row about a pod's network, volumes and place, manifests of no training that have just that wrong."""

from __future__ import annotations

from typing import Any, Final

from lint_container_cases import AT, pod
from lint_manifests import edited
from lint_pod_cases import copy

_POD: Final = "spec.template.spec"
_VOLUME: Final = f"{_POD}.volumes[0]"
_SPREAD: Final = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
_CLAIM: Final = {"persistentVolumeClaim": {"claimName": "data"}}
_MODES: Final = ["ReadWriteOnce"]
_SIZE: Final = {"requests": {"storage": "1Gi"}}


def volume(**source: Any) -> Any:
    """The Job with one volume."""
    return pod(volumes=[{"name": "data", **source}])


def scratch(**spec: Any) -> Any:
    """The Job with a claim of its own."""
    return volume(ephemeral={"volumeClaimTemplate": {"spec": spec}})


def mount(source: Any = None, **fields: Any) -> Any:
    """The Job with one volume and its mount."""
    with_mount = copy(volumeMounts=[{"name": "data", "mountPath": "/data", **fields}])
    return edited(with_mount, (f"{_POD}.volumes", [{"name": "data", **(source or {"emptyDir": {}})}]))


def devices(*found: Any, source: Any = None) -> Any:
    """The Job with one volume that is a device."""
    return edited(copy(volumeDevices=list(found)), (f"{_POD}.volumes", [{"name": "data", **(source or _CLAIM)}]))


def sources(*found: Any) -> Any:
    """The Job with a projected volume."""
    return volume(projected={"sources": list(found)})


def tolerated(**toleration: Any) -> Any:
    """The Job with one toleration."""
    return pod(tolerations=[toleration])


def spread(*constraints: Any) -> Any:
    """The Job with these constraints, each a change of one that is good."""
    return pod(topologySpreadConstraints=[{**_SPREAD, **one} for one in constraints])


def apart(**term: Any) -> Any:
    """The Job that keeps away from other pods."""
    return pod(affinity={"podAntiAffinity": {_REQUIRED: [term]}})


def on_nodes(*expressions: Any) -> Any:
    """The Job that needs such nodes."""
    return pod(affinity={"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}}})


CASES: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "dns-policy-unknown": (
        (
            pod(dnsPolicy="clusterFirst"),
            f'{_POD}.dnsPolicy: Unsupported value: "clusterFirst": supported values: "ClusterFirstWithHostNet", '
            '"ClusterFirst", "Default", "None"',
        ),
    ),
    "dns-servers": (
        (pod(dnsPolicy="None"), f"{_POD}.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (
            pod(dnsPolicy="None", dnsConfig={"searches": ["a"]}),
            f"{_POD}.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when",
        ),
        (
            pod(dnsConfig={"nameservers": [f"10.0.0.{last}" for last in range(4)]}),
            "must not have more than 3 nameservers",
        ),
    ),
    "dns-search": (
        (pod(dnsConfig={"searches": ["a", "A b"]}), f'{_POD}.dnsConfig.searches[1]: Invalid value: "A b": a lowercase'),
        (pod(dnsConfig={"searches": ["a"] * 33}), "must not have more than 32 search paths"),
        (pod(dnsConfig={"searches": [f"{'a' * 60}.{'b' * 60}.{'c' * 60}"] * 12}), "must not have more than 2048"),
    ),
    "dns-option": (
        (pod(dnsConfig={"options": [{"value": "1"}]}), "dnsConfig.options[0]: Required value: must not be"),
    ),
    "ip-address": (
        (
            pod(dnsConfig={"nameservers": ["dns.example.com"]}),
            f'{_POD}.dnsConfig.nameservers[0]: Invalid value: "dns.example.com": must be a valid IP address, (e.g.',
        ),
        (pod(hostAliases=[{"ip": "1.2.3", "hostnames": ["a"]}]), "hostAliases[0].ip: Invalid value"),
    ),
    "host-name": (
        (pod(hostname="node.0"), f'{_POD}.hostname: Invalid value: "node.0": must not contain dots'),
        (pod(subdomain="Train"), "a lowercase RFC 1123 label must consist of"),
        (pod(hostAliases=[{"ip": "1.2.3.4", "hostnames": ["A_b"]}]), "hostAliases[0].hostnames[0]: Invalid value"),
    ),
    "volume-sources": (
        (
            volume(emptyDir={}, **_CLAIM),
            f"{_VOLUME}.persistentVolumeClaim: Forbidden: may not specify more than 1 volume type",
        ),
        (
            sources({"secret": {"name": "a"}, "configMap": {"name": "b"}}),
            f"{_VOLUME}.projected.sources[0]: Forbidden: may not specify more than 1 volume type per source",
        ),
    ),
    "volume-incomplete": (
        (volume(persistentVolumeClaim={}), f"{_VOLUME}.persistentVolumeClaim.claimName: Required value"),
        (volume(secret={}), f"{_VOLUME}.secret.secretName: Required value"),
        (volume(configMap={}), f"{_VOLUME}.configMap.name: Required value"),
        (volume(hostPath={}), f"{_VOLUME}.hostPath.path: Required value"),
        (volume(nfs={"path": "/data"}), f"{_VOLUME}.nfs.server: Required value"),
        (volume(csi={}), f"{_VOLUME}.csi.driver: Required value"),
        (volume(secret={"secretName": "a", "items": [{"path": "a"}]}), "secret.items[0].key: Required value"),
        (volume(ephemeral={}), f"{_VOLUME}.ephemeral.volumeClaimTemplate: Required value"),
        (sources({"secret": {}}), "projected.sources[0].secret.name: Required value"),
        (sources({"serviceAccountToken": {}}), f"{_VOLUME}.projected.path: Required value"),
        (
            volume(downwardAPI={"items": [{"fieldRef": {"fieldPath": "metadata.name"}}]}),
            f"{_VOLUME}.downwardAPI.path: Required value",
        ),
    ),
    "volume-path": (
        (volume(hostPath={"path": "/a/../b"}), f'{_VOLUME}.hostPath.path: Invalid value: "/a/../b": must not contain'),
        (volume(nfs={"server": "a", "path": "data"}), 'nfs.path: Invalid value: "data": must be an absolute path'),
        (
            volume(configMap={"name": "a", "items": [{"key": "a", "path": "/a"}]}),
            f'{_VOLUME}.configMap.items[0].path: Invalid value: "/a": must be a relative path',
        ),
        (volume(secret={"secretName": "a", "items": [{"key": "a", "path": "..a"}]}), "must not start with '..'"),
        (
            sources(*({"secret": {"name": name, "items": [{"key": "a", "path": "same"}]}} for name in "ab")),
            f'{_VOLUME}.projected: Invalid value: "b": conflicting duplicate paths',
        ),
    ),
    "volume-size-limit": (
        (volume(emptyDir={"sizeLimit": "-1Gi"}), "emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid"),
    ),
    "host-path-type": (
        (
            volume(hostPath={"path": "/a", "type": "directory"}),
            f'{_VOLUME}.hostPath.type: Unsupported value: "directory": supported values: "", "BlockDevice"',
        ),
    ),
    "file-mode": (
        (
            volume(secret={"secretName": "a", "defaultMode": 644}),
            f"{_VOLUME}.secret.defaultMode: Invalid value: 644: must be a number between 0 and 0777 (octal), both",
        ),
        (volume(configMap={"name": "a", "items": [{"key": "a", "path": "a", "mode": -1}]}), "items[0].mode: Invalid"),
    ),
    "token-lifetime": (
        (
            sources({"serviceAccountToken": {"path": "token", "expirationSeconds": 60}}),
            "sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a duration less than",
        ),
    ),
    "claim-modes": (
        (scratch(resources=_SIZE), "spec.accessModes: Required value: at least 1 access mode is required"),
        (scratch(accessModes=["RWO"], resources=_SIZE), 'Unsupported value: "RWO": supported values: "ReadOnlyMany"'),
        (
            scratch(accessModes=["ReadWriteOncePod", "ReadWriteOnce"], resources=_SIZE),
            "Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
    ),
    "claim-metadata": (
        (
            edited(
                scratch(accessModes=_MODES, resources=_SIZE),
                (f"{_POD}.volumes.0.ephemeral.volumeClaimTemplate.metadata", {"name": "a", "labels": {"a": "b"}}),
            ),
            f"{_VOLUME}.ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
        ),
    ),
    "claim-size": (
        (
            scratch(accessModes=_MODES),
            f"{_VOLUME}.ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
        ),
        (
            scratch(accessModes=_MODES, resources={"requests": {"storage": 0}}),
            'Invalid value: "0": must be greater than',
        ),
    ),
    "claim-volume-mode": (
        (scratch(accessModes=_MODES, resources=_SIZE, volumeMode="block"), 'supported values: "Block", "Filesystem"'),
    ),
    "mount-sub-path": (
        (mount(subPath="/a"), f'{AT}.volumeMounts.subPath: Invalid value: "/a": must be a relative path'),
        (mount(subPath="a/../b"), "must not contain '..'"),
        (
            mount(subPath="a", subPathExpr="$(POD)"),
            f'{AT}.volumeMounts[0].subPathExpr: Invalid value: "$(POD)": subPathExpr and subPath are mutually',
        ),
    ),
    "mount-propagation": (
        (mount(mountPropagation="Shared"), 'supported values: "Bidirectional", "HostToContainer", "None"'),
        (
            mount(mountPropagation="Bidirectional"),
            f"{AT}.volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to",
        ),
    ),
    "mount-recursive": (
        (
            mount(recursiveReadOnly="Enabled"),
            "recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
        ),
        (
            mount(recursiveReadOnly="Enabled", readOnly=True, mountPropagation="HostToContainer"),
            "may only be specified when mountPropagation is None or not specified",
        ),
        (mount(recursiveReadOnly="true"), 'supported values: "Disabled", "Enabled", "IfPossible"'),
    ),
    "volume-device": (
        (devices({"name": "data"}), f"{AT}.volumeDevices[0].devicePath: Required value"),
        (devices({"devicePath": "/dev/a"}), f"{AT}.volumeDevices[0].name: Required value"),
        (devices({"name": "data", "devicePath": "/dev/../a"}), "can not contain backsteps ('..')"),
        (
            devices({"name": "data", "devicePath": "/dev/a"}, source={"emptyDir": {}}),
            "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
        ),
        (
            devices({"name": "data", "devicePath": "/dev/a"}, {"name": "data", "devicePath": "/dev/b"}),
            f'{AT}.volumeDevices[1].name: Invalid value: "data": must be unique',
        ),
        (
            edited(mount(_CLAIM), (f"{_POD}.containers.0.volumeDevices", [{"name": "data", "devicePath": "/data"}])),
            f'{AT}.volumeMounts[0].mountPath: Invalid value: "/data": must not already exist as a path in',
        ),
    ),
    "node-selector": (
        (
            pod(nodeSelector={"gpu type": "a"}),
            f'{_POD}.nodeSelector: Invalid value: "gpu type": name part must consist',
        ),
        (pod(nodeSelector={"gpu": "a b"}), "a valid label must be an empty string or consist of"),
    ),
    "toleration-key": ((tolerated(key="a b", operator="Exists"), "tolerations[0].key: Invalid value"),),
    "toleration-operator": (
        (tolerated(key="gpu", operator="Equals"), f'{_POD}.tolerations[0].operator: Unsupported value: "Equals"'),
        (tolerated(effect="NoSchedule"), "operator must be Exists when `key` is empty, which means"),
    ),
    "toleration-value": (
        (
            tolerated(key="gpu", operator="Exists", value="present"),
            f'{_POD}.tolerations[0].operator: Invalid value: "present": value must be empty when `operator` is',
        ),
        (tolerated(key="gpu", value="a b"), 'tolerations[0].operator: Invalid value: "a b": a valid label must be'),
    ),
    "toleration-effect": (
        (tolerated(key="gpu", operator="Exists", effect="noSchedule"), '"NoSchedule", "PreferNoSchedule", "NoExecute"'),
        (
            tolerated(key="gpu", operator="Exists", effect="NoSchedule", tolerationSeconds=60),
            f"{_POD}.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when",
        ),
    ),
    "spread-numbers": (
        (
            spread({"maxSkew": 0}),
            f"{_POD}.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than",
        ),
        (spread({"minDomains": 0}), "minDomains: Invalid value: 0: must be greater than zero"),
        (
            spread({"minDomains": 2, "whenUnsatisfiable": "ScheduleAnyway"}),
            "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
        ),
    ),
    "spread-words": (
        (spread({"whenUnsatisfiable": "Never"}), 'supported values: "DoNotSchedule", "ScheduleAnyway"'),
        (spread({"nodeTaintsPolicy": "honor"}), 'supported values: "Honor", "Ignore"'),
    ),
    "spread-twice": (
        (
            spread({}, {"maxSkew": 2}),
            f"{_POD}.topologySpreadConstraints[0].{{topologyKey, whenUnsatisfiable}}: "
            'Duplicate value: "{zone, DoNotSchedule}"',
        ),
    ),
    "topology-key": (
        (
            apart(labelSelector={"matchLabels": {"a": "b"}}),
            f"{_POD}.affinity.podAntiAffinity.{_REQUIRED}[0].topologyKey: Required value: can not be empty",
        ),
        (spread({"topologyKey": ""}), "topologySpreadConstraints[0].topologyKey: Required value: can not be empty"),
        (apart(topologyKey="a b"), 'topologyKey: Invalid value: "a b"'),
    ),
    "affinity-weight": (
        (
            pod(affinity={"podAffinity": {_PREFERRED: [{"weight": 0, "podAffinityTerm": {"topologyKey": "zone"}}]}}),
            f"{_POD}.affinity.podAffinity.{_PREFERRED}[0].weight: Invalid value: 0: must be in the range 1-100",
        ),
        (
            pod(affinity={"nodeAffinity": {_PREFERRED: [{"weight": 101, "preference": {}}]}}),
            "must be in the range 1-100",
        ),
    ),
    "node-terms": (
        (
            pod(affinity={"nodeAffinity": {_REQUIRED: {"nodeSelectorTerms": []}}}),
            "must have at least one node selector",
        ),
        (on_nodes({"key": "a", "operator": "In"}), "values: Required value: must be specified when `operator` is 'In'"),
        (on_nodes({"key": "a", "operator": "Exists", "values": ["b"]}), "values: Forbidden: may not be specified when"),
        (on_nodes({"key": "a", "operator": "Gt", "values": []}), "must be specified single value when `operator` is"),
        (
            on_nodes({"key": "a", "operator": "in", "values": ["b"]}),
            'Invalid value: "in": not a valid selector operator',
        ),
        (on_nodes({"key": "a", "operator": "In", "values": ["b c"]}), "matchExpressions[0].values[0]: Invalid value"),
    ),
    "label-selector": (
        (apart(topologyKey="a", labelSelector={"matchExpressions": [{"key": "a", "operator": "Gt"}]}), "not a valid"),
        (
            apart(topologyKey="a", labelSelector={"matchLabels": {"a": "b c"}}),
            "labelSelector.matchLabels: Invalid value",
        ),
        (spread({"matchLabelKeys": ["a"]}), "must not be specified when labelSelector is not set"),
        (
            spread({"matchLabelKeys": ["a"], "labelSelector": {"matchLabels": {"a": "b"}}}),
            "exists in both matchLabelKeys and labelSelector",
        ),
    ),
    "scheduling-gate": (
        (pod(schedulingGates=[{"name": "a b"}]), f'{_POD}.schedulingGates[0]: Invalid value: "a b"'),
        (pod(schedulingGates=[{"name": "a"}, {"name": "a"}]), 'schedulingGates[1]: Duplicate value: "a"'),
        (pod(schedulingGates=[{"name": "a"}], nodeName="b"), "nodeName: Forbidden: cannot be set until all scheduling"),
    ),
    "reference-malformed": (
        (
            pod(serviceAccountName="Trainer"),
            f'{_POD}.serviceAccountName: Invalid value: "Trainer": a lowercase RFC 1123',
        ),
        (pod(priorityClassName="high_priority"), f"{_POD}.priorityClassName: Invalid value"),
    ),
    "preemption-policy-unknown": (
        (pod(preemptionPolicy="never"), 'supported values: "PreemptLowerPriority", "Never"'),
    ),
    "resource-claim": (
        (
            pod(resourceClaims=[{"name": "gpu"}]),
            "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
        ),
        (
            pod(resourceClaims=[{"name": "gpu", "resourceClaimName": "a", "resourceClaimTemplateName": "b"}]),
            f"{_POD}.resourceClaims[0]: Invalid value: at most one of `resourceClaimName` or",
        ),
        (pod(resourceClaims=[{"resourceClaimName": "a"}]), "resourceClaims[0].name: Required value"),
        (pod(resourceClaims=[{"name": "gpu", "resourceClaimName": "a"}] * 2), 'name: Duplicate value: "gpu"'),
    ),
    "resource-claim-unknown": (
        (
            edited(
                pod(resourceClaims=[{"name": "gpu", "resourceClaimName": "a"}]),
                (f"{_POD}.containers.0.resources", {"claims": [{"name": "gpu", "request": "b"}, {"name": "gpu"}]}),
            ),
            f'{AT}.resources.claims[1]: Duplicate value: "gpu"',
        ),
        (
            copy(resources={"claims": [{"name": "gpu"}]}),
            f'{AT}.resources.claims[0]: Not found: "gpu": must be one of the names in pod.spec.resourceClaims which is',
        ),
    ),
}
