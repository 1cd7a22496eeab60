# SPDX-License-Identifier: Apache-2.0
"""What the API server says of a field that it refuses, in its own words, so that people can search for them.

The forms are those of ``k8s.io/apimachinery/pkg/util/validation/field``. Each problem carries the id of the row in
``lint_api`` that explains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from resilient.kubernetes.building import PartPath

Spec: TypeAlias = Mapping[str, Any]
"""A part of a manifest that is an object, whatever stands in its fields."""
INT32: Final = 2_147_483_647
_BRIEF: Final = 360


class Key(str):
    """A key that the API server writes in brackets: ``limits[cpu]``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One field that is refused."""

    id: str
    path: PartPath
    why: str
    named: PartPath | None = None
    """The place that the API server names, where that is not the narrowest one."""

    @property
    def text(self) -> str:
        """The line that kubectl prints."""
        return f"{field_name(self.path if self.named is None else self.named)}: {self.why}"

    @property
    def brief(self) -> str:
        """The same without the middle of a long value: both ends say something."""
        half = _BRIEF // 2
        return self.text if len(self.text) <= _BRIEF else f"{self.text[:half]}...{self.text[-half:]}"


def field_name(path: PartPath) -> str:
    """A path as the API server writes it: ``spec.rules[0].action``."""
    bracketed = (int, Key)
    return (
        "".join(f"[{key}]" if isinstance(key, bracketed) else f".{key}" for key in path).lstrip(".") or "the document"
    )


def invalid(name: str, path: PartPath, value: object, why: str, *, named: PartPath | None = None) -> Problem:
    return Problem(id=name, path=path, why=f"Invalid value: {_shown(value)}: {why}", named=named)


def invalids(
    name: str, path: PartPath, value: object, complaints: Iterable[str], *, named: PartPath | None = None
) -> Iterator[Problem]:
    """One for each complaint about the value."""
    return (invalid(name, path, value, why, named=named) for why in complaints)


def contradiction(name: str, path: PartPath, why: str, *, named: PartPath | None = None) -> Problem:
    """An invalid value that is too large to be shown."""
    return Problem(id=name, path=path, why=f"Invalid value: {why}", named=named)


def forbidden(name: str, path: PartPath, why: str, *, named: PartPath | None = None) -> Problem:
    return Problem(id=name, path=path, why=f"Forbidden: {why}", named=named)


def required(name: str, path: PartPath, why: str = "", *, named: PartPath | None = None) -> Problem:
    return Problem(id=name, path=path, why="Required value" + (f": {why}" if why else ""), named=named)


def unsupported(
    name: str, path: PartPath, value: object, supported: Iterable[str], *, named: PartPath | None = None
) -> Problem:
    listed = ", ".join(f'"{word}"' for word in supported)
    why = f"Unsupported value: {_shown(value)}: supported values: {listed}"
    return Problem(id=name, path=path, why=why, named=named)


def unless_one_of(
    name: str, path: PartPath, value: object, supported: Iterable[str], *, named: PartPath | None = None
) -> Iterator[Problem]:
    """A text that is none of these, where nothing is filled in and well."""
    words = tuple(supported)
    if text(value) and value not in words:
        yield unsupported(name, path, value, words, named=named)


def too_many(name: str, path: PartPath, count: int, most: int) -> Problem:
    return Problem(id=name, path=path, why=f"Too many: {count}: must have at most {most} items")


def too_long(name: str, path: PartPath, most: int) -> Problem:
    return Problem(id=name, path=path, why=f"Too long: may not be more than {most} bytes")


def duplicate(name: str, path: PartPath, value: object, *, named: PartPath | None = None) -> Problem:
    return Problem(id=name, path=path, why=f"Duplicate value: {_shown(value)}", named=named)


def not_found(name: str, path: PartPath, value: object, why: str = "") -> Problem:
    return Problem(id=name, path=path, why=f"Not found: {_shown(value)}" + (f": {why}" if why else ""))


def unknown_field(path: PartPath) -> Problem:
    """As the strict decoder says it, which names the whole path."""
    return Problem(id="api-unknown-field", path=path, why=f'strict decoding error: unknown field "{field_name(path)}"')


def listed(words: Iterable[str]) -> str:
    """Supported values as Go prints a slice."""
    return "[" + " ".join(f'"{word}"' for word in words) + "]"


def mapping(value: object) -> Mapping[str, Any]:
    """The mapping that it is, else none: what has the wrong type is refused before anybody looks into it."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """The list that it is, else none."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """The text that it is, else none."""
    return value if isinstance(value, str) else ""


def number(value: object) -> int | None:
    """The whole number that it is, else none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def inside(value: object, *names: str) -> Any:
    """What lies below in a tree of mappings."""
    for name in names:
        value = mapping(value).get(name)
    return value


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
