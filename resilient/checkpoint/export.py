# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in the formats of others: ``torch.save``, one safetensors file, or a DCP directory.

Everything is read and verified first. What is written is for whoever has no resilient; nothing here reads a pickle.
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

from resilient.checkpoint import pair, tensors
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import FileRecord, Manifest
from resilient.checkpoint.objects import Path, render
from resilient.checkpoint.tensors_sharded import Shard, assembled, exchanged, leaves, shards_in
from resilient.checkpoint.vault import Vault
from resilient.core.grammar import type_of
from resilient.errors import CheckpointError

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """A state of types that every reader has, and what was turned into another type for that."""

    tree: Any
    notes: tuple[str, ...]


def read_state(store: Store, name: str, manifest: Manifest, rank: int) -> Tree:
    """What ``Run(state=...)`` of one rank was when the checkpoint was taken; every byte is verified before.

    A DTensor comes as a whole, made up of what all ranks have of it. The tensors are views of memory that lives as long
    as they do.
    """
    if not 0 <= rank < manifest.world_size:
        raise CheckpointError(f"cannot export rank {rank}: {name} has ranks 0 to {manifest.world_size - 1}")
    images: dict[str, memoryview] = {}
    state = _state_of(store, name, manifest, rank, images)
    if not shards_in(state):
        return state
    others = [_state_of(store, name, manifest, other, images) for other in range(manifest.world_size) if other != rank]
    found = [shards_in(other) for other in others]
    made: dict[int, torch.Tensor] = {}

    def whole(path: Path, shard: Shard) -> torch.Tensor:
        if (known := made.get(id(shard.local))) is not None:
            return known  # what is tied stays so
        shape = shard.sharding.shape
        fresh = assembled((0,) * len(shape), shape, [shard, *(shards[path] for shards in found if path in shards)])
        if fresh is None:
            raise CheckpointError(f"cannot export {render(('state', *path))}: the ranks do not have all of it")
        made[id(shard.local)] = fresh
        return fresh

    return dict(exchanged(state, whole))


def _state_of(store: Store, name: str, manifest: Manifest, rank: int, images: dict[str, memoryview]) -> Tree:
    """``images``: those that were read by now; ranks may share one."""
    files = manifest.ranks[rank]
    for file in (files.tensors, files.own):
        if file not in images:
            images[file] = _read(store, name, manifest.file(file))
    tree = tensors.unflatten(pair.read(images[files.tensors], images[files.own]))
    state = tree.get("state") if isinstance(tree, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"cannot export {name}: the image is not one of a run")
    return state


def part_of(state: Tree, part: str | None) -> Any:
    """The whole state, or one entry of it."""
    if part is None:
        return state
    if part not in state:
        raise CheckpointError(
            f"cannot export {part[:80]!r}: the state has no such part; choose from {', '.join(map(repr, state))}"
        )
    return state[part]


def with_tensors(state: Tree, part: str | None) -> Any:
    """The same for a format that holds nothing but tensors: there has to be one."""
    chosen = part_of(state, part)
    if not _has_tensor(chosen):
        others = ", ".join(repr(name) for name in state if _has_tensor(state[name]))
        it = "the state" if part is None else f"part {part!r}"
        do = f"choose from the parts that do, {others}, or use --format torch" if others else "use --format torch"
        raise CheckpointError(f"cannot export {it} as safetensors: it holds no tensors; {do}")
    return chosen


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, (torch.Tensor, np.ndarray)) for _, leaf in leaves(value))


def _read(store: Store, name: str, file: FileRecord) -> memoryview:
    """An image in memory that is only taken as it is filled."""
    try:
        memory = memoryview(mmap.mmap(-1, max(file.size, 1)))[: file.size]
    except (OSError, OverflowError, ValueError) as error:
        raise CheckpointError(f"cannot read {file.file} of {name}: no memory for {file.size} bytes: {error}") from error
    Vault(store, clock=lambda: 0.0).read_image(name, file, memory)
    return memory


def portable(state: Any) -> Portable:
    """The state with types that ``torch.load(weights_only=True)`` refuses turned into their nearest kin."""
    notes: list[str] = []
    return Portable(tree=_plain(state, ("state",), notes), notes=tuple(notes))


def _plain(value: Any, path: Path, notes: list[str]) -> Any:
    fresh = value
    if isinstance(value, dict):
        for key in value:
            value[key] = _plain(value[key], (*path, key), notes)  # in place: an OrderedDict of torch's has attributes
        fresh = dict(value) if isinstance(value, defaultdict) else value
    elif type(value) in (list, tuple, deque):
        kind = tuple if type(value) is tuple else list
        fresh = kind(_plain(item, (*path, index), notes) for index, item in enumerate(value))
    elif isinstance(value, frozenset):
        fresh = set(value)
    elif isinstance(value, np.generic):
        fresh = value.item()
    elif isinstance(value, np.ndarray):
        fresh = _tensor(value)
    if type(fresh) is not type(value):
        notes.append(f"{render(path)}: {type_of(value)} is written as {type_of(fresh)}")
    elif isinstance(fresh, np.ndarray):
        notes.append(f"{render(path)}: an array of {fresh.dtype} needs torch.load(weights_only=False)")
    return fresh


def _tensor(value: np.ndarray[Any, Any]) -> Any:
    try:
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    except (TypeError, ValueError):  # text, dates and the like
        return value


def _save_torch(state: Any, path: FilePath, about: Mapping[str, str]) -> None:
    torch.save(state, path)


def _save_safetensors(state: Any, path: FilePath, about: Mapping[str, str]) -> None:
    """Every tensor under its path; a tied one is written under each of its names, as readers expect."""
    found: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for where, tensor in leaves(state):
        if not isinstance(tensor, torch.Tensor):
            continue
        unique = ".".join(map(str, where)) or "tensor"
        while unique in found:
            unique += "~"
        shared = tensor.untyped_storage().data_ptr() in storages
        storages.add(tensor.untyped_storage().data_ptr())
        found[unique] = tensor.clone() if shared else tensor
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    save_file(found, path, metadata={"format": "pt", **about})
    path.chmod(mode)  # it has made the file anew, for nobody but its owner


def _save_dcp(state: Any, path: FilePath, about: Mapping[str, str]) -> None:
    if not isinstance(state, dict):
        raise CheckpointError("cannot export it for DCP: it is no dict; use --format torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group is meant
        save_dcp(state, storage_writer=FileSystemWriter(path), no_dist=True)


FORMATS: Final[Mapping[str, Callable[[Any, FilePath, Mapping[str, str]], None]]] = {
    "torch": _save_torch,
    "safetensors": _save_safetensors,
    "dcp": _save_dcp,
}


def save_as(kind: str, state: Any, path: FilePath, about: Mapping[str, str]) -> None:
    """Write a state in one of ``FORMATS``; ``about`` is kept where the format has room for it."""
    try:
        FORMATS[kind](state, path, about)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # what the writers of others cannot hold they refuse in their own words
        raise CheckpointError(
            f"cannot export as {kind}: {type(error).__name__}: {str(error)[:300]}; use another --format"
        ) from error


def about(name: str, manifest: Manifest, rank: int) -> dict[str, str]:
    """Where an export came from."""
    return {
        "run": manifest.run,
        "submission": manifest.submission,
        "checkpoint": name,
        "step": str(manifest.step),
        "rank": str(rank),
        "versions": json.dumps(dict(manifest.versions), sort_keys=True),
        "metrics": json.dumps(dict(manifest.metrics), sort_keys=True),
    }
