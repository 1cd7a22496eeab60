# SPDX-License-Identifier: Apache-2.0
"""``examples/kubernetes/job.yaml`` does with every exit code what the contract promises."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from policy import COUNTED, Outcome, evaluate, pod_status

from resilient.core.exit_codes import ExitCode

JOB = yaml.safe_load((Path(__file__).parents[1] / "examples/kubernetes/job.yaml").read_text())
SPEC: dict[str, Any] = JOB["spec"]
POLICY: dict[str, Any] = SPEC["podFailurePolicy"]
POD: dict[str, Any] = SPEC["template"]["spec"]
TRAINER: dict[str, Any] = POD["containers"][0]
ENV: dict[str, Any] = {entry["name"]: entry for entry in TRAINER["env"]}

CONTRACT = {
    ExitCode.CODE_FAULT: "FailJob",
    ExitCode.CONFIG_FAULT: "FailJob",
    ExitCode.BUDGET_SPENT: "FailJob",
    ExitCode.CANNOT_EXECUTE: "FailJob",
    ExitCode.NOT_FOUND: "FailJob",
    ExitCode.RESTART: "Count",
    ExitCode.RESCHEDULE: "Ignore",
    ExitCode.PREEMPTED_SAVED: "Ignore",
    ExitCode.PREEMPTED_UNSAVED: "Ignore",
    ExitCode.PEER_FAILED: "Ignore",
    ExitCode.NODE_REFUSED: "Ignore",
    ExitCode.INTERNAL: "Count",
}
UNCLASSIFIED = (1, 2, 128, 134, 137, 139, 143)
STOPS_OR_COUNTS_ALWAYS = {ExitCode.CODE_FAULT, ExitCode.CONFIG_FAULT, ExitCode.BUDGET_SPENT, ExitCode.INTERNAL}


def action(code: int, **more: Any) -> str:
    """What the Job does when the trainer ends with this code."""
    return evaluate(POLICY, pod_status(code, container="trainer", **more)).action


def test_the_table_names_every_code() -> None:
    """No exit code is without its row."""
    assert set(CONTRACT) == set(ExitCode) - {ExitCode.FINISHED}


@pytest.mark.parametrize("code", CONTRACT, ids=lambda code: code.name)
def test_each_code_of_the_contract(code: ExitCode) -> None:
    """Every code gets the action of its row."""
    assert action(code) == CONTRACT[code]


@pytest.mark.parametrize("code", UNCLASSIFIED)
def test_codes_that_are_not_ours_are_counted(code: int) -> None:
    """A code that says nothing is neither ignored without a bound nor takes the Job down."""
    assert evaluate(POLICY, pod_status(code, container="trainer")) == COUNTED


@pytest.mark.parametrize("code", [*CONTRACT, *UNCLASSIFIED])
def test_a_disruption_is_ignored_but_for_stops_and_lost_bookkeeping(code: int) -> None:
    """A preempted pod costs nothing, unless its code would come again or could not be put on record."""
    expected = CONTRACT[ExitCode(code)] if code in STOPS_OR_COUNTS_ALWAYS else "Ignore"
    assert action(code, conditions=["DisruptionTarget"]) == expected


def test_other_conditions_change_nothing() -> None:
    """Only a true DisruptionTarget is a disruption."""
    status = {**pod_status(1, container="trainer"), "conditions": [{"type": "DisruptionTarget", "status": "False"}]}
    assert evaluate(POLICY, status) == COUNTED
    assert action(1, conditions=["Ready", "ContainersReady"]) == "Count"


@pytest.mark.parametrize("sidecar_code", [114, 126, 137, 143, 194, 199])
@pytest.mark.parametrize("code", [1, 137, ExitCode.CODE_FAULT, ExitCode.RESCHEDULE])
def test_the_end_of_a_sidecar_decides_nothing(code: int, sidecar_code: int) -> None:
    """An injected container's code is not taken for the trainer's."""
    assert action(code, sidecars={"mesh": sidecar_code}) == action(code)


def test_a_pod_that_never_ran_is_counted() -> None:
    """A pod without any container status, as after an admission error, is bounded."""
    assert evaluate(POLICY, {"phase": "Failed"}) == COUNTED


def test_the_evaluation_takes_the_first_rule_that_matches() -> None:
    """Rules are tried in order, and NotIn means a non-zero code outside the list."""
    first = {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1]}}
    second = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    codes = {code: evaluate({"rules": [first, second]}, pod_status(code, container="x")) for code in (0, 1, 2)}
    assert codes == {0: COUNTED, 1: Outcome(action="FailJob", rule=1), 2: Outcome(action="Ignore", rule=0)}


def test_it_is_a_job_of_the_kubernetes_api() -> None:
    """The API's own model knows every field, and loses none."""
    job = client.V1Job.from_dict(JOB)
    assert client.ApiClient().sanitize_for_serialization(job) == JOB


