# SPDX-License-Identifier: Apache-2.0
"""Tests of reading what another number of ranks has saved.

Here torch's "fake" process group lets one process be each rank in turn: what a rank holds of a tensor is what torch
says it does, and nothing communicates, which neither saving nor restoring needs. With real groups: test_sharded.py.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from saved_run import SavedRun, images_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from resilient.checkpoint.arena import Slot
from resilient.checkpoint.fetch import fetch
from resilient.checkpoint.requests import Fetch
from resilient.checkpoint.survey import read_manifest
from resilient.checkpoint.tensors_sharded import local_of
from resilient.checkpoint.whole import Whole
from resilient.errors import CheckpointError
from resilient.link.board import WHOLE
from resilient.link.messages import Try
from resilient.training import regroup, restore, rng, steady
from resilient.training.position import ALIKE, APART, Position
from resilient.training.restore import Candidate, Damaged
from resilient.training.state import parts_of

STEP = 4
COUNTS = (1, 2, 3, 4)
State = dict[str, object]


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot.create("test")
    yield slot
    slot.close()


@pytest.fixture
def saved(tmp_path: Path) -> SavedRun:
    run = SavedRun(tmp_path)
    run.claim(1)
    return run


@contextlib.contextmanager
def being(rank: int, ranks: int) -> Iterator[Any]:
    """One rank of a group, and a mesh of all of them."""
    _clear_sharding_prop_cache()  # it has meshes in which this process is another rank
    dist.init_process_group("fake", rank=rank, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,))
    finally:
        dist.destroy_process_group()


def save(saved: SavedRun, ranks: int, make: Callable[[int, Any], State], **run: Any) -> None:
    """A checkpoint of step 4, of the state that ``make(rank, mesh)`` gives; ``run``: lists of what each rank has."""
    images = []
    for rank in range(ranks):
        with being(rank, ranks) as mesh:
            parts = parts_of(make(rank, mesh))
            captured = {name: part.capture() for name, part in parts.items()}
            own = {"rng": generators(rank), **{name: values[rank] for name, values in run.items()}}
            images.append(images_of(captured, STEP, behind=steady.behind(parts), **own))
    saved.save(f"1-{STEP}", images_by_rank=images)


def generators(seed: int) -> Any:
    """A state of all generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return rng.capture()


def fetched(saved: SavedRun, slot: Slot) -> Try:
    """The whole checkpoint in a slot, as the saver puts it there, and the order to try it."""
    asked = Fetch(id=1, name=f"1-{STEP}", world_size=0, slot=WHOLE, available_bytes=None)
    reply = fetch(saved.vault, asked, [0], lambda rank, number: slot, lambda call, *arguments: call(*arguments))
    return Try(name=asked.name, step=STEP, slot=WHOLE, contents=reply.contents)


def taken(saved: SavedRun, slot: Slot, rank: int, live: State) -> Candidate:
    """Read by a rank, and loaded."""
    parts = parts_of(live)
    candidate = regroup.read(fetched(saved, slot), slot, parts, rank)
    restore.load(candidate, parts)
    return candidate


# Sharded state.


