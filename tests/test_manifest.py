# SPDX-License-Identifier: Apache-2.0
"""Generated manifests: what the API server takes, what the contract promises for every code, what the pod is told."""

import functools
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models import (
    JobsetV1alpha2JobSet,
    TrainerV1alpha1ClusterTrainingRuntime,
    TrainerV1alpha1TrainingRuntime,
    TrainerV1alpha1TrainJob,
)
from kubernetes import client
from kubernetes_validate.utils import all_versions
from submissions import Json, applied, job_specs, judged, submission, trainer

from resilient import kubernetes
from resilient.core.exit_codes import ExitCode
from resilient.core.kube_pod_failure import Action
from resilient.errors import SettingsError
from resilient.kubernetes.manifest import objects, write
from resilient.settings import GRACE_S, from_environment, platform, resolve

VERSIONS = [version for version in dict.fromkeys(all_versions()) if tuple(map(int, version.split("."))) >= (1, 31)]
WITH_RULES = [version for version in VERSIONS if tuple(map(int, version.split("."))) >= (1, 34)]
PODS = {"job": 1, "indexed": 4, "jobset": 4, "runtime": 4, "cluster-runtime": 4}
MODELS: dict[str, Any] = {
    "JobSet": JobsetV1alpha2JobSet,
    "TrainingRuntime": TrainerV1alpha1TrainingRuntime,
    "ClusterTrainingRuntime": TrainerV1alpha1ClusterTrainingRuntime,
    "TrainJob": TrainerV1alpha1TrainJob,
}
CONTRACT = {
    ExitCode.CODE_FAULT: Action.FAIL_JOB,
    ExitCode.CONFIG_FAULT: Action.FAIL_JOB,
    ExitCode.BUDGET_SPENT: Action.FAIL_JOB,
    ExitCode.CANNOT_EXECUTE: Action.FAIL_JOB,
    ExitCode.NOT_FOUND: Action.FAIL_JOB,
    ExitCode.RESTART: None,
    ExitCode.RESCHEDULE: Action.IGNORE,
    ExitCode.PREEMPTED_SAVED: Action.IGNORE,
    ExitCode.PREEMPTED_UNSAVED: Action.IGNORE,
    ExitCode.PEER_FAILED: Action.IGNORE,
    ExitCode.NODE_REFUSED: Action.IGNORE,
    ExitCode.INTERNAL: Action.COUNT,
}
"""None: no rule matches, and the failure is counted."""
IN_PLACE = {ExitCode.RESTART, ExitCode.PEER_FAILED}
EVERYTHING: Json = {
    "namespace": "team-a",
    "cpu": "16",
    "state": "20Gi",
    "shm": "16Gi",
    "queue": "gpus",
    "env": {"MODE": "on", "PRICE": "$$5 $(HOME)"},
    "secrets": ("s3-login",),
    "secret_env": {"HF_TOKEN": ("hub", "token")},
}

kinds = pytest.mark.parametrize("kind", PODS)
both = pytest.mark.parametrize("restart_rules", [False, True])


@functools.cache
def found(kind: str, *, restart_rules: bool = False) -> list[Json]:
    """One manifest of each kind, with everything in it that can be asked for."""
    return applied(kind, pods=PODS[kind], restart_rules=restart_rules, **EVERYTHING)


def jobs(kind: str, *, restart_rules: bool) -> list[Json]:
    """The Job of each manifest, as a Job of its own where another controller makes it."""
    specs = job_specs(found(kind, restart_rules=restart_rules))
    return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, "spec": spec} for spec in specs]


@pytest.mark.parametrize("version", VERSIONS)
@kinds
def test_the_api_server_knows_every_field(kind: str, version: str) -> None:
    """All of Kubernetes' own objects, and the Jobs inside of others, pass its schemas without an unknown field."""
    own = [one for one in found(kind) if one["kind"] not in MODELS]
    for each in own + jobs(kind, restart_rules=False):
        assert kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("version", WITH_RULES)
