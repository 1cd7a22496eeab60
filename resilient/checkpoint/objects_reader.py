# SPDX-License-Identifier: Apache-2.0
"""Tagged JSON back into Python objects.

Owns what an untrusted text may turn into: values of a closed list of types, and nothing is ever
called but their constructors. Every flaw is a ValueError.
"""

from __future__ import annotations

import base64
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from resilient.checkpoint.untrusted import Json, list_of, shape_of, size_of, text_of
from resilient.core.grammar import type_of

Unpacker: TypeAlias = Callable[["Json"], object]
"""Makes a value of the body of a tag; ValueError where the body spells none."""

MAX_DEPTH: Final = 64
NOT_FINITE: Final = frozenset({"nan", "inf", "-inf"})
DTYPES: Final = frozenset(
    ["|b1", "|i1", "|u1"]
    + [order + kind for order in "<>" for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")]
)
"""The numpy dtypes that hold plain numbers and are the same on every machine."""
FACTORIES: Final[Mapping[str, type]] = {
    kind.__name__: kind for kind in (bool, int, float, str, bytes, list, tuple, set, dict)
}
"""What a defaultdict may make of nothing."""

_HEX: Final = re.compile(r"-?0x[0-9a-f]+")


class Reader:
    """Makes values of parsed JSON, with the reader of some further tags."""

    def __init__(self, unpackers: Mapping[str, Unpacker]) -> None:
        self._unpackers = unpackers

    def value(self, data: Json, depth: int = 0) -> object:
        """Make the value that ``data`` spells."""
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(data, list):
            return self._items(data, depth)
        if not isinstance(data, dict):
            return data
        tags = [key for key in data if key.startswith("$")]
        if not tags:
            return {key: self.value(item, depth + 1) for key, item in data.items()}
        if len(data) > 1:
            raise ValueError(f"the tag {tags[0][:40]!r} beside other keys")
        return self._tagged(tags[0][1:], data[tags[0]], depth)

    def _tagged(self, tag: str, body: Json, depth: int) -> object:
        if tag in _SCALARS:
            return _SCALARS[tag](body)
        if tag in _CONTAINERS:
            return _CONTAINERS[tag](self, body, depth)
        if tag in self._unpackers:
            return self._unpackers[tag](body)
        raise ValueError(f"unknown type {tag[:40]!r}")

    def _items(self, body: Json, depth: int) -> list[object]:
        return [self.value(item, depth + 1) for item in list_of(body)]

    def _set(self, body: Json, depth: int) -> set[object]:
        values = self._items(body, depth)
        found = {_hashable(value) for value in values}
        if len(found) != len(values):
            raise ValueError("an element is in a set twice")
        return found

    def _pairs(self, body: Json, depth: int) -> dict[Any, object]:
        found: dict[Any, object] = {}
        pairs = [list_of(pair, 2) for pair in list_of(body)]
        for key, item in pairs:
            found[_hashable(self.value(key, depth + 1))] = self.value(item, depth + 1)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    def _ordered(self, body: Json, depth: int) -> OrderedDict[Any, object]:
        pairs, *metadata = list_of(body, 1, 2)
        found = OrderedDict(self._pairs(pairs, depth))
        if metadata:
            vars(found)["_metadata"] = self.value(metadata[0], depth + 1)
        return found

    def _defaultdict(self, body: Json, depth: int) -> defaultdict[Any, object]:
        name, pairs = list_of(body, 2)
        if name is not None and text_of(name) not in FACTORIES:
            raise ValueError("unknown factory of a defaultdict")
        return defaultdict(None if name is None else FACTORIES[text_of(name)], self._pairs(pairs, depth))

    def _deque(self, body: Json, depth: int) -> deque[object]:
        maxlen, rest = list_of(body, 2)
        items = self._items(rest, depth)
        if maxlen is not None and not len(items) <= size_of(maxlen) < 1 << 63:
            raise ValueError("a deque with a wrong maxlen")
        return deque(items, None if maxlen is None else size_of(maxlen))


def _hashable(value: object) -> object:
    try:
        hash(value)
    except TypeError:
        raise ValueError(f"{type_of(value)} where only a scalar can be") from None
    return value


def _bytes(body: Json) -> bytes:
    return base64.b64decode(text_of(body), validate=True)


def _int(body: Json) -> int:
    if not _HEX.fullmatch(text_of(body)):
        raise ValueError("not a hexadecimal number")
    return int(text_of(body), 16)


def _float(body: Json) -> float:
    if text_of(body) not in NOT_FINITE:
        raise ValueError("not one of nan, inf and -inf")
    return float(text_of(body))


def _numpy(body: Json) -> object:
    name, sizes, data = list_of(body, 3)
    if text_of(name) not in DTYPES:
        raise ValueError("not a numpy dtype of plain numbers")
    dtype, raw = np.dtype(text_of(name)), bytearray(_bytes(data))
    array = np.frombuffer(raw, dtype=dtype)
    if dtype.kind == "b" and raw.strip(b"\0\1"):
        raise ValueError("a numpy bool that is neither true nor false")
    return array.reshape(shape_of(sizes)) if sizes is not None else array.reshape(())[()]


_SCALARS: Final[Mapping[str, Unpacker]] = {
    "int": _int,
    "float": _float,
    "str": lambda body: _bytes(body).decode("utf-8", "surrogatepass"),
    "bytes": _bytes,
    "numpy": _numpy,
}
_CONTAINERS: Final[Mapping[str, Callable[[Reader, Json, int], object]]] = {
    "tuple": lambda reader, body, depth: tuple(reader._items(body, depth)),
    "set": Reader._set,
    "frozenset": lambda reader, body, depth: frozenset(reader._set(body, depth)),
    "dict": Reader._pairs,
    "Counter": lambda reader, body, depth: Counter(reader._pairs(body, depth)),
    "OrderedDict": Reader._ordered,
    "defaultdict": Reader._defaultdict,
    "deque": Reader._deque,
}
