# SPDX-License-Identifier: Apache-2.0
"""What a DTensor is besides its local tensor: the whole that this is a block of, and by what rule.

A rank's image holds its own block alone, a *shard*, with where it belongs: the shape of the whole, the offsets of the
block, the mesh of ranks and the placements on it. So it can be checked, without any other rank, that a live DTensor is
sharded as the saved one was; and whoever has the images of all ranks can make up any other block. Nothing here
communicates, and torch.distributed.tensor is not loaded by it: who has no DTensor does not pay for them.
"""

from __future__ import annotations

import math
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from resilient.checkpoint.objects import Path
from resilient.checkpoint.untrusted import Json, list_of, shape_of, size_of, text_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Offsets: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The ranks that a tensor is spread over, as a grid."""

    device: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    """Row by row."""
    names: tuple[str, ...] | None
    """Of the dimensions, where they have any."""

    def __str__(self) -> str:
        names = self.names or ("ranks",) * len(self.shape)
        return f"{self.device} " + " x ".join(f"{size} {name}" for size, name in zip(self.shape, names, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Which block of which whole a rank has."""

    shape: tuple[int, ...]
    """Of the whole."""
    offsets: Offsets
    """Of the block in it."""
    mesh: Mesh
    placements: tuple[str, ...]
    """How torch spells them, one for each dimension of the mesh."""

    def __str__(self) -> str:
        return f"{', '.join(self.placements)} of {self.shape} on {self.mesh}"

    def to_json(self) -> Json:
        """As a part of the objects of an image."""
        mesh = self.mesh
        names: Json = None if mesh.names is None else [*mesh.names]
        grid: list[Json] = [mesh.device, [*mesh.shape], [*mesh.ranks], names]
        return [[*self.shape], [*self.offsets], grid, [*self.placements]]

    @classmethod
    def from_json(cls, data: Json) -> Sharding:
        """From a part of an image, which nobody vouches for: ValueError where it makes no sense."""
        shape, offsets, grid, placements = list_of(data, 4)
        device, sizes, ranks, names = list_of(grid, 4)
        mesh = Mesh(
            device=text_of(device),
            shape=shape_of(sizes),
            ranks=tuple(size_of(rank) for rank in list_of(ranks)),
            names=None if names is None else tuple(text_of(name) for name in list_of(names)),
        )
        whole = cls(
            shape=shape_of(shape),
            offsets=tuple(size_of(offset) for offset in list_of(offsets, len(shape_of(shape)))),
            mesh=mesh,
            placements=tuple(text_of(placement) for placement in list_of(placements, len(mesh.shape))),
        )
        if math.prod(mesh.shape) != len(mesh.ranks) or len(mesh.names or mesh.shape) != len(mesh.shape):
            raise ValueError("a mesh whose ranks do not fill it")
        return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A DTensor as it is read: without the ranks that it was spread over there is none."""

    local: torch.Tensor
    sharding: Sharding

    def __post_init__(self) -> None:
        sharding = self.sharding
        ends = [begin + size for begin, size in zip(sharding.offsets, self.local.shape, strict=False)]
        if len(self.local.shape) != len(sharding.shape) or any(
            size and end > whole for size, end, whole in zip(self.local.shape, ends, sharding.shape, strict=True)
        ):
            raise ValueError("a block that does not lie in its whole")

    def meets(self, offsets: Offsets, shape: Sequence[int]) -> bool:
        """Whether it has something of another block."""
        return _volume(_common(_box(offsets, shape), _box(self.sharding.offsets, self.local.shape))) > 0


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All that lies in dicts and sequences, and where."""
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield from leaves(item, (*path, key))
    elif isinstance(tree, (list, tuple, deque)):
        for index, item in enumerate(tree):
            yield from leaves(item, (*path, index))
    else:
        yield path, tree


def shards_in(tree: Any) -> dict[Path, Shard]:
    """Every shard of a state that was read."""
    return {path: leaf for path, leaf in leaves(tree) if isinstance(leaf, Shard)}


def exchanged(tree: Any, exchange: Callable[[Path, Shard], Any], path: Path = ()) -> Any:
    """The same state, changed in place, with something else for each shard."""
    if isinstance(tree, Shard):
        return exchange(path, tree)
    if isinstance(tree, (dict, list, deque)):
        for key, item in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            tree[key] = exchanged(item, exchange, (*path, key))
    if isinstance(tree, tuple):
        return tuple(exchanged(item, exchange, (*path, index)) for index, item in enumerate(tree))
    return tree


def is_dtensor(value: object) -> bool:
    """Whether it is a DTensor; of a subclass nobody knows what else it has."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(value) is module.DTensor


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The memory that a tensor has on this rank; ``to_local()`` makes a new view of it each time."""
    local: torch.Tensor = tensor._local_tensor if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]  # to_local() makes a new view each time
    return local


