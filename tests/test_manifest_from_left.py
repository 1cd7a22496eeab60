# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --from``: what is still wrong with a manifest that has the contract."""

from __future__ import annotations

import pytest
from test_manifest_from_rbac import JOB

from resilient.errors import SettingsError
from resilient.kubernetes import documents
from resilient.kubernetes.adding import add_contract
from resilient.kubernetes.completing import Addition


def notes(text: str) -> list[str]:
    """What a person is told that is no change."""
    _, said = add_contract(documents.read(text, "job.yaml"), Addition(checkpoints="s3://bucket/run"))
    return [note for note in said if not note.startswith(("job.yaml: added", "job.yaml: changed"))]


@pytest.mark.parametrize("name", ["LLM", "-llm", "a" * 62, "team.llm", "a_b"])
def test_a_name_that_cannot_be_a_hosts_is_refused(name: str) -> None:
    """A dot, and 62 characters, are right without indexes only, which the contract needs."""
    with pytest.raises(SettingsError, match=r"cannot add the contract to job.yaml: metadata.name: Invalid value"):
        notes(JOB.replace("name: llm", f"name: {name}"))


def test_a_name_that_is_still_to_be_filled_in_is_nobodys() -> None:
    """As in a chart; nor is one that a tool gives it later."""
    said, *_ = notes(JOB.replace("name: llm", 'name: "{{ .Release.Name }}"'))
    assert said.startswith('job.yaml: left as it is, and wrong: metadata.name: Invalid value: "{{ .Release.Name }}"')
    (said,) = notes(JOB.replace("name: llm, ", ""))
    assert "metadata.name: Required value" in said


def test_what_the_contract_does_not_concern_is_named_and_left() -> None:
    """Of a manifest in which nothing is wrong there is nothing to say."""
    assert notes(JOB) == []
    wrong = JOB.replace('image: "x:1"', 'image: "x:1", imagePullPolicy: Sometimes')
    (said,) = notes(wrong)
    assert "left as it is, and wrong: spec.template.spec.containers[0].imagePullPolicy: Unsupported value" in said


def test_of_many_mistakes_the_first_are_named() -> None:
    """The linter has all of them."""
    wrong = JOB.replace("spec:\n", "spec:\n" + "".join(f"  x{number}: 1\n" for number in range(50)), 1)
    said = notes(wrong)
    assert len(said) == 11
    assert said[-1] == "job.yaml: 40 others: see resilient manifest --check"
