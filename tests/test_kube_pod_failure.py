# SPDX-License-Identifier: Apache-2.0
"""A failed pod under a podFailurePolicy, as the Job controller evaluates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_specs import DISRUPTED, on_codes, on_condition

from resilient.core.kube_indexes import format_indexes, parse_indexes
from resilient.core.kube_pod_failure import (
    Action,
    ContainerStatus,
    OnExitCodes,
    Outcome,
    PodCondition,
    PodStatus,
    Policy,
    PolicyRule,
    is_failed,
    match,
)


def pod(
    codes: Mapping[str, int | None],
    *,
    init: Mapping[str, int | None] | None = None,
    conditions: Sequence[PodCondition] = (),
) -> PodStatus:
    """A failed pod of the namespace ``ml``."""
    containers = [
        tuple(ContainerStatus(name=name, exit_code=code) for name, code in its.items()) for its in (codes, init or {})
    ]
    return PodStatus(
        namespace="ml",
        name="train-0-x",
        containers=containers[0],
        init_containers=containers[1],
        conditions=tuple(conditions),
    )


ANY = on_codes("FailJob", {0}, container=None, operator="NotIn")
CASES: Mapping[str, tuple[Policy, PodStatus, Outcome]] = {
    "no policy at all": ((), pod({"trainer": 1}), Outcome()),
    "nothing matches": ((on_codes("Ignore", {194}),), pod({"trainer": 1}), Outcome()),
    "ignored": (
        (on_codes("Ignore", {194}),),
        pod({"trainer": 194}),
        Outcome(action=Action.IGNORE, counted=False, rule=0),
    ),
    "counted by a rule": ((on_codes("Count", {199}),), pod({"trainer": 199}), Outcome(action=Action.COUNT, rule=0)),
    "its index fails": ((on_codes("FailIndex", {9}),), pod({"trainer": 9}), Outcome(action=Action.FAIL_INDEX, rule=0)),
    "the first of two that match": (
        (on_codes("Count", {1}), on_codes("Ignore", {1})),
        pod({"trainer": 1}),
        Outcome(action=Action.COUNT, rule=0),
    ),
    "the second rule, as the first is about another container": (
        (on_codes("FailJob", {1}, container="mesh"), on_codes("Ignore", {1})),
        pod({"trainer": 1, "mesh": 0}),
        Outcome(action=Action.IGNORE, counted=False, rule=1),
    ),
    "a sidecar's code, by a rule that names no container": (
        (ANY,),
        pod({"trainer": 0}, init={"mesh": 143}),
        Outcome(
            action=Action.FAIL_JOB,
            message="Container mesh for pod ml/train-0-x failed with exit code 143 matching FailJob rule at index 0",
            rule=0,
        ),
    ),
    "containers come before init containers": (
        (ANY,),
        pod({"trainer": 1}, init={"preflight": 2}),
        Outcome(
            action=Action.FAIL_JOB,
            message="Container trainer for pod ml/train-0-x failed with exit code 1 matching FailJob rule at index 0",
            rule=0,
        ),
    ),
    "a container that still runs has no code": ((ANY,), pod({"trainer": None}), Outcome()),
    "0 is never matched": ((ANY,), pod({"trainer": 0}), Outcome()),
    "NotIn is for some container, not for all": (
        (on_codes("Ignore", {1}, container=None, operator="NotIn"),),
        pod({"trainer": 1, "helper": 2}),
        Outcome(action=Action.IGNORE, counted=False, rule=0),
    ),
    "by a condition": (
        (on_codes("Ignore", {5}), on_condition("FailJob")),
        pod({"trainer": 1}, conditions=[PodCondition(type="Ready", status="False"), DISRUPTED]),
        Outcome(
            action=Action.FAIL_JOB,
            message="Pod ml/train-0-x has condition DisruptionTarget matching FailJob rule at index 1",
            rule=1,
        ),
    ),
    "a condition of another status": (
        (on_condition("Ignore"),),
        pod({"trainer": 1}, conditions=[PodCondition(type="DisruptionTarget", status="Unknown")]),
        Outcome(),
    ),
    "unknown actions and operators are passed over": (
        (on_codes("Explode", {1}), on_codes("Ignore", {1}, operator="Equals"), on_codes("Count", {1})),
        pod({"trainer": 1}),
        Outcome(action=Action.COUNT, rule=2),
    ),
    "both requirements: exit codes alone are read": (
        (
            PolicyRule(
                action="Ignore",
                on_exit_codes=OnExitCodes(operator="In", values=frozenset({9})),
                on_pod_conditions=(DISRUPTED,),
            ),
        ),
        pod({"trainer": 1}, conditions=[DISRUPTED]),
        Outcome(),
    ),
    "a container name that is empty is a name": (
        (on_codes("Ignore", {1}, container=""),),
        pod({"trainer": 1}),
        Outcome(),
    ),
    "a pod that never ran": ((ANY,), pod({}), Outcome()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pod_is_judged(name: str) -> None:
    """Action, counting, message and the rule that decided."""
    policy, status, expected = CASES[name]
    assert match(policy, status) == expected


def test_an_action_behind_a_closed_gate_is_passed_over() -> None:
    """As FailIndex was before its time."""
    policy = (on_codes("FailIndex", {1}), on_codes("Ignore", {1}))
    assert match(policy, pod({"trainer": 1}), set(Action) - {Action.FAIL_INDEX}).action is Action.IGNORE


@pytest.mark.parametrize(
    ("phase", "is_deleted", "only_failed", "expected"),
    [
        ("Failed", False, True, True),
        ("Running", True, True, False),
        ("Running", True, False, True),
        ("Running", False, False, False),
        ("Succeeded", True, False, False),
    ],
)
def test_when_a_pod_counts_as_failed(phase: str, is_deleted: bool, only_failed: bool, expected: bool) -> None:
    """By its phase; without podReplacementPolicy Failed also from its deletion on."""
    status = PodStatus(namespace="ml", name="x", phase=phase, is_deleted=is_deleted)
    assert is_failed(status, only_failed=only_failed) is expected


@pytest.mark.parametrize(
    ("indexes", "text"), [((), ""), ((3,), "3"), ((0, 1), "0,1"), ((0, 1, 2), "0-2"), ((0, 2, 3, 4, 9), "0,2-4,9")]
)
def test_indexes_are_written_as_kubernetes_writes_them(indexes: Sequence[int], text: str) -> None:
    """Only three in a row make an interval."""
    assert format_indexes(indexes) == text


@given(st.sets(st.integers(0, 60)))
def test_indexes_are_read_back(indexes: set[int]) -> None:
    """Whatever they are."""
    assert parse_indexes(format_indexes(indexes), 61) == indexes


@pytest.mark.parametrize(
    ("text", "found"), [("1-3", {1, 2}), ("x,1", {1}), ("5", set()), ("2-1", set()), ("-1", set())]
)
def test_indexes_that_cannot_be_are_left_out(text: str, found: set[int]) -> None:
    """Beyond the completions, backwards, or no numbers."""
    assert parse_indexes(text, 3) == found
