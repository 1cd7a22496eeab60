# SPDX-License-Identifier: Apache-2.0
"""What the simulator reads from manifests: defaults, JobSets, TrainJobs, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.kube_job import UNLIMITED, JobSpec
from resilient.core.kube_jobset import JobSetSpec, SetAction
from resilient.core.kube_pod_failure import PodCondition
from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending
from resilient.errors import SettingsError
from resilient.kubernetes.documents import read
from resilient.kubernetes.endings import check_endings, parse_ending
from resilient.kubernetes.simulated import Workload, find_workload

POD = """
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      initContainers:
      - {name: mesh, restartPolicy: Always}
      containers:
      - {name: trainer}
"""
JOB = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: train, namespace: ml}\nspec:" + POD
CHILD = POD.replace("\n", "\n      ")
JOBSET = f"""
kind: JobSet
metadata: {{name: js}}
spec:
  failurePolicy:
    maxRestarts: 3
    restartStrategy: BlockingRecreate
    rules:
    - name: stop
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: ["code 11[4-6]"]
  replicatedJobs:
  - name: node
    replicas: 2
    dependsOn: [{{name: data, status: Complete}}]
    template:
      metadata: {{labels: {{trainer.kubeflow.org/trainjob-ancestor-step: trainer}}}}
      spec:
        completions: 4
        parallelism: 4{CHILD}
"""
INDENTED = "\n    " + JOBSET[JOBSET.index("spec:") :].replace("\n", "\n    ")
RUNTIME = f"""
kind: ClusterTrainingRuntime
metadata: {{name: torch}}
spec:
  mlPolicy: {{numNodes: 3}}
  template:{INDENTED}
"""
TRAIN_JOB = """
kind: TrainJob
metadata: {name: gpt}
spec: {runtimeRef: {name: torch}, trainer: {numNodes: 5}}
"""


def workload(*texts: str, name: str = "") -> Workload:
    return find_workload(read("\n---\n".join(texts), "job.yaml"), name)


def job(text: str) -> JobSpec:
    spec = workload(text).spec
    assert isinstance(spec, JobSpec)
    return spec


def jobset(*texts: str) -> JobSetSpec:
    spec = workload(*texts).spec
    assert isinstance(spec, JobSetSpec)
    return spec


def test_a_job_has_the_defaults_of_the_api_server() -> None:
    """One pod, six failures, TerminatingOrFailed."""
    spec = job(JOB)
    assert (spec.name, spec.namespace, spec.completions, spec.parallelism, spec.backoff_limit) == (
        "train",
        "ml",
        1,
        1,
        6,
    )
    assert (spec.is_indexed, spec.policy, spec.only_failed_replaced, spec.suspended) == (False, None, False, False)
    assert (spec.template.grace_s, spec.template.main.name) == (120, "trainer")
    assert [container.is_sidecar for container in spec.template.containers] == [True, False]


@pytest.mark.parametrize(
    ("fields", "completions", "parallelism", "limit"),
    [
        ("parallelism: 4", None, 4, 6),
        ("completions: 4", 4, 1, 6),
        ("completionMode: Indexed\n  completions: 4\n  backoffLimitPerIndex: 2", 4, 1, UNLIMITED),
        ("completionMode: Indexed\n  completions: 4\n  backoffLimitPerIndex: 2\n  backoffLimit: 9", 4, 1, 9),
        ("backoffLimit: 0", 1, 1, 0),
        ("parallelism: null", 1, 1, 6),
    ],
)
def test_what_is_given_changes_other_defaults(
    fields: str, completions: int | None, parallelism: int, limit: int
) -> None:
    """A work queue has no completions; a limit for each index leaves the Job's own without bound."""
    spec = job(JOB.replace("spec:\n", f"spec:\n  {fields}\n", 1))
    assert (spec.completions, spec.parallelism, spec.backoff_limit) == (completions, parallelism, limit)


def test_a_policy_is_read_whole() -> None:
    """A status that is left out is True, a container that is left out any; a policy replaces failed pods only."""
    spec = job(
        JOB
        + """
  successPolicy: {rules: [{succeededIndexes: "0,2-3"}, {succeededCount: 1}]}
  completionMode: Indexed
  completions: 3
  podFailurePolicy:
    rules:
    - {action: FailJob, onExitCodes: {containerName: trainer, operator: In, values: [114, 115]}}
    - {action: Ignore, onPodConditions: [{type: DisruptionTarget}, {type: X, status: "False"}]}
    - {action: Count, onExitCodes: {operator: NotIn, values: [0]}}
"""
    )
    assert spec.policy is not None
    first, second, third = spec.policy
    assert first.on_exit_codes is not None
    assert (first.action, first.on_exit_codes.container_name) == ("FailJob", "trainer")
    assert set(first.on_exit_codes.values) == {114, 115}
    assert second.on_exit_codes is None
    assert second.on_pod_conditions == (PodCondition(type="DisruptionTarget"), PodCondition(type="X", status="False"))
    assert third.on_exit_codes is not None
    assert third.on_exit_codes.container_name is None
    assert spec.only_failed_replaced
    assert spec.success is not None
    assert [(rule.indexes, rule.count) for rule in spec.success] == [(frozenset({0, 2}), None), (None, 1)]


