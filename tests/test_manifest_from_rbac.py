# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --from --rbac``: an account, and the least permissions, for a manifest that somebody has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from resilient import cli
from resilient.errors import SettingsError
from resilient.kubernetes import documents, lint
from resilient.kubernetes.adding import add_contract
from resilient.kubernetes.completing import Addition

JOB = """\
# mine
apiVersion: batch/v1
kind: Job
metadata: {name: llm, namespace: ml}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: "x:1", command: [python, train.py], resources: {limits: {memory: 8Gi}}}
"""
ACCOUNT = "restartPolicy: Never\n      serviceAccountName: team"


def granted(text: str, namespace: str | None = None) -> tuple[list[dict[str, Any]], str, tuple[str, ...]]:
    """The objects, the text, and what is said of it."""
    asked = Addition(checkpoints="s3://bucket/run", permissions=True, namespace=namespace)
    new, notes = add_contract(documents.read(text, "job.yaml"), asked)
    return [one.data for one in documents.read(new, "job.yaml") if one.data is not None], new, notes


def kinds(objects: list[dict[str, Any]]) -> list[str]:
    return [f"{one['kind']} {one['metadata']['name']}" for one in objects]


def test_a_job_gets_an_account_of_its_own() -> None:
    """What the pods need comes before them, and the manifest's own lines stay; its check has nothing to say."""
    objects, text, _ = granted(JOB)
    assert kinds(objects) == [
        "ServiceAccount llm",
        "Role llm-resilient",
        "RoleBinding llm-resilient",
        "ValidatingAdmissionPolicy llm-resilient-own-pod.ml",
        "ValidatingAdmissionPolicyBinding llm-resilient-own-pod.ml",
        "Job llm",
    ]
    assert "---\n# mine\napiVersion: batch/v1\n" in text
    for one in objects:
        kubernetes_validate.validate(one, "1.36", strict=True)
    assert lint.check(documents.read(text, "job.yaml")) == []
    pod = objects[-1]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("llm", True)
    env = {
        one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"]
        for one in pod["containers"][0]["env"]
    }
    assert (env["RESILIENT_POD_API"], env["RESILIENT_POD_UID"]) == ("write", "metadata.uid")


def test_a_second_time_changes_nothing() -> None:
    """The account is named by then, and what it needs is there."""
    _, text, _ = granted(JOB)
    assert granted(text)[1] == text


def test_an_account_that_is_named_stays() -> None:
    """It is its owner's: a Role is bound to it under another name, so that none of theirs is overwritten."""
    objects, _, _ = granted(JOB.replace("restartPolicy: Never", ACCOUNT))
    assert kinds(objects)[0] == "Role team-resilient"
    assert objects[1]["subjects"] == [{"kind": "ServiceAccount", "name": "team", "namespace": "ml"}]
    assert "system:serviceaccount:ml:team" in json.dumps(objects[2])
    assert objects[-1]["spec"]["template"]["spec"]["serviceAccountName"] == "team"


@pytest.mark.parametrize(
    ("before", "after", "namespace", "why"),
    [
        (", namespace: ml", "", None, "its namespace is not said"),
        ("", "", "other", "its namespace is ml, and other was asked for"),
        ("name: llm, ", "generateName: llm-, ", None, "it has no name"),
        ("restartPolicy: Never", f"{ACCOUNT[:-4]}default", None, "as others do"),
        ("name: llm", "name: LLM", None, "it is no DNS subdomain"),
        (", namespace: ml", "", "-", "it is no DNS label"),
    ],
)
def test_what_nobody_can_guess_is_refused(before: str, after: str, namespace: str | None, why: str) -> None:
    """Where the account is to be, and whose it is."""
    with pytest.raises(SettingsError, match=why):
        granted(JOB.replace(before, after), namespace)


def test_a_namespace_can_be_said_beside_it() -> None:
    """The manifest itself is not changed, so a person is told to apply it there."""
    objects, _, notes = granted(JOB.replace(", namespace: ml", ""), "ml")
    assert "the permissions hold in namespace ml: apply the manifest there" in notes
    assert {one["metadata"].get("namespace") for one in objects} == {"ml", None}
    assert "namespace" not in objects[-1]["metadata"]


def test_a_token_that_was_refused_is_given() -> None:
    """Without it nothing could be asked; it is told."""
    pod = "restartPolicy: Never\n      automountServiceAccountToken: false"
    objects, _, notes = granted(JOB.replace("restartPolicy: Never", pod))
    assert objects[-1]["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert any("changed spec.template.spec.automountServiceAccountToken from false to true" in note for note in notes)


def test_all_lines_end_as_those_of_the_manifest() -> None:
    """Those that come before it too."""
    _, text, _ = granted(JOB.replace("\n", "\r\n"))
    assert text.startswith("apiVersion: v1\r\n")
    assert text.count("\n") == text.count("\r\n")


def test_json_and_several_jobs_are_served() -> None:
    """A List's Jobs each have theirs; of one account that both name it comes once."""
    (job,) = [one.data for one in documents.read(JOB, "job.yaml")]
    other = {**job, "metadata": {"name": "eval", "namespace": "ml"}}
    objects, _, _ = granted(json.dumps({"apiVersion": "v1", "kind": "List", "items": [job, other]}))
    assert [kind for kind in kinds(objects[:-1]) if kind.startswith("ServiceAccount")] == [
        "ServiceAccount llm",
        "ServiceAccount eval",
    ]
    shared = JOB.replace("restartPolicy: Never", ACCOUNT)
    objects, _, _ = granted(f"{shared}---\n{shared.replace('llm', 'eval')}")
    assert kinds(objects).count("Role team-resilient") == 1


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--namespace`` is for the Role, and refused without it."""
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace(", namespace: ml", ""))
    words = ["manifest", "--from", str(file), "--checkpoints", "s3://bucket/run", "--namespace", "ml"]
    assert cli.main([*words, "--rbac"]) == 0
    assert capsys.readouterr().out.startswith("apiVersion: v1\nkind: ServiceAccount\n")
    assert cli.main(words) == 115
    assert "--namespace with --from: it is for the Role of --rbac" in capsys.readouterr().err
