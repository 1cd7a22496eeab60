# SPDX-License-Identifier: Apache-2.0
"""What the API server fills into a pod template before it compares or looks at it.

Facts from ``pkg/apis/core/v1/defaults.go``, as far as people write it out. A template is brought into one form, in
which two that mean the same are equal: defaults filled in, amounts as numbers, nothing that is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from resilient.kubernetes.api_problems import inside, items, mapping, text
from resilient.kubernetes.api_resources import quantity

_POD: Final[Mapping[str, Any]] = {
    "dnsPolicy": "ClusterFirst",
    "enableServiceLinks": True,
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "securityContext": {},
    "terminationGracePeriodSeconds": 30,
}
_CONTAINER: Final[Mapping[str, Any]] = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_PROBE: Final[Mapping[str, Any]] = {
    "failureThreshold": 3,
    "periodSeconds": 10,
    "successThreshold": 1,
    "timeoutSeconds": 1,
}
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
_WITH_MODE: Final = ("configMap", "downwardAPI", "projected", "secret")
_MODE: Final = 0o644
_MAPS: Final = frozenset(("annotations", "labels", "limits", "metadata", "nodeSelector", "requests", "resources"))
"""Of other objects an empty one is something: ``emptyDir: {}``."""


def template_form(template: object) -> dict[str, Any]:
    """The one form of a pod template."""
    whole = _compact(mapping(template))
    pod = {**_POD, **mapping(whole.get("spec"))}
    for group in ("containers", "initContainers"):
        if group in pod:
            pod[group] = [_container(mapping(one)) for one in items(pod[group])]
    if "volumes" in pod:
        pod["volumes"] = [_volume(mapping(one)) for one in items(pod["volumes"])]
    return {**whole, "spec": pod}


def _container(given: Mapping[str, Any]) -> dict[str, Any]:
    filled = {"imagePullPolicy": _pulls(text(given.get("image"))), **_CONTAINER, **given}
    if "resources" in filled:
        filled["resources"] = {group: _amounts(value) for group, value in mapping(filled["resources"]).items()}
    if "ports" in filled:
        filled["ports"] = [{"protocol": "TCP", **mapping(port)} for port in items(filled["ports"])]
    if "env" in filled:
        filled["env"] = [_variable(mapping(one)) for one in items(filled["env"])]
    return {**filled, **{name: {**_PROBE, **mapping(filled[name])} for name in _PROBES if name in filled}}


def _variable(given: Mapping[str, Any]) -> dict[str, Any]:
    field = inside(given, "valueFrom", "fieldRef")
    return (
        dict(given) if field is None else {**given, "valueFrom": {"fieldRef": {"apiVersion": "v1", **mapping(field)}}}
    )


def _volume(given: Mapping[str, Any]) -> dict[str, Any]:
    modes = {name: {"defaultMode": _MODE, **mapping(given[name])} for name in _WITH_MODE if name in given}
    return {**given, **modes}


def _amounts(given: object) -> object:
    """Amounts by their size: 1 and "1000m" are one."""
    if not isinstance(given, dict):
        return given
    return {name: value if (amount := quantity(value)) is None else amount for name, value in given.items()}


def _pulls(image: str) -> str:
    """When an image is pulled where nobody says it: always under the tag ``latest``, which is that of none."""
    name = image.rpartition("/")[2]
    tag = name.partition("@")[0].partition(":")[2]
    return "IfNotPresent" if tag not in ("", "latest") or "@" in name else "Always"


def _compact(value: Any) -> Any:
    """Without what is null, empty lists and empty maps, which to the API server are not there."""
    if isinstance(value, dict):
        below = {name: _compact(one) for name, one in value.items()}
        return {name: one for name, one in below.items() if one not in (None, []) and not (name in _MAPS and one == {})}
    return [_compact(one) for one in value] if isinstance(value, list) else value
