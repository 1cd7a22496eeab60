# SPDX-License-Identifier: Apache-2.0
"""Why the API server refuses what it refuses in a pod, and what to do: the part of ``lint_api`` about pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ROWS: Final[Mapping[str, tuple[str, str]]] = {
    "pod-containers-missing": ("A pod has at least one container.", "write containers"),
    "container-name": (
        "A container's name is missing, taken or malformed.",
        "give each its own, of lower case letters, digits and '-'",
    ),
    "pod-deadline": ("A pod's deadline is a second or more.", "remove it, or write seconds"),
    "init-container-probe": (
        "An init container that is no sidecar has no probes and no lifecycle.",
        "remove them, or make it a sidecar by restartPolicy: Always",
    ),
    "container-image-missing": ("A container needs an image.", "write image"),
    "container-image-spaces": ("No pod can be made with spaces around its image.", "remove them, or a line's end"),
    "message-policy-unknown": ("There are two policies.", "write FallbackToLogsOnError"),
    "pull-policy-unknown": ("There are three pull policies.", "write IfNotPresent"),
    "container-restart-policy": (
        "Restart rules need a policy of the container's own beside them.",
        "write restartPolicy: Never in the container",
    ),
    "restart-rules-over-20": ("A container has 20 restart rules at most.", "put the codes of one action into one rule"),
    "restart-rule-action": ("A restart rule must have an action that there is.", "write Restart"),
    "restart-rule-codes-missing": ("A restart rule asks for exit codes.", "write exitCodes"),
    "restart-rule-operator": ("Codes are compared by an operator that there is.", "write In or NotIn"),
    "restart-rule-values-over-255": ("A rule compares 255 codes at most.", "name the codes that it is about"),
    "quantity-malformed": (
        "This is no amount of the resource.",
        "write a number with a unit (16Gi, 500m); whole devices",
    ),
    "resource-name": (
        "There is no such resource of a container: devices are named by who makes them.",
        "write for example nvidia.com/gpu",
    ),
    "huge-pages": ("Huge pages come whole, and beside a request of cpu or memory.", "ask for memory too"),
    "device-limit-missing": ("Devices are promised by a limit.", "write the same number under limits"),
    "request-over-limit": (
        "More is asked for than allowed, or devices are asked for and limited differently.",
        "make them agree",
    ),
    "port-number": ("A port is missing or no number of a port.", "write a number from 1 to 65535"),
    "port-name": (
        "A port's name is malformed, or taken in its container.",
        "write at most 15 lower case letters, digits and '-', with a letter among them",
    ),
    "port-protocol": ("A port has one of three protocols, in capitals.", "write TCP"),
    "host-port-taken": ("Two ports of the pod want the same port of the node.", "give each its own"),
    "host-port-differs": (
        "On the network of the host a container's port is the node's.",
        "remove hostPort, or write the number of containerPort",
    ),
    "dns-policy-unknown": ("There are four policies.", "write ClusterFirst, or ClusterFirstWithHostNet on hostNetwork"),
    "dns-servers": (
        "Policy None leaves the pod no name server but those of dnsConfig, of which it can have three.",
        "write one to three nameservers, or another dnsPolicy",
    ),
    "dns-search": ("These are no domains to search, or too many.", "write at most 32 domains, in lower case"),
    "dns-option": ("An option of the resolver has no name.", "write name"),
    "ip-address": ("This is no IP address.", "write an address, not a name"),
    "host-name": (
        "A host's name, or the domain of the pod's, is malformed.",
        "write lower case letters, digits and '-'; only an alias has dots",
    ),
    "privilege-contradiction": (
        "What is privileged can always gain more.",
        "remove allowPrivilegeEscalation: false, or the privilege",
    ),
    "user-out-of-range": ("This is no number of a user or a group.", "write a number from 0 to 2147483647"),
    "security-policy-unknown": ("There is no such policy.", "write one of those that are named"),
    "security-profile": (
        "A profile has a type that there is, and a file if the type is Localhost, else none.",
        "write type: RuntimeDefault alone, or type: Localhost with a localhostProfile below the kubelet's directory",
    ),
    "proc-mount": (
        "Without masks /proc would be the host's.",
        "remove procMount, or write hostUsers: false beside Unmasked",
    ),
    "sysctl-name": ("A sysctl's name is missing, taken or malformed.", "write for example net.core.somaxconn, once"),
    "sysctl-of-the-host": (
        "The pod shares this namespace with its node, so that the setting would be the node's.",
        "set it on the node",
    ),
    "host-namespaces": ("These namespaces exclude each other.", "give up one of the two"),
    "operating-system": ("There are two operating systems.", "write linux"),
    "handler-count": ("A probe or a hook does exactly one thing.", "write one of exec, httpGet, tcpSocket and others"),
    "handler-command": ("It runs a command, of which there is none.", "write command"),
    "handler-port": (
        "A port is missing, out of range or no name of a port.",
        "write a number without quotes, or the name of a port",
    ),
    "handler-scheme": ("There are two schemes.", "write HTTP or HTTPS"),
    "handler-header": ("This is no name of a header.", "write letters, digits and '-'"),
    "handler-sleep": (
        "It would sleep longer than the pod has to end.",
        "write fewer seconds, or more grace",
    ),
    "probe-negative": ("A count or a time is below zero.", "write 0 or more"),
    "probe-successes": ("To be alive once is enough.", "remove successThreshold"),
    "probe-grace": (
        "Only a probe that ends the container has a grace period, of a second or more.",
        "remove it, or write seconds",
    ),
    "variable-name": (
        "A variable's name, or the prefix of names, is missing or has characters that no name has.",
        "write letters, digits and '_'",
    ),
    "variable-source": (
        "A variable has a value or a source: both, none or several sources are refused.",
        "write exactly one",
    ),
    "key-reference": ("The name of the object, or its key, is missing or malformed.", "write name and key"),
    "environment-source": (
        "Variables come from one ConfigMap or one Secret, by its name.",
        "write one of configMapRef and secretRef, with a name",
    ),
    "field-unknown": (
        "The downward API has no such field.",
        "write one that it has, labels and annotations with their key in brackets",
    ),
    "volume-name": (
        "A volume's name is missing, taken or malformed.",
        "give each its own, of lower case letters, digits and '-'",
    ),
    "volume-sources": ("A volume has one type, and so has each source of a projected one.", "make two of it"),
    "volume-incomplete": ("A volume does not say what it is made from.", "write the field that is named"),
    "volume-path": (
        "A path leads out of where it must stay, or two files would have it.",
        "write one without '..', relative inside a volume and absolute on a server",
    ),
    "volume-size-limit": ("A size is not below zero.", "write for example 20Gi"),
    "host-path-type": ("There is no such type of path.", "write Directory, or DirectoryOrCreate"),
    "file-mode": (
        "These are no permissions: in YAML 644 is a decimal number, and 0644 an octal one.",
        "write the 0 before it; in JSON write 420 for 0644",
    ),
    "token-lifetime": ("A token lives ten minutes or more.", "write expirationSeconds: 3600"),
    "claim-modes": ("A claim says how it is accessed.", "write accessModes: [ReadWriteOnce], or one of the others"),
    "claim-size": ("A claim asks for storage.", "write resources.requests.storage"),
    "claim-volume-mode": ("There are two modes.", "write Filesystem"),
    "mount-volume-unknown": ("What is mounted is no volume of the pod.", "add the volume, or correct the name"),
    "mount-path": ("A mount has no path, or that of another.", "give each its own"),
    "mount-sub-path": (
        "The path inside the volume leads out of it, or there are two.",
        "write one of subPath and subPathExpr, relative and without '..'",
    ),
    "mount-propagation": (
        "What is mounted in the container reaches the node only from a privileged one.",
        "write HostToContainer, or remove mountPropagation",
    ),
    "mount-recursive": (
        "What is mounted below can be read-only only where the mount itself is, and does not propagate.",
        "write readOnly: true, or remove recursiveReadOnly",
    ),
    "volume-device": (
        "A device is a claim, at a path of its own, and no mount at the same time.",
        "give each volume one name, one path and one use",
    ),
    "node-selector": ("A node can have no such label.", "write a key and a value that labels can have"),
    "toleration-key": ("A taint can have no such key.", "correct the key"),
    "toleration-operator": (
        "A taint is compared by an operator that there is, and only Exists does without a key.",
        "write Exists or Equal, and the key",
    ),
    "toleration-value": (
        "Exists has no value, Equal one that a label can have.",
        "remove the value, or correct it",
    ),
    "toleration-effect": (
        "There are three effects, and only NoExecute lets a pod stay for a time.",
        "write effect: NoExecute beside tolerationSeconds, else NoSchedule",
    ),
    "spread-numbers": (
        "Skew and domains are 1 or more, and domains are counted only where nothing else is accepted.",
        "write maxSkew: 1, and minDomains beside whenUnsatisfiable: DoNotSchedule only",
    ),
    "spread-words": ("There is no such action or policy.", "write DoNotSchedule or ScheduleAnyway; Honor or Ignore"),
    "spread-twice": ("Two constraints are about the same topology and action.", "remove one"),
    "topology-key": (
        "It is not said by which label nodes belong together.",
        "write for example topologyKey: kubernetes.io/hostname",
    ),
    "affinity-weight": ("A preference weighs 1 to 100.", "write weight"),
    "node-terms": (
        "This selects no nodes: terms are missing, or an operator does not fit its values.",
        "write In with values, Exists without, Gt with one",
    ),
    "label-selector": (
        "This selects no pods: a key, a value or an operator is malformed, or a key stands twice.",
        "write In with values, Exists without",
    ),
    "claim-metadata": ("A claim of a pod is named after it.", "write labels and annotations only"),
    "scheduling-gate": (
        "A gate's name is missing, taken or malformed.",
        "give each its own: example.com/quota",
    ),
    "reference-malformed": (
        "No object can have this name.",
        "write lower case letters, digits, '-' and '.', and no path before it",
    ),
    "preemption-policy-unknown": ("There are two policies.", "write PreemptLowerPriority or Never"),
    "resource-claim": (
        "A claim has a name of its own, and is one that there is or made from one template.",
        "write one of resourceClaimName and resourceClaimTemplateName",
    ),
    "resource-claim-unknown": (
        "A container uses a claim that its pod does not have, or the same one twice.",
        "add it to resourceClaims of the pod, or correct the name",
    ),
}
"""By id: why in one sentence, and what to do."""
