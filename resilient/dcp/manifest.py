# SPDX-License-Identifier: Apache-2.0
"""What makes a save of torch.distributed.checkpoint a checkpoint: its files, and which tensor lies in which.

    manifest.json                                last, created exclusively, with a digest of itself
    <token>/rank-<rank>-<number>.safetensors     each rank's own directory, fresh for every try at saving

It holds DCP's ``Metadata`` in a schema of ours: DCP pickles it, and unpickling runs what the file says. Of a tensor's
properties only the dtype is kept, the others are deprecated in torch 2.13. A manifest that is read is untrusted: size,
digest, names, ranges and the coverage of every tensor are checked, as DCP leaves a part of a tensor that no chunk
covers as it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from resilient.checkpoint import objects
from resilient.checkpoint.digest import digest as digest_of
from resilient.checkpoint.digest import matches
from resilient.checkpoint.tensors import FORMAT_DTYPES, RAW_DTYPES
from resilient.checkpoint.untrusted import Json, list_of, object_of, parse_json, shape_of, size_of, text_of
from resilient.errors import CheckpointError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
LIMIT: Final = 512 << 20
"""Bytes of a manifest; some three million shards."""

_FILE: Final = re.compile(r"[0-9a-f]{16}/rank-(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})\.safetensors")
_HEAD: Final = re.compile(rb'\{"digest":"([a-z0-9_]{1,32}:[0-9a-f]{16,128})","checkpoint":')
_DTYPES: Final = {str(dtype).removeprefix("torch."): dtype for dtype in (*FORMAT_DTYPES.values(), *RAW_DTYPES.values())}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_FIELDS: Final = {"format", "world_size", "created_s", "versions", "dcp", "files", "tensors", "objects", "planner"}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a save; what each ``WriteResult`` carries to the coordinator."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A block of a tensor, and the file that it is in."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: File


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A whole tensor, by its blocks."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of one checkpoint."""

    world_size: int
    created_s: float
    versions: Mapping[str, str]
    dcp: str | None
    """DCP's version of its metadata."""
    files: tuple[File, ...]
    tensors: Mapping[str, Tensor]
    objects: Mapping[str, File]
    """Everything that is no tensor."""
    planner: object
    """The planner's own: the default one keeps the paths that flattened names stand for."""


def file_name(token: str, rank: int, number: int) -> str:
    """Where a rank's ``number``-th file lies."""
    return f"{token}/rank-{rank}-{number}.safetensors"


def is_file_name(name: str) -> bool:
    """Whether a name is of the kind that saves give."""
    return _FILE.fullmatch(name) is not None


def tensor_name(fqn: str, offsets: tuple[int, ...], *, whole: bool) -> str:
    """What a block is called inside its file; blocks and whole tensors are never in one file."""
    return fqn if whole else f"{fqn}@{','.join(map(str, offsets))}"


def made_of(
    metadata: Metadata,
    files: Mapping[MetadataIndex, File],
    *,
    world_size: int,
    created_s: float,
    versions: Mapping[str, str],
) -> Manifest:
    """The manifest of what was planned (``metadata``) and written (``files``); all of the one must be in the other."""

    def file_of(index: MetadataIndex) -> File:
        if index not in files:
            raise CheckpointError(
                f"cannot save {index.fqn}: no rank has written it; use a planner that assigns it to one"
            )
        return files[index]

    tensors, plain = {}, {}
    for fqn, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            plain[fqn] = file_of(MetadataIndex(fqn))
            continue
        chunks = tuple(
            Chunk(
                offsets=tuple(chunk.offsets),
                sizes=tuple(chunk.sizes),
                file=file_of(MetadataIndex(fqn, chunk.offsets)),
            )
            for chunk in entry.chunks
        )
        tensors[fqn] = Tensor(dtype=entry.properties.dtype, shape=tuple(entry.size), chunks=chunks)
    return Manifest(
        world_size=world_size,
        created_s=created_s,
        versions=versions,
        dcp=getattr(metadata, "version", None),  # since torch 2.9
        files=tuple(sorted(set(files.values()), key=lambda file: file.name)),
        tensors=tensors,
        objects=plain,
        planner=metadata.planner_data,
    )


def metadata_of(manifest: Manifest) -> Metadata:
    """DCP's view of a manifest; the manifest itself goes along as ``storage_data``."""
    known: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        fqn: BytesStorageMetadata() for fqn in manifest.objects
    }
    for fqn, tensor in manifest.tensors.items():
        known[fqn] = TensorStorageMetadata(
            properties=TensorProperties(dtype=tensor.dtype),
            size=torch.Size(tensor.shape),
            chunks=[
                ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.sizes))
                for chunk in tensor.chunks
            ],
        )
    metadata = Metadata(known, planner_data=manifest.planner, storage_data=manifest)
    metadata.version = manifest.dcp  # torch 2.8 has no such field, and does not mind
    return metadata


# As bytes