class Network(nn.Module):
    """Sizes that no number of ranks divides, one that is smaller than any, and a buffer that is a rank's own."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.up, self.down, self.one = nn.Linear(9, 14), nn.Linear(14, 5), nn.Linear(5, 1).bfloat16()
        self.register_buffer("seen", torch.tensor([rank]))


def by_fsdp(model: Network, mesh: Any) -> None:
    fully_shard([model.up, model.down], mesh=mesh)
    fully_shard(model, mesh=mesh)


def by_columns(model: Network, mesh: Any) -> None:
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def by_both(model: Network, mesh: Any) -> None:
    if mesh.size() % 2:
        by_fsdp(model, mesh)
        return
    square = init_device_mesh("cpu", (mesh.size() // 2, 2), mesh_dim_names=("dp", "tp"))
    by_columns(model, square["tp"])
    fully_shard(model.one, mesh=square["dp"])
    fully_shard(model, mesh=square["dp"])


def by_hybrid(model: Network, mesh: Any) -> None:
    """Two groups of two ranks, which have the same."""
    if mesh.size() == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    by_fsdp(model, mesh)


def block_of(tensor: Tensor, whole: Tensor) -> Tensor:
    """What torch says that this rank has of it."""
    if not isinstance(tensor, DTensor):
        return whole
    (chunk,) = tensor.__create_chunk_list__()
    for dim, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        whole = whole.narrow(dim, offset, size)
    return whole


def kept_for(parameter: Tensor, whole: Tensor) -> Tensor:
    """State of an optimizer, sharded as its parameter is, of another dtype."""
    moment = block_of(parameter, whole.float().cos())
    if not isinstance(parameter, DTensor):
        return moment
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(moment, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)


def spread(rank: int, mesh: Any, by: Callable[[Network, Any], None], seed: int) -> State:
    """A model and its optimizer, which has state if the seed is one."""
    torch.manual_seed(seed)
    model = Network(rank)
    by(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    wholes = whole_parameters(seed)
    for name, parameter in model.named_parameters():
        local_of(parameter.detach()).copy_(block_of(parameter, wholes[name]))  # no rank has sent it
    for name, parameter in model.named_parameters() if seed else ():
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": kept_for(parameter, wholes[name])}
    return {"model": model, "optimizer": optimizer}


def whole_parameters(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: parameter.detach() for name, parameter in Network().named_parameters()}


def check_parameters(live: State, seed: int) -> None:
    """Every one has the bits that it has with this seed."""
    model: Any = live["model"]
    for name, whole in whole_parameters(seed).items():
        parameter = model.get_parameter(name)
        assert torch.equal(local_of(parameter.detach()), block_of(parameter, whole)), name


def check_all(live: State, seed: int) -> None:
    """Every parameter and moment has its bits, and none of another's."""
    check_parameters(live, seed)
    model: Any = live["model"]
    optimizer: Any = live["optimizer"]
    for name, whole in whole_parameters(seed).items():
        parameter = model.get_parameter(name)
        state = optimizer.state[parameter]
        assert state["step"] == 3
        moment = state["exp_avg"]
        assert (type(moment), moment.dtype, moment.shape) == (type(parameter.data), torch.float32, whole.shape)
        assert torch.equal(local_of(moment), block_of(parameter, whole.float().cos())), name


WAYS: Mapping[str, Callable[[Network, Any], None]] = {
    "alike": lambda model, mesh: None,
    "fsdp": by_fsdp,
    "columns": by_columns,
    "both": by_both,
    "hybrid": by_hybrid,
}


@pytest.mark.parametrize(
    ("way", "before"),
    [
        pytest.param(way, before, marks=() if way == "fsdp" or (before == 4 and way != "alike") else pytest.mark.slow)
        for way in WAYS
        for before in COUNTS
    ],
)
def test_every_number_of_ranks_takes_what_every_other_saved(saved: SavedRun, slot: Slot, way: str, before: int) -> None:
    """Its own blocks, bit by bit, where dimensions are not divided by either and some ranks have nothing of one."""
    save(saved, before, lambda rank, mesh: spread(rank, mesh, WAYS[way], seed=1))
    for after in COUNTS:
        for rank in range(after):
            with being(rank, after) as mesh:
                live = spread(rank, mesh, WAYS[way], seed=0)
                candidate = taken(saved, slot, rank, live)
                check_all(live, seed=1)
                assert (candidate.saved_by, candidate.step) == (before, STEP)
                assert live["model"].seen.item() == (rank if rank < before else 0)  # type: ignore[attr-defined]  # a buffer of this test's module


def test_what_groups_of_ranks_have_alike_is_saved_once(saved: SavedRun) -> None:
    """Under hybrid sharding; what the others have beside is their own."""
    save(saved, 4, lambda rank, mesh: spread(rank, mesh, by_hybrid, seed=1))
    files = read_manifest(saved.store, f"1-{STEP}").ranks
    assert [rank.tensors for rank in files] == [f"tensors-{first}.safetensors" for first in (0, 1, 0, 1)]


