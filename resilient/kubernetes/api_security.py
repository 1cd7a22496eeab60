# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in the security contexts of a pod and its containers.

Facts from ``pkg/apis/core/validation/validation.go``: ``validatePodSpecSecurityContext``, ``ValidateSecurityContext``,
``validateHostUsers`` and ``validateOS``. What is about Windows alone is left out: nobody trains there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    INT32,
    Problem,
    Spec,
    contradiction,
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

_IDS: Final = ("fsGroup", "runAsUser", "runAsGroup")
_POLICIES: Final = {
    "fsGroupChangePolicy": ("Always", "OnRootMismatch"),
    "supplementalGroupsPolicy": ("Merge", "Strict"),
    "seLinuxChangePolicy": ("MountOption", "Recursive"),
}
_PROFILES: Final = ("Localhost", "RuntimeDefault", "Unconfined")
_PROFILE_FIELDS: Final = {"seccompProfile": "seccomp", "appArmorProfile": "AppArmor"}
_PROC_MOUNTS: Final = ("Default", "Unmasked")
_SYSTEMS: Final = ("linux", "windows")
_SYSCTL: Final = re.compile(r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?")
_SYSCTL_BYTES: Final = 253
_OF_THE_HOST: Final = {"hostNetwork": ("net.",), "hostIPC": ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")}
_NEEDED_NAMESPACES: Final = {"hostPID": "HostPID", "hostIPC": "HostIPC"}
"""By the name that the API server writes; whether hostNetwork is among them depends on a feature gate."""


def pod_security(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """Of a pod."""
    given, where = mapping(spec.get("securityContext")), (*path, "securityContext")
    yield from _ids(given, where)
    for index, group in enumerate(items(given.get("supplementalGroups"))):
        yield from _id(group, (*where, "supplementalGroups", index))
    for key, supported in _POLICIES.items():
        yield from unless_one_of("security-policy-unknown", (*where, key), given.get(key), supported)
    yield from _profiles(given, where)
    yield from _sysctls(items(given.get("sysctls")), spec, (*where, "sysctls"))
    if spec.get("shareProcessNamespace") is True and spec.get("hostPID") is True:
        why = "ShareProcessNamespace and HostPID cannot both be enabled"
        named = (*where, "shareProcessNamespace")
        yield invalid("host-namespaces", (*path, "shareProcessNamespace"), True, why, named=named)
    for key, word in _NEEDED_NAMESPACES.items() if spec.get("hostUsers") is False else ():
        if spec.get(key) is True:
            why = "when `pod.Spec.HostUsers` is false"
            yield forbidden("host-namespaces", (*path, key), why, named=(*path, word))
    yield from _system(spec.get("os"), (*path, "os"))


def container_security(given: Spec, path: PartPath, *, has_host_users: bool) -> Iterator[Problem]:
    """Of a container; ``has_host_users``: the pod has no user namespace of its own."""
    yield from _ids(given, path)
    yield from _profiles(given, path)
    mount = text(given.get("procMount"))
    yield from unless_one_of("proc-mount", (*path, "procMount"), mount, _PROC_MOUNTS)
    if mount == "Unmasked" and has_host_users:
        yield invalid("proc-mount", (*path, "procMount"), mount, "`hostUsers` must be false to use `Unmasked`")
    if given.get("allowPrivilegeEscalation") is not False:
        return
    if given.get("privileged") is True:
        why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        yield contradiction("privilege-contradiction", path, why)
    if "CAP_SYS_ADMIN" in items(inside(given, "capabilities", "add")):
        why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
        yield contradiction("privilege-contradiction", path, why)


def _ids(given: Spec, path: PartPath) -> Iterator[Problem]:
    for key in _IDS:
        yield from _id(given.get(key), (*path, key))


def _id(value: object, path: PartPath) -> Iterator[Problem]:
    found = number(value)
    if found is not None and not 0 <= found <= INT32:
        yield invalid("user-out-of-range", path, found, f"must be between 0 and {INT32}, inclusive")


def _profiles(given: Spec, path: PartPath) -> Iterator[Problem]:
    for key, word in _PROFILE_FIELDS.items():
        if isinstance(given.get(key), dict):
            yield from _profile(given[key], key, word, (*path, key))


def _profile(profile: Spec, field: str, word: str, path: PartPath) -> Iterator[Problem]:
    kind, local, where = text(profile.get("type")), profile.get("localhostProfile"), (*path, "localhostProfile")
    if not kind:
        yield required("security-profile", (*path, "type"), f"type is required when {field} is set")
    yield from unless_one_of("security-profile", (*path, "type"), kind, _PROFILES)
    if kind == "Localhost" and (local is None or (field == "appArmorProfile" and not text(local).strip())):
        yield required("security-profile", where, f"must be set when {word} type is Localhost")
    elif kind == "Localhost" and field == "seccompProfile":
        yield from invalids("security-profile", where, local, api_names.relative_path(text(local)))
    elif kind in _PROFILES[1:] and local is not None:
        yield contradiction("security-profile", where, f"can only be set when {word} type is Localhost")


def _sysctls(found: list[Any], spec: Spec, path: PartPath) -> Iterator[Problem]:
    names: set[str] = set()
    for index, name in enumerate(text(inside(one, "name")) for one in found):
        where = (*path, index, "name")
        if not name:
            yield required("sysctl-name", where)
        elif len(name.encode()) > _SYSCTL_BYTES or not _SYSCTL.fullmatch(name):
            why = f"must have at most {_SYSCTL_BYTES} characters and match regex ^{_SYSCTL.pattern}$"
            yield invalid("sysctl-name", where, name, why)
        elif name in names:
            yield duplicate("sysctl-name", where, name)
        names.add(name)
        for key, prefixes in _OF_THE_HOST.items():
            if spec.get(key) is True and name.replace("/", ".").startswith(prefixes):
                yield invalid("sysctl-of-the-host", where, name, f"may not be specified when '{key}' is true")


def _system(found: object, path: PartPath) -> Iterator[Problem]:
    if not isinstance(found, dict):
        return
    name = text(found.get("name"))
    if not name:
        yield required("operating-system", (*path, "name"), "cannot be empty")
    elif name not in _SYSTEMS:
        yield unsupported("operating-system", (*path, "name"), name, _SYSTEMS, named=path)