def test_the_api_server_will_accept_the_policy() -> None:
    """What the API server demands of a policy and no model checks."""
    assert POD["restartPolicy"] == "Never"
    assert SPEC["podReplacementPolicy"] == "Failed"
    assert len(POLICY["rules"]) <= 20
    for rule in POLICY["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        codes = rule.get("onExitCodes", {"containerName": TRAINER["name"], "operator": "In", "values": [1]})
        assert codes["containerName"] == TRAINER["name"]
        assert codes["operator"] == "In"
        assert codes["values"] == sorted(set(codes["values"]))
        assert 0 not in codes["values"]
        assert all(condition["status"] == "True" for condition in rule.get("onPodConditions", ()))


def test_the_counters_exist() -> None:
    """Without Indexed and a limit for each index there are no counters, and one that fails fails all."""
    assert SPEC["completionMode"] == "Indexed"
    assert (SPEC["completions"], SPEC["parallelism"], SPEC["maxFailedIndexes"]) == (1, 1, 0)
    assert SPEC["backoffLimitPerIndex"] >= 20
    assert "backoffLimit" not in SPEC


def test_the_supervisor_learns_what_it_must_know() -> None:
    """Submission, index, counters and place come through the downward API, the grace period by hand."""
    annotation = "metadata.annotations['batch.kubernetes.io/{}']".format
    fields = {name: entry["valueFrom"]["fieldRef"]["fieldPath"] for name, entry in ENV.items() if "valueFrom" in entry}
    assert fields == {
        "RESILIENT_SUBMISSION": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "RESILIENT_INDEX": annotation("job-completion-index"),
        "RESILIENT_FAILURE_COUNT": annotation("job-index-failure-count"),
        "RESILIENT_IGNORED_COUNT": annotation("job-index-ignored-failure-count"),
        "RESILIENT_NODE": "spec.nodeName",
        "RESILIENT_POD": "metadata.name",
        "RESILIENT_NAMESPACE": "metadata.namespace",
    }
    assert ENV["RESILIENT_GRACE_S"]["value"] == str(POD["terminationGracePeriodSeconds"])


def test_the_supervisor_owns_the_exit_code() -> None:
    """The command is resilient itself, with no shell before it."""
    assert TRAINER["command"][:2] == ["resilient", "run"]


def test_it_needs_no_privilege() -> None:
    """The pod passes the restricted profile, has no token, and can write where the supervisor writes."""
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert TRAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"] for mount in TRAINER["volumeMounts"]}
    arguments = TRAINER["args"]
    assert {"/tmp", "/dev/shm", arguments[arguments.index("--journal") + 1]} <= mounts


def test_a_dead_node_is_given_up_after_a_minute() -> None:
    """The two taints of a lost node are tolerated for 60 s, not for the default of 300 s."""
    tolerated = {entry["key"]: entry["tolerationSeconds"] for entry in POD["tolerations"]}
    assert tolerated == {"node.kubernetes.io/unreachable": 60, "node.kubernetes.io/not-ready": 60}
