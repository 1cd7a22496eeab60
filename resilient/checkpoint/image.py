# SPDX-License-Identifier: Apache-2.0
"""The image: one rank's state as the bytes of a safetensors file, wherever they lie.

Owns the byte layout, the same in memory, on disk and in an object store:

    8 bytes     length of the header, little-endian
    header      JSON, padded with spaces so that what follows starts on a page
    tensors     without gaps, the widest item size first, which aligns every one of them

The header has room to grow, and a layout takes over the room of the one before: offsets stay where
they are while the objects in the header change from step to step. Its ``__metadata__`` holds what
safetensors does not know: the objects, which names are tied, and the dtypes stored as raw bytes.

Images that are read are untrusted: every flaw is a ``CheckpointError``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Final, TypeAlias

import torch

from resilient.checkpoint.tensors import FORMAT_DTYPES, RAW_DTYPES, Flat
from resilient.checkpoint.untrusted import Json, list_of, object_of, parse_json, shape_of, size_of, text_of
from resilient.errors import CheckpointError
from resilient.link.board import PAGE_BYTES

Buffer: TypeAlias = bytearray | memoryview | mmap

VERSION: Final = "1"
MAX_HEADER_BYTES: Final = 64 << 20
_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_FORMAT_NAMES: Final = {dtype: name for name, dtype in FORMAT_DTYPES.items()}
_RAW_NAMES: Final = {dtype: name for name, dtype in RAW_DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where one tensor lies in an image, and what its bytes mean."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """From the beginning of the image."""

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The plan of one image."""

    header: bytes
    """Everything before the tensors."""
    spans: Mapping[str, Span]
    size_bytes: int
    metadata: Mapping[str, str]
    """What the header says besides the tensors."""

    @property
    def header_bytes(self) -> int:
        """Length of everything before the tensors."""
        return len(self.header)


def plan(flat: Flat, previous: Layout | None = None) -> Layout:
    """Lay out an image of ``flat``, with the tensors where ``previous`` has them if that is possible."""
    metadata = _metadata(flat)
    if previous is not None and previous.metadata == metadata and _same_tensors(flat, previous.spans):
        return previous  # large models have thousands of tensors, and training waits for this
    relative = _place(flat)
    data_bytes = max((span.end for span in relative.values()), default=0)
    entries = {name: _entry(span) for name, span in relative.items()}
    text = json.dumps({_METADATA: metadata, **entries}, separators=(",", ":")).encode("ascii")
    capacity = _capacity(_LENGTH_BYTES + len(text), previous)
    length = capacity - _LENGTH_BYTES
    return Layout(
        header=length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length),
        spans={name: _moved(span, capacity) for name, span in relative.items()},
        size_bytes=capacity + data_bytes,
        metadata=metadata,
    )


def write_header(layout: Layout, buffer: Buffer) -> memoryview:
    """Write everything before the tensors into exactly ``layout.size_bytes`` bytes, and give these."""
    view = memoryview(buffer).cast("B")
    if view.readonly or len(view) != layout.size_bytes:
        raise CheckpointError(
            f"cannot write image: it needs {layout.size_bytes} writable bytes and got {len(view)}; "
            "do give it the view that its layout asks for"
        )
    view[: layout.header_bytes] = layout.header
    return view