def flaw(tensor: torch.Tensor) -> str | None:
    """Why the block of a DTensor would not bring it back; its local tensor is looked at besides."""
    dtensor: Any = tensor
    if any(placement.is_partial() for placement in dtensor.placements):
        return "it is the pending sum of a tensor over ranks; do save redistribute() of it"
    if len(chunks := dtensor.__create_chunk_list__()) != 1 or tuple(chunks[0].sizes) != tuple(local_of(tensor).shape):
        return "what this rank has of it is no single block; do save full_tensor() of it"
    return None


def sharding_of(tensor: torch.Tensor) -> Sharding:
    """How a DTensor that has no flaw is spread over its ranks."""
    dtensor: Any = tensor
    mesh = dtensor.device_mesh
    (chunk,) = dtensor.__create_chunk_list__()  # the protocol by which DCP asks for this
    return Sharding(
        shape=tuple(dtensor.shape),
        offsets=tuple(chunk.offsets),
        mesh=mesh_of(mesh),
        placements=tuple(map(_spelled, dtensor.placements)),
    )


def mesh_of(mesh: Any) -> Mesh:
    """A torch DeviceMesh in words of ours."""
    grid = mesh.mesh
    names = mesh.mesh_dim_names
    return Mesh(
        device=mesh.device_type,
        shape=tuple(grid.shape),
        ranks=tuple(grid.flatten().tolist()),
        names=None if names is None else tuple(names),
    )


def like(local: torch.Tensor, *, live: torch.Tensor) -> DTensor:
    """A DTensor on the mesh and with the placements of a live one, of a block of one's own; it shares its memory."""
    dtensor: Any = live
    made: DTensor = type(dtensor).from_local(
        local, dtensor.device_mesh, dtensor.placements, run_check=False, shape=live.shape, stride=live.stride()
    )
    return made


def on_mesh(local: torch.Tensor, *, mesh: Any, sharding: Sharding) -> DTensor:
    """A DTensor on a live mesh that is the saved one; of its placements none but Shard and Replicate."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as Sharded

    dims = [re.sub(r"[^0-9]", "", text) for text in sharding.placements]
    placements = [Sharded(int(dim)) if dim else Replicate() for dim in dims]
    shape = torch.Size(sharding.shape)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def assembled(offsets: Offsets, shape: Sequence[int], shards: Sequence[Shard]) -> torch.Tensor | None:
    """A block made up of those that ranks have, in memory of its own; ``None`` if they do not make it up."""
    forms = {(shard.local.dtype, shard.sharding.shape) for shard in shards}
    if len(forms) != 1:
        return None
    block = torch.empty(tuple(shape), dtype=shards[0].local.dtype, device="cpu")
    pieces: list[tuple[Offsets, Offsets]] = []
    for shard in shards:
        begin, end = _common(_box(offsets, shape), _box(shard.sharding.offsets, shard.local.shape))
        if not _volume((begin, end)) or (begin, end) in pieces:
            continue  # it has nothing of it, or another rank has the same
        pieces.append((begin, end))
        _cut(block, begin, end, offsets).copy_(_cut(shard.local, begin, end, shard.sharding.offsets))
    meet = any(_volume(_common(one, other)) for number, one in enumerate(pieces) for other in pieces[:number])
    return None if meet or sum(map(_volume, pieces)) != block.numel() else block


def _box(offsets: Offsets, shape: Sequence[int]) -> tuple[Offsets, Offsets]:
    return offsets, tuple(begin + size for begin, size in zip(offsets, shape, strict=True))


def _common(one: tuple[Offsets, Offsets], other: tuple[Offsets, Offsets]) -> tuple[Offsets, Offsets]:
    return tuple(map(max, one[0], other[0])), tuple(map(min, one[1], other[1]))


def _volume(box: tuple[Offsets, Offsets]) -> int:
    return math.prod(max(0, last - first) for first, last in zip(*box, strict=True))


def _cut(tensor: torch.Tensor, begin: Offsets, end: Offsets, origin: Offsets) -> torch.Tensor:
    for dim, (first, last, offset) in enumerate(zip(begin, end, origin, strict=True)):
        tensor = tensor.narrow(dim, first - offset, last - first)
    return tensor


def _spelled(placement: Any) -> str:
    """The same in every version of torch, which spells them differently."""
    kind = type(placement).__name__.lstrip("_")
    numbers = [getattr(placement, name) for name in ("dim", "split_factor") if hasattr(placement, name)]
    return f"{kind}({', '.join(map(str, numbers))})"
