# SPDX-License-Identifier: Apache-2.0
"""Python objects as tagged JSON over a closed list of types, and back.

Owns the text form of everything in a state that is not a tensor. What JSON has is written as
JSON; any other type is an object with one key, its tag: ``{"$tuple": [1, 2]}``. Types are taken
exactly: a subclass carries more than its base would bring back, so it is refused with its path.
The one attribute kept is ``OrderedDict._metadata``, in which torch puts the versions of modules.

Reading takes untrusted text: it can only ever make values of the types below. Two references
to one list come back as two lists.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias, cast

import numpy as np

from resilient.checkpoint.objects_reader import DTYPES, FACTORIES, MAX_DEPTH, Reader, Unpacker
from resilient.checkpoint.untrusted import Json, parse_json
from resilient.errors import CheckpointError

Path: TypeAlias = tuple[object, ...]
"""Where a value is in a state: a name, then the keys that lead to it."""
Packer: TypeAlias = Callable[[object, Path], "tuple[str, Json] | None"]
"""Gives the tag and body of a value of a type that is not on the list here, else None."""

_WIDE_INT: Final = 1 << 63
_JUST_INTS: Final = frozenset([int])
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def render(path: Path) -> str:
    """Spell a path as Python would: ``state['model'][0]``."""
    if not path:
        return "the state"
    return str(path[0])[:80] + "".join(f"[{repr(key)[:80]}]" for key in path[1:])


def encode(value: object, *, path: Path = ("state",), packer: Packer | None = None) -> str:
    """Write a value as text, the same in every process; CheckpointError names the path of what cannot be saved."""
    return json.dumps(_pack(value, path, packer), separators=(",", ":"), allow_nan=False)


def encode_fields(fields: Mapping[str, str]) -> str:
    """Write a dict with plain keys whose values are written already."""
    if all(map(_is_plain_key, fields)):
        return "{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in fields.items()) + "}"
    return '{"$dict":[' + ",".join(f"[{encode(key)},{text}]" for key, text in fields.items()) + "]}"


def decode(text: str, *, unpackers: Mapping[str, Unpacker] | None = None) -> object:
    """Make the value that a text spells; CheckpointError where it spells none."""
    try:
        return Reader(unpackers or {}).value(parse_json(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read the objects of a checkpoint: {error}; do use another checkpoint") from error


def _pack(value: object, path: Path, packer: Packer | None) -> Json:
    if len(path) > MAX_DEPTH:
        raise CheckpointError(
            f"cannot save {render(path[:4])}...: it is nested deeper than {MAX_DEPTH} levels, or contains itself; "
            "do save a flatter structure"
        )
    kind = type(value)
    if kind in _PACK_SCALAR:
        return _PACK_SCALAR[kind](value)
    if kind in _PACK_CONTAINER:
        return _PACK_CONTAINER[kind](value, path, packer)
    if isinstance(value, (np.ndarray, np.generic)) and _is_plain_numpy(value):
        return _pack_numpy(value)
    tagged = packer(value, path) if packer else None
    if tagged is None:
        raise _refusal(value, path)
    tag, body = tagged
    return {f"${tag}": body}


def _refusal(value: object, path: Path) -> CheckpointError:
    kind = type(value)
    plain = next((base.__name__ for base in kind.__mro__[1:] if base in _PACK_SCALAR or base in _PACK_CONTAINER), None)
    if callable(getattr(kind, "state_dict", None)):
        remedy = "put its state_dict() there"
    elif plain:
        remedy = f"convert it to a plain {plain}"
    else:
        remedy = "leave it out, or keep the plain numbers, strings and tensors that it can be made from"
    if kind is np.ndarray:
        remedy = "convert it to an array of plain numbers"
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return CheckpointError(f"cannot save {render(path)}: {name} is not a type that a checkpoint holds; do {remedy}")


def _pack_int(value: int) -> Json:
    return value if -_WIDE_INT <= value < _WIDE_INT else {"$int": hex(value)}


def _pack_float(value: float) -> Json:
    return value if math.isfinite(value) else {"$float": str(value)}


def _pack_str(value: str) -> Json:
    # JSON joins two lone surrogates that stand side by side into one character.
    return {"$str": _base64(value.encode("utf-8", "surrogatepass"))} if _SURROGATE.search(value) else value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _pack_numpy(value: np.ndarray[Any, Any] | np.generic) -> Json:
    return {"$numpy": [value.dtype.str, None if np.isscalar(value) else list(value.shape), _base64(value.tobytes())]}


def _is_plain_numpy(value: np.ndarray[Any, Any] | np.generic) -> bool:
    return type(value) in (np.ndarray, value.dtype.type) and value.dtype.str in DTYPES


def _pack_items(values: Collection[object], path: Path, packer: Packer | None) -> list[Json]:
    if values and _JUST_INTS.issuperset(map(type, values)):
        ints = cast("list[int]", [*values])  # generators and optimizers have thousands
        if min(ints) >= -_WIDE_INT and max(ints) < _WIDE_INT:
            return cast("list[Json]", ints)
    return [_pack(item, (*path, index), packer) for index, item in enumerate(values)]


def _pack_set(values: Collection[object], path: Path, _: Packer | None) -> list[Json]:
    # The order of a set of strings differs from process to process.
    return sorted(_pack_items(values, path, None), key=json.dumps)


def _pack_dict(value: dict[object, object], path: Path, packer: Packer | None) -> Json:
    if all(map(_is_plain_key, value)):
        return {str(key): _pack(item, (*path, key), packer) for key, item in value.items()}
    return {"$dict": _pack_pairs(value, path, packer)}


def _is_plain_key(key: object) -> bool:
    return type(key) is str and not key.startswith("$") and not _SURROGATE.search(key)


def _pack_pairs(value: Mapping[Any, object], path: Path, packer: Packer | None) -> list[Json]:
    pairs: list[Json] = []
    for key, item in value.items():
        packed = _pack(key, (*path, "<key>"), None)
        # Only JSON's own scalars are spelled alike in every process, whatever their size.
        step = json.dumps(packed) if isinstance(packed, (list, dict)) else key
        pairs.append([packed, _pack(item, (*path, step), packer)])
    return pairs


def _pack_ordered(value: OrderedDict[object, object], path: Path, packer: Packer | None) -> Json:
    unknown = vars(value).keys() - {"_metadata"}
    if unknown:
        raise CheckpointError(
            f"cannot save {render(path)}: this OrderedDict has an attribute {min(unknown)!r}, which would be lost; "
            "do keep it under a key"
        )
    attributes = [_pack(item, (*path, "_metadata"), None) for item in vars(value).values()]
    return {"$OrderedDict": [_pack_pairs(value, path, packer), *attributes]}


def _pack_defaultdict(value: defaultdict[object, object], path: Path, packer: Packer | None) -> Json:
    factory = value.default_factory
    name = getattr(factory, "__name__", "")
    if factory is not None and FACTORIES.get(name) is not factory:
        raise _refusal(value, path)
    return {"$defaultdict": [None if factory is None else name, _pack_pairs(value, path, packer)]}


_PACK_SCALAR: Final[Mapping[type, Callable[[Any], Json]]] = {
    type(None): lambda value: None,
    bool: lambda value: value,
    int: _pack_int,
    float: _pack_float,
    str: _pack_str,
    bytes: lambda value: {"$bytes": _base64(value)},
}
_PACK_CONTAINER: Final[Mapping[type, Callable[[Any, Path, Packer | None], Json]]] = {
    list: _pack_items,
    tuple: lambda value, path, packer: {"$tuple": _pack_items(value, path, packer)},
    set: lambda value, path, packer: {"$set": _pack_set(value, path, packer)},
    frozenset: lambda value, path, packer: {"$frozenset": _pack_set(value, path, packer)},
    dict: _pack_dict,
    Counter: lambda value, path, packer: {"$Counter": _pack_pairs(value, path, packer)},
    OrderedDict: _pack_ordered,
    defaultdict: _pack_defaultdict,
    deque: lambda value, path, packer: {"$deque": [value.maxlen, _pack_items(value, path, packer)]},
}
