# SPDX-License-Identifier: Apache-2.0
"""A training as what the cluster knows: a Job for one pod, an Indexed Job for several, a JobSet, a runtime of Trainer.

Each gives the objects to apply, in order, as typed objects of the ``kubernetes`` client and, where that has no
types, as mappings around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from kubernetes import client

from resilient.core.backstop import Plan
from resilient.errors import SettingsError
from resilient.kubernetes import names
from resilient.kubernetes.downward import JOBSET_UID
from resilient.kubernetes.pod import (
    JOB_NAME_LABEL,
    JOBSET_NAME_LABEL,
    NAME_LABEL,
    PORT,
    Kind,
    failure_policy,
    template,
)
from resilient.kubernetes.submission import Submission

Json: TypeAlias = dict[str, Any]
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
TTL_S: Final = 7 * 86_400
_HOSTNAME: Final = "kubernetes.io/hostname"
_SET_JOB: Final = "node"
"""The one replicated Job of a JobSet; Trainer wants this name for it and for its container."""


def job(asked: Submission) -> list[object]:
    """A Job of one pod."""
    if asked.pods != 1:
        raise SettingsError(
            f"cannot write a Job for {asked.pods} pods: `job` is for one; ask for `indexed` or `jobset`, or leave "
            "--pods out"
        )
    names.label(asked.name, "the name", ending="-0")
    return [_job(asked, Kind())]


def indexed(asked: Submission) -> list[object]:
    """An Indexed Job of several pods, the Service that names them and the wall around them."""
    _several(asked, "indexed")
    names.label(asked.name, "the name", ending=f"-{asked.pods - 1}")
    peers = _selector(JOB_NAME_LABEL, asked.name)
    kind = Kind(apart=_apart(peers), master=f"{asked.name}-0.{asked.name}", subdomain=asked.name)
    return [_service(asked, peers), network_policy(asked, peers), _job(asked, kind)]


def jobset(asked: Submission) -> list[object]:
    """A JobSet of one Indexed Job, whose own controller makes the Service."""
    names.label(asked.name, "the name", ending=f"-{_SET_JOB}-0-{asked.pods - 1}")
    several = asked.pods > 1
    peers = _selector(JOBSET_NAME_LABEL, asked.name)
    kind = Kind(
        uid=JOBSET_UID,
        apart=_apart(peers) if several else None,
        master=f"{asked.name}-{_SET_JOB}-0-0.{asked.name}" if several else None,
    )
    spec: Json = {
        **_suspended(asked),
        "ttlSecondsAfterFinished": TTL_S,
        "network": {"enableDNSHostnames": True, "subdomain": asked.name, "publishNotReadyAddresses": True},
        **_set(asked, kind, replicas=1),
    }
    whole = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata(asked), "spec": spec}
    return [*([network_policy(asked, peers)] if several else ()), whole]


def runtime(asked: Submission, *, cluster: bool = False) -> list[object]:
    """A TrainingRuntime of Kubeflow Trainer, and a TrainJob that uses it."""
    names.label(asked.name, "the name", ending=f"-{_SET_JOB}-0-{asked.pods - 1}")
    several = asked.pods > 1
    peers = _selector(JOBSET_NAME_LABEL, asked.name)
    # One runtime serves many TrainJobs: pods keep away from those of their own only.
    term = _apart(_selector(NAME_LABEL, asked.name), same=[JOBSET_NAME_LABEL])
    kind = Kind(
        container=_SET_JOB,
        uid=JOBSET_UID,
        apart=term if several else None,
        tells_workers=False,
    )
    replicated = _set(asked, kind, ancestor=True)
    of_runtime = client.V1ObjectMeta(
        name=asked.name,
        namespace=None if cluster else asked.namespace,
        labels={"trainer.kubeflow.org/framework": "torch"},
    )
    name = "ClusterTrainingRuntime" if cluster else "TrainingRuntime"
    api = {"apiVersion": "trainer.kubeflow.org/v1alpha1"}
    policy: Json = {"numNodes": asked.pods, "torch": {}}
    whole = {
        **api,
        "kind": name,
        "metadata": of_runtime,
        "spec": {"mlPolicy": policy, "template": {"spec": replicated}},
    }
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": name, "name": asked.name}
    spec = {**_suspended(asked), "runtimeRef": reference, "trainer": {"numNodes": asked.pods}}
    training = {**api, "kind": "TrainJob", "metadata": metadata(asked), "spec": spec}
    return [*([network_policy(asked, peers)] if several else ()), whole, training]


KINDS: Final[Mapping[str, Callable[[Submission], list[object]]]] = {
    "job": job,
    "indexed": indexed,
    "jobset": jobset,
    "runtime": runtime,
    "cluster-runtime": lambda asked: runtime(asked, cluster=True),
}


def metadata(asked: Submission) -> client.V1ObjectMeta:
    """Name, place and queue of what is submitted."""
    labels = {QUEUE_LABEL: asked.queue} if asked.queue else None
    return client.V1ObjectMeta(name=asked.name, namespace=asked.namespace, labels=labels)


def _job(asked: Submission, kind: Kind) -> client.V1Job:
    spec = _job_spec(asked, kind)
    spec.ttl_seconds_after_finished = TTL_S
    spec.suspend = _suspended(asked).get("suspend")
    return client.V1Job(api_version="batch/v1", kind="Job", metadata=metadata(asked), spec=spec)


def _job_spec(asked: Submission, kind: Kind) -> client.V1JobSpec:
    return client.V1JobSpec(
        completion_mode="Indexed",
        completions=asked.pods,
        parallelism=asked.pods,
        backoff_limit_per_index=asked.plan.backstop,
        max_failed_indexes=0,
        pod_replacement_policy="Failed",
        pod_failure_policy=failure_policy(kind.container, restart_rules=asked.restart_rules),
        template=template(asked, kind),
    )


def _set(asked: Submission, kind: Kind, *, replicas: int | None = None, ancestor: bool = False) -> Json:
    """What a JobSet and a runtime have in common: one replicated Job, and what its failure means."""
    inner: Json = {"spec": _job_spec(asked, kind)}
    if ancestor:
        inner = {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}, **inner}
    replicated: Json = {"name": _SET_JOB, **({"replicas": replicas} if replicas else {}), "template": inner}
    return {"failurePolicy": set_policy(asked.plan), "replicatedJobs": [replicated]}


def set_policy(plan: Plan) -> Json:
    """What a JobSet does when its Job fails: it stops where that was stopped, and recreates it else, counted."""
    rule = {"name": "stop", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {"maxRestarts": plan.backstop, "restartStrategy": "BlockingRecreate", "rules": [rule]}


def _suspended(asked: Submission) -> Json:
    return {"suspend": True} if asked.queue else {}


def _several(asked: Submission, kind: str) -> None:
    if asked.pods < 2:
        raise SettingsError(f"cannot write `{kind}` for one pod: it is for several; give --pods, or ask for `job`")


def _selector(key: str, value: str) -> client.V1LabelSelector:
    return client.V1LabelSelector(match_labels={key: value})


def _apart(pods: client.V1LabelSelector, same: list[str] | None = None) -> client.V1PodAffinityTerm:
    return client.V1PodAffinityTerm(topology_key=_HOSTNAME, label_selector=pods, match_label_keys=same)


def _service(asked: Submission, peers: client.V1LabelSelector) -> client.V1Service:
    return client.V1Service(
        api_version="v1",
        kind="Service",
        metadata=client.V1ObjectMeta(name=asked.name, namespace=asked.namespace),
        spec=client.V1ServiceSpec(
            cluster_ip="None",
            publish_not_ready_addresses=True,
            selector=peers.match_labels,
            ports=[client.V1ServicePort(name="rendezvous", port=PORT, protocol="TCP")],
        ),
    )


def network_policy(asked: Submission, peers: client.V1LabelSelector) -> client.V1NetworkPolicy:
    """Nobody but the run's own pods may connect to them."""
    peer = client.V1NetworkPolicyPeer(pod_selector=peers)
    return client.V1NetworkPolicy(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        metadata=client.V1ObjectMeta(name=asked.name, namespace=asked.namespace),
        spec=client.V1NetworkPolicySpec(
            pod_selector=peers,
            policy_types=["Ingress"],
            # The client's name for the field `from`, which is a word of Python's.
            ingress=[client.V1NetworkPolicyIngressRule(_from=[peer])],
        ),
    )
