# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses: each row has manifests that show just it, with the server's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import lint_api_cases
import lint_claim_cases
import lint_container_cases
import lint_pod_cases
import lint_spec_cases
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubeflow_trainer_api.models import (
    JobsetV1alpha2JobSet,
    TrainerV1alpha1ClusterTrainingRuntime,
    TrainerV1alpha1TrainingRuntime,
    TrainerV1alpha1TrainJob,
)
from lint_manifests import BACKUP, CLEAN, WRONG, edited, findings, places

from resilient.errors import SettingsError
from resilient.kubernetes.api_cron import schedule
from resilient.kubernetes.api_objects import problems, update_problems
from resilient.kubernetes.api_others import OBJECTS
from resilient.kubernetes.api_resources import quantity
from resilient.kubernetes.lint_api import ROWS
from resilient.kubernetes.vectors import judge_vectors

CASES = {
    **lint_api_cases.CASES,
    **lint_pod_cases.CASES,
    **lint_container_cases.CASES,
    **lint_spec_cases.CASES,
    **lint_claim_cases.CASES,
}
SPOILED = [
    (name, whole, words)
    for found in (CASES, lint_claim_cases.MADE)
    for name, cases in found.items()
    for whole, words in cases
]
TOLERATED = {"container-unnamed", "container-unnamed-among-others"}
"""Warnings that a policy in its shortest form cannot be without."""


@pytest.mark.parametrize(("name", "whole", "words"), SPOILED, ids=[name for name, *_ in SPOILED])
def test_a_spoiled_manifest_shows_its_row(name: str, whole: Any, words: str) -> None:
    """With what the API server says, and no other row."""
    found = [finding for finding in findings(whole) if finding.row.id not in TOLERATED]
    assert {finding.row.id for finding in found} == {name}, [finding.detail for finding in found]
    assert any(words in finding.detail for finding in found), [finding.detail for finding in found]


def test_every_row_has_its_manifests() -> None:
    """No row that nothing shows."""
    assert set(CASES) == set(ROWS)


MODELS = {
    "JobSet": JobsetV1alpha2JobSet,
    "TrainJob": TrainerV1alpha1TrainJob,
    "TrainingRuntime": TrainerV1alpha1TrainingRuntime,
    "ClusterTrainingRuntime": TrainerV1alpha1ClusterTrainingRuntime,
}


def _missing(model: Any, known: Any, path: str = "") -> list[str]:
    """The fields of a model that the table does not have."""
    found = []
    for name, declared in model.model_fields.items():
        json_name = declared.alias or name
        if json_name not in known:
            found.append(f"{path}{json_name}")
            continue
        below = known[json_name]
        inner = [kind for kind in _classes(declared.annotation) if hasattr(kind, "model_fields")]
        if below is not None and inner:
            found += _missing(inner[0], below[0] if isinstance(below, list) else below, f"{path}{json_name}.")
    return found


def _classes(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [kind for argument in arguments for kind in _classes(argument)] if arguments else [annotation]


@pytest.mark.parametrize("kind", MODELS)
def test_fields_of_other_projects_are_known(kind: str) -> None:
    """All that the published models of JobSet and Trainer have."""
    assert _missing(MODELS[kind], OBJECTS[kind]) == []


ACCEPTED: dict[str, Any] = {
    "rules may be empty": {"podFailurePolicy": {"rules": []}},
    "a code may be impossible": {
        "podFailurePolicy": {"rules": [{"action": "Count", "onExitCodes": {"operator": "In", "values": [-1, 70_000]}}]}
    },
    "NotIn may hold 0": {
        "podFailurePolicy": {"rules": [{"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [0]}}]}
    },
    "a status is filled in": {
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "a.io/B"}]}]}
    },
    "completions are filled in": {"completionMode": "Indexed"},
    "many indexes": {
        "completionMode": "Indexed",
        "completions": 1_000_000_000,
        "parallelism": 10_000,
        "maxFailedIndexes": 10_000,
        "backoffLimitPerIndex": 1,
    },
    "success by indexes": {
        "completionMode": "Indexed",
        "completions": 10,
        "successPolicy": {
            "rules": [{"succeededCount": 1, "succeededIndexes": "0,2,4"}, {"succeededIndexes": "1,3,5-9"}]
        },
    },
    "success by no index": {
        "completionMode": "Indexed",
        "completions": 2,
        "successPolicy": {"rules": [{"succeededIndexes": ""}]},
    },
    "a controller of its own": {"managedBy": "example.com/custom"},
    "nothing is null": {"backoffLimit": None, "podFailurePolicy": None, "completions": None},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_looks_odd_is_accepted(name: str) -> None:
    """The API server takes it, and so do we."""
    assert problems({**BACKUP, "spec": {**BACKUP["spec"], **ACCEPTED[name]}}) == []


