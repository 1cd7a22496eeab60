# SPDX-License-Identifier: Apache-2.0
"""Tests of bringing saved blocks back into live DTensors, on a group of one rank; see test_sharded.py for more."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_restore import put
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from resilient.checkpoint import digest, image, pair, tensors
from resilient.checkpoint.arena import Slot
from resilient.checkpoint.tensors_sharded import local_of
from resilient.errors import CheckpointError
from resilient.link.board import PAGE_BYTES
from resilient.training import restore, sharing, spill, steady
from resilient.training.copying import Batch, Copying
from resilient.training.state import parts_of


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot.create("test")
    yield slot
    slot.close()


def trained(steps: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model under FSDP2 with its optimizer."""
    model = nn.Sequential(nn.Linear(3, 2, dtype=dtype), nn.BatchNorm1d(2, dtype=dtype))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 3, dtype=dtype)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def values(*trees: Any) -> list[torch.Tensor]:
    """Every tensor of a state, on this rank."""
    found = tensors.flatten(list(trees)).tensors
    return [found[name].clone() for name in sorted(found)]


def moved(slot: Slot, saved: dict[str, object], live: dict[str, object]) -> None:
    """Save one state, and load it into another."""
    record = put(slot, parts_of(saved))
    parts = parts_of(live)
    restore.load(restore.read("memory", record, slot, parts, ranks=1), parts)
    slot.view(record.size)[:] = bytes(record.size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_under_fsdp_and_its_optimizer_come_back(slot: Slot, dtype: torch.dtype) -> None:
    """In place and bit by bit; moments keep a dtype of their own; nothing that is loaded stays in the slot's memory."""
    model, optimizer = trained(2, dtype)
    if dtype is torch.bfloat16:
        for state in optimizer.state.values():
            state["exp_avg"] = state["exp_avg"].float() + 1e-7
    fresh, other = trained(0, dtype)
    lie_in = [local_of(parameter).data_ptr() for parameter in fresh.parameters()]
    moved(slot, {"model": model, "optimizer": optimizer}, {"model": fresh, "optimizer": other})
    before, after = (values(m.state_dict(), o.state_dict()) for m, o in ((model, optimizer), (fresh, other)))
    assert [value.dtype for value in before] == [value.dtype for value in after]
    assert all(map(torch.equal, before, after))
    assert [local_of(parameter).data_ptr() for parameter in fresh.parameters()] == lie_in
    assert all(isinstance(state["exp_avg"], DTensor) for state in other.state.values())


@pytest.mark.parametrize("refuses", [False, True])
def test_what_goes_through_a_file_is_the_same(tmp_path: Path, refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory has no room for a snapshot, the same images are written by shard, past the page cache or not."""
    write = os.pwrite

    def write_unless_direct(fd: int, data: memoryview, at: int) -> int:
        if refuses and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", write_unless_direct)
    model, optimizer = trained(2)
    parts = parts_of({"model": model, "optimizer": optimizer})
    captured = {name: part.capture() for name, part in parts.items()}
    first, own = pair.split(tensors.flatten(captured, behind=steady.behind(parts)))
    plan = pair.plan(first, own, None)
    buffer = bytearray(plan.tensors.size_bytes)
    image.write(first, plan.tensors, buffer)
    with (tmp_path / "slot").open("w+b") as file:
        file.truncate(plan.size_bytes + PAGE_BYTES)
        extent, _ = spill.write(file.fileno(), first, own, plan)
        assert extent.digest == digest.digest(memoryview(buffer))
        assert file.read(extent.size) == buffer


def test_what_fsdp_has_gathered_is_saved_by_shard() -> None:
    """An evaluation leaves the parameters of the root whole."""
    model, optimizer = trained(1)
    parts = parts_of({"model": model, "optimizer": optimizer})
    model.eval()
    before = values(parts["model"].capture())
    with torch.no_grad():
        model(torch.ones(4, 3))
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    captured: Any = {name: part.capture() for name, part in parts.items()}
    assert all(isinstance(captured["model"][name], DTensor) for name in ("0.weight", "1.bias"))
    flat = tensors.flatten(captured, path=(), behind=steady.behind(parts))
    assert set(flat.behind) >= {"model.0.weight", "optimizer.state.0.exp_avg"}
    assert all(map(torch.equal, before, values(captured["model"])))
    sharing.refuse_unrestorable(parts, captured)


def test_forward_and_backward_leave_versions_and_an_optimizer_raises_them() -> None:
    """So the check of a copy behind the training finds what changed, and nothing else."""
    model, optimizer = trained(1)
    parts = parts_of({"model": model, "optimizer": optimizer})
    flat = tensors.flatten({name: part.capture() for name, part in parts.items()}, behind=steady.behind(parts))

    def copying() -> Copying:
        sources = [flat.tensors[name] for name in sorted(flat.behind)]
        wrappers = [flat.wrapped[name] for name in sorted(flat.behind) if name in flat.wrapped]
        assert len(wrappers) == 12
        return Copying(Batch([(source, torch.empty_like(source)) for source in sources], wrappers))

    quiet = copying()
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().mean().backward()
    assert quiet.run()
    changes: list[Callable[[], object]] = [
        optimizer.step,
        lambda: parts["optimizer"].capture()["state"][0]["exp_avg"].zero_(),  # type: ignore[index]  # a part captures any object
        lambda: model.state_dict()["0.weight"].add_(1),
        lambda: local_of(parts["model"].capture()["0.weight"]).add_(1),  # type: ignore[index]  # as above
    ]
    for change in changes:
        disturbed = copying()
        with torch.no_grad():
            change()
        assert not disturbed.run()


class Averaged:
    """State of the user's own that holds DTensors, as DCP's functions give it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.average = state["average"]


def test_dtensors_come_back_wherever_they_are(slot: Slot) -> None:
    """In what has a state_dict, in plain data, and where the live state has nothing yet."""
    mesh = init_device_mesh("cpu", (1,))
    saved, live = Averaged(*trained(2)), Averaged(*trained(0))
    rows = distribute_tensor(torch.rand(3, 2), mesh, [Shard(0)])
    later: dict[str, Any] = {}
    moved(slot, {"averaged": saved, "plain": {"rows": [rows, rows]}}, {"averaged": live, "plain": later})
    assert all(map(torch.equal, values(saved.state_dict()), values(live.state_dict())))
    one, other = later["rows"]
    assert one is other
    assert (one.placements, one.device_mesh, one.shape) == (rows.placements, mesh, rows.shape)
    assert torch.equal(one.full_tensor(), rows.full_tensor())


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (lambda weight, mesh: distribute_tensor(weight, mesh, [Shard(1)]), "now Shard(1) of (2, 3) on cpu 1 ranks"),
        (lambda weight, mesh: distribute_tensor(weight, mesh, [Replicate()]), "now Replicate() of (2, 3) on cpu 1 r"),
        (lambda weight, mesh: weight.clone(), "now a plain tensor"),
        (
            lambda weight, mesh: distribute_tensor(
                weight, init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp")), [Shard(0), Replicate()]
            ),
            "now Shard(0), Replicate() of (2, 3) on cpu 1 dp x 1 tp",
        ),
    ],
)
def test_another_sharding_is_refused_by_name(slot: Slot, now: Any, why: str) -> None:
    """Other placements, another mesh, no mesh at all: before anything is written."""
    mesh = init_device_mesh("cpu", (1,))
    weight = torch.rand(2, 3)
    model, optimizer = trained(1)
    saved = {"model": model, "optimizer": optimizer, "own": {"weight": distribute_tensor(weight, mesh, [Shard(0)])}}
    record = put(slot, parts_of(saved))
    fresh, other = trained(0)
    live = {"model": fresh, "optimizer": other, "own": {"weight": now(torch.zeros(2, 3), mesh)}}
    before = values(fresh.state_dict(), live["own"])
    with pytest.raises(CheckpointError) as caught:
        restore.read("memory", record, slot, parts_of(live), ranks=1)
    assert f"state['own']['weight']: saved as Shard(0) of (2, 3) on cpu 1 ranks, {why}" in str(caught.value)
    assert all(map(torch.equal, before, values(fresh.state_dict(), live["own"])))


