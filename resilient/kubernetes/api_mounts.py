# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in how containers see volumes.

Facts from ``pkg/apis/core/validation/validation.go``: ``ValidateVolumeMounts``, ``ValidateVolumeDevices`` and what they
call. Some of its paths leave out which mount they mean. A ``:`` in a path is for the container runtime to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    not_found,
    required,
    text,
    unless_one_of,
)
from resilient.kubernetes.building import PartPath

Volumes = Mapping[str, bool]
"""By name, whether it is a claim, which alone can be a device."""

_PROPAGATIONS: Final = ("Bidirectional", "HostToContainer", "None")
_RECURSIVE: Final = ("Disabled", "Enabled", "IfPossible")


def mounts(container: Spec, volumes: Volumes, path: PartPath) -> Iterator[Problem]:
    """Of a container: what it sees as files, and what as devices."""
    found, devices = items(container.get("volumeMounts")), items(container.get("volumeDevices"))
    is_privileged = inside(container, "securityContext", "privileged") is True
    of_devices = {text(inside(one, "name")): text(inside(one, "devicePath")) for one in devices}
    places: set[str] = set()
    for index, mount in enumerate(map(mapping, found)):
        where = (*path, "volumeMounts", index)
        yield from _mount(mount, places, volumes, where)
        yield from _overlap(mount, of_devices, where)
        yield from _sub_path(mount, where)
        yield from _propagation(mount, where, is_privileged=is_privileged)
    yield from _devices(devices, volumes, (*path, "volumeDevices"))


def _mount(mount: Spec, places: set[str], volumes: Volumes, path: PartPath) -> Iterator[Problem]:
    name, place = text(mount.get("name")), text(mount.get("mountPath"))
    if not name:
        yield required("mount-volume-unknown", (*path, "name"))
    elif name not in volumes:
        yield not_found("mount-volume-unknown", (*path, "name"), name)
    if not place:
        yield required("mount-path", (*path, "mountPath"))
    elif place in places:
        yield invalid("mount-path", (*path, "mountPath"), place, "must be unique")
    places.add(place)


def _overlap(mount: Spec, devices: Mapping[str, str], path: PartPath) -> Iterator[Problem]:
    name, place = text(mount.get("name")), text(mount.get("mountPath"))
    if name and name in devices:
        yield invalid("volume-device", (*path, "name"), name, "must not already exist in volumeDevices")
    if place and place in devices.values():
        why = "must not already exist as a path in volumeDevices"
        yield invalid("volume-device", (*path, "mountPath"), place, why)


def _sub_path(mount: Spec, path: PartPath) -> Iterator[Problem]:
    for key in ("subPath", "subPathExpr"):
        below = text(mount.get(key))
        named = (*path[:-1], key)
        yield from invalids("mount-sub-path", (*path, key), below, api_names.relative_path(below), named=named)
    if text(mount.get("subPath")) and text(mount.get("subPathExpr")):
        why = "subPathExpr and subPath are mutually exclusive"
        yield invalid("mount-sub-path", (*path, "subPathExpr"), mount["subPathExpr"], why)


def _propagation(mount: Spec, path: PartPath, *, is_privileged: bool) -> Iterator[Problem]:
    how, named = text(mount.get("mountPropagation")), (*path[:-1], "mountPropagation")
    yield from unless_one_of("mount-propagation", (*path, "mountPropagation"), how, _PROPAGATIONS, named=named)
    if how == "Bidirectional" and not is_privileged:
        why = "Bidirectional mount propagation is available only to privileged containers"
        yield forbidden("mount-propagation", (*path, "mountPropagation"), why, named=named)
    recursive, where = text(mount.get("recursiveReadOnly")), (*path, "recursiveReadOnly")
    named = (*path[:-1], "recursiveReadOnly")
    yield from unless_one_of("mount-recursive", where, recursive, _RECURSIVE, named=named)
    if recursive not in _RECURSIVE[1:]:
        return
    if mount.get("readOnly") is not True:
        yield forbidden("mount-recursive", where, "may only be specified when readOnly is true", named=named)
    if how not in ("", "None"):
        why = "may only be specified when mountPropagation is None or not specified"
        yield forbidden("mount-recursive", where, why, named=named)


def _devices(devices: list[Any], volumes: Volumes, path: PartPath) -> Iterator[Problem]:
    seen: dict[str, set[str]] = {"name": set(), "devicePath": set()}
    for index, device in enumerate(map(mapping, devices)):
        where = (*path, index)
        for key, before in seen.items():
            value = text(device.get(key))
            if not value:
                yield required("volume-device", (*where, key))
            elif value in before:
                yield invalid("volume-device", (*where, key), value, "must be unique")
            before.add(value)
        name, place = text(device.get("name")), text(device.get("devicePath"))
        if name and name not in volumes:
            yield not_found("mount-volume-unknown", (*where, "name"), name)
        elif name and not volumes[name]:
            why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"
            yield invalid("volume-device", (*where, "name"), name, why)
        if api_names.no_backsteps(place):
            yield invalid("volume-device", (*where, "devicePath"), place, "can not contain backsteps ('..')")
