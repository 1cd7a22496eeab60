# SPDX-License-Identifier: Apache-2.0
"""What becomes of an exit code by a manifest's rules, and what should by the contract's.

Both are asked of the function that simulates the Job controller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from resilient.core.contract_policy import policy_rules
from resilient.core.kube_pod_failure import (
    Action,
    ContainerStatus,
    OnExitCodes,
    Outcome,
    PodCondition,
    PodStatus,
    Policy,
    PolicyRule,
    code_matches,
    match,
)
from resilient.kubernetes.api_problems import inside, items, mapping, number, text
from resilient.kubernetes.building import PartPath
from resilient.kubernetes.lint_rows import Hit
from resilient.kubernetes.lint_subject import Subject, Tree

DISRUPTED: Final = PodCondition(type="DisruptionTarget")


def policy_of(job: Tree) -> Policy | None:
    """The rules as the controller sees them; None where there is no policy."""
    policy = job.get("podFailurePolicy")
    if not isinstance(policy, dict):
        return None
    return tuple(_policy_rule(mapping(rule)) for rule in items(policy.get("rules")))


def _policy_rule(rule: Tree) -> PolicyRule:
    codes = rule.get("onExitCodes")
    name = inside(codes, "containerName")
    return PolicyRule(
        action=text(rule.get("action")),
        on_exit_codes=OnExitCodes(
            operator=text(inside(codes, "operator")),
            values=_numbers(inside(codes, "values")),
            container_name=text(name) if name is not None else None,
        )
        if isinstance(codes, dict)
        else None,
        on_pod_conditions=tuple(
            PodCondition(type=text(inside(one, "type")), status=text(inside(one, "status")) or "True")
            for one in items(rule.get("onPodConditions"))
        ),
    )


def contract_for(container: str, *, restarts_in_place: bool) -> Policy:
    """The contract's own rules for this container."""
    return tuple(
        PolicyRule(
            action=rule.action,
            on_exit_codes=OnExitCodes(operator="In", values=frozenset(rule.codes), container_name=container)
            if rule.codes
            else None,
            on_pod_conditions=(PodCondition(type=rule.condition),) if rule.condition else (),
        )
        for rule in policy_rules(restarts_in_place=restarts_in_place)
    )


def outcome_of(policy: Policy, container: str, code: int, *, disrupted: bool) -> Outcome:
    pod = PodStatus(
        namespace="",
        name="",
        containers=(ContainerStatus(name=container, exit_code=code),),
        conditions=(DISRUPTED,) if disrupted else (),
    )
    return match(policy, pod)


def _action(outcome: Outcome) -> Action:
    return outcome.action or Action.COUNT


def restarted(container: Tree) -> frozenset[int]:
    """The codes after which the kubelet restarts a container in place, by its rules."""
    asked = [inside(rule, "exitCodes") for rule in items(container.get("restartPolicyRules"))]
    rules = [(text(inside(codes, "operator")), _numbers(inside(codes, "values"))) for codes in asked]
    return frozenset(
        code for code in range(256) if any(code_matches(operator, values, code) for operator, values in rules)
    )


def _numbers(values: object) -> frozenset[int]:
    return frozenset(value for value in items(values) if number(value) is not None)


def rules_path(subject: Subject) -> PartPath:
    return (*subject.job_path, "podFailurePolicy", "rules")


def differing(
    codes: Iterable[int], wrong: Callable[[Action, Action], bool], *, disrupted: bool = False
) -> Callable[[Subject], Iterator[Hit]]:
    """A rule about codes for which the contract says one thing and the manifest another; one hit for each cause."""

    def find(subject: Subject) -> Iterator[Hit]:
        policy = policy_of(subject.job) if subject.job is not None else None
        if policy is None:
            return
        in_place = restarted(subject.trainer)
        contract = contract_for(subject.name, restarts_in_place=bool(in_place))
        found: dict[tuple[int | None, Action], list[int]] = {}
        for code in sorted(set(codes) - in_place):
            wanted = _action(outcome_of(contract, subject.name, code, disrupted=disrupted))
            outcome = outcome_of(policy, subject.name, code, disrupted=disrupted)
            if wrong(wanted, _action(outcome)):
                found.setdefault((outcome.rule, _action(outcome)), []).append(int(code))
        for (rule, action), group in found.items():
            path = rules_path(subject) if rule is None else (*rules_path(subject), rule)
            how = f"{action.value}, as no rule matches" if rule is None else f"{action.value} by rule {rule}"
            yield Hit(path=path, detail=f"{listed(group)}: {how}")

    return find


def listed(codes: Iterable[int]) -> str:
    return ", ".join(map(str, codes))