@kinds
def test_restart_rules_are_known_from_where_they_exist(kind: str, version: str) -> None:
    """The variant passes from Kubernetes 1.34 on."""
    (job,) = jobs(kind, restart_rules=True)
    assert kubernetes_validate.validate(job, version, strict=True)


def test_restart_rules_are_not_for_older_clusters() -> None:
    """Before 1.34 they are an unknown field, which is why the head says what they need."""
    (job,) = jobs("job", restart_rules=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicyRules"):
        kubernetes_validate.validate(job, "1.33", strict=True)
    assert "For Kubernetes 1.35 (container restart rules) and newer." in write("job", submission(restart_rules=True))


@pytest.mark.parametrize("kind", ["job", "jobset", "runtime", "cluster-runtime"])
def test_what_is_restarted_in_place_finds_its_snapshot_again(kind: str) -> None:
    """In memory of the pod, which may take no more than the container, whose limit it counts against."""
    (spec,) = job_specs(applied(kind, restart_rules=True, **EVERYTHING))
    places = {mount["mountPath"]: mount["name"] for mount in trainer(spec)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    memory = trainer(spec)["resources"]["limits"]["memory"]
    emptied = {"medium": "Memory", "sizeLimit": memory}
    assert volumes[places["/var/lib/resilient-snapshots"]] == {"name": "snapshots", "emptyDir": emptied}


@pytest.mark.parametrize("kind", ["indexed", "jobset", "runtime"])
def test_of_several_pods_no_snapshot_outlives_its_container(kind: str) -> None:
    """So no memory is set aside for it, and nothing says that one does."""
    (spec,) = job_specs(found(kind, restart_rules=True))
    assert "snapshots" not in {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    text = write(kind, submission(pods=4, restart_rules=True))
    assert "RESILIENT_SNAPSHOTS" not in text
    assert "goes on from the snapshot" not in text


@both
@kinds
def test_models_of_others_lose_nothing(kind: str, restart_rules: bool) -> None:
    """JobSet, runtimes and TrainJob are taken by the models of kubeflow-trainer-api, which know every field."""
    for one in found(kind, restart_rules=restart_rules):
        if one["kind"] in MODELS:
            assert MODELS[one["kind"]].from_dict(one).to_dict() == one
    for job in jobs(kind, restart_rules=restart_rules):
        assert client.ApiClient().sanitize_for_serialization(client.V1Job.from_dict(job)) == job


@both
@kinds
def test_the_text_is_what_python_gives(kind: str, restart_rules: bool) -> None:
    """What kubectl reads of the commented text is the objects themselves."""
    asked = submission(pods=PODS[kind], restart_rules=restart_rules, **EVERYTHING)
    assert objects(kind, asked) == found(kind, restart_rules=restart_rules)


def test_the_table_names_every_code() -> None:
    """No exit code is without its row."""
    assert set(CONTRACT) == set(ExitCode) - {ExitCode.FINISHED}


@pytest.mark.parametrize("code", CONTRACT, ids=lambda code: code.name)
@both
@kinds
def test_every_code_gets_the_action_of_its_row(kind: str, restart_rules: bool, code: ExitCode) -> None:
    """Single pod and gang, a code that ends the pod; what the kubelet restarts in place never gets here."""
    (spec,) = job_specs(found(kind, restart_rules=restart_rules))
    rules = trainer(spec).get("restartPolicyRules", [])
    in_place = {ExitCode(value) for rule in rules for value in rule["exitCodes"]["values"]}
    assert in_place == (IN_PLACE if restart_rules else set())
    if code not in in_place:
        outcome = judged(spec, code)
        assert (outcome.action, outcome.counted) == (CONTRACT[code], CONTRACT[code] is not Action.IGNORE)


@pytest.mark.parametrize("code", [1, 2, 128, 134, 137, 139, 143])
@kinds
def test_codes_that_are_not_ours_are_counted(kind: str, code: int) -> None:
    """What says nothing is neither ignored without a bound nor fails the Job."""
    (spec,) = job_specs(found(kind))
    outcome = judged(spec, code)
    assert (outcome.action, outcome.counted) == (None, True)


@pytest.mark.parametrize("code", [*CONTRACT, 1, 137])
@both
@kinds
def test_a_disruption_is_ignored_but_for_stops_and_lost_bookkeeping(kind: str, restart_rules: bool, code: int) -> None:
    """A preempted pod costs nothing, unless its code would come again or could not be put on record."""
    (spec,) = job_specs(found(kind, restart_rules=restart_rules))
    always = {ExitCode.CODE_FAULT, ExitCode.CONFIG_FAULT, ExitCode.BUDGET_SPENT, ExitCode.INTERNAL}
    expected = CONTRACT[ExitCode(code)] if code in always else Action.IGNORE
    assert judged(spec, code, disrupted=True).action == expected


@pytest.mark.parametrize("sidecar", [114, 126, 137, 143, 194, 199])
@kinds
def test_the_end_of_a_sidecar_decides_nothing(kind: str, sidecar: int) -> None:
    """An injected container's code is not taken for the trainer's."""
    (spec,) = job_specs(found(kind))
    for code in (1, ExitCode.CODE_FAULT, ExitCode.RESCHEDULE):
        assert judged(spec, code, sidecar=sidecar) == judged(spec, code)


@both
@kinds
def test_what_the_api_server_demands_and_no_schema_says(kind: str, restart_rules: bool) -> None:
    """Of a policy, of counters for each index, and of restart rules."""
    (spec,) = job_specs(found(kind, restart_rules=restart_rules))
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert (spec["completionMode"], spec["podReplacementPolicy"], spec["maxFailedIndexes"]) == ("Indexed", "Failed", 0)
    assert spec["completions"] == spec["parallelism"] == PODS[kind]
    assert "backoffLimit" not in spec
    for rule in spec["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        wanted = rule.get("onExitCodes", {"containerName": trainer(spec)["name"], "operator": "In", "values": [1]})
        assert (wanted["containerName"], wanted["operator"]) == (trainer(spec)["name"], "In")
        assert wanted["values"] == sorted({*wanted["values"]} - {0})
        assert all(condition["status"] == "True" for condition in rule.get("onPodConditions", ()))
    assert ("restartPolicy" in trainer(spec)) is restart_rules


@both
@kinds
def test_the_supervisor_learns_what_it_must_know(kind: str, restart_rules: bool) -> None:
    """Its own readers take what the manifest sets, and find all of it; a set's uid where there is a set.

    Which pod it is it must know where that lives longer than its container.
    """
    (spec,) = job_specs(found(kind, restart_rules=restart_rules))
    keeps_snapshots = restart_rules and PODS[kind] == 1
    env = {entry["name"]: entry for entry in trainer(spec)["env"]}
    values = {name: entry["value"] for name, entry in env.items() if "value" in entry}
    assert values[GRACE_S] == str(spec["template"]["spec"]["terminationGracePeriodSeconds"])
    read = resolve([from_environment(values)]).settings
    assert (read.checkpoints, read.journal, read.grace) == ("/checkpoints/train", "/var/lib/resilient", 120)
    filled = {name: "7" for name in env if name.startswith("RESILIENT_") and name not in values}
    told = platform(filled)
    untold = {name for name in told.__dataclass_fields__ if getattr(told, name) is None}
    assert untold == (set() if keeps_snapshots else {"pod_uid"}), "nobody asks the API server for anything"
    assert read.snapshots == ("/var/lib/resilient-snapshots" if keeps_snapshots else None)
    uid = env["RESILIENT_SUBMISSION"]["valueFrom"]["fieldRef"]["fieldPath"]
    own = kind in ("job", "indexed")
    assert (
        uid == f"metadata.labels['{'batch.kubernetes.io/controller-uid' if own else 'jobset.sigs.k8s.io/jobset-uid'}']"
    )


@kinds
def test_it_needs_no_privilege(kind: str) -> None:
    """The pod passes the restricted profile, has no token, and can write where the supervisor writes."""
    (spec,) = job_specs(found(kind))
    pod, container = spec["template"]["spec"], trainer(spec)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {"/checkpoints", "/var/lib/resilient", "/dev/shm", "/tmp"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == {*mounts.values()}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    tolerated = {entry["key"]: entry["tolerationSeconds"] for entry in pod["tolerations"]}
    assert tolerated == {"node.kubernetes.io/unreachable": 60, "node.kubernetes.io/not-ready": 60}


@kinds
def test_the_supervisor_owns_the_exit_code(kind: str) -> None:
    """The command is resilient itself, with no shell before it, and the words arrive as they were typed."""
    (spec,) = job_specs(found(kind))
    container = trainer(spec)
    assert container["command"] == ["resilient", "run"]
    assert container["args"][-3:] == ["train.py", "--steps", "100"]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("kind", ["indexed", "jobset", "runtime"])
def test_several_pods_find_each_other_and_nobody_else_them(kind: str) -> None:
    """One pod a node, one name each, and a wall."""
    selector = {"batch.kubernetes.io/job-name" if kind == "indexed" else "jobset.sigs.k8s.io/jobset-name": "train"}
    policy = next(one for one in found(kind) if one["kind"] == "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {"matchLabels": selector}
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]
    (spec,) = job_specs(found(kind))
    affinity = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] in (selector, {"app.kubernetes.io/name": "train"})


def test_each_pod_of_an_indexed_job_has_a_name() -> None:
    """The headless Service has the subdomain's name, and pod 0 is where the others meet."""
    service = next(one for one in found("indexed") if one["kind"] == "Service")
    (spec,) = job_specs(found("indexed"))
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": "train"}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"] == "train"
    words = trainer(spec)["args"]
    flags = dict(zip(words[0:8:2], words[1:8:2], strict=True))
    assert flags == {
        "--nnodes": "4",
        "--node-rank": "$(RESILIENT_INDEX)",
        "--master-addr": "train-0.train",
        "--master-port": "29500",
    }


@pytest.mark.parametrize("kind", PODS)
def test_a_queue_holds_it_back(kind: str) -> None:
    """Kueue finds its label on what is submitted, which starts suspended."""
    (queued,) = [one for one in found(kind) if "kueue.x-k8s.io/queue-name" in one["metadata"].get("labels", {})]
    assert queued["kind"] == ("TrainJob" if kind.endswith("runtime") else found(kind)[-1]["kind"])
    assert queued["spec"]["suspend"] is True


def test_a_set_stops_where_its_job_was_told_to_stop_only() -> None:
    """The failure of a Job by its policy fails the set; all others recreate it, up to the backstop."""
    for kind in ("jobset", "runtime"):
        spec = next(one for one in found(kind) if one["kind"] in MODELS)["spec"]
        policy = (spec if kind == "jobset" else spec["template"]["spec"])["failurePolicy"]
        assert policy["rules"] == [
            {"name": "stop", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        ]
        assert (policy["maxRestarts"], policy["restartStrategy"]) == (20, "BlockingRecreate")


def test_kinds_are_for_their_number_of_pods() -> None:
    """One pod is no gang, several are not one Job of one."""
    with pytest.raises(SettingsError, match=r"cannot write a Job for 4 pods: .*`indexed`"):
        objects("job", submission(pods=4))
    with pytest.raises(SettingsError, match=r"cannot write `indexed` for one pod: .*`job`"):
        objects("indexed", submission())
    with pytest.raises(SettingsError, match=r"no such kind; choose from job, indexed"):
        objects("deployment", submission())


def test_the_public_names_are_these() -> None:
    """The same from Python as on the command line, each name the thing of that name."""
    assert kubernetes.__all__ == ["Addition", "Submission", "add_contract", "objects", "write"]
    assert all(getattr(kubernetes, name).__name__ == name for name in kubernetes.__all__)
    assert kubernetes.write("job", submission()) == write("job", submission())
    with pytest.raises(AttributeError, match="no attribute 'apply'; it has Addition"):
        _ = kubernetes.apply  # type: ignore[attr-defined]  # its absence is the test
