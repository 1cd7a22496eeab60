# SPDX-License-Identifier: Apache-2.0
"""Saves and loads through torch.distributed.checkpoint on real gloo groups of several sizes.

    dcp_ranks.py DIR            prints, as JSON, what every rank of every world found
    dcp_ranks.py DIR process    the same for async_save in a process, which starts slowly

Ranks are forked, so that torch is imported once; a world is a group of them. The state is what people have: a model
under FSDP2 with its optimizer, one under tensor parallelism, DTensors, plain tensors, objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DTensor imports it when it is first used, in each rank
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.futures import Future

import resilient.dcp

Found = dict[str, Any]
World = Callable[[int, int, Path], Found]
RESHARDED = [("two", 4, "four"), ("four", 2, None), ("four", 1, "one"), ("one", 3, None)]
"""A checkpoint, the number of ranks that load it, and the one that they then save."""
STAGES = ["before writing", "written", "before the commit", "committed"]


class Block(nn.Module):
    """Sizes that 2, 3 and 4 do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(9, 14), nn.Linear(14, 5)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(batch)))  # type: ignore[no-any-return]  # calling a module gives Any


class Trained:
    """A model and its optimizer as one entry of a state."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(steps):
            self.optimizer.zero_grad()
            model(torch.ones(4, 9)).square().mean().backward()
            self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def state_of(rank: int, ranks: int, seed: int, steps: int = 0) -> dict[str, Any]:
    """A state on as many ranks as there are: equal for equal seeds and steps, however many those are."""
    torch.manual_seed(seed)
    flat = init_device_mesh("cpu", (ranks,))
    fsdp, tensor_parallel, both = Block(), Block(), Block()
    fully_shard(fsdp.up, mesh=flat)
    fully_shard(fsdp, mesh=flat)
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(tensor_parallel, flat, plan)
    if ranks == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(both, square["tp"], plan)
        fully_shard(both, mesh=square["dp"])
    else:
        fully_shard(both, mesh=flat)
    return {
        "fsdp": Trained(fsdp, steps),
        "parallel": Trained(tensor_parallel, 0).model.state_dict(),
        "both": Trained(both, 0).model.state_dict(),
        "rows": distribute_tensor(torch.randn(7, 6), flat, [Shard(0)]),
        "columns": distribute_tensor(torch.randn(7, 6, dtype=torch.complex64), flat, [Shard(1)]),
        "same": distribute_tensor(torch.randn(3, 2), flat, [Replicate()]),
        "plain": {"tensor": torch.randn(5).bfloat16(), "numbers": [seed, float(seed)], "pair": (seed, None)},
        resilient.dcp.per_rank("own"): torch.full((2,), rank + 10 * seed),
    }


def prints_of(state: dict[str, Any]) -> dict[str, str]:
    """A digest of each full tensor, and the text of everything else."""
    found: dict[str, str] = {}

    def visit(name: str, value: Any) -> None:
        if hasattr(value, "state_dict"):
            value = value.state_dict()
        if isinstance(value, dict):
            for key, item in value.items():
                visit(f"{name}.{key}", item)
        elif isinstance(value, torch.Tensor):
            full = value.full_tensor() if isinstance(value, DTensor) else value
            data = full.detach().contiguous().view(torch.uint8).numpy().tobytes() if full.dim() else repr(full).encode()
            found[name] = f"{full.dtype} {tuple(full.shape)} {hashlib.sha256(data).hexdigest()}"
        else:
            found[name] = repr(value)

    visit("", {key: value for key, value in state.items() if not key.startswith("rank-")})
    return found


def failure(work: Callable[[], object]) -> str | None:
    """What each rank said when something failed, as DCP tells it to this rank."""
    try:
        work()
    except CheckpointException as error:
        return "; ".join(f"{rank}: {type(cause).__name__}: {cause}" for rank, (cause, _) in error.failures.items())
    return None


# Worlds


def save(rank: int, ranks: int, path: Path) -> Found:
    state = state_of(rank, ranks, seed=1, steps=2)
    dcp_save(state, storage_writer=resilient.dcp.Writer(path))
    return {"prints": prints_of(state)}


def load(rank: int, ranks: int, path: Path) -> Found:
    state = state_of(rank, ranks, seed=2)
    reader = resilient.dcp.Reader(path)
    key = resilient.dcp.per_rank("own")
    missing = None
    if ranks > reader.world_size():
        before = prints_of(state)
        missing = failure(lambda: dcp_load(dict(state), storage_reader=reader))
        missing = f"{missing}; unchanged: {prints_of(state) == before}"
    if not reader.holds(key):
        del state[key]
    dcp_load(state, storage_reader=reader)
    own = state[key].tolist() if key in state else None
    for name, count, then in RESHARDED:
        if (name, count) == (path.name, ranks) and then:
            state[key] = torch.full((2,), rank + 10)
            dcp_save(state, storage_writer=resilient.dcp.Writer(path.with_name(then)))
    return {"prints": prints_of(state), "missing": missing, "own": own}


def refuse(rank: int, ranks: int, directory: Path) -> Found:
    """Two ranks, one of which fails: both are told, nothing is committed, nothing is changed."""
    found: Found = {}
    values = torch.arange(40_000.0)
    mesh = init_device_mesh("cpu", (ranks,))
    state = {"rows": distribute_tensor(values, mesh, [Shard(0)]), "number": 3}
    path = directory / "refused"
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    found["full"] = failure(lambda: dcp_save(state, storage_writer=resilient.dcp.Writer(path)))
    found["left"] = sorted(entry.name for entry in path.rglob("*.safetensors"))
    found["nothing"] = failure(lambda: dcp_load(dict(state), storage_reader=resilient.dcp.Reader(path)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    dist.barrier()
    dcp_save(state, storage_writer=resilient.dcp.Writer(path))
    dist.barrier()
    found["directories"] = len([entry for entry in path.iterdir() if entry.is_dir()])
    found["again"] = failure(lambda: dcp_save(state, storage_writer=resilient.dcp.Writer(path)))
    found["apart"] = failure(lambda: dcp_save(state, storage_writer=resilient.dcp.Writer(directory / f"disk-{rank}")))
    no_collectives = resilient.dcp.Writer(directory / "alone")
    try:
        dcp_save(state, storage_writer=no_collectives, use_collectives=False)
    except resilient.SettingsError as error:
        found["alone"] = str(error)
    dist.barrier()
    (data,) = path.glob("*/rank-1-0.safetensors")
    target: dict[str, Any] = {"rows": distribute_tensor(torch.zeros(40_000), mesh, [Shard(0)]), "number": 0}
    dist.barrier()
    if rank == 1:
        whole = bytearray(data.read_bytes())
        whole[-1] ^= 1
        data.write_bytes(whole)
    dist.barrier()
    found["flipped"] = failure(lambda: dcp_load(target, storage_reader=resilient.dcp.Reader(path)))
    found["unchanged"] = bool((target["rows"].full_tensor() == 0).all()) and target["number"] == 0
    return found


def remember(rank: int, ranks: int, directory: Path) -> Found:
    """Saves one after another with cached plans, one of them in a thread: each is loaded as it was saved."""
    mesh = init_device_mesh("cpu", (ranks,))
    for number in range(3):
        value = {"rows": distribute_tensor(torch.full((10,), number), mesh, [Shard(0)]), "number": number}
        planner = DefaultSavePlanner(enable_plan_caching=True)
        dcp_save(value, storage_writer=resilient.dcp.Writer(directory / f"cached-{number}"), planner=planner)
    future = async_save(value, storage_writer=resilient.dcp.Writer(directory / "cached-3"))
    future.result()  # type: ignore[union-attr]  # async_save gives a future in this form
    return {"numbers": [_number(directory / f"cached-{number}", mesh) for number in range(4)]}


def in_a_process(rank: int, ranks: int, directory: Path) -> Found:
    """async_save where the writer is pickled."""
    mesh = init_device_mesh("cpu", (ranks,))
    value = {"rows": distribute_tensor(torch.full((10,), 7), mesh, [Shard(0)]), "number": 7}
    future = async_save(
        value,
        storage_writer=resilient.dcp.Writer(directory / "process"),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    )
    future.result()  # type: ignore[union-attr]  # as above
    return {"numbers": [_number(directory / "process", mesh)]}


def _number(path: Path, mesh: Any) -> int | None:
    rows = distribute_tensor(torch.zeros(10, dtype=torch.int64), mesh, [Shard(0)])
    value: dict[str, Any] = {"rows": rows, "number": None}
    dcp_load(value, storage_reader=resilient.dcp.Reader(path))
    return value["number"] if (rows.full_tensor() == value["number"]).all() else None


class Mortal(resilient.dcp.Writer):
    """Kills its process at a stage of a save; the first two stages are those of rank 1, the others rank 0's."""

    stage = ""

    def _reach(self, stage: str) -> None:
        if stage == self.stage and dist.get_rank() == (1 if STAGES.index(stage) < 2 else 0):
            os.kill(os.getpid(), signal.SIGKILL)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        self._reach("before writing")
        done = super().write_data(plan, planner)
        self._reach("written")
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._reach("before the commit")
        super().finish(metadata, results)
        self._reach("committed")


