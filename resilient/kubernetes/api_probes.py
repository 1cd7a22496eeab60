# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in probes and in what runs at a container's start and end.

Facts from ``pkg/apis/core/validation/validation.go`` (``validateHandler``, ``validateProbe``, ``validateLifecycle``)
and ``pkg/apis/core/v1/defaults.go``, which fills in a default for a 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

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
    unless_one_of,
)
from resilient.kubernetes.building import PartPath

_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
_EVENTS: Final = ("postStart", "preStop")
_COUNTS: Final = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
_SCHEMES: Final = ("HTTP", "HTTPS")
_HEADER: Final = re.compile(r"[-A-Za-z0-9]+")
_HEADER_WORDS: Final = (
    "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for "
    "validation is '[-A-Za-z0-9]+')"
)
DEFAULT_GRACE_S: Final = 30


def probes(container: Spec, grace_s: int, path: PartPath) -> Iterator[Problem]:
    """Of a container that lives as long as its pod; ``grace_s``: what the pod has to end."""
    lifecycle = mapping(container.get("lifecycle"))
    for event in _EVENTS:
        if isinstance(lifecycle.get(event), dict):
            yield from _hook(lifecycle[event], grace_s, (*path, "lifecycle", event))
    for name in _PROBES:
        if isinstance(container.get(name), dict):
            yield from _probe(container[name], name, grace_s, (*path, name))


def _probe(probe: Spec, name: str, grace_s: int, path: PartPath) -> Iterator[Problem]:
    yield from _hook(probe, grace_s, path)
    for key in _COUNTS:
        value = number(probe.get(key))
        if value is not None and value < 0:
            yield invalid("probe-negative", (*path, key), value, "must be greater than or equal to 0")
    successes, own_grace_s = number(probe.get("successThreshold")), probe.get("terminationGracePeriodSeconds")
    if name != "readinessProbe" and successes not in (None, 0, 1):
        yield invalid("probe-successes", (*path, "successThreshold"), successes, "must be 1")
    where = (*path, "terminationGracePeriodSeconds")
    if name == "readinessProbe" and own_grace_s is not None:
        yield invalid("probe-grace", where, own_grace_s, "must not be set for readinessProbes")
    elif own_grace_s is not None and own_grace_s <= 0:
        yield invalid("probe-grace", where, own_grace_s, "must be greater than 0")


def _hook(hook: Spec, grace_s: int, path: PartPath) -> Iterator[Problem]:
    given = [name for name in _ACTIONS if isinstance(hook.get(name), dict)]
    if not given:
        yield required("handler-count", path, "must specify a handler type")
    for name in given[1:]:
        yield forbidden("handler-count", (*path, name), "may not specify more than 1 handler type")
    for name in given[:1]:
        yield from _ACTIONS[name](hook[name], grace_s, (*path, name))


def _exec(action: Spec, _: int, path: PartPath) -> Iterator[Problem]:
    if not items(action.get("command")):
        yield required("handler-command", (*path, "command"))


def _http(action: Spec, grace_s: int, path: PartPath) -> Iterator[Problem]:
    yield from _port(action, grace_s, path)
    yield from unless_one_of("handler-scheme", (*path, "scheme"), action.get("scheme"), _SCHEMES)
    for header in items(action.get("httpHeaders")):
        name = text(inside(header, "name"))
        if not _HEADER.fullmatch(name):
            yield invalid("handler-header", (*path, "httpHeaders"), name, _HEADER_WORDS)


def _port(action: Spec, _: int, path: PartPath) -> Iterator[Problem]:
    port, where = action.get("port"), (*path, "port")
    if isinstance(port, str):
        yield from invalids("handler-port", where, port, api_names.port_name(port))
    else:
        value = number(port) or 0
        yield from invalids("handler-port", where, value, api_names.port_number(value))


def _sleep(action: Spec, grace_s: int, path: PartPath) -> Iterator[Problem]:
    seconds = number(action.get("seconds")) or 0
    if not 0 <= seconds <= grace_s:
        why = f"must be non-negative and less than terminationGracePeriodSeconds ({grace_s})"
        yield invalid("handler-sleep", path, seconds, why)


_ACTIONS: Final[Mapping[str, Callable[[Spec, int, PartPath], Iterator[Problem]]]] = {
    "exec": _exec,
    "httpGet": _http,
    "tcpSocket": _port,
    "grpc": _port,
    "sleep": _sleep,
}
"""In the API server's order: the first is looked at, another is one too many."""
