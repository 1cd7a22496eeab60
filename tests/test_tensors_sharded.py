# SPDX-License-Identifier: Apache-2.0
"""Tests of blocks of a tensor: how they are written down, and made up of those that other ranks have."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor import Shard as Sharded
from trees import same

from resilient.checkpoint import image
from resilient.checkpoint.tensors import Gathering, flatten, unflatten
from resilient.checkpoint.tensors_sharded import Mesh, Shard, Sharding, assembled
from resilient.errors import CheckpointError

MESH = Mesh(device="cpu", shape=(2, 2), ranks=(0, 1, 2, 3), names=("dp", "tp"))
SHARDING = Sharding(shape=(4, 3), offsets=(2, 0), mesh=MESH, placements=("Shard(0)", "Replicate()"))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("ranks",))
    dist.destroy_process_group()


def split(whole: Tensor, dim: int, ranks: int) -> list[Shard]:
    """As ``Shard(dim)`` does: the last ranks may have less, or nothing."""
    chunks = list(whole.chunk(ranks, dim))
    chunks += [whole.narrow(dim, 0, 0)] * (ranks - len(chunks))
    shards, at = [], 0
    for chunk in chunks:
        offsets = tuple(at if each == dim else 0 for each in range(whole.dim()))
        shards.append(Shard(local=chunk, sharding=replace(SHARDING, shape=tuple(whole.shape), offsets=offsets)))
        at += chunk.shape[dim]
    return shards


def test_how_it_is_sharded_is_text_and_comes_back() -> None:
    """Whatever a mesh and placements may be."""
    for one in (SHARDING, replace(SHARDING, mesh=replace(MESH, names=None))):
        assert Sharding.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert str(SHARDING) == "Shard(0), Replicate() of (4, 3) on cpu 2 dp x 2 tp"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop(),
        lambda data: data[0].append(-1),
        lambda data: data[1].pop(),
        lambda data: data[1].__setitem__(0, -2),
        lambda data: data[1].__setitem__(0, 1.5),
        lambda data: data[2][2].pop(),
        lambda data: data[2][1].__setitem__(0, 1 << 62),
        lambda data: data[2][3].pop(),
        lambda data: data[2].__setitem__(0, 7),
        lambda data: data[3].pop(),
        lambda data: data[3].__setitem__(0, None),
    ],
)
def test_what_makes_no_sense_is_refused(change: Any) -> None:
    """An image is read by whoever finds it."""
    data: Any = json.loads(json.dumps(SHARDING.to_json()))
    change(data)
    with pytest.raises(ValueError, match=r"."):
        Sharding.from_json(data)


def test_a_block_lies_in_its_whole() -> None:
    """An empty one may begin at its end."""
    Shard(local=torch.ones(2, 3), sharding=SHARDING)
    Shard(local=torch.ones(0, 3), sharding=replace(SHARDING, offsets=(4, 0)))
    for local in (torch.ones(3, 3), torch.ones(2, 4), torch.ones(6), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match="does not lie in its whole"):
            Shard(local=local, sharding=SHARDING)


def test_any_split_is_made_of_any_other() -> None:
    """Each number of ranks before and after, along each dimension, for sizes that they do not divide."""
    for rows, columns in itertools.product((0, 1, 2, 5, 9), (1, 4)):
        whole = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
        for before, after, one, other in itertools.product((1, 2, 3, 4), (1, 2, 3, 4), (0, 1), (0, 1)):
            shards = split(whole, one, before)
            for wanted in split(whole, other, after):
                block = assembled(wanted.sharding.offsets, wanted.local.shape, shards)
                assert block is not None
                assert torch.equal(block, wanted.local)


@given(
    sizes=st.tuples(st.integers(0, 7), st.integers(1, 6)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    copies=st.integers(1, 2),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_box_is_made_of_a_grid(
    sizes: tuple[int, int], grid: tuple[int, int], copies: int, data: st.DataObject
) -> None:
    """Of blocks in two dimensions that several ranks may have alike; a box that lacks one is not made."""
    whole = torch.arange(sizes[0] * sizes[1]).reshape(sizes)
    blocks = []
    for row in split(whole, 0, grid[0]):
        for cell in split(row.local, 1, grid[1]):
            offsets = (row.sharding.offsets[0], cell.sharding.offsets[1])
            blocks.append(Shard(local=cell.local, sharding=replace(cell.sharding, shape=sizes, offsets=offsets)))
    shards = data.draw(st.permutations(blocks * copies))
    begin = [data.draw(st.integers(0, size)) for size in sizes]
    shape = [data.draw(st.integers(0, size - at)) for size, at in zip(sizes, begin, strict=True)]
    box = whole[begin[0] : begin[0] + shape[0], begin[1] : begin[1] + shape[1]]
    made = assembled(tuple(begin), shape, shards)
    assert made is not None
    assert torch.equal(made, box)
    gone = data.draw(st.sampled_from(blocks))
    rest = [shard for shard in shards if shard is not gone and shard.sharding.offsets != gone.sharding.offsets]
    if rest and gone.local.numel():
        assert assembled((0, 0), sizes, rest) is None


def test_blocks_that_overlap_are_not_counted_twice() -> None:
    """Two rows too many would hide two that are missing."""
    whole = torch.arange(6.0)
    one = Shard(local=whole[:4], sharding=replace(SHARDING, shape=(6,), offsets=(0,)))
    other = Shard(local=whole[2:4], sharding=replace(SHARDING, shape=(6,), offsets=(2,)))
    assert assembled((0,), (6,), [one, other]) is None
    assert assembled((0,), (4,), [one]) is not None


def test_blocks_of_other_tensors_are_not_mixed() -> None:
    """Ranks that do not agree on dtype or shape have saved different things."""
    one, other = split(torch.ones(4), 0, 2)
    as_double = Shard(local=other.local.double(), sharding=other.sharding)
    longer = Shard(local=other.local, sharding=replace(other.sharding, shape=(5,)))
    assert assembled((0,), (4,), [one, as_double]) is None
    assert assembled((0,), (4,), [one, longer]) is None


def test_a_dtensor_is_kept_by_its_local_tensor(mesh: Any) -> None:
    """In the memory that it has, under its own name; tied ones once; read as a block with how it was sharded."""
    rows = distribute_tensor(torch.arange(6.0).reshape(3, 2), mesh, [Sharded(0)])
    copy = distribute_tensor(torch.ones(2, dtype=torch.bfloat16), mesh, [Replicate()])
    state = {"rows": torch.nn.Parameter(rows), "tied": rows, "copy": copy, "plain": torch.ones(1)}
    flat = flatten(state, path=())
    assert flat.tensors["rows"].data_ptr() == rows.to_local().data_ptr()
    assert dict(flat.aliases) == {"tied": "rows"}
    assert flat.wrapped.keys() == {"rows", "copy"}
    layout = image.plan(flat)
    buffer = bytearray(layout.size_bytes)
    image.write(flat, layout, buffer)
    found: Any = unflatten(image.read(buffer))
    assert same(found["rows"].local, rows.to_local())
    assert found["rows"].local is found["tied"].local
    one = Mesh(device="cpu", shape=(1,), ranks=(0,), names=("ranks",))
    assert found["rows"].sharding == Sharding(shape=(3, 2), offsets=(0, 0), mesh=one, placements=("Shard(0)",))
    assert found["copy"].sharding.placements == ("Replicate()",)
    assert not isinstance(found["plain"], Shard)


def test_a_dtensor_that_has_moved_is_noticed(mesh: Any) -> None:
    """FSDP2 gives a parameter new local memory in place, when a model is moved."""
    tensor = distribute_tensor(torch.zeros(3), mesh, [Sharded(0)])
    gathering = Gathering()
    gathering.encode({"a": tensor, "b": torch.zeros(3)}, ("state",))
    assert gathering.are_as_they_were()
    local, tensor._local_tensor = tensor._local_tensor, torch.ones(3)
    assert not gathering.lie_where_they_lay()
    tensor._local_tensor = local
    assert gathering.lie_where_they_lay()
    local.unsqueeze_(0)
    assert gathering.lie_where_they_lay()
    assert not gathering.are_as_they_were()


def test_a_pending_sum_is_refused(mesh: Any) -> None:
    """No rank has it."""
    pending = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    with pytest.raises(CheckpointError, match=r"cannot save state\['m'\]: it is the pending sum of a tensor"):
        flatten({"m": pending})
