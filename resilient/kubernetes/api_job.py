# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in the ``spec`` of a Job, as Kubernetes 1.36 does it.

Facts from ``pkg/apis/batch/validation/validation.go`` and ``pkg/apis/batch/v1/defaults.go``; the pod template is for
``api_pod``. What has the wrong type was refused before, and is passed over here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    contradiction,
    duplicate,
    inside,
    invalid,
    items,
    listed,
    mapping,
    number,
    required,
    text,
    too_long,
    too_many,
    unsupported,
)
from resilient.kubernetes.api_success import success_policy
from resilient.kubernetes.building import PartPath

ACTIONS: Final = ("Count", "FailIndex", "FailJob", "Ignore")
OPERATORS: Final = ("In", "NotIn")
_STATUSES: Final = ("False", "True", "Unknown")
_MODES: Final = ("NonIndexed", "Indexed")
_COUNTS: Final = (
    *("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"),
    *("backoffLimitPerIndex", "maxFailedIndexes"),
)
MOST_RULES: Final = 20
MOST_VALUES: Final = 255
_MOST_PATTERNS: Final = 20
_MOST_PODS: Final = 100_000
_MANY_COMPLETIONS: Final = 100_000
_MOST_WITH_MANY: Final = 10_000


def defaulted(spec: Spec) -> dict[str, Any]:
    """The spec with what the API server fills in before it looks at it."""
    filled = {name: value for name, value in spec.items() if value is not None}
    if "completions" not in filled and "parallelism" not in filled:
        filled["completions"] = 1
    filled.setdefault("parallelism", 1)
    filled.setdefault("completionMode", "NonIndexed")
    return filled