def targets(flat: Flat, layout: Layout, buffer: Buffer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Write the header, and give each tensor of ``flat`` with the place that it is to be copied to."""
    view = write_header(layout, buffer)
    if not _same_tensors(flat, layout.spans):
        raise CheckpointError("cannot write image: its tensors have changed since it was planned; do plan it again")
    return [(tensor, _tensor(view, layout.spans[name])) for name, tensor in flat.tensors.items()]


def write(flat: Flat, layout: Layout, buffer: Buffer) -> None:
    """Copy the state that ``layout`` was planned for, from its devices into exactly ``layout.size_bytes`` bytes."""
    for source, target in targets(flat, layout, buffer):
        target.copy_(source)


def read(buffer: Buffer) -> Flat:
    """Read an image; its tensors are views of ``buffer``, which must be writable and lives as long as they do.

    A private mapping of a file (``mmap.ACCESS_COPY``) is writable and leaves the file alone.
    """
    view = memoryview(buffer).cast("B")
    if view.readonly:
        raise CheckpointError(
            "cannot read image: its memory is read-only, and writing to a tensor would crash the process; "
            "do pass a bytearray or a private mapping"
        )
    try:
        return _parse(view)
    except ValueError as error:
        raise CheckpointError(f"cannot read image: {error}; do use another checkpoint") from error


def _tensor(view: memoryview, span: Span) -> torch.Tensor:
    if not span.count:
        return torch.empty(span.shape, dtype=span.dtype)
    return torch.frombuffer(view, dtype=span.dtype, count=span.count, offset=span.offset).reshape(span.shape)


# Planning


def _place(flat: Flat) -> dict[str, Span]:
    """Give every tensor its offset from the end of the header."""
    spans: dict[str, Span] = {}
    at = 0
    for name in sorted(flat.tensors, key=lambda name: (-flat.tensors[name].dtype.itemsize, name)):
        tensor = flat.tensors[name]
        spans[name] = Span(dtype=tensor.dtype, shape=tuple(tensor.shape), offset=at)
        at = spans[name].end
    return spans


def _moved(span: Span, distance: int) -> Span:
    return Span(dtype=span.dtype, shape=span.shape, offset=span.offset + distance)


def _same_tensors(flat: Flat, spans: Mapping[str, Span]) -> bool:
    if flat.tensors.keys() != spans.keys():
        return False
    return all(
        spans[name].dtype is tensor.dtype and spans[name].shape == tensor.shape for name, tensor in flat.tensors.items()
    )


def _metadata(flat: Flat) -> dict[str, str]:
    raw = {name: _RAW_NAMES[tensor.dtype] for name, tensor in flat.tensors.items() if tensor.dtype in _RAW_NAMES}
    return {
        "format": "pt",  # what other readers of safetensors files look for
        "resilient": VERSION,
        "objects": flat.objects,
        "aliases": json.dumps(dict(flat.aliases), separators=(",", ":")),
        "dtypes": json.dumps(raw, separators=(",", ":")),
    }


def _entry(span: Span) -> dict[str, Json]:
    shape: list[Json] = [*span.shape]
    if span.dtype in _RAW_NAMES:
        shape.append(span.dtype.itemsize)
    return {"dtype": _FORMAT_NAMES.get(span.dtype, "U8"), "shape": shape, "data_offsets": [span.offset, span.end]}


def _capacity(needed: int, previous: Layout | None) -> int:
    if needed > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"cannot save the state: all that is not a tensor in it takes {needed >> 20} MiB, and "
            f"{MAX_HEADER_BYTES >> 20} MiB is the most; do keep large arrays as tensors"
        )
    if previous and needed <= previous.header_bytes:
        return previous.header_bytes
    roomy = needed + needed // 4
    return min(-(-roomy // PAGE_BYTES) * PAGE_BYTES, MAX_HEADER_BYTES)


# Reading


def _parse(view: memoryview) -> Flat:
    header_bytes = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "little")
    if len(view) < _LENGTH_BYTES or header_bytes > min(len(view), MAX_HEADER_BYTES):
        raise ValueError("it ends within its header")
    text = bytes(view[_LENGTH_BYTES:header_bytes]).decode("utf-8")
    entries = object_of(parse_json(text))
    metadata = object_of(entries.pop(_METADATA, None))
    _check_version(metadata)
    raw = _names(metadata, "dtypes")
    spans = {name: _span(name, entry, raw, header_bytes) for name, entry in entries.items()}
    _check_coverage(spans, header_bytes, len(view))
    aliases = _names(metadata, "aliases")
    if not (raw.keys() <= spans.keys() and spans.keys().isdisjoint(aliases)):
        raise ValueError("its metadata speaks of tensors that are not there")
    tensors = {name: _tensor(view, span) for name, span in spans.items()}
    return Flat(tensors=tensors, aliases=aliases, objects=text_of(metadata.get("objects")))


def _check_version(metadata: Mapping[str, Json]) -> None:
    version = metadata.get("resilient")
    if version is None:
        raise ValueError("it is not an image of resilient")
    if version != VERSION:
        raise CheckpointError(
            f"cannot read image: its format is {str(version)[:20]!r} and this resilient reads {VERSION!r}; "
            "do use the version of resilient that wrote it, or a newer one"
        )


def _names(metadata: Mapping[str, Json], key: str) -> dict[str, str]:
    found = object_of(parse_json(text_of(metadata.get(key))))
    return {name: text_of(value) for name, value in found.items()}


def _span(name: str, data: Json, raw: Mapping[str, str], header_bytes: int) -> Span:
    entry = object_of(data)
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name[:80]!r} has other fields than it should")
    shape = shape_of(entry["shape"])
    dtype = FORMAT_DTYPES.get(text_of(entry["dtype"]))
    if name in raw:
        true = RAW_DTYPES.get(raw[name])
        fits = dtype is torch.uint8 and true is not None and shape[-1:] == (true.itemsize,)
        dtype, shape = (true if fits else None), shape[:-1]
    if dtype is None:
        raise ValueError(f"{name[:80]!r} is of no dtype known here")
    begin, end = (size_of(offset) for offset in list_of(entry["data_offsets"], 2))
    span = Span(dtype=dtype, shape=shape, offset=header_bytes + begin)
    if span.end != header_bytes + end or span.offset % dtype.itemsize:
        raise ValueError(f"the bytes of {name[:80]!r} do not fit its shape")
    return span


def _check_coverage(spans: Mapping[str, Span], header_bytes: int, size_bytes: int) -> None:
    at = header_bytes
    for span in sorted(spans.values(), key=lambda span: (span.offset, span.end)):
        if span.offset != at:
            raise ValueError("its tensors overlap, or have gaps between them")
        at = span.end
    if at != size_bytes:
        raise ValueError(f"it has {size_bytes} bytes, and its header speaks of {at}")
