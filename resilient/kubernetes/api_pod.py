# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a pod, as far as a training's manifest gets it wrong.

Facts from ``pkg/apis/core/validation/validation.go``: containers and their names, volumes and mounts, variables,
container restart rules (Kubernetes 1.35 and newer, ``RestartAllContainers`` 1.36). Resources are for ``api_resources``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_job import MOST_RULES, MOST_VALUES, OPERATORS
from resilient.kubernetes.api_problems import (
    INT32,
    Problem,
    contradiction,
    duplicate,
    forbidden,
    inside,
    invalid,
    items,
    mapping,
    not_found,
    number,
    required,
    text,
    too_many,
    unsupported,
)
from resilient.kubernetes.api_resources import resources
from resilient.kubernetes.building import PartPath

_POLICIES: Final = ("Always", "OnFailure", "Never")
_OWN_POLICIES: Final = ("Always", "Never", "OnFailure")
"""Of a container; the API server lists them sorted."""
_RULE_ACTIONS: Final = ("Restart", "RestartAllContainers")
_OF_SIDECARS: Final = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
_MESSAGE_POLICIES: Final = ("FallbackToLogsOnError", "File")
_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
_FIELDS: Final = (
    *("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName"),
    *("status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"),
)
_SUBSCRIPTED: Final = re.compile(r"metadata\.(labels|annotations)\['[^']+'\]")

Spec = Mapping[str, Any]


def pod_spec(spec: Spec, path: PartPath, *, is_whole: bool = True) -> Iterator[Problem]:
    """A pod; where it is not whole, somebody fills in images before the API server looks."""
    containers = items(spec.get("containers"))
    if not containers:
        yield required("pod-containers-missing", (*path, "containers"))
    volumes = items(spec.get("volumes"))
    yield from _volumes(volumes, (*path, "volumes"))
    mountable = {text(inside(volume, "name")) for volume in volumes}
    policy = text(spec.get("restartPolicy"))
    if policy and policy not in _POLICIES:
        yield unsupported("pod-restart-policy", (*path, "restartPolicy"), policy, _POLICIES)
    seen: set[str] = set()
    seconds = number(spec.get("activeDeadlineSeconds"))
    if seconds is not None and not 1 <= seconds <= INT32:
        why = f"must be between 1 and {INT32}, inclusive"
        yield invalid("pod-deadline", (*path, "activeDeadlineSeconds"), seconds, why)
    for index, container in enumerate(items(spec.get("initContainers"))):
        yield from _plain_init(mapping(container), (*path, "initContainers", index))
    for group in ("initContainers", "containers"):
        for index, container in enumerate(items(spec.get(group))):
            where = (*path, group, index)
            yield from _name(mapping(container), seen, where)
            if is_whole and not text(inside(container, "image")):
                yield required("container-image-missing", (*where, "image"))
            yield from _container(mapping(container), mountable, where)


def _plain_init(container: Spec, path: PartPath) -> Iterator[Problem]:
    """What only a sidecar can have: the others have ended before anybody would ask."""
    for name in _OF_SIDECARS if container.get("restartPolicy") != "Always" else ():
        if container.get(name) is not None:
            why = "may not be set for init containers without restartPolicy=Always"
            yield forbidden("init-container-probe", (*path, name), why)


def _volumes(volumes: list[Any], path: PartPath) -> Iterator[Problem]:
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        name, where = text(inside(volume, "name")), (*path, index, "name")
        if not name:
            yield required("volume-name", where)
        elif name in names:
            yield duplicate("volume-name", where, name)
        for complaint in api_names.label(name) if name else ():
            yield invalid("volume-name", where, name, complaint)
        names.add(name)


def _name(container: Spec, seen: set[str], path: PartPath) -> Iterator[Problem]:
    name, where = text(container.get("name")), (*path, "name")
    if not name:
        yield required("container-name", where)
        return
    for complaint in api_names.label(name):
        yield invalid("container-name", where, name, complaint)
    if name in seen:
        yield duplicate("container-name", where, name)
    seen.add(name)


