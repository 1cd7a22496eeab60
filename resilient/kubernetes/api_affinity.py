# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in affinities, and in the selectors of labels that they are made of.

Facts from ``pkg/apis/core/validation/validation.go`` (``validateAffinity`` and what it calls) and from
``k8s.io/apimachinery/pkg/apis/meta/v1/validation``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    forbidden,
    inside,
    invalid,
    invalids,
    items,
    mapping,
    number,
    required,
    text,
)
from resilient.kubernetes.building import PartPath

_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
_OF_SETS: Final = ("In", "NotIn")
_OF_PRESENCE: Final = ("Exists", "DoesNotExist")
_OF_NUMBERS: Final = ("Gt", "Lt")
_MOST_WEIGHT: Final = 100
_NO_OPERATOR: Final = "not a valid selector operator"


def affinity(found: Spec, path: PartPath) -> Iterator[Problem]:
    """Of a pod to nodes and to other pods."""
    yield from _to_nodes(mapping(found.get("nodeAffinity")), (*path, "nodeAffinity"))
    for kind in ("podAffinity", "podAntiAffinity"):
        given, where = mapping(found.get(kind)), (*path, kind)
        for index, term in enumerate(map(mapping, items(given.get(_REQUIRED)))):
            yield from _to_pods(term, (*where, _REQUIRED, index))
        for index, weighted in enumerate(map(mapping, items(given.get(_PREFERRED)))):
            place = (*where, _PREFERRED, index)
            yield from _weight(weighted, place)
            yield from _to_pods(mapping(weighted.get("podAffinityTerm")), (*place, "podAffinityTerm"))


def _to_nodes(found: Spec, path: PartPath) -> Iterator[Problem]:
    needed, where = found.get(_REQUIRED), (*path, _REQUIRED, "nodeSelectorTerms")
    if isinstance(needed, dict):
        terms = items(needed.get("nodeSelectorTerms"))
        if not terms:
            yield required("node-terms", where, "must have at least one node selector term")
        for index, term in enumerate(terms):
            yield from _node_term(mapping(term), (*where, index), has_values=True)
    for index, weighted in enumerate(map(mapping, items(found.get(_PREFERRED)))):
        place = (*path, _PREFERRED, index)
        yield from _weight(weighted, place)
        yield from _node_term(mapping(weighted.get("preference")), (*place, "preference"), has_values=False)


def _weight(weighted: Spec, path: PartPath) -> Iterator[Problem]:
    weight = number(weighted.get("weight")) or 0
    if not 0 < weight <= _MOST_WEIGHT:
        yield invalid("affinity-weight", (*path, "weight"), weight, "must be in the range 1-100")


def _node_term(term: Spec, path: PartPath, *, has_values: bool) -> Iterator[Problem]:
    """``has_values``: where the values must be ones that a label can have."""
    for index, one in enumerate(map(mapping, items(term.get("matchExpressions")))):
        where = (*path, "matchExpressions", index)
        yield from _requirement("node-terms", one, where, also=_OF_NUMBERS)
        for at, value in enumerate(items(one.get("values")) if has_values else ()):
            yield from invalids("node-terms", (*where, "values", at), value, api_names.label_value(text(value)))
    for index, one in enumerate(map(mapping, items(term.get("matchFields")))):
        yield from _field(one, (*path, "matchFields", index))


def _field(one: Spec, path: PartPath) -> Iterator[Problem]:
    operator, key = text(one.get("operator")), text(one.get("key"))
    if operator not in _OF_SETS:
        yield invalid("node-terms", (*path, "operator"), operator, _NO_OPERATOR)
    elif len(items(one.get("values"))) != 1:
        why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
        yield required("node-terms", (*path, "values"), why)
    if key != "metadata.name":
        yield invalid("node-terms", (*path, "key"), key, "not a valid field selector key")


def _to_pods(term: Spec, path: PartPath) -> Iterator[Problem]:
    key = text(term.get("topologyKey"))
    if not key:
        yield required("topology-key", (*path, "topologyKey"), "can not be empty")
    yield from invalids("topology-key", (*path, "topologyKey"), key, api_names.qualified(key) if key else ())
    for name in ("labelSelector", "namespaceSelector"):
        yield from label_selector(term.get(name), (*path, name))


def labels(name: str, found: Mapping[str, Any], path: PartPath) -> Iterator[Problem]:
    """Keys and values, of which the API server names only what holds them."""
    for key, value in found.items():
        yield from invalids(name, (*path, key), key, api_names.qualified(key), named=path)
        yield from invalids(name, (*path, key), value, api_names.label_value(text(value)), named=path)


def label_selector(selector: object, path: PartPath) -> Iterator[Problem]:
    """What selects pods by their labels."""
    yield from labels("label-selector", mapping(inside(selector, "matchLabels")), (*path, "matchLabels"))
    for index, one in enumerate(map(mapping, items(inside(selector, "matchExpressions")))):
        where = (*path, "matchExpressions", index)
        yield from _requirement("label-selector", one, where)
        for at, value in enumerate(items(one.get("values"))):
            yield from invalids("label-selector", (*where, "values", at), value, api_names.label_value(text(value)))


def _requirement(name: str, one: Spec, path: PartPath, *, also: Sequence[str] = ()) -> Iterator[Problem]:
    operator, values, key = text(one.get("operator")), items(one.get("values")), text(one.get("key"))
    where = (*path, "values")
    if operator in _OF_SETS:
        if not values:
            yield required(name, where, "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in _OF_PRESENCE:
        if values:
            yield forbidden(name, where, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif operator in also:
        if len(values) != 1:
            yield required(name, where, "must be specified single value when `operator` is 'Lt' or 'Gt'")
    else:
        yield invalid(name, (*path, "operator"), operator, _NO_OPERATOR)
    yield from invalids(name, (*path, "key"), key, api_names.qualified(key))