def test_the_job_of_a_cron_job_is_simulated() -> None:
    """Once."""
    text = "kind: CronJob\nmetadata: {name: nightly}\nspec:\n  jobTemplate:\n    spec:" + POD.replace("\n", "\n    ")
    assert job(text).name == "nightly"


def test_a_jobset_has_the_defaults_of_its_webhook() -> None:
    """Child Jobs are Indexed."""
    spec = jobset(JOBSET)
    [node] = spec.replicated
    assert (node.replicas, node.needs, node.job.is_indexed, node.job.completions) == (
        2,
        (("data", "Complete"),),
        True,
        4,
    )
    assert node.names("js") == ["js-node-0", "js-node-1"]
    assert spec.failure is not None
    assert (spec.failure.max_restarts, spec.failure.waits_for_all) == (3, True)
    [rule] = spec.failure.rules
    assert (rule.action, rule.reasons) == (SetAction.FAIL, frozenset({"PodFailurePolicy"}))
    assert rule.messages[0].search("exit code 115 matching")


def test_a_jobset_tells_its_order_and_who_manages_it() -> None:
    """JobSet's own controller, or Trainer's, named or not, is nobody else."""
    assert (jobset(JOBSET).in_order, jobset(JOBSET).left_to) == (False, None)
    spec = "spec:\n  startupPolicy: {startupPolicyOrder: InOrder}\n  managedBy: "
    given = jobset(JOBSET.replace("spec:", f"{spec}example.com/mine", 1))
    assert (given.in_order, given.left_to) == (True, "example.com/mine")
    assert jobset(JOBSET.replace("spec:", f"{spec}jobset.sigs.k8s.io/jobset-controller", 1)).left_to is None
    managed = TRAIN_JOB.replace("spec: {", "spec: {managedBy: kueue.x-k8s.io/multikueue, ")
    assert jobset(managed, RUNTIME).left_to == "kueue.x-k8s.io/multikueue"
    assert jobset(managed.replace("kueue.x-k8s.io/multikueue", "trainer.kubeflow.org/trainjob-controller"), RUNTIME)


@pytest.mark.parametrize(("texts", "name", "nodes"), [([RUNTIME], "torch", 3), ([TRAIN_JOB, RUNTIME], "gpt", 5)])
def test_a_train_job_is_the_jobset_of_its_runtime(texts: Sequence[str], name: str, nodes: int) -> None:
    """With as many nodes as it says, else as its runtime does; a runtime alone is shown as it would be used."""
    spec = jobset(*texts)
    assert (spec.name, spec.replicated[0].job.completions, spec.replicated[0].job.parallelism) == (name, nodes, nodes)