def die(rank: int, ranks: int, path: Path) -> Found:
    """One rank is killed in the middle of a save."""
    mesh = init_device_mesh("cpu", (ranks,))
    value = {"rows": distribute_tensor(torch.full((10,), 1), mesh, [Shard(0)]), "number": 1}
    writer = Mortal(path)
    writer.stage = path.name
    with contextlib.suppress(CheckpointException, RuntimeError):
        dcp_save(value, storage_writer=writer)
        return {"told": False}
    return {"told": True}


# Running them


def life(rank: int, ranks: int, what: World, path: Path, report: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", f"file://{report}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    found = what(rank, ranks, path)
    (report / f"{rank}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # a group with a dead member is not left in order


def run(ranks: int, what: World, path: Path) -> list[Found | None]:
    """What each rank found; None for a rank that was killed."""
    report = path.with_name(f"{path.name} by {ranks} {what.__name__}")
    report.mkdir(parents=True)
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=life, args=(rank, ranks, what, path, report)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode not in (0, -signal.SIGKILL) for process in processes):
        sys.exit(f"a rank of {what.__name__} failed")
    files = [report / f"{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def main(directory: Path, what: str = "all") -> None:
    if what == "process":
        print(json.dumps({"process": run(2, in_a_process, directory / "process")}))
        return
    found: dict[str, Any] = {}
    found["two"] = run(2, save, directory / "two")
    for name, ranks, _ in RESHARDED:
        found[f"{name} to {ranks}"] = run(ranks, load, directory / name)
    found["refuse"] = run(2, refuse, directory)
    found["remember"] = run(2, remember, directory)
    for stage in STAGES:
        found[stage] = run(2, die, directory / stage)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
