# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --from`` for what holds a Job: a List of kubectl's, a JobSet, a runtime with other steps."""

import json
from typing import Any

import pytest
import yaml
from test_manifest_from import HAND_MADE, OTHERS, added

from resilient.errors import SettingsError
from resilient.kubernetes.lint_subject import STEP_LABEL


def test_what_a_list_of_kubectl_holds_is_completed() -> None:
    """As `kubectl get -o yaml` writes it; the rest of the list stays as it is."""
    job = yaml.safe_load(HAND_MADE)
    found = added(json.dumps({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(OTHERS), job]}))
    other, completed = json.loads(found)["items"]
    assert (other["kind"], completed) == ("ConfigMap", yaml.safe_load(added(HAND_MADE)))


JOBSET = """\
kind: JobSet
spec:
  failurePolicy: {policy}
  replicatedJobs:
  - name: w
    template: {{spec: {{template: {{spec: {{containers: [{{name: c, command: [train]}}]}}}}}}}}
"""
STOP = {"name": "stop", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("null", {"maxRestarts": 20, "restartStrategy": "BlockingRecreate", "rules": [STOP]}),
        ("{maxRestarts: 3}", {"maxRestarts": 3, "rules": [STOP]}),
        ("{maxRestarts: 3, rules: [{action: FailJobSet}]}", {"maxRestarts": 3, "rules": [{"action": "FailJobSet"}]}),
    ],
)
def test_a_jobset_is_told_what_a_failure_means(policy: str, expected: Any) -> None:
    """What it says itself, and agrees, is kept."""
    (found,) = yaml.safe_load_all(added(JOBSET.format(policy=policy)))
    assert found["spec"]["failurePolicy"] == expected


def test_of_a_runtime_the_step_that_trains_is_completed() -> None:
    """What fetches the model or the data is left alone."""
    steps = [
        {"name": name, "template": {"metadata": {"labels": {STEP_LABEL: step}}, "spec": {"template": {"spec": pod}}}}
        for name, step, pod in (
            ("dataset-initializer", "dataset-initializer", {"containers": [{"name": "d"}]}),
            ("node", "trainer", {"containers": [{"name": "node", "command": ["train"]}]}),
        )
    ]
    runtime = {"kind": "TrainingRuntime", "spec": {"template": {"spec": {"replicatedJobs": steps}}}}
    fetching, training = json.loads(added(json.dumps(runtime)))["spec"]["template"]["spec"]["replicatedJobs"]
    assert fetching == steps[0]
    assert training["template"]["spec"]["template"]["spec"]["containers"][0]["command"][:2] == ["resilient", "run"]


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (
            "[{action: RestartJobSet}]",
            "answers PodFailurePolicy, a fault of the code, with RestartJobSet; let its first",
        ),
        (
            "[{action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}, {action: RestartJobAndIgnoreMaxRestarts}]",
            "answers BackoffLimitExceeded with RestartJobAndIgnoreMaxRestarts, without a limit; write RestartJobSet",
        ),
    ],
)
def test_a_jobset_that_contradicts_is_refused(rules: str, why: str) -> None:
    """It may be a wish."""
    with pytest.raises(SettingsError, match=why):
        added(JOBSET.format(policy=f"{{maxRestarts: 3, rules: {rules}}}"))
