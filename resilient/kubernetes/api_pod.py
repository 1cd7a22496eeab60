# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in a pod, as far as a training's manifest gets it wrong.

Facts from ``pkg/apis/core/validation/validation.go``: containers, their names and their restart rules (Kubernetes 1.35
and newer, ``RestartAllContainers`` 1.36). All else that a pod and its containers have is for a module each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_env import environment
from resilient.kubernetes.api_job import MOST_RULES, MOST_VALUES, OPERATORS
from resilient.kubernetes.api_mounts import Volumes, mounts
from resilient.kubernetes.api_network import network
from resilient.kubernetes.api_placement import placement
from resilient.kubernetes.api_ports import host_ports, ports
from resilient.kubernetes.api_probes import DEFAULT_GRACE_S, probes
from resilient.kubernetes.api_problems import (
    INT32,
    Problem,
    Spec,
    duplicate,
    forbidden,
    inside,
    invalid,
    items,
    mapping,
    number,
    required,
    text,
    too_many,
    unsupported,
)
from resilient.kubernetes.api_references import references
from resilient.kubernetes.api_resources import resources
from resilient.kubernetes.api_security import container_security, pod_security
from resilient.kubernetes.api_volumes import volumes
from resilient.kubernetes.building import PartPath

_POLICIES: Final = ("Always", "OnFailure", "Never")
_OWN_POLICIES: Final = ("Always", "Never", "OnFailure")
"""Of a container; the API server lists them sorted."""
_RULE_ACTIONS: Final = ("Restart", "RestartAllContainers")
_OF_SIDECARS: Final = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
_MESSAGE_POLICIES: Final = ("FallbackToLogsOnError", "File")
_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
_CLAIMS: Final = ("persistentVolumeClaim", "ephemeral")


def pod_spec(spec: Spec, path: PartPath, *, is_whole: bool = True, claimed: Collection[str] = ()) -> Iterator[Problem]:
    """A pod; where it is not whole, images are filled in before the API server looks, and volumes for ``claimed``."""
    containers = items(spec.get("containers"))
    if not containers:
        yield required("pod-containers-missing", (*path, "containers"))
    yield from volumes(items(spec.get("volumes")), (*path, "volumes"))
    mountable: Volumes = {**dict.fromkeys(claimed, True), **_mountable(spec)}
    policy = text(spec.get("restartPolicy"))
    if policy and policy not in _POLICIES:
        yield unsupported("pod-restart-policy", (*path, "restartPolicy"), policy, _POLICIES)
    seconds = number(spec.get("activeDeadlineSeconds"))
    if seconds is not None and not 1 <= seconds <= INT32:
        why = f"must be between 1 and {INT32}, inclusive"
        yield invalid("pod-deadline", (*path, "activeDeadlineSeconds"), seconds, why)
    for judge in (network, host_ports, pod_security, placement, references):
        yield from judge(spec, path)
    yield from _containers(spec, mountable, path, is_whole=is_whole)


def _mountable(spec: Spec) -> dict[str, bool]:
    found = [mapping(volume) for volume in items(spec.get("volumes"))]
    return {text(volume.get("name")): any(volume.get(kind) is not None for kind in _CLAIMS) for volume in found}


def _containers(spec: Spec, mountable: Volumes, path: PartPath, *, is_whole: bool) -> Iterator[Problem]:
    grace_s = number(spec.get("terminationGracePeriodSeconds"))
    seen: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(map(mapping, items(spec.get(group)))):
            where = (*path, group, index)
            yield from _name(container, seen, where)
            yield from _image(text(container.get("image")), (*where, "image"), is_whole=is_whole)
            yield from _container(container, where)
            yield from mounts(container, mountable, where)
            security, own = mapping(container.get("securityContext")), (*where, "securityContext")
            yield from container_security(security, own, has_host_users=spec.get("hostUsers") is not False)
            if group == "initContainers" and container.get("restartPolicy") != "Always":
                yield from _plain_init(container, where)
            else:
                yield from probes(container, DEFAULT_GRACE_S if grace_s is None else grace_s, where)


def _image(image: str, path: PartPath, *, is_whole: bool) -> Iterator[Problem]:
    """Spaces around it a template may have, and none of its pods."""
    if is_whole and not image:
        yield required("container-image-missing", path)
    if image != image.strip():
        yield invalid("container-image-spaces", path, image, "must not have leading or trailing whitespace")


def _plain_init(container: Spec, path: PartPath) -> Iterator[Problem]:
    """What only a sidecar can have: the others have ended before anybody would ask."""
    for name in _OF_SIDECARS:
        if container.get(name) is not None:
            why = "may not be set for init containers without restartPolicy=Always"
            yield forbidden("init-container-probe", (*path, name), why)


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


def _container(container: Spec, path: PartPath) -> Iterator[Problem]:
    for name, id_, supported in (
        ("terminationMessagePolicy", "message-policy-unknown", _MESSAGE_POLICIES),
        ("imagePullPolicy", "pull-policy-unknown", _PULL_POLICIES),
    ):
        value = text(container.get(name))
        if value and value not in supported:
            yield unsupported(id_, (*path, name), value, supported)
    yield from ports(items(container.get("ports")), (*path, "ports"))
    yield from environment(container, path)
    yield from _restart_rules(container, path)
    yield from resources(mapping(container.get("resources")), (*path, "resources"))


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
