# SPDX-License-Identifier: Apache-2.0
"""The pod of a training, as typed objects of the ``kubernetes`` client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kubernetes import client

from resilient.core.contract_policy import RESTARTED_IN_PLACE, policy_rules
from resilient.core.exit_codes import ExitCode
from resilient.core.pod_status import PodAccess
from resilient.kubernetes import names
from resilient.kubernetes.downward import COUNTERS, JOB_UID, PLACE, POD_API_SETTING, POD_UID
from resilient.kubernetes.submission import CLAIM_MOUNT, Submission, parsed, says_workers

JOURNAL: Final = "/var/lib/resilient"
SNAPSHOTS: Final = "/var/lib/resilient-snapshots"
NAME_LABEL: Final = "app.kubernetes.io/name"
JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"
JOBSET_NAME_LABEL: Final = "jobset.sigs.k8s.io/jobset-name"
PORT: Final = 29500
LOST_NODE_S: Final = 60
NO_ISTIO: Final = ("sidecar.istio.io/inject", "false")
NO_LINKERD: Final = ("linkerd.io/inject", "disabled")
TAINTS: Final = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What pods of one kind of workload have of their own."""

    container: str = "trainer"
    """The container's name, which every rule of the policy names."""
    uid: str = JOB_UID
    """Where the uid of the submission stands in the pod."""
    apart: client.V1PodAffinityTerm | None = None
    """What keeps two pods of the run from one node, where there are several."""
    master: str | None = None
    """The host name of the first pod, where the command must be told; the controller may tell it itself."""
    subdomain: str | None = None
    tells_workers: bool = True
    """Whether the command says how many workers there are; Trainer does it by ``PET_NPROC_PER_NODE``."""


def failure_policy(container: str, *, restart_rules: bool) -> client.V1PodFailurePolicy:
    """The contract's rules for this container."""
    return client.V1PodFailurePolicy(
        rules=[
            client.V1PodFailurePolicyRule(
                action=rule.action,
                on_exit_codes=_codes(container, rule.codes) if rule.codes else None,
                on_pod_conditions=[client.V1PodFailurePolicyOnPodConditionsPattern(type=rule.condition, status="True")]
                if rule.condition
                else None,
            )
            for rule in policy_rules(restarts_in_place=restart_rules)
        ]
    )


def _codes(container: str, codes: tuple[ExitCode, ...]) -> client.V1PodFailurePolicyOnExitCodesRequirement:
    return client.V1PodFailurePolicyOnExitCodesRequirement(
        container_name=container, operator="In", values=[int(code) for code in codes]
    )


def template(asked: Submission, kind: Kind) -> client.V1PodTemplateSpec:
    """The pod: what it runs, may do, and may take."""
    labels = {NAME_LABEL: asked.name}
    annotations = None
    if not asked.sidecars:
        labels |= [NO_ISTIO]
        annotations = dict([NO_LINKERD])
    return client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels, annotations=annotations),
        spec=client.V1PodSpec(
            restart_policy="Never",
            subdomain=kind.subdomain,
            termination_grace_period_seconds=asked.grace_s,
            service_account_name=asked.name if asked.permissions else None,
            automount_service_account_token=asked.permissions,
            enable_service_links=False,
            security_context=_pod_security(asked.uid),
            tolerations=tolerations(),
            affinity=_affinity(kind.apart) if kind.apart else None,
            containers=[_container(asked, kind)],
            volumes=_volumes(asked),
        ),
    )


def tolerations() -> list[client.V1Toleration]:
    """A dead node is given up after a minute."""
    return [
        client.V1Toleration(key=key, operator="Exists", effect="NoExecute", toleration_seconds=LOST_NODE_S)
        for key in TAINTS
    ]


def _affinity(apart: client.V1PodAffinityTerm) -> client.V1Affinity:
    return client.V1Affinity(
        pod_anti_affinity=client.V1PodAntiAffinity(required_during_scheduling_ignored_during_execution=[apart])
    )


def _pod_security(uid: int) -> client.V1PodSecurityContext:
    return client.V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=uid,
        run_as_group=uid,
        fs_group=uid,
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
    )


def _container(asked: Submission, kind: Kind) -> client.V1Container:
    return client.V1Container(
        name=kind.container,
        image=asked.image,
        command=["resilient", "run"],
        args=[*_flags(asked, kind), *map(names.literal, asked.command)],
        env=[*_environment(asked, kind), *_own_environment(asked)],
        env_from=[client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=name)) for name in asked.secrets]
        or None,
        ports=[client.V1ContainerPort(name="rendezvous", container_port=PORT, protocol="TCP")] if kind.master else None,
        termination_message_policy="FallbackToLogsOnError",
        restart_policy="Never" if asked.restart_rules else None,
        restart_policy_rules=restart_rules() if asked.restart_rules else None,
        security_context=client.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=client.V1Capabilities(drop=["ALL"]),
        ),
        resources=_resources(asked),
        volume_mounts=_mounts(asked),
    )


