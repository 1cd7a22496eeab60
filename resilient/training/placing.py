# SPDX-License-Identifier: Apache-2.0
"""Finding for each saved block of a DTensor the live ranks that it belongs on, before anything is written.

They are those of the tensor that lies now where the saved one lay, or of the parameter that an optimizer keeps it for.
Where there is neither, as in what a script has yet to make, they are those of any live mesh that is the saved one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from resilient.checkpoint.objects import Path, render
from resilient.checkpoint.tensors_sharded import (
    Mesh,
    Shard,
    exchanged,
    is_dtensor,
    leaves,
    like,
    mesh_of,
    on_mesh,
    sharding_of,
    shards_in,
)
from resilient.training.sharded import Block
from resilient.training.state import OptimizerPart, Part

Source: TypeAlias = "Callable[[Path, Shard, Tensor], Tensor | str]"
"""The local tensor for a live DTensor, in the place of a saved one; or why there is none."""
_PLACEMENT: Final = re.compile(r"Shard\(([0-9]{1,3})\)|Replicate\(\)")


def own_block(path: Path, saved: Shard, live: Tensor) -> Tensor | str:
    """From a rank's own image, which has its own block alone."""
    now = sharding_of(live)
    return saved.local if saved.sharding == now else f"saved as {saved.sharding}, now {now}"


class Placing:
    """Puts blocks in the place of saved shards; ``found`` says, by path, what is in the way of it."""

    def __init__(self, parts: Mapping[str, Part], source: Source = own_block) -> None:
        self._parts = parts
        self._source = source
        self._captured: dict[str, object] = {}
        self._meshes: dict[Mesh, Any] | None = None
        self.found: list[str] = []

    def placed(self, part: str, saved: Any) -> Any:
        """The saved state of a part, changed in place."""
        return exchanged(saved, self._exchange, ("state", part)) if shards_in(saved) else saved

    def _exchange(self, path: Path, saved: Shard) -> Block | None:
        block = self._block(saved, path)
        if isinstance(block, Block):
            return block
        self.found.append(f"{render(path)}: {block}")
        return None

    def _block(self, saved: Shard, path: Path) -> Block | str:
        model, whole = self._model(path), torch.Size(saved.sharding.shape)
        if isinstance(model, Tensor) and model.shape == whole:
            if not is_dtensor(model):
                return f"saved as {saved.sharding}, now a plain tensor"
            local = self._source(path, saved, model)
            return local if isinstance(local, str) else Block(local=local, shape=whole, form=partial(like, live=model))
        mesh = self._known_meshes().get(saved.sharding.mesh) if self._source is own_block else None
        placements = saved.sharding.placements
        if mesh is None or not all(map(_PLACEMENT.fullmatch, placements)):
            return f"saved as {saved.sharding}, and nothing of this run says how it is to be now"
        return Block(local=saved.local, shape=whole, form=partial(on_mesh, mesh=mesh, sharding=saved.sharding))

    def _model(self, path: Path) -> object:
        """What lies now where a path leads, or the parameter for which an optimizer keeps what does."""
        _, name, *rest = path
        part = self._parts[str(name)]
        if isinstance(part, OptimizerPart) and rest[:1] == ["state"]:
            return _at(part.parameters(), rest[1:2])
        if name not in self._captured:
            self._captured[str(name)] = part.capture()
        return _at(self._captured[str(name)], rest)

    def _known_meshes(self) -> Mapping[Mesh, Any]:
        if self._meshes is None:
            live = [leaf for part in self._parts.values() for _, leaf in leaves(part.capture())]
            live += [p for part in self._parts.values() if isinstance(part, OptimizerPart) for p in part.parameters()]
            meshes = [leaf.device_mesh for leaf in live if is_dtensor(leaf)]
            self._meshes = {mesh_of(mesh): mesh for mesh in meshes}
        return self._meshes


def _at(tree: Any, path: Sequence[object]) -> object:
    """What is found at a path; ``None`` where the tree does not have it."""
    for key in path:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
