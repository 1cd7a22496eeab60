# SPDX-License-Identifier: Apache-2.0
"""The linter's rows about the contract: each has manifests that show just it, and none is shown by a good one."""

from __future__ import annotations

from typing import Any

import pytest
from lint_cases import CASES
from lint_manifests import (
    BACKUP,
    CLEAN,
    EXAMPLE,
    JOB,
    JOBSET,
    SET_JOB,
    SET_OF_BACKUPS,
    edited,
    findings,
    ids,
    variable,
)

from resilient.kubernetes import documents, lint
from resilient.kubernetes.lint import ROWS

SPOILED = [(name, whole) for name, manifests in CASES.items() for whole in manifests]


@pytest.mark.parametrize(("name", "whole"), SPOILED, ids=[name for name, _ in SPOILED])
def test_a_spoiled_manifest_shows_its_row(name: str, whole: Any) -> None:
    """And nothing else."""
    assert [(one.row.id, one.detail) for one in findings(whole) if one.row.id != name] == []
    assert name in ids(whole)


def test_every_row_has_its_manifests() -> None:
    """A row that nothing shows would be a claim that nobody has seen to hold."""
    about_contract = {rule.row.id for rule in lint.RULES}
    assert set(CASES) == about_contract
    assert all(CASES.values())


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_said_about_a_good_manifest(name: str) -> None:
    """Each kind that is looked at, and container restart rules."""
    assert findings(CLEAN[name]) == []


def test_nothing_is_said_about_the_example() -> None:
    """As people read it, comments and all."""
    assert lint.check(documents.read_file(str(EXAMPLE))) == []


def test_what_does_not_train_is_left_alone() -> None:
    """A backup needs no supervisor; the API server must take it all the same."""
    assert findings(BACKUP) == findings(SET_OF_BACKUPS) == []


def test_kinds_of_others_are_left_alone() -> None:
    """Also where they have the same name."""
    assert findings({"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "spec": {"tasks": []}}) == []


def test_jobs_of_one_pod_are_told_apart_by_their_own_number() -> None:
    """Where a JobSet makes several, which is the index that budgets need."""
    source = {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-global-index']"}}
    index = f"{SET_JOB}.{variable('RESILIENT_INDEX').removeprefix('spec.')}.valueFrom"
    alone = [(f"{SET_JOB}.{name}", 1) for name in ("completions", "parallelism")]
    assert findings(edited(JOBSET, ("spec.replicatedJobs.0.replicas", 4), (index, source), *alone)) == []


def test_a_policy_is_looked_at_whatever_runs() -> None:
    """What is wrong with a rule by itself is wrong everywhere."""
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert ids(edited(BACKUP, ("spec.podFailurePolicy", {"rules": [rule]}))) == {"condition-status-missing"}


def test_rows_are_whole() -> None:
    """Each says why in one sentence and what to do, under a name of its own."""
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.why[0].isupper() or row.why.startswith(("193", "199", "maxRestarts"))
        assert row.why.endswith(".")
        assert row.fix
        assert not row.fix.endswith(".")


def test_a_list_is_looked_into() -> None:
    """kubectl writes several objects as one."""
    broken = CASES["per-index-small"][0]
    (found,) = findings({"apiVersion": "v1", "kind": "List", "items": [JOB, broken]})
    assert found.path[:3] == ("items", 1, "spec")
