# SPDX-License-Identifier: Apache-2.0
"""JSON that nobody vouches for, read without surprises: every flaw is a ValueError."""

from __future__ import annotations

import json
import math
from typing import Final, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_MAX_DIGITS: Final = 20
_MAX_DIMS: Final = 64
_MAX_ITEMS: Final = 1 << 58


def parse_json(text: str) -> Json:
    """Parse JSON as the standard has it: no key twice, no NaN, no number without bounds."""
    try:
        parsed: Json = json.loads(
            text, object_pairs_hook=_unique, parse_int=_bounded, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return parsed


def object_of(data: Json) -> dict[str, Json]:
    """Expect an object."""
    if not isinstance(data, dict):
        raise ValueError("no object where one belongs")
    return data


def list_of(data: Json, *lengths: int) -> list[Json]:
    """Expect a list, of one of the given lengths where any are given."""
    if not isinstance(data, list) or (lengths and len(data) not in lengths):
        raise ValueError(f"no list of {lengths[0]} where one belongs" if lengths else "no list where one belongs")
    return data


def text_of(data: Json) -> str:
    """Expect a text."""
    if not isinstance(data, str):
        raise ValueError("no text where one belongs")
    return data


def size_of(data: Json) -> int:
    """Expect a whole number that is not negative."""
    if type(data) is not int or data < 0:
        raise ValueError("no size where one belongs")
    return data


def shape_of(data: Json) -> tuple[int, ...]:
    """Expect the sizes of an array that can exist."""
    sizes = tuple(size_of(size) for size in list_of(data))
    if not can_exist(sizes):
        raise ValueError("a shape that no array can have")
    return sizes


def can_exist(shape: tuple[int, ...]) -> bool:
    """Whether an array can have this shape; an empty one has strides too, and they must fit into 64 bits."""
    return len(shape) <= _MAX_DIMS and math.prod(size or 1 for size in shape) <= _MAX_ITEMS


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _bounded(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is no JSON number")
    return number
