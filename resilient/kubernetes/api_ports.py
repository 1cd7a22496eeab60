# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in the ports of containers, and in those of the node that they take.

Facts from ``pkg/apis/core/validation/validation.go``: ``validateContainerPorts``, ``AccumulateUniqueHostPorts`` and
``validatePodHostNetworkDeps``. A template may leave out ``hostPort``, which is filled in for the pod.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    duplicate,
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

_PROTOCOLS: Final = ("SCTP", "TCP", "UDP")


def ports(found: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    """Those of one container."""
    names: set[str] = set()
    for index, port in enumerate(map(mapping, found)):
        where = (*path, index)
        yield from _name(text(port.get("name")), names, (*where, "name"))
        for key in ("containerPort", "hostPort"):
            value = number(port.get(key)) or 0
            if value:
                yield from invalids("port-number", (*where, key), value, api_names.port_number(value))
        if not port.get("containerPort"):
            yield required("port-number", (*where, "containerPort"))
        yield from unless_one_of("port-protocol", (*where, "protocol"), port.get("protocol"), _PROTOCOLS)


def _name(name: str, names: set[str], path: PartPath) -> Iterator[Problem]:
    complaints = api_names.port_name(name) if name else []
    yield from invalids("port-name", path, name, complaints)
    if name in names:
        yield duplicate("port-name", path, name)
    elif name and not complaints:
        names.add(name)


def host_ports(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """Those of the node: init containers take them one after the other, the others together."""
    taken: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(items(spec.get(group))):
            where = (*path, group, index, "ports")
            found = items(inside(container, "ports"))
            before = set() if group == "initContainers" else taken
            key = "containerPort" if spec.get("hostNetwork") is True else "hostPort"
            yield from _taken(found, before, where, filled_in_from=key)
            if spec.get("hostNetwork") is True and group == "containers":
                yield from _of_the_node(found, where)


def _taken(found: Sequence[Any], taken: set[str], path: PartPath, *, filled_in_from: str) -> Iterator[Problem]:
    """``filled_in_from``: where the pod's ports of the node come from, unless they are written out."""
    for index, port in enumerate(map(mapping, found)):
        wanted = number(port.get("hostPort")) or number(port.get(filled_in_from))
        if not wanted:
            continue
        name = f"{text(port.get('protocol')) or 'TCP'}/{text(port.get('hostIP'))}/{wanted}"
        if name in taken:
            yield duplicate("host-port-taken", (*path, index, "hostPort"), name)
        taken.add(name)


def _of_the_node(found: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    for index, port in enumerate(map(mapping, found)):
        host = number(port.get("hostPort"))
        if host and host != port.get("containerPort"):
            why = "must match `containerPort` when `hostNetwork` is true"
            yield invalid("host-port-differs", (*path, index, "hostPort"), host, why)
