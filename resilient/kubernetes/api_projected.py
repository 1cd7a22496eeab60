# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in volumes whose files are written from other objects.

Facts from ``pkg/apis/core/validation/validation.go``: ``validateKeyToPath``, ``validateDownwardAPIVolumeFile`` and
``validateProjectionSources``, whose paths name less than the place that is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_env import field_of_pod, field_of_resources
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    forbidden,
    invalid,
    invalids,
    items,
    mapping,
    number,
    required,
    text,
)
from resilient.kubernetes.building import PartPath

_MOST_MODE: Final = 0o777
_FIELDS: Final = (*("metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"),)
_LEAST_TOKEN_S: Final = 600
_MOST_TOKEN_S: Final = 1 << 32
_OF_KEYS: Final = ("secret", "configMap")


def mode(value: object, path: PartPath) -> Iterator[Problem]:
    """The permissions of a file: 644 that is no octal number is another one."""
    found = number(value)
    if found is not None and not 0 <= found <= _MOST_MODE:
        why = "must be a number between 0 and 0777 (octal), both inclusive"
        yield invalid("file-mode", path, found, why)


def paths_of_keys(found: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    """Which key of a ConfigMap or a Secret becomes which file."""
    for index, item in enumerate(map(mapping, found)):
        where = (*path, index)
        for key in ("key", "path"):
            if not text(item.get(key)):
                yield required("volume-incomplete", (*where, key))
        yield from _file(text(item.get("path")), (*where, "path"))
        yield from mode(item.get("mode"), (*where, "mode"))


def written_fields(found: Sequence[Any], path: PartPath, *, named: PartPath) -> Iterator[Problem]:
    """Which field of the pod becomes which file; ``named``: the API server does not say which item."""
    for index, item in enumerate(map(mapping, found)):
        where, file = (*path, index), text(item.get("path"))
        if not file:
            yield required("volume-incomplete", (*where, "path"), named=(*named, "path"))
        yield from _file(file, (*where, "path"), named=(*named, "path"))
        yield from mode(item.get("mode"), (*where, "mode"))
        field, resource = item.get("fieldRef"), item.get("resourceFieldRef")
        if isinstance(field, dict):
            yield from field_of_pod(field, _FIELDS, (*where, "fieldRef"))
            if resource is not None:
                why = "fieldRef and resourceFieldRef can not be specified simultaneously"
                yield invalid("field-unknown", where, "resource", why, named=named)
        elif isinstance(resource, dict):
            yield from field_of_resources(resource, (*where, "resourceFieldRef"), is_of_a_volume=True)
        else:
            yield required("field-unknown", where, "one of fieldRef and resourceFieldRef is required", named=named)


def projected(volume: Spec, path: PartPath) -> Iterator[Problem]:
    """Of several sources in one volume, which must not write the same file twice."""
    yield from mode(volume.get("defaultMode"), (*path, "defaultMode"))
    taken: set[str] = set()
    for index, source in enumerate(map(mapping, items(volume.get("sources")))):
        where = (*path, "sources", index)
        given = [name for name, value in source.items() if isinstance(value, dict)]
        if len(given) > 1:
            yield forbidden("volume-sources", where, "may not specify more than 1 volume type per source")
        for name in given:
            yield from _projection(name, source[name], (*where, name), path)
            yield from _twice(name, source[name], taken, (*where, name), path)


def _projection(name: str, source: Spec, path: PartPath, volume: PartPath) -> Iterator[Problem]:
    found = items(source.get("items"))
    if name in _OF_KEYS:
        if not text(source.get("name")):
            yield required("volume-incomplete", (*path, "name"))
        yield from paths_of_keys(found, (*path, "items"))
    elif name == "downwardAPI":
        yield from written_fields(found, (*path, "items"), named=path)
    elif name == "serviceAccountToken":
        yield from _token(source, path, volume)


def _token(source: Spec, path: PartPath, volume: PartPath) -> Iterator[Problem]:
    seconds, file = number(source.get("expirationSeconds")), text(source.get("path"))
    where = (*path, "expirationSeconds")
    if seconds is not None and seconds < _LEAST_TOKEN_S:
        yield invalid("token-lifetime", where, seconds, "may not specify a duration less than 10 minutes")
    elif seconds is not None and seconds > _MOST_TOKEN_S:
        yield invalid("token-lifetime", where, seconds, "may not specify a duration larger than 2^32 seconds")
    if not file:
        yield required("volume-incomplete", (*path, "path"), named=(*volume, "path"))
    yield from _file(file, (*path, "path"), named=(*volume, "path"))


def _twice(name: str, source: Spec, taken: set[str], path: PartPath, volume: PartPath) -> Iterator[Problem]:
    for index, file in enumerate(text(mapping(item).get("path")) for item in items(source.get("items"))):
        if file and file in taken:
            shown = text(source.get("name")) if name in _OF_KEYS else file
            where = (*path, "items", index, "path")
            yield invalid("volume-path", where, shown, "conflicting duplicate paths", named=volume)
        taken.add(file)


def _file(file: str, path: PartPath, *, named: PartPath | None = None) -> Iterator[Problem]:
    yield from invalids("volume-path", path, file, api_names.local_path(file), named=named)