def _flags(asked: Submission, kind: Kind) -> list[str]:
    """What the cluster's shape makes of the command."""
    flags = []
    if kind.master:
        flags += ["--nnodes", str(asked.pods), "--node-rank", "$(RESILIENT_INDEX)"]
        flags += ["--master-addr", kind.master, "--master-port", str(PORT)]
    if kind.tells_workers and asked.devices and not says_workers(parsed(asked.command, asked.env)):
        flags += ["--nproc-per-node", str(asked.devices)]
    return flags


def restart_rules() -> list[client.V1ContainerRestartRule]:
    """What the kubelet answers with a new container in the same pod."""
    codes = [int(code) for code in RESTARTED_IN_PLACE]
    on = client.V1ContainerRestartRuleOnExitCodes(operator="In", values=codes)
    return [client.V1ContainerRestartRule(action="Restart", exit_codes=on)]


def _environment(asked: Submission, kind: Kind) -> list[client.V1EnvVar]:
    """What the supervisor must know and cannot ask."""
    plain = {
        "RESILIENT_CHECKPOINTS": names.literal(asked.checkpoints_url),
        "RESILIENT_JOURNAL": JOURNAL,
        "RESILIENT_GRACE_S": str(asked.grace_s),
    }
    fields = {"RESILIENT_SUBMISSION": kind.uid, **COUNTERS, **PLACE}
    if asked.keeps_snapshots:
        plain["RESILIENT_SNAPSHOTS"] = SNAPSHOTS
    if asked.permissions and POD_API_SETTING not in asked.env:
        plain[POD_API_SETTING] = PodAccess.WRITE.value
    if asked.keeps_snapshots or asked.permissions:
        fields |= POD_UID
    return [
        *(client.V1EnvVar(name=name, value=value) for name, value in plain.items()),
        *(from_field(name, path) for name, path in fields.items()),
        *([] if "HOME" in {*asked.env, *asked.secret_env} else [client.V1EnvVar(name="HOME", value="/tmp")]),
    ]


def from_field(name: str, path: str) -> client.V1EnvVar:
    """A variable from the pod's own fields."""
    source = client.V1EnvVarSource(field_ref=client.V1ObjectFieldSelector(field_path=path))
    return client.V1EnvVar(name=name, value_from=source)


def _own_environment(asked: Submission) -> list[client.V1EnvVar]:
    """What the person's own code is told."""
    plain = [client.V1EnvVar(name=name, value=names.literal(value)) for name, value in asked.env.items()]
    return plain + [
        client.V1EnvVar(
            name=name,
            value_from=client.V1EnvVarSource(secret_key_ref=client.V1SecretKeySelector(name=secret, key=key)),
        )
        for name, (secret, key) in asked.secret_env.items()
    ]


def _resources(asked: Submission) -> client.V1ResourceRequirements:
    requests = {"cpu": asked.cpu} if asked.cpu else {}
    limits = {"memory": asked.memory_limit}
    if asked.devices:
        limits[asked.device_resource] = str(asked.devices)
    return client.V1ResourceRequirements(requests={**requests, "memory": asked.memory_limit}, limits=limits)


def _mounts(asked: Submission) -> list[client.V1VolumeMount]:
    mounts = {"checkpoints": CLAIM_MOUNT} if asked.claim else {}
    mounts |= {"journal": JOURNAL, "shm": "/dev/shm", "tmp": "/tmp"}
    mounts |= {"snapshots": SNAPSHOTS} if asked.keeps_snapshots else {}
    return [client.V1VolumeMount(name=name, mount_path=path) for name, path in mounts.items()]


def _volumes(asked: Submission) -> list[client.V1Volume]:
    volumes = [
        client.V1Volume(name="journal", empty_dir=client.V1EmptyDirVolumeSource()),
        client.V1Volume(
            name="shm", empty_dir=client.V1EmptyDirVolumeSource(medium="Memory", size_limit=asked.shm_limit)
        ),
        client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource()),
    ]
    if asked.keeps_snapshots:
        memory = client.V1EmptyDirVolumeSource(medium="Memory", size_limit=asked.memory_limit)
        volumes.append(client.V1Volume(name="snapshots", empty_dir=memory))
    if asked.claim:
        claim = client.V1PersistentVolumeClaimVolumeSource(claim_name=asked.claim)
        volumes.insert(0, client.V1Volume(name="checkpoints", persistent_volume_claim=claim))
    return volumes
