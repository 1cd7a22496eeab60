# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint that another number of ranks has saved.

What was the same on all of them is the same on all now. Of a DTensor each rank takes the block that it has now, made up
of those that the others had. A parameter, or state of an optimizer, that is neither is refused: nobody knows what it is
to be. All else is a rank's own (buffers, plain data, generators, the position in the data) and goes by one rule: rank r
takes what rank r had, and a rank that is new what rank 0 had; but its generators it derives, unless all ranks had them
alike, so that it draws what no other rank draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resilient.checkpoint import digest, image, pair, tensors
from resilient.checkpoint.arena import Slot
from resilient.checkpoint.objects import Path
from resilient.checkpoint.tensors_sharded import Shard, Sharding, assembled, local_of, sharding_of, shards_in
from resilient.checkpoint.whole import Whole
from resilient.errors import CheckpointError
from resilient.link.messages import Try
from resilient.training import restore, rng
from resilient.training.position import ALIKE, APART
from resilient.training.restore import Candidate, Damaged
from resilient.training.state import Part


def read(order: Try, slot: Slot, parts: Mapping[str, Part], rank: int) -> Candidate:
    """The state for a rank, verified; its tensors are views of the slot, or memory of their own."""
    begun = time.monotonic()
    assert order.contents is not None, "a slot that all ranks share"
    view = slot.view(slot.room)
    whole = Whole.read(view, order.contents)
    try:
        saved = _Saved(whole, view)
        candidate = restore.check(
            order.name, saved.tree_for(rank, order.name), parts, step=order.step, source=saved.block
        )
    except CheckpointError:
        _verify(order.name, whole, view, whole.offsets)  # that something was changed in memory may be why
        raise
    _verify(order.name, whole, view, saved.used)
    size_bytes = sum(whole.manifest.file(file).size for file in saved.used)
    read_s = time.monotonic() - begun
    return replace(candidate, size_bytes=size_bytes, read_s=read_s, saved_by=saved.ranks)


def _verify(name: str, whole: Whole, view: memoryview, files: Iterable[str]) -> None:
    for file in sorted(files):
        if not digest.matches(whole.image(view, file), whole.manifest.file(file).digest):
            raise Damaged(f"cannot restore {name}: {file} does not have its digest in memory")


class _Saved:
    """The images of all ranks that saved a checkpoint."""

    def __init__(self, whole: Whole, view: memoryview) -> None:
        self._files = whole.manifest.ranks
        self.ranks = whole.manifest.world_size
        self._flats = {file: image.read(whole.image(view, file)) for file in whole.offsets}
        flats = [pair.joined(self._flats[files.tensors], self._flats[files.own]) for files in self._files]
        self._trees: list[Any] = [tensors.unflatten(flat) for flat in flats]
        self._shards = [shards_in(tree) for tree in self._trees]
        self.used = {files.own for files in self._files}
        """Files that something was taken from."""
        self._made: dict[tuple[int, Sharding], Tensor] = {}

    def tree_for(self, rank: int, name: str) -> Any:
        """What a rank goes on from, with blocks as the rank had them whose state it takes."""
        me = rank if rank < self.ranks else 0
        self._refuse_unlike(me, name)
        self.used.add(self._files[me].tensors)
        runs: list[Any] = [tree.get("run") if isinstance(tree, dict) else None for tree in self._trees]
        if all(isinstance(run, dict) and run.keys() >= {"rng", "data"} for run in runs):
            generators, data = [run["rng"] for run in runs], [run["data"] for run in runs]
            self._trees[me]["run"] = {
                **runs[me],
                "rng": generators[rank] if rank < self.ranks else _generators(generators, rank),
                "data": _position(data, me),
            }
        return self._trees[me]

    def _refuse_unlike(self, me: int, name: str) -> None:
        """CheckpointError for what was one rank's own where all should have had the same."""
        blocks = {(shard.local.data_ptr(), shard.local.shape) for shard in self._shards[me].values()}
        mine = self._flats[self._files[me].tensors].tensors
        plain = [tensor for tensor, value in mine.items() if (value.data_ptr(), value.shape) not in blocks]
        for other, files in enumerate(self._files):
            if files.tensors == self._files[me].tensors:
                continue
            theirs = self._flats[files.tensors].tensors
            unlike = sorted(mine.keys() ^ theirs.keys())
            unlike += [tensor for tensor in plain if not _same_bits(mine[tensor], theirs.get(tensor))]
            if unlike:
                raise CheckpointError(
                    f"cannot restore {name}: {unlike[0]} was not the same on ranks {me} and {other} and is no DTensor "
                    f"that says how it belongs together; start {self.ranks} ranks as before, or use --fresh"
                )

    def block(self, path: Path, saved: Shard, live: Tensor) -> Tensor | str:
        """What a rank has now of a DTensor."""
        wanted, shape = sharding_of(live), local_of(live).shape
        known = self._made.get((id(saved.local), wanted))
        if known is not None:
            return known  # what is tied is made once
        shards = {rank: shards[path] for rank, shards in enumerate(self._shards) if path in shards}
        made = assembled(wanted.offsets, shape, list(shards.values()))
        if made is None:
            return f"saved as {saved.sharding}, and the ranks that saved it do not have all that is now {wanted}"
        self.used |= {self._files[r].tensors for r, shard in shards.items() if shard.meets(wanted.offsets, shape)}
        self._made[id(saved.local), wanted] = made
        return made


def _generators(found: Sequence[Any], rank: int) -> Any:
    """For a rank that is new."""
    alike = len(found) > 1 and _same(found)
    return found[0] if alike or rng.differences(found[0]) else rng.derived(found[0], rank)


def _position(found: Sequence[Any], me: int) -> Any:
    """A position in the data that is yet to be found."""
    if not isinstance(found[me], dict):
        return found[me]
    alike = _same(found) and found[me].get("of_others") != APART
    return {**found[me], "of_others": ALIKE if alike else APART}


def _same(trees: Sequence[object]) -> bool:
    """Whether all are the same, bit by bit."""
    first, *others = [tensors.flatten(tree, path=()) for tree in trees]
    return all(
        other.objects == first.objects
        and all(_same_bits(value, other.tensors.get(name)) for name, value in first.tensors.items())
        for other in others
    )


def _same_bits(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