def test_any_way_of_sharding_takes_what_any_other_saved(saved: SavedRun, slot: Slot) -> None:
    """A model that was under FSDP2 on three ranks goes on under FSDP2 and tensor parallelism on four."""
    save(saved, 3, lambda rank, mesh: spread(rank, mesh, by_fsdp, seed=1))
    for rank in range(4):
        with being(rank, 4) as mesh:
            live = spread(rank, mesh, by_both, seed=0)
            taken(saved, slot, rank, live)
            check_all(live, seed=1)


def rows(values: Sequence[float], mesh: Any) -> Any:
    return distribute_tensor(torch.tensor(values), mesh, [Shard(0)], src_data_rank=None)


def test_what_is_tied_is_tied_on_other_ranks_as_well(saved: SavedRun, slot: Slot) -> None:
    """One DTensor under two names stays one."""

    def make(rank: int, mesh: Any) -> dict[str, Any]:
        one = rows([1.0, 2.0, 3.0], mesh)
        return {"own": {"one": one, "tied": [one]}}

    save(saved, 3, make)
    for rank in range(2):
        with being(rank, 2) as mesh:
            live = make(rank, mesh)
            live["own"]["one"].zero_()
            taken(saved, slot, rank, live)
            assert live["own"]["one"] is live["own"]["tied"][0]
            assert local_of(live["own"]["one"]).tolist() == [[1.0, 2.0], [3.0]][rank]


def test_what_nobody_knows_how_to_shard_is_refused_by_name(saved: SavedRun, slot: Slot) -> None:
    """A tensor that the live state does not have yet, or has in another form; nothing is written."""
    save(saved, 2, lambda rank, mesh: {"own": {"rows": rows([1.0, 2.0, 3.0], mesh)}})
    order = fetched(saved, slot)
    cases: list[tuple[Callable[[Any], Any], str]] = [
        (lambda mesh: {}, "nothing of this run says how it is to be now"),
        (lambda mesh: {"rows": torch.zeros(3)}, "now a plain tensor"),
        (lambda mesh: {"rows": rows([0.0] * 4, mesh)}, "nothing of this run says how it is to be now"),
    ]
    for make, why in cases:
        with being(0, 1) as mesh:
            live = make(mesh)
            with pytest.raises(CheckpointError) as caught:
                regroup.read(order, slot, parts_of({"own": live}), 0)
            assert "state['own']['rows']: saved as Shard(0) of (3,) on cpu 2 ranks, " in str(caught.value)
            assert why in str(caught.value)


def test_a_flipped_bit_is_refused_before_anything_is_written(saved: SavedRun, slot: Slot) -> None:
    """In the file of any rank: also of one of which nothing is taken, as what all had alike is compared."""
    save(saved, 4, lambda rank, mesh: spread(rank, mesh, by_fsdp, seed=1))
    order = fetched(saved, slot)
    assert order.contents is not None
    view = slot.view(slot.room)
    whole = Whole.read(view, order.contents)
    assert len(whole.offsets) == 8
    for file in whole.offsets:
        with being(0, 2) as mesh:
            live = spread(0, mesh, by_fsdp, seed=0)
            whole.image(view, file)[-1] ^= 1
            with pytest.raises(Damaged, match=f"{file} does not have its digest"):
                regroup.read(order, slot, parts_of(live), 0)
            whole.image(view, file)[-1] ^= 1
            check_parameters(live, seed=0)
    with being(0, 2) as mesh:
        regroup.read(order, slot, parts_of(spread(0, mesh, by_fsdp, seed=0)), 0)


# What is a rank's own.


def test_parameters_that_differ_and_are_no_dtensors_are_refused(saved: SavedRun, slot: Slot) -> None:
    """As in a pipeline, or a sharding of the script's own: dropping one rank's would go unnoticed."""
    save(saved, 2, lambda rank, mesh: {"model": nn.Linear(2, 2)})
    with being(0, 1), pytest.raises(CheckpointError, match=r"state\.model\.\w+ was not the same on ranks 0 and 1"):
        taken(saved, slot, 0, {"model": nn.Linear(2, 2)})


