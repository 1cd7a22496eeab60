# SPDX-License-Identifier: Apache-2.0
"""Which tensors an image holds, from its header alone: without torch, and without reading the tensors.

For showing them to a person. What is loaded goes through :mod:`resilient.checkpoint.image`, which checks more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.checkpoint.untrusted import Json, list_of, object_of, parse_json, shape_of, size_of, text_of
from resilient.errors import CheckpointError

_LENGTH_BYTES: Final = 8
_LIMIT: Final = 64 << 20
_METADATA: Final = "__metadata__"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of an image."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    tied_to: str = ""
    """The tensor whose bytes it shares; it has none of its own then."""


def read_header(file: str, pieces: Iterable[bytes], size_bytes: int) -> tuple[TensorEntry, ...]:
    """The tensors of an image of ``size_bytes``, in its order; no more pieces of it are taken than the header needs."""
    data = b""
    try:
        for piece in pieces:
            data += piece
            needed = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
            if len(data) >= _LENGTH_BYTES and needed > min(size_bytes, _LIMIT):
                raise ValueError("it ends within its header")
            if len(data) >= max(needed, _LENGTH_BYTES):
                return _parse(data[_LENGTH_BYTES:needed].decode("utf-8"), size_bytes - needed)
        raise ValueError("it ends within its header")
    except ValueError as error:
        raise CheckpointError(f"cannot read {file}: {error}; do verify the checkpoint") from error


def with_kin(entries: Sequence[TensorEntry], others: Sequence[TensorEntry]) -> tuple[TensorEntry, ...]:
    """The entries, with those that are tied to one of ``others`` like that."""
    known = {entry.name: entry for entry in others}
    return tuple(
        replace(entry, dtype=known[entry.tied_to].dtype, shape=known[entry.tied_to].shape)
        if entry.tied_to in known
        else entry
        for entry in entries
    )


def _parse(text: str, data_bytes: int) -> tuple[TensorEntry, ...]:
    entries = object_of(parse_json(text))
    metadata = object_of(entries.pop(_METADATA, {}))
    raw = {name: text_of(value) for name, value in _object(metadata, "dtypes").items()}
    found = {name: _entry(name, object_of(entry), raw.get(name), data_bytes) for name, entry in entries.items()}
    aliases = {name: text_of(value) for name, value in _object(metadata, "aliases").items()}
    return (*found.values(), *(_tied(name, target, found) for name, target in sorted(aliases.items())))


def _object(metadata: dict[str, Json], key: str) -> dict[str, Json]:
    return object_of(parse_json(text_of(metadata.get(key, "{}"))))


def _entry(name: str, entry: dict[str, Json], raw: str | None, data_bytes: int) -> TensorEntry:
    shape = shape_of(entry.get("shape"))
    begin, end = (size_of(offset) for offset in list_of(entry.get("data_offsets"), 2))
    if not begin <= end <= data_bytes:
        raise ValueError(f"the bytes of {name[:80]!r} are not in it")
    dtype = text_of(entry.get("dtype"))
    # What the format has no name for lies there as bytes, one dimension more.
    return TensorEntry(
        name=name, dtype=raw or dtype, shape=shape[:-1] if raw is not None else shape, size_bytes=end - begin
    )


def _tied(name: str, target: str, found: dict[str, TensorEntry]) -> TensorEntry:
    if target not in found:
        # The tensors of a rank lie in two images, and it may be in the other.
        return TensorEntry(name=name, dtype="", shape=(), size_bytes=0, tied_to=target)
    return TensorEntry(name=name, dtype=found[target].dtype, shape=found[target].shape, size_bytes=0, tied_to=target)
