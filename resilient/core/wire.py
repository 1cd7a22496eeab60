# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses as JSON and back, by their type hints: one codec for every boundary.

What comes in is untrusted (a worker, a store, a journal): a wrong type, a missing
or an unknown field is a ``ValueError`` that names it, and nothing else can happen.
Supported hints: ``bool int float str None``, unions of these, enums, dataclasses,
``tuple[X, ...]`` and ``Mapping[str, X]``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from resilient.core.grammar import type_of

T = TypeVar("T")


def to_data(value: object) -> Any:
    """Plain JSON data for a value; dataclasses carry their class name as ``type``."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [to_data(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_data(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): to_data(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot put {type_of(value)} on the wire")


def encode(value: object) -> bytes:
    """One line of JSON."""
    return json.dumps(to_data(value), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes | str, kinds: Mapping[str, type[T]]) -> T:
    """The value on a line, as one of ``kinds`` (class name -> class)."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON line: {error}") from error
    name = data.get("type") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in kinds:
        raise ValueError("not one of the expected types: " + ", ".join(kinds))
    return from_data(data, kinds[name])


def from_data(data: object, hint: type[T]) -> T:
    """``data`` as the dataclass ``hint``."""
    return typing.cast(T, _parse(data, hint, hint.__name__))


def _parse(data: object, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(data, hint, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where}: not a list")
        (item, _) = typing.get_args(hint)
        return tuple(_parse(element, item, f"{where}[{index}]") for index, element in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise ValueError(f"{where}: not an object")
        item = typing.get_args(hint)[1]
        return {key: _parse(element, item, f"{where}[{key!r}]") for key, element in data.items()}
    if dataclasses.is_dataclass(hint):
        return _parse_fields(data, hint, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(data)
    if hint is float and type(data) is int:
        return float(data)
    if type(data) is not (type(None) if hint is None else hint):
        raise ValueError(f"{where}: {type(data).__name__} where {getattr(hint, '__name__', hint)} belongs")
    return data


def _parse_union(data: object, hint: Any, where: str) -> Any:
    for option in typing.get_args(hint):
        try:
            return _parse(data, option, where)
        except ValueError:
            continue
    raise ValueError(f"{where}: {type(data).__name__} fits none of {hint}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parse_fields(data: object, kind: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: not an object")
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = data.keys() - fields.keys() - {"type"}
    if unknown:
        raise ValueError(f"{where}: unknown field {sorted(map(str, unknown))[0]!r}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _parse(data[name], hints[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: field {name!r} is missing")
    return kind(**values)