def test_other_objects_are_passed_over() -> None:
    """A Service, an empty document; of two workloads one must be chosen."""
    service = "kind: Service\nmetadata: {name: train}"
    assert workload(service, "# nothing", JOB).kind == "Job"
    assert workload(JOB, JOBSET, name="JobSet/js").kind == "JobSet"
    assert workload(JOB, JOBSET, name="train").kind == "Job"
    with pytest.raises(SettingsError, match="2 workloads are meant; choose one by --name from Job/train, JobSet/js"):
        workload(JOB, JOBSET)
    with pytest.raises(SettingsError, match="0 workloads are meant"):
        workload(JOB, name="other")
    with pytest.raises(SettingsError, match="there is no Job, CronJob, JobSet"):
        workload(service)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (JOB + "  backoffLimit: six\n", r"job.yaml:13: spec.backoffLimit is no whole number"),
        (JOB + "  completions: 3000000000\n", r"spec.completions must lie between 0 and 2147483647"),
        (JOB + "  completions: 100000\n  completionMode: Indexed\n", r"ask for more than 5000 pods"),
        (JOB + "  parallelism: 2\n  completionMode: Indexed\n", r"spec.completions is missing, and an Indexed Job"),
        (JOB + "  suspend: 'no'\n", r"spec.suspend is not true or false"),
        (JOB + "  podFailurePolicy: []\n", r"spec.podFailurePolicy is no object"),
        (JOB + "  podFailurePolicy: {rules: {}}\n", r"spec.podFailurePolicy.rules is no list"),
        (JOB.replace("      - {name: trainer}", "        []"), r"spec.template.spec.containers is empty"),
        (JOB.replace("Never", "Always"), r"job.yaml:7: .*restartPolicy is neither Never nor OnFailure"),
        (JOBSET.replace("FailJobSet", "Explode"), r"rules\[0\].action is no action of JobSet; take one of FailJobSet"),
        (JOBSET.replace("11[4-6]", "(a+)+$"), r"repeats a group, which can take for ever here"),
        (JOBSET.replace("11[4-6]", "11[4-6"), r"is no pattern that can be read"),
        (JOBSET.replace("BlockingRecreate", "InPlaceRestart"), r"restartStrategy is not simulated"),
        (JOBSET.replace("replicas: 2", "replicas: 2000"), r"replicatedJobs ask for more than 5000 pods"),
        (TRAIN_JOB, r"runtimeRef names the ClusterTrainingRuntime torch, which is not among the files"),
        ("kind: JobSet\nspec: {}", r"spec.replicatedJobs is empty"),
        ("[1, 2]", r"cannot simulate job.yaml:1: the document is no object"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, message: str) -> None:
    """File, line and field."""
    with pytest.raises(SettingsError, match=message):
        workload(text)


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ("0=194@1h", {"index": 0, "codes": {"": 194}, "at": 3600}),
        ("*=0@90", {"index": None, "codes": {"": 0}, "at": 90}),
        (
            "node-0/12=mesh:143@1.5,trainer:1",
            {"index": 12, "codes": {"mesh": 143, "trainer": 1}, "at": 1.5, "job": "node-0"},
        ),
        (
            "1=195@2min,DisruptionTarget,example.com/Bad=False,deleted@1min30s",
            {
                "index": 1,
                "codes": {"": 195},
                "at": 120,
                "deleted": 90,
                "conditions": ["DisruptionTarget=True", "example.com/Bad=False"],
            },
        ),
    ],
)
def test_an_ending_is_read(words: str, data: dict[str, object]) -> None:
    """Times with units, or bare seconds."""
    ending = parse_ending(words)
    shown = [f"{condition.type}={condition.status}" for condition in ending.conditions]
    assert (ending.index, dict(ending.codes), ending.at_s) == (data["index"], data["codes"], data["at"])
    assert (ending.job, ending.deleted_s, shown) == (
        data.get("job", ""),
        data.get("deleted"),
        data.get("conditions", []),
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        *((words, r".*; write for example 0=194@1h") for words in ("", "0=1", "x=1@5s", "0=1@", "0=1@5s,")),
        ("0=1@5s,a b", "'a b' is no NAME:CODE, condition or deleted@TIME; write for example 0=194@1h"),
        ("0=1@soon", "it is not a duration; write for example 30s, 5min or 1h30m$"),
        ("0=1@-5s", "it is not between 1ms and 3650d"),
        ("0=0@99999999999999d", "it is not between 1ms and 3650d; choose a time between them$"),
        ("0=0@99999999999", "a time is out of reach; give less than 1000000000 seconds$"),
        ("0=0@1h,deleted@9999999d", "it is not between 1ms and 3650d"),
        ("0=256@5s", "no exit code is above 255, and 256 is; write for example 0=194@1h"),
        ("0=99999999999@5s", "no exit code is above 255, and 99999999999 is"),
    ],
)
def test_an_ending_that_is_none_is_refused(words: str, why: str) -> None:
    """With what is wrong, and one thing to do."""
    with pytest.raises(SettingsError, match=rf"cannot read the ending .*: {why}"):
        parse_ending(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data-0/0=1@5s", "cannot end a pod of data-0: js has no such Job; take one of js-node-0, js-node-1, node"),
        ("4=1@5s", "cannot end index 4: there are 4; the first is 0"),
        ("99999999999=1@5s", "cannot end index 99999999999: there are 4"),
        ("0=nobody:1@5s", "cannot end container nobody: the pods have mesh, trainer"),
    ],
)
def test_an_ending_of_what_is_not_there_is_refused(words: str, message: str) -> None:
    """Job, index, container."""
    with pytest.raises(SettingsError, match=message):
        check_endings([parse_ending(words)], workload(JOBSET))


def test_what_would_take_too_long_is_refused() -> None:
    """Many pods that end at many moments."""
    wide = workload(JOB + "  completionMode: Indexed\n  completions: 4000\n  parallelism: 4000\n")
    check_endings([parse_ending("*=0@2d")], wide)
    with pytest.raises(SettingsError, match="cannot simulate 4000 pods that end at 600 moments"):
        check_endings([parse_ending(f"0=1@{moment}") for moment in range(600)], wide)


def test_json_is_as_good_as_yaml() -> None:
    """kubectl prints both."""
    data = {"kind": "Job", "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "t"}]}}}}
    assert job(json.dumps(data)).template.main.name == "t"


def parts(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in plain data, as what holds it and its key there."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from parts(data[key])


ODD_VALUES: Sequence[Any] = (None, True, -1, 0, 2**40, 1.5, "", "x", "In", "(", [], {}, [None], {"a": []}, [[1]])


@given(st.sampled_from([JOB, JOBSET, RUNTIME + "---" + TRAIN_JOB]), st.integers(0, 10**6), st.sampled_from(ODD_VALUES))
def test_whatever_stands_in_a_manifest_it_is_read_or_refused(text: str, pick: int, odd: Any) -> None:
    """Any value in any place: nothing but an error of ours comes out."""
    documents = [document.data for document in read(text, "job.yaml")]
    places = [place for data in documents for place in parts(data)]
    holder, key = places[pick % len(places)]
    holder[key] = odd
    changed = [document for data in documents for document in read(json.dumps(data), "job.yaml")]
    with suppress(SettingsError):
        found = find_workload(changed, "")
        simulate(found.spec, [Ending(at_s=1, codes={"": 1})])
