# SPDX-License-Identifier: Apache-2.0
"""Whether a manifest has the fields and the types that the API knows, by the models of the ``kubernetes`` client.

The API server refuses a wrong type before it looks at any value, and kubectl has it refuse fields that it does not
know; without kubectl they would be dropped in silence, and ``backOffLimit`` would be 6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from resilient.kubernetes.api_problems import INT32, Problem, contradiction, unknown_field
from resilient.kubernetes.building import PartPath

_OF: Final = re.compile(r"(?:[Ll]ist\[(?P<item>.+)\]|[Dd]ict[\[(]str, (?P<value>.+)[\])])")
_QUANTITIES: Final = {
    ("V1ResourceRequirements", "limits"),
    ("V1ResourceRequirements", "requests"),
    ("V1VolumeResourceRequirements", "limits"),
    ("V1VolumeResourceRequirements", "requests"),
    ("V1PodSpec", "overhead"),
    ("V1EmptyDirVolumeSource", "size_limit"),
    ("V1ResourceFieldSelector", "divisor"),
}
"""To the client they are text; the API server takes numbers as well, and ``api_resources`` looks at them."""
_INT64: Final = (
    {"active_deadline_seconds", "starting_deadline_seconds", "termination_grace_period_seconds"}
    | {"toleration_seconds", "run_as_user", "run_as_group", "fs_group", "generation", "observed_generation"}
    | {"expiration_seconds", "deletion_grace_period_seconds"}
)
_SCALARS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "str": (lambda value: isinstance(value, str), "string"),
    "datetime": (lambda value: isinstance(value, str), "string"),
    "bool": (lambda value: isinstance(value, bool), "bool"),
    "int": (lambda value: _is_number(value) and float(value).is_integer(), "integer"),
    "float": (lambda value: _is_number(value), "number"),
}
_KINDS: Final = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


def fields(data: object, model: str, path: PartPath = ()) -> Iterator[Problem]:
    """What of the data is not as the model of that name has it."""
    from kubernetes.client import models

    yield from _object(data, model, path, models)


def _object(data: object, model: str, path: PartPath, models: Any) -> Iterator[Problem]:
    if not isinstance(data, dict):
        yield _wrong_type(path, data, "object")
        return
    known = getattr(models, model)
    names = {json: python for python, json in known.attribute_map.items()}
    for name, value in data.items():
        if name not in names:
            yield unknown_field((*path, name))
        elif value is not None and (model, names[name]) not in _QUANTITIES:
            kind = known.openapi_types[names[name]]
            yield from _value(value, kind, (*path, name), models, is_long=names[name] in _INT64)


def _value(value: object, kind: str, path: PartPath, models: Any, *, is_long: bool = False) -> Iterator[Problem]:
    found = _OF.fullmatch(kind)
    if kind in _SCALARS:
        accepts, word = _SCALARS[kind]
        if not accepts(value):
            yield _wrong_type(path, value, word)
        elif kind == "int" and not is_long and abs(int(value)) > INT32:  # type: ignore[call-overload]  # accepted above
            yield contradiction("api-type", path, f"cannot unmarshal number {value} into a field of type int32")
    elif found and found["item"]:
        yield from _list(value, found["item"], path, models)
    elif found:
        yield from _map(value, found["value"], path, models)
    elif hasattr(models, kind):
        yield from _object(value, kind, path, models)


def _list(value: object, kind: str, path: PartPath, models: Any) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield _wrong_type(path, value, "array")
        return
    for index, item in enumerate(value):
        if item is not None:
            yield from _value(item, kind, (*path, index), models)


def _map(value: object, kind: str, path: PartPath, models: Any) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield _wrong_type(path, value, "object")
        return
    for name, item in value.items():
        if item is not None:
            yield from _value(item, kind, (*path, name), models)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong_type(path: PartPath, value: object, wanted: str) -> Problem:
    found = _KINDS.get(type(value), "null")
    return contradiction("api-type", path, f"cannot unmarshal {found} into a field of type {wanted}")
