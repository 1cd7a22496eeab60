# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in where a pod may run, apart from its affinities.

Facts from ``pkg/apis/core/validation/validation.go``: ``ValidateTolerations``, ``validateTopologySpreadConstraints``,
``validateSchedulingGates`` and ``ValidatePodSpec``. ``Lt`` and ``Gt`` of a toleration wait for a feature gate, on which
clusters differ: nothing is said about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_affinity import affinity, label_selector, labels
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    duplicate,
    forbidden,
    inside,
    invalid,
    invalids,
    items,
    mapping,
    number,
    required,
    text,
    unless_one_of,
    unsupported,
)
from resilient.kubernetes.building import PartPath

_OPERATORS: Final = ("Equal", "Exists")
_GATED: Final = ("Lt", "Gt")
_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_ACTIONS: Final = ("DoNotSchedule", "ScheduleAnyway")
_INCLUSIONS: Final = ("Honor", "Ignore")
_POSITIVE: Final = "must be greater than zero"


def placement(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """Of a pod."""
    yield from labels("node-selector", mapping(spec.get("nodeSelector")), (*path, "nodeSelector"))
    for index, toleration in enumerate(map(mapping, items(spec.get("tolerations")))):
        yield from _toleration(toleration, (*path, "tolerations", index))
    yield from _spread(items(spec.get("topologySpreadConstraints")), (*path, "topologySpreadConstraints"))
    yield from affinity(mapping(spec.get("affinity")), (*path, "affinity"))
    gates = items(spec.get("schedulingGates"))
    yield from _gates(gates, (*path, "schedulingGates"))
    if gates and text(spec.get("nodeName")):
        why = "cannot be set until all schedulingGates have been cleared"
        yield forbidden("scheduling-gate", (*path, "nodeName"), why)


def _toleration(toleration: Spec, path: PartPath) -> Iterator[Problem]:
    key, operator, value, effect = (text(toleration.get(name)) for name in ("key", "operator", "value", "effect"))
    yield from invalids("toleration-key", (*path, "key"), key, api_names.qualified(key) if key else ())
    if not key and operator != "Exists":
        why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        yield invalid("toleration-operator", (*path, "operator"), operator, why)
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        yield invalid("toleration-effect", (*path, "effect"), effect, why)
    if operator in ("", "Equal") and (complaints := api_names.label_value(value)):
        named = (*path, "operator")
        yield invalid("toleration-value", (*path, "value"), value, ";".join(complaints), named=named)
    elif operator == "Exists" and value:
        why = "value must be empty when `operator` is 'Exists'"
        yield invalid("toleration-value", (*path, "value"), value, why, named=(*path, "operator"))
    elif operator not in ("", *_OPERATORS, *_GATED):
        yield unsupported("toleration-operator", (*path, "operator"), operator, _OPERATORS)
    yield from unless_one_of("toleration-effect", (*path, "effect"), effect, _EFFECTS)


def _spread(constraints: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    kinds = [(text(inside(one, "topologyKey")), text(inside(one, "whenUnsatisfiable"))) for one in constraints]
    for index, constraint in enumerate(map(mapping, constraints)):
        where = (*path, index)
        yield from _constraint(constraint, where)
        if kinds[index] in kinds[index + 1 :]:
            named = (*where, "{topologyKey, whenUnsatisfiable}")
            shown = "{" + ", ".join(kinds[index]) + "}"
            yield duplicate("spread-twice", where, shown, named=named)


def _constraint(constraint: Spec, path: PartPath) -> Iterator[Problem]:
    skew, key, action = (constraint.get(name) for name in ("maxSkew", "topologyKey", "whenUnsatisfiable"))
    if (number(skew) or 0) <= 0:
        yield invalid("spread-numbers", (*path, "maxSkew"), number(skew) or 0, _POSITIVE)
    if not text(key):
        yield required("topology-key", (*path, "topologyKey"), "can not be empty")
    if action not in _ACTIONS:
        yield unsupported("spread-words", (*path, "whenUnsatisfiable"), text(action), _ACTIONS)
    domains, where = number(constraint.get("minDomains")), (*path, "minDomains")
    if domains is not None and domains <= 0:
        yield invalid("spread-numbers", where, domains, _POSITIVE)
    if domains is not None and action != _ACTIONS[0]:
        why = f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {text(action)}"
        yield invalid("spread-numbers", where, domains, why)
    for name in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
        yield from unless_one_of("spread-words", (*path, name), constraint.get(name), _INCLUSIONS)
    yield from label_selector(constraint.get("labelSelector"), (*path, "labelSelector"))
    yield from _match_keys(constraint, (*path, "matchLabelKeys"))


def _match_keys(constraint: Spec, path: PartPath) -> Iterator[Problem]:
    keys, selector = items(constraint.get("matchLabelKeys")), constraint.get("labelSelector")
    if keys and selector is None:
        yield forbidden("label-selector", path, "must not be specified when labelSelector is not set")
    chosen = {*mapping(inside(selector, "matchLabels"))}
    chosen |= {text(inside(one, "key")) for one in items(inside(selector, "matchExpressions"))}
    for index, key in enumerate(keys):
        yield from invalids("label-selector", (*path, index), key, api_names.qualified(text(key)))
        if key in chosen:
            yield invalid("label-selector", (*path, index), key, "exists in both matchLabelKeys and labelSelector")


def _gates(gates: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    names: set[str] = set()
    for index, name in enumerate(text(inside(gate, "name")) for gate in gates):
        where = (*path, index)
        yield from invalids("scheduling-gate", where, name, api_names.qualified(name))
        if name in names:
            yield duplicate("scheduling-gate", where, name)
        names.add(name)
