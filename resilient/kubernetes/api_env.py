# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in the environment of a container.

Facts from ``pkg/apis/core/validation/validation.go``: ``ValidateEnv``, ``ValidateEnvFrom`` and what selects fields and
keys, with ``pkg/apis/core/pods/helpers.go``. A volume of the downward API asks for the same fields by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    inside,
    invalid,
    invalids,
    items,
    mapping,
    required,
    text,
    unsupported,
)
from resilient.kubernetes.building import PartPath

FIELDS: Final = (
    *("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName"),
    *("status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"),
)
_ELSEWHERE: Final = (
    *("metadata.annotations", "metadata.labels"),
    *("spec.restartPolicy", "spec.schedulerName", "status.phase"),
)
"""Fields that the API server knows, but not for variables."""
_SUBSCRIPTED: Final = re.compile(r"(?P<path>.+?)\['(?P<key>.*)'\]")
_WITH_KEYS: Final = ("metadata.annotations", "metadata.labels")
_RESOURCES: Final = (
    *("limits.cpu", "limits.ephemeral-storage", "limits.memory"),
    *("requests.cpu", "requests.ephemeral-storage", "requests.memory"),
)
_HUGE_PAGES: Final = ("limits.hugepages-", "requests.hugepages-")
_KEY_SOURCES: Final = ("configMapKeyRef", "secretKeyRef")
_WHOLE_SOURCES: Final = ("configMapRef", "secretRef")
_NO_SOURCE: Final = (
    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
)
_TWO_SOURCES: Final = "may not have more than one field specified at a time"


def environment(container: Spec, path: PartPath) -> Iterator[Problem]:
    """Single variables, and those that come together."""
    for index, variable in enumerate(map(mapping, items(container.get("env")))):
        yield from _variable(variable, (*path, "env", index))
    yield from _from_sources(items(container.get("envFrom")), (*path, "envFrom"))


def _variable(variable: Spec, path: PartPath) -> Iterator[Problem]:
    name, where = text(variable.get("name")), (*path, "valueFrom")
    if not name:
        yield required("variable-name", (*path, "name"))
    yield from invalids("variable-name", (*path, "name"), name, api_names.variable(name))
    source = variable.get("valueFrom")
    if not isinstance(source, dict):
        return
    given = [key for key, value in source.items() if value is not None]
    if not given:
        yield invalid("variable-source", where, "", _NO_SOURCE)
    elif text(variable.get("value")):
        yield invalid("variable-source", where, "", "may not be specified when `value` is not empty")
    elif len(given) > 1:
        yield invalid("variable-source", where, "", _TWO_SOURCES)
    if isinstance(source.get("fieldRef"), dict):
        yield from field_of_pod(source["fieldRef"], FIELDS, (*where, "fieldRef"))
    if isinstance(source.get("resourceFieldRef"), dict):
        yield from field_of_resources(source["resourceFieldRef"], (*where, "resourceFieldRef"))
    for key in _KEY_SOURCES:
        if isinstance(source.get(key), dict):
            yield from _key(source[key], (*where, key))


def _key(reference: Spec, path: PartPath) -> Iterator[Problem]:
    name, key = text(reference.get("name")), text(reference.get("key"))
    yield from invalids("key-reference", (*path, "name"), name, api_names.subdomain(name))
    if key:
        yield from invalids("key-reference", (*path, "key"), key, api_names.config_key(key))
    else:
        yield required("key-reference", (*path, "key"))


def _from_sources(sources: Sequence[Any], path: PartPath) -> Iterator[Problem]:
    for index, source in enumerate(map(mapping, sources)):
        where, prefix = (*path, index), text(source.get("prefix"))
        yield from invalids("variable-name", (*where, "prefix"), prefix, api_names.variable(prefix))
        given = [key for key in _WHOLE_SOURCES if isinstance(source.get(key), dict)]
        for key in given:
            name = text(source[key].get("name"))
            if not name:
                yield required("environment-source", (*where, key, "name"))
            complaints = api_names.subdomain(name) if name else ()
            yield from invalids("environment-source", (*where, key, "name"), name, complaints)
        if not given:
            why = "must specify one of: `configMapRef` or `secretRef`"
            yield invalid("environment-source", where, "", why, named=path)
        elif len(given) > 1:
            yield invalid("environment-source", where, "", _TWO_SOURCES, named=path)


def field_of_pod(reference: Spec, known: Collection[str], path: PartPath) -> Iterator[Problem]:
    """What the downward API is asked for; ``known``: the fields that may stand without a key."""
    field, where = text(reference.get("fieldPath")), (*path, "fieldPath")
    if not field:
        yield required("field-unknown", where)
        return
    found = _SUBSCRIPTED.fullmatch(field)
    if found and found["path"] not in _WITH_KEYS:
        why = f"error converting fieldPath: field label does not support subscript: {field}"
        yield invalid("field-unknown", where, field, why)
    elif found:
        key = found["key"].lower() if found["path"] == _WITH_KEYS[0] else found["key"]
        yield from invalids("field-unknown", where, key, api_names.qualified(key), named=path)
    elif field not in (*FIELDS, *_ELSEWHERE, "spec.host"):
        why = f"error converting fieldPath: field label not supported: {field}"
        yield invalid("field-unknown", where, field, why)
    elif field not in known and field != "spec.host":  # of old clients
        yield unsupported("field-unknown", where, field, sorted(known))


def field_of_resources(reference: Spec, path: PartPath, *, is_of_a_volume: bool = False) -> Iterator[Problem]:
    """A request or a limit; a volume must say of which container."""
    resource = text(reference.get("resource"))
    if is_of_a_volume and not text(inside(reference, "containerName")):
        yield required("field-unknown", (*path, "containerName"))
    elif not resource:
        yield required("field-unknown", (*path, "resource"))
    elif resource not in _RESOURCES and not resource.startswith(_HUGE_PAGES):
        yield unsupported("field-unknown", (*path, "resource"), resource, _RESOURCES)
