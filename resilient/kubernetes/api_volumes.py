# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in the volumes of a pod.

Facts from ``pkg/apis/core/validation/validation.go``: ``ValidateVolumes`` and the functions of the sources that people
train with. A volume without a source is no mistake: ``pkg/apis/core/v1/defaults.go`` makes it an ``emptyDir``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_claims import claim_spec
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    contradiction,
    duplicate,
    forbidden,
    invalid,
    invalids,
    items,
    mapping,
    required,
    text,
    unsupported,
)
from resilient.kubernetes.api_projected import mode, paths_of_keys, projected, written_fields
from resilient.kubernetes.api_resources import NO_QUANTITY, quantity
from resilient.kubernetes.building import PartPath

SOURCES: Final = (
    *("emptyDir", "hostPath", "gitRepo", "gcePersistentDisk", "awsElasticBlockStore", "secret", "nfs", "iscsi"),
    *("glusterfs", "flocker", "persistentVolumeClaim", "rbd", "cinder", "cephfs", "quobyte", "downwardAPI", "fc"),
    *("flexVolume", "configMap", "azureFile", "vsphereVolume", "photonPersistentDisk", "portworxVolume", "azureDisk"),
    *("storageos", "projected", "scaleIO", "csi", "ephemeral", "image"),
)
"""In the API server's order: the first is looked at, another is one too many."""
_NAMED_OTHERWISE: Final = {"cephfs": "cephFS", "downwardAPI": "downwarAPI"}
"""What the API server writes where it finds one too many."""
_HOST_PATH_TYPES: Final = (
    *("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"),
)
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "azureFile": ("secretName", "shareName"),
    "configMap": ("name",),
    "csi": ("driver",),
    "ephemeral": ("volumeClaimTemplate",),
    "hostPath": ("path",),
    "nfs": ("server", "path"),
    "persistentVolumeClaim": ("claimName",),
    "secret": ("secretName",),
}


def volumes(found: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    """Of a pod."""
    names: set[str] = set()
    for index, volume in enumerate(map(mapping, found)):
        name, where = text(volume.get("name")), (*path, index, "name")
        if not name:
            yield required("volume-name", where)
        elif name in names:
            yield duplicate("volume-name", where, name)
        yield from invalids("volume-name", where, name, api_names.label(name) if name else ())
        names.add(name)
        yield from _source(volume, (*path, index))


def _source(volume: Spec, path: PartPath) -> Iterator[Problem]:
    given = [name for name in SOURCES if isinstance(volume.get(name), dict)]
    for name in given[1:]:
        named = (*path, _NAMED_OTHERWISE.get(name, name))
        yield forbidden("volume-sources", (*path, name), "may not specify more than 1 volume type", named=named)
    for name in given[:1]:
        source, where = volume[name], (*path, name)
        for key in _REQUIRED.get(name, ()):
            if source.get(key) in (None, ""):
                yield required("volume-incomplete", (*where, key))
        if name in _LOOK:
            yield from _LOOK[name](source, where)


def _empty(source: Spec, path: PartPath) -> Iterator[Problem]:
    limit, where = source.get("sizeLimit"), (*path, "sizeLimit")
    amount = quantity(limit)
    if limit is not None and amount is None:
        yield contradiction("quantity-malformed", where, NO_QUANTITY)
    elif amount is not None and amount < 0:
        yield forbidden("volume-size-limit", where, "SizeLimit field must be a valid resource quantity")


def _host(source: Spec, path: PartPath) -> Iterator[Problem]:
    place, kind = text(source.get("path")), source.get("type")
    yield from invalids("volume-path", (*path, "path"), place, api_names.no_backsteps(place))
    if place and kind is not None and kind not in _HOST_PATH_TYPES:
        yield unsupported("host-path-type", (*path, "type"), kind, _HOST_PATH_TYPES)


def _nfs(source: Spec, path: PartPath) -> Iterator[Problem]:
    place = text(source.get("path"))
    if place and not place.startswith("/"):
        yield invalid("volume-path", (*path, "path"), place, "must be an absolute path")


def _with_keys(source: Spec, path: PartPath) -> Iterator[Problem]:
    yield from mode(source.get("defaultMode"), (*path, "defaultMode"))
    yield from paths_of_keys(items(source.get("items")), (*path, "items"))


def _downward(source: Spec, path: PartPath) -> Iterator[Problem]:
    yield from mode(source.get("defaultMode"), (*path, "defaultMode"))
    yield from written_fields(items(source.get("items")), (*path, "items"), named=path)


def _ephemeral(source: Spec, path: PartPath) -> Iterator[Problem]:
    if isinstance(template := source.get("volumeClaimTemplate"), dict):
        where = (*path, "volumeClaimTemplate")
        for key, value in mapping(template.get("metadata")).items():
            if key not in ("annotations", "labels") and value:
                yield forbidden("claim-metadata", (*where, "metadata", key), "cannot be set")
        yield from claim_spec(mapping(template.get("spec")), (*where, "spec"))


def _image(source: Spec, path: PartPath) -> Iterator[Problem]:
    policy, supported = text(source.get("pullPolicy")), ("Always", "IfNotPresent", "Never")
    if policy and policy not in supported:
        yield unsupported("pull-policy-unknown", (*path, "pullPolicy"), policy, supported)


_LOOK: Final[Mapping[str, Callable[[Spec, PartPath], Iterator[Problem]]]] = {
    "configMap": _with_keys,
    "downwardAPI": _downward,
    "emptyDir": _empty,
    "ephemeral": _ephemeral,
    "hostPath": _host,
    "image": _image,
    "nfs": _nfs,
    "projected": projected,
    "secret": _with_keys,
}