def encode(manifest: Manifest) -> bytes:
    """The manifest as it is stored, checked like one that is read: nothing is written that could not be read back."""
    numbers = {file: number for number, file in enumerate(manifest.files)}
    body: dict[str, Json] = {
        "format": FORMAT,
        "world_size": manifest.world_size,
        "created_s": manifest.created_s,
        "versions": dict(manifest.versions),
        "dcp": manifest.dcp,
        "files": [[file.name, file.size, file.digest] for file in manifest.files],
        "tensors": {fqn: _tensor_json(fqn, tensor, numbers) for fqn, tensor in manifest.tensors.items()},
        "objects": {fqn: numbers[file] for fqn, file in manifest.objects.items()},
        "planner": objects.encode(manifest.planner, path=("the planner's data",)),
    }
    try:
        _check(manifest)
    except ValueError as error:
        raise CheckpointError(f"cannot save: {error}; this is what the planner asked for") from error
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    data = b'{"digest":"%s","checkpoint":%s}' % (digest_of(text).encode(), text)
    if len(data) > LIMIT:
        raise CheckpointError(f"cannot save: the manifest has {len(data) >> 20} MiB and {LIMIT >> 20} are the most")
    return data


def decode(data: bytes, where: str) -> Manifest:
    """The manifest in ``data``; ``where`` is for the error."""
    try:
        head = _HEAD.match(data)
        if head is None or not data.endswith(b"}"):
            raise ValueError("it does not begin and end as a manifest does")
        text = data[head.end() : -1]
        if not matches(text, head[1].decode()):
            raise ValueError("its digest differs")
        manifest = _manifest(object_of(parse_json(text.decode())))
        _check(manifest)
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(
            f"cannot load {where}: {error}; it was damaged or is not ours, load another one"
        ) from error
    return manifest


def _tensor_json(fqn: str, tensor: Tensor, numbers: Mapping[File, int]) -> Json:
    if tensor.dtype not in _DTYPE_NAMES:
        raise CheckpointError(f"cannot save {fqn}: a checkpoint does not hold {tensor.dtype}; do convert it")
    chunks: list[Json] = [[[*chunk.offsets], [*chunk.sizes], numbers[chunk.file]] for chunk in tensor.chunks]
    return [_DTYPE_NAMES[tensor.dtype], [*tensor.shape], chunks]


def _manifest(body: Mapping[str, Json]) -> Manifest:
    if body.get("format") != FORMAT:
        raise ValueError(f"its format is {str(body.get('format'))[:20]} and this resilient reads {FORMAT}")
    if body.keys() != _FIELDS:
        raise ValueError("it has other fields than it should")
    created_s = body["created_s"]
    if not isinstance(created_s, float):
        raise ValueError("it has no time")
    files = [_file(entry) for entry in list_of(body["files"])]
    return Manifest(
        world_size=size_of(body["world_size"]),
        created_s=created_s,
        versions={name: text_of(version) for name, version in object_of(body["versions"]).items()},
        dcp=None if body["dcp"] is None else text_of(body["dcp"]),
        files=tuple(files),
        tensors={fqn: _tensor(entry, files) for fqn, entry in object_of(body["tensors"]).items()},
        objects={fqn: _numbered(files, number) for fqn, number in object_of(body["objects"]).items()},
        planner=objects.decode(text_of(body["planner"])),
    )


def _file(entry: Json) -> File:
    name, size, digest = list_of(entry, 3)
    return File(name=text_of(name), size=size_of(size), digest=text_of(digest))


def _tensor(entry: Json, files: list[File]) -> Tensor:
    dtype, shape, chunks = list_of(entry, 3)
    if text_of(dtype) not in _DTYPES:
        raise ValueError(f"{text_of(dtype)[:40]!r} is no dtype known here")
    return Tensor(
        dtype=_DTYPES[text_of(dtype)],
        shape=shape_of(shape),
        chunks=tuple(_chunk(chunk, files) for chunk in list_of(chunks)),
    )


def _chunk(entry: Json, files: list[File]) -> Chunk:
    offsets, sizes, number = list_of(entry, 3)
    return Chunk(
        offsets=tuple(size_of(offset) for offset in list_of(offsets)),
        sizes=shape_of(sizes),
        file=_numbered(files, number),
    )


def _numbered(files: list[File], number: Json) -> File:
    if size_of(number) >= len(files):
        raise ValueError("it speaks of a file that it does not list")
    return files[size_of(number)]


def _check(manifest: Manifest) -> None:
    """ValueError where names or ranges are not what a save gives."""
    if not 0 < manifest.world_size < 1 << 31 or not math.isfinite(manifest.created_s):
        raise ValueError("a number is out of range")
    names = [file.name for file in manifest.files]
    if len(names) != len(set(names)) or not all(map(is_file_name, names)):
        raise ValueError("a file has a foreign name")
    if both := manifest.tensors.keys() & manifest.objects.keys():
        raise ValueError(f"{min(both)[:80]!r} is there twice")
    for fqn, tensor in manifest.tensors.items():
        if not _covers(tensor.shape, tensor.chunks):
            raise ValueError(f"the blocks of {fqn[:80]!r} do not make up a tensor of shape {tensor.shape}")


def _covers(shape: tuple[int, ...], chunks: Iterable[Chunk]) -> bool:
    """Whether blocks lie within the shape and have its volume; that none overlap is checked by DCP when it plans."""
    volume, offsets = 0, set()
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(shape) or chunk.offsets in offsets:
            return False
        if any(begin + size > end for begin, size, end in zip(chunk.offsets, chunk.sizes, shape, strict=True)):
            return False
        offsets.add(chunk.offsets)
        volume += math.prod(chunk.sizes)
    return bool(offsets) and volume == math.prod(shape)