def test_another_shape_and_a_plain_tensor_are_refused_by_name(slot: Slot) -> None:
    """A whole of another size, and what was saved before it was sharded."""
    model, optimizer = trained(1)
    record = put(slot, parts_of({"model": model, "optimizer": optimizer}))
    larger = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    fully_shard(larger, mesh=init_device_mesh("cpu", (1,)))
    parts: dict[str, object] = {"model": larger, "optimizer": torch.optim.AdamW(larger.parameters())}
    with pytest.raises(CheckpointError, match=r"0\.weight: saved as torch\.float32 \(2, 3\) as a DTensor, "):
        restore.read("memory", record, slot, parts_of(parts), ranks=1)
    plain = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    whole = torch.optim.AdamW(plain.parameters())
    plain(torch.rand(4, 3)).sum().backward()
    whole.step()
    found = parts_of({"model": model, "optimizer": optimizer})
    assert (
        found["model"]
        .differences(parts_of({"model": plain})["model"].capture())[1]
        .startswith("0.weight: saved as torch.float32 (2, 3), the model has torch.float32 (2, 3) as a DTensor")
    )
    assert found["optimizer"].differences(whole.state_dict())[0] == (
        "state[0].exp_avg: saved as a plain tensor, now for a parameter that is Shard(0) of (2, 3) on cpu 1 ranks"
    )


def test_a_mesh_that_is_gone_is_refused(slot: Slot) -> None:
    """What a script has yet to make cannot be asked how it is sharded."""
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("old",))
    record = put(slot, parts_of({"own": {"rows": distribute_tensor(torch.ones(2), mesh, [Shard(0)])}}))
    with pytest.raises(CheckpointError, match="nothing of this run says how it is to be now"):
        restore.read("memory", record, slot, parts_of({"own": {}}), ranks=1)
