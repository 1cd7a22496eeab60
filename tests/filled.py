# SPDX-License-Identifier: Apache-2.0
"""A value of any type that the wire carries, with nothing in it left out."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
TEXT = 'a "quote", a \\, a line\n, a tab\t, \u2028, \U0001f525 and \x00'


def filled(kind: type[T]) -> T:
    """One of this dataclass, every field of which has a value that is not its default."""
    return typing.cast(T, _filled(kind))


def _filled(hint: Any) -> Any:
    kind = hint
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _filled(next(option for option in arguments if option is not type(None)))
    if origin is tuple:
        return (_filled(arguments[0]), _filled(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return {TEXT: _filled(arguments[1])}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return kind(**{field.name: _filled(hints[field.name]) for field in dataclasses.fields(hint)})
    if issubclass(hint, enum.Enum):
        return list(hint)[-1]
    return {bool: True, int: 7, float: 0.125, str: TEXT}[hint]