def job_spec(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """Everything but the pod template."""
    spec = defaulted(spec)
    for name in _COUNTS:
        yield from not_negative(spec.get(name), (*path, name))
    if number(spec.get("maxFailedIndexes")) is not None and "backoffLimitPerIndex" not in spec:
        yield required(
            "max-failed-without-per-index", (*path, "backoffLimitPerIndex"), "when maxFailedIndexes is specified"
        )
    yield from managed_by(spec, path)
    mode = text(spec["completionMode"])
    if mode not in _MODES:
        yield unsupported("completion-mode-unknown", (*path, "completionMode"), mode, _MODES)
    yield from _INDEXED.get(mode, _no_more)(spec, path)
    if isinstance(spec.get("podFailurePolicy"), dict):
        yield from _failure_policy(spec, path)
    if isinstance(spec.get("successPolicy"), dict):
        if mode != "Indexed":
            yield contradiction("success-needs-indexed", (*path, "successPolicy"), "requires indexed completion mode")
        else:
            completions = number(spec.get("completions")) or 0
            yield from success_policy(spec["successPolicy"], completions, (*path, "successPolicy"))
    yield from _replacement(spec, path)
    yield from _restart_policy(spec, path)


def not_negative(value: object, path: PartPath) -> Iterator[Problem]:
    """As all counts and times have to be."""
    count = number(value)
    if count is not None and count < 0:
        yield invalid("negative-number", path, count, "must be greater than or equal to 0")


def managed_by(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """The controller that is named; a JobSet has one too."""
    owner = spec.get("managedBy")
    if isinstance(owner, str):
        where = (*path, "managedBy")
        for complaint in api_names.domain_path(owner):
            yield invalid("managed-by-malformed", where, owner, complaint)
        if len(owner.encode()) > api_names.LABEL_BYTES:
            yield too_long("managed-by-malformed", where, api_names.LABEL_BYTES)


def _no_more(spec: Spec, path: PartPath) -> Iterator[Problem]:
    yield from ()


def _non_indexed(spec: Spec, path: PartPath) -> Iterator[Problem]:
    for name in ("backoffLimitPerIndex", "maxFailedIndexes"):
        value = number(spec.get(name))
        if value is not None:
            yield invalid("per-index-needs-indexed", (*path, name), value, "requires indexed completion mode")


def _indexed(spec: Spec, path: PartPath) -> Iterator[Problem]:
    completions, parallelism = number(spec.get("completions")), number(spec.get("parallelism")) or 0
    failed = number(spec.get("maxFailedIndexes"))
    if completions is None:
        yield required("indexed-completions-missing", (*path, "completions"), "when completion mode is Indexed")
    if parallelism > _MOST_PODS:
        why = f"must be less than or equal to {_MOST_PODS} when completion mode is Indexed"
        yield invalid("index-limits", (*path, "parallelism"), parallelism, why)
    where = (*path, "maxFailedIndexes")
    if failed is not None and completions is not None and failed > completions:
        yield invalid("max-failed-over-completions", where, failed, "must be less than or equal to completions")
    if failed is not None and failed > _MOST_PODS:
        yield invalid("index-limits", where, failed, f"must be less than or equal to {_MOST_PODS}")
    if (completions or 0) > _MANY_COMPLETIONS and number(spec.get("backoffLimitPerIndex")) is not None:
        yield from _many_completions(parallelism, failed, path)


def _many_completions(parallelism: int, failed: int | None, path: PartPath) -> Iterator[Problem]:
    why = (
        f"must be less than or equal to {_MOST_WITH_MANY} when completions are above {_MANY_COMPLETIONS} and used with "
        "backoff limit per index"
    )
    where = (*path, "maxFailedIndexes")
    if failed is None:
        yield required("index-limits", where, f"must be specified when completions is above {_MANY_COMPLETIONS}")
    if parallelism > _MOST_WITH_MANY:
        yield invalid("index-limits", (*path, "parallelism"), parallelism, why)
    if failed is not None and failed > _MOST_WITH_MANY:
        yield invalid("index-limits", where, failed, why)


_INDEXED: Final[Mapping[str, Callable[[Spec, PartPath], Iterator[Problem]]]] = {
    "Indexed": _indexed,
    "NonIndexed": _non_indexed,
}


def _failure_policy(spec: Spec, path: PartPath) -> Iterator[Problem]:
    rules = items(inside(spec, "podFailurePolicy", "rules"))
    where = (*path, "podFailurePolicy", "rules")
    if len(rules) > MOST_RULES:
        yield too_many("policy-rules-over-20", where, len(rules), MOST_RULES)
    pod = inside(spec, "template", "spec")
    containers = [*items(inside(pod, "containers")), *items(inside(pod, "initContainers"))]
    names = {text(inside(container, "name")) for container in containers}
    for index, rule in enumerate(rules):
        yield from _policy_rule(spec, mapping(rule), names, (*where, index))


def _policy_rule(spec: Spec, rule: Spec, names: set[str], path: PartPath) -> Iterator[Problem]:
    action, where = text(rule.get("action")), (*path, "action")
    if not action:
        yield required("policy-action-unknown", where, f"valid values: {listed(ACTIONS)}")
    elif action not in ACTIONS:
        yield unsupported("policy-action-unknown", where, action, ACTIONS)
    elif action == "FailIndex" and number(spec.get("backoffLimitPerIndex")) is None:
        yield invalid("fail-index-without-per-index", where, action, "requires the backoffLimitPerIndex to be set")
    codes, conditions = rule.get("onExitCodes"), items(rule.get("onPodConditions"))
    if isinstance(codes, dict):
        yield from _exit_codes(codes, names, (*path, "onExitCodes"))
    yield from _conditions(conditions, (*path, "onPodConditions"))
    if codes is not None and conditions:
        why = "specifying both OnExitCodes and OnPodConditions is not supported"
        yield contradiction("rule-requirement", path, why)
    if codes is None and not conditions:
        yield contradiction("rule-requirement", path, "specifying one of OnExitCodes and OnPodConditions is required")


def _conditions(patterns: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    if len(patterns) > _MOST_PATTERNS:
        yield too_many("condition-patterns-over-20", path, len(patterns), _MOST_PATTERNS)
    for index, pattern in enumerate(patterns):
        kind, status = text(inside(pattern, "type")), text(inside(pattern, "status"))
        for complaint in api_names.qualified(kind):
            yield invalid("condition-type-malformed", (*path, index, "type"), kind, complaint)
        if status and status not in _STATUSES:  # a missing one is filled in
            yield unsupported("condition-status-unknown", (*path, index, "status"), status, _STATUSES)


def _exit_codes(codes: Spec, names: set[str], path: PartPath) -> Iterator[Problem]:
    operator, where = text(codes.get("operator")), (*path, "operator")
    if not operator:
        yield required("exit-operator-unknown", where, f"valid values: {listed(OPERATORS)}")
    elif operator not in OPERATORS:
        yield unsupported("exit-operator-unknown", where, operator, OPERATORS)
    container = codes.get("containerName")
    if isinstance(container, str) and container not in names:
        why = "must be one of the container or initContainer names in the pod template"
        yield invalid("exit-container-unknown", (*path, "containerName"), container, why)
    given, where = codes.get("values"), (*path, "values")
    if not items(given):
        yield invalid("exit-values-count", where, given, "at least one value is required")
    yield from _exit_values([number(value) or 0 for value in items(given)], operator, where)


def _exit_values(values: Sequence[int], operator: str, path: PartPath) -> Iterator[Problem]:
    if len(values) > MOST_VALUES:
        yield too_many("exit-values-count", path, len(values), MOST_VALUES)
    seen: set[int] = set()
    for index, value in enumerate(values):
        if operator == "In" and value == 0:
            yield invalid("exit-values-zero", (*path, index), value, "must not be 0 for the In operator")
        if value in seen:
            yield duplicate("exit-values-duplicate", (*path, index), value)
        seen.add(value)
    if any(before > after for before, after in itertools.pairwise(values)):
        yield invalid("exit-values-order", path, values, "must be ordered")


def _replacement(spec: Spec, path: PartPath) -> Iterator[Problem]:
    policy = spec.get("podReplacementPolicy")
    supported = ("Failed",) if "podFailurePolicy" in spec else ("Failed", "TerminatingOrFailed")
    if isinstance(policy, str) and policy not in supported:
        yield unsupported("replacement-policy-unknown", (*path, "podReplacementPolicy"), policy, supported)


def _restart_policy(spec: Spec, path: PartPath) -> Iterator[Problem]:
    policy = text(inside(spec, "template", "spec", "restartPolicy"))
    where = (*path, "template", "spec", "restartPolicy")
    if policy in ("", "Always"):
        yield required("job-restart-policy", where, 'valid values: "OnFailure", "Never"')
    elif policy not in ("OnFailure", "Never"):
        yield unsupported("job-restart-policy", where, policy, ("OnFailure", "Never"))
    elif policy != "Never" and "podFailurePolicy" in spec:
        why = 'only "Never" is supported when podFailurePolicy is specified'
        yield invalid("restart-policy-not-never", where, policy, why)