@pytest.mark.parametrize("larger", [0, 1])
def test_what_one_rank_has_besides_is_not_lost(saved: SavedRun, slot: Slot, larger: int) -> None:
    """The last layer of a pipeline, say: of that rank or of another than the one whose state is taken."""

    def make(rank: int, mesh: Any) -> State:
        torch.manual_seed(0)
        return {"model": nn.Sequential(*[nn.Linear(2, 2), nn.Linear(2, 1)][: 2 if rank == larger else 1])}

    save(saved, 2, make)
    with being(0, 1) as mesh, pytest.raises(CheckpointError, match=r"state\.model\.1\.bias was not the same on ranks"):
        taken(saved, slot, 0, make(0, mesh))


def test_plain_data_goes_by_rank(saved: SavedRun, slot: Slot) -> None:
    """Rank r has what rank r had, and a rank that is new what rank 0 had."""
    save(saved, 2, lambda rank, mesh: {"own": {"rank": rank}})
    found = []
    for rank in range(3):
        live: dict[str, Any] = {}
        with being(rank, 3):
            taken(saved, slot, rank, {"own": live})
        found.append(live["rank"])
    assert found == [0, 1, 0]


def drawn(candidate: Candidate) -> tuple[float, float, float]:
    rng.restore(candidate.rng)
    return random.random(), float(np.random.rand()), torch.rand(1).item()


@pytest.mark.parametrize("before", [1, 2])
def test_new_ranks_draw_what_no_other_draws(saved: SavedRun, slot: Slot, before: int) -> None:
    """Those that were there go on; of the new ones each has generators of its own, the same at every try."""
    save(saved, before, lambda rank, mesh: {"own": {}})
    once, again = ([drawn(taken(saved, slot, rank, {"own": {}})) for rank in range(4)] for _ in range(2))
    assert once == again
    for draws in zip(*once, strict=True):
        assert len(set(draws)) == 4
    for rank in range(before):
        generators(rank)
        assert once[rank] == (random.random(), float(np.random.rand()), torch.rand(1).item())


def test_generators_that_all_had_alike_all_have_alike(saved: SavedRun, slot: Slot) -> None:
    """As under tensor parallelism, where ranks must drop out the same."""
    save(saved, 2, lambda rank, mesh: {"own": {}}, rng=[generators(7)] * 2)
    assert len({drawn(taken(saved, slot, rank, {"own": {}})) for rank in range(3)}) == 1


@pytest.mark.parametrize(
    ("data", "marks"),
    [
        ([None, None], [None, None, None]),
        ([Position(seed=1, used=2).to_tree()] * 2, [ALIKE] * 3),
        ([Position(seed=rank, used=2).to_tree() for rank in (5, 6)], [APART] * 3),
        ([Position(seed=1, used=2, of_others=APART).to_tree()] * 2, [APART] * 3),
    ],
)
def test_a_position_says_that_it_was_of_others(saved: SavedRun, slot: Slot, data: list[Any], marks: list[Any]) -> None:
    """And whether all had the same; what was not found anew yet stays apart."""
    save(saved, 2, lambda rank, mesh: {"own": {}}, data=data)
    found = [taken(saved, slot, rank, {"own": {}}).data for rank in range(3)]
    assert [position and position["of_others"] for position in found] == marks
    if data[0] is not None:
        assert [position and position["seed"] for position in found] == [data[r]["seed"] for r in (0, 1, 0)]


def test_an_image_that_is_none_of_a_run_is_refused(saved: SavedRun, slot: Slot) -> None:
    """Whatever else it is."""
    saved.save(f"1-{STEP}", [{"own": {}}] * 2)
    with pytest.raises(CheckpointError, match=r"run\.rng: not the state"):
        taken(saved, slot, 0, {"own": {}})