def _container(container: Spec, volumes: set[str], path: PartPath) -> Iterator[Problem]:
    for name, id_, supported in (
        ("terminationMessagePolicy", "message-policy-unknown", _MESSAGE_POLICIES),
        ("imagePullPolicy", "pull-policy-unknown", _PULL_POLICIES),
    ):
        value = text(container.get(name))
        if value and value not in supported:
            yield unsupported(id_, (*path, name), value, supported)
    yield from _mounts(items(container.get("volumeMounts")), volumes, (*path, "volumeMounts"))
    for index, variable in enumerate(items(container.get("env"))):
        yield from _variable(mapping(variable), (*path, "env", index))
    yield from _restart_rules(container, path)
    yield from resources(mapping(container.get("resources")), (*path, "resources"))


def _mounts(mounts: list[Any], volumes: set[str], path: PartPath) -> Iterator[Problem]:
    places: set[str] = set()
    for index, mount in enumerate(mounts):
        name, place = text(inside(mount, "name")), text(inside(mount, "mountPath"))
        if not name:
            yield required("mount-volume-unknown", (*path, index, "name"))
        elif name not in volumes:
            yield not_found("mount-volume-unknown", (*path, index, "name"), name)
        if not place:
            yield required("mount-path", (*path, index, "mountPath"))
        elif place in places:
            yield invalid("mount-path", (*path, index, "mountPath"), place, "must be unique")
        places.add(place)


def _variable(variable: Spec, path: PartPath) -> Iterator[Problem]:
    source = mapping(variable.get("valueFrom"))
    if not text(variable.get("name")):
        yield required("variable-name", (*path, "name"))
    if source and text(variable.get("value")):
        yield contradiction("variable-source", (*path, "valueFrom"), "may not be specified when `value` is not empty")
    field, where = text(inside(source, "fieldRef", "fieldPath")), (*path, "valueFrom", "fieldRef", "fieldPath")
    if not field and "fieldRef" in source:
        yield required("field-unknown", where)
    elif field.startswith("metadata.labels") or field.startswith("metadata.annotations"):
        if not _SUBSCRIPTED.fullmatch(field):
            yield unsupported("field-unknown", where, field, (*_FIELDS, "metadata.labels['<KEY>']"))
    elif field and field not in _FIELDS:
        yield unsupported("field-unknown", where, field, _FIELDS)


def _restart_rules(container: Spec, path: PartPath) -> Iterator[Problem]:
    policy, rules = container.get("restartPolicy"), items(container.get("restartPolicyRules"))
    where = (*path, "restartPolicyRules")
    if policy is None and rules:
        why = "must specify restartPolicy when restart rules are used"
        yield required("container-restart-policy", (*path, "restartPolicy"), why)
    if isinstance(policy, str) and policy not in _OWN_POLICIES:
        yield unsupported("container-restart-policy", (*path, "restartPolicy"), policy, _OWN_POLICIES)
    if len(rules) > MOST_RULES:
        yield too_many("restart-rules-over-20", where, len(rules), MOST_RULES)
    for index, rule in enumerate(rules):
        yield from _restart_rule(mapping(rule), (*where, index))


def _restart_rule(rule: Spec, path: PartPath) -> Iterator[Problem]:
    action, codes, where = text(rule.get("action")), rule.get("exitCodes"), (*path, "exitCodes")
    if action not in _RULE_ACTIONS:
        yield unsupported("restart-rule-action", (*path, "action"), action, _RULE_ACTIONS)
    if codes is None:
        yield required("restart-rule-codes-missing", where, "must be specified")
        return
    operator, values = text(inside(codes, "operator")), items(inside(codes, "values"))
    if operator not in OPERATORS:
        yield unsupported("restart-rule-operator", (*where, "operator"), operator, OPERATORS)
    if len(values) > MOST_VALUES:
        yield too_many("restart-rule-values-over-255", (*where, "values"), len(values), MOST_VALUES)