@pytest.mark.parametrize("when", ["0 3 * * *", "*/15 0-6,22 1 jan-mar MON", "@every 1h30m", "@midnight", "? * * * ?"])
def test_schedules_are_accepted(when: str) -> None:
    """Five fields, names, steps and descriptors."""
    assert list(schedule({"schedule": when}, ())) == []


@pytest.mark.parametrize(
    ("given", "amount"),
    [("16Gi", 16 * 2**30), ("500m", "0.5"), ("1e3", 1000), ("1E", 10**18), (2, 2), (".5", "0.5"), ("5n", "5e-9")],
)
def test_quantities(given: Any, amount: Any) -> None:
    """Binary and decimal units, exponents, and numbers."""
    from decimal import Decimal

    assert quantity(given) == Decimal(amount)


_OLD = edited(BACKUP, ("spec.suspend", False), ("spec.completionMode", "Indexed"), ("spec.completions", 2))
_SUSPENDED = edited(_OLD, ("spec.suspend", True))
_ON_NODES: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}
_NODES: dict[str, Any] = {"nodeAffinity": _ON_NODES}
_POD = "spec.template.spec"
CHANGES: dict[str, tuple[Any, tuple[tuple[str, Any], ...], str | None]] = {
    "counts and times": (_OLD, (("spec.parallelism", 5), ("spec.ttlSecondsAfterFinished", 2)), None),
    "the limit of failures": (_OLD, (("spec.backoffLimit", 9),), None),
    "the image": (_OLD, ((f"{_POD}.containers.0.image", "other"),), "spec.template: Invalid value"),
    "the policy": (_OLD, (("spec.podFailurePolicy", {"rules": []}),), "spec.podFailurePolicy: Invalid value"),
    "the limit of an index": (_OLD, (("spec.backoffLimitPerIndex", 1),), "spec.backoffLimitPerIndex: Invalid value"),
    "the controller": (_OLD, (("spec.managedBy", "a.io/b"),), "spec.managedBy: Invalid value"),
    "the mode": (_OLD, (("spec.completionMode", "NonIndexed"),), "spec.completionMode: Invalid value"),
    "success": (_OLD, (("spec.successPolicy", {"rules": [{"succeededCount": 1}]}),), "spec.successPolicy: Invalid"),
    "the size": (_OLD, (("spec.completions", 3), ("spec.parallelism", 3)), None),
    "half of the size": (_OLD, (("spec.completions", 3),), "can only be modified in tandem with spec.parallelism"),
    "the size of a plain Job": (
        BACKUP,
        (("spec.completions", 3), ("spec.parallelism", 3)),
        "spec.completions: Invalid",
    ),
    "the mode that it has": (BACKUP, (("spec.completionMode", "NonIndexed"),), None),
    "nodes while it runs": (_OLD, ((f"{_POD}.affinity", _NODES),), "spec.template: Invalid value"),
    "nodes while it waits": (_SUSPENDED, ((f"{_POD}.affinity", _NODES),), None),
    "no nodes while it waits": (edited(_SUSPENDED, (f"{_POD}.affinity", _NODES)), ((f"{_POD}.affinity", {}),), None),
    "peers while it waits": (
        _SUSPENDED,
        ((f"{_POD}.affinity", {"podAntiAffinity": {}}),),
        "spec.template.spec: Invalid value",
    ),
    "what is filled in anyway": (
        edited(_OLD, (f"{_POD}.containers.0.resources", {"limits": {"cpu": "1000m"}})),
        (
            (f"{_POD}.terminationGracePeriodSeconds", 30),
            (f"{_POD}.containers.0.imagePullPolicy", "Always"),
            (f"{_POD}.containers.0.resources", {"limits": {"cpu": 1}, "requests": {}}),
        ),
        None,
    ),
    "another grace period": (
        _OLD,
        ((f"{_POD}.terminationGracePeriodSeconds", 31),),
        "spec.template: Invalid value",
    ),
    "what it takes while it waits": (
        _SUSPENDED,
        ((f"{_POD}.containers.0.resources", {"limits": {"cpu": "2"}}),),
        None,
    ),
    "a selector while it waits": (_SUSPENDED, ((f"{_POD}.nodeSelector", {"a": "b"}),), None),
    "labels while it waits": (_SUSPENDED, (("spec.template.metadata", {"labels": {"a": "b"}}),), None),
    "the image while it waits": (_SUSPENDED, ((f"{_POD}.containers.0.image", "x"),), "spec.template.spec: Invalid"),
    "what is wrong anyway": (_OLD, (("spec.backoffLimit", -1),), "spec.backoffLimit: Invalid value: -1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_job(name: str) -> None:
    """What may be changed, and what only in a Job that is suspended."""
    old, edits, words = CHANGES[name]
    said = [problem.text for problem in update_problems(old, edited(old, *edits))]
    assert (words is None and not said) or any(words in one for one in said if words), said


def policy(*rules: Any) -> Any:
    """The Job with these rules."""
    return edited(BACKUP, ("spec.podFailurePolicy", {"rules": list(rules)}))


FALLING = [*range(1, 120), 5]
IN_ITS_WORDS: dict[str, tuple[Any, str]] = {
    "a long list whole": (
        policy({"action": "FailJob", "onExitCodes": {"operator": "In", "values": FALLING}}),
        f"Invalid value: {json.dumps(FALLING, separators=(',', ':'))}: must be ordered",
    ),
    "no list": (
        policy({"action": "FailJob", "onExitCodes": {"operator": "In"}}),
        "onExitCodes.values: Invalid value: null: at least one value is required",
    ),
    "an empty list": (
        policy({"action": "FailJob", "onExitCodes": {"operator": "In", "values": []}}),
        "onExitCodes.values: Invalid value: []: at least one value is required",
    ),
    "a label of the controller": (
        edited(BACKUP, ("spec.template.metadata.labels", {"job-name": "other"})),
        "spec.template.metadata.labels[job-name]: Required value: must be 'backup'",
    ),
    "policies of a pod": (
        edited(BACKUP, ("spec.template.spec.restartPolicy", "Sometimes")),
        'supported values: "Always", "OnFailure", "Never"',
    ),
}


@pytest.mark.parametrize("name", IN_ITS_WORDS)
def test_it_is_said_in_the_words_of_the_api_server(name: str) -> None:
    """To the letter, as people search for them."""
    job, words = IN_ITS_WORDS[name]
    assert any(words in problem.text for problem in problems(job)), [problem.text for problem in problems(job)]


def test_a_finding_leaves_out_the_middle_of_a_long_value() -> None:
    """What is wrong with it stands behind."""
    (finding,) = [one for one in findings(IN_ITS_WORDS["a long list whole"][0]) if one.row.id == "exit-values-order"]
    assert len(finding.detail) < 400
    assert finding.detail.startswith("spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [1,2,3")
    assert finding.detail.endswith(",5]: must be ordered")


def vectors(tmp_path: Path, *cases: Any) -> str:
    """A file of cases."""
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(cases))
    return str(path)


def test_vectors_are_judged(tmp_path: Path) -> None:
    """By outcome, and by every part of the message that a case asks for."""
    bad = edited(BACKUP, ("spec.backoffLimit", -1))
    text = "spec.backoffLimit: Invalid value: -1"
    path = vectors(
        tmp_path,
        {"name": "good", "job": BACKUP, "valid": True, "error_contains": None},
        {"name": "bad", "job": bad, "valid": False, "error_contains": text, "error_contains_all": ["greater than"]},
        {"name": "wrong outcome", "job": bad, "valid": True},
        {"name": "wrong words", "job": bad, "valid": False, "error_contains": "spec.completions"},
        {"name": "change", "old_job": BACKUP, "job": edited(BACKUP, ("spec.managedBy", "a.io/b")), "valid": False},
    )
    assert [case.agrees for case in judge_vectors(path)] == [True, True, False, False, True]
    assert judge_vectors(path)[3].unsaid == ("spec.completions",)


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"job": 1, "valid": true}]', '[{"job": {}}]', "[", "\0"])
def test_vectors_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    """With what the form is."""
    path = tmp_path / "vectors.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"cannot read .*vectors.json.*; give a list of"):
        judge_vectors(str(path))


@given(st.sampled_from(places(CLEAN)), WRONG)
def test_no_manifest_is_too_wrong_to_be_judged(place: tuple[str, str], value: Any) -> None:
    """Whatever stands in whatever field, the linter answers."""
    name, path = place
    findings(edited(CLEAN[name], (path, value)))
