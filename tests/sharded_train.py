# SPDX-License-Identifier: Apache-2.0
"""A training that is spread over gloo ranks, for tests: under FSDP2, tensor parallelism, both, or copied by DDP.

    sharded_train.py --kind fsdp --steps N --result DIR [--kill STEP] [--snapshot-every N]

Rank 0 adds to ``DIR/trail`` a line after each step, and one when the state was restored: the step, how many ranks there
are, and a digest of the whole of every tensor. Each rank adds to ``DIR/samples`` what it was given. With ``--kill`` the
last rank kills itself in that step of the first attempt, once a snapshot is whole.
"""

import argparse
import hashlib
import json
import os
import signal
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DTensor imports it when it is first used
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import resilient
from resilient.link.board import NONE, SNAPSHOT_STEP

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
SAMPLES = 97
SEED = 3
BATCH = 2


class Network(nn.Module):
    """Sizes that ranks do not divide (but the hidden one, as torch's tensor parallelism needs), one that is smaller
    than their number, a buffer, and two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(9, 24), nn.Linear(24, 5)
        self.one = nn.Linear(5, 1).bfloat16()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, batch: Tensor) -> Tensor:
        self.seen += 1
        hidden = torch.nn.functional.dropout(torch.relu(self.up(batch)), 0.1)
        return self.one(self.down(hidden).bfloat16()).float()  # type: ignore[no-any-return]  # calling a module gives Any


def spread(kind: str, model: Network) -> None:
    """Shard the model in place."""
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    flat = init_device_mesh("cpu", (RANKS,))
    if kind == "tp":
        parallelize_module(model, flat, plan)
    elif kind == "both" and RANKS % 2 == 0:
        square = init_device_mesh("cpu", (RANKS // 2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(model, square["tp"], plan)
        fully_shard(model.one, mesh=square["dp"])  # one group has one dtype
        fully_shard(model, mesh=square["dp"])
    elif kind != "ddp":
        fully_shard([model.up, model.down], mesh=flat)
        fully_shard(model, mesh=flat)


def digest(model: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> str:
    """Of the state of all ranks together, the same on each of them."""
    sha = hashlib.sha256()
    kept = [value for _, values in sorted(optimizer["state"].items()) for _, value in sorted(values.items())]
    for tensor in [*model.values(), *kept]:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        sha.update(f"{full.dtype} {tuple(full.shape)} {full.detach().double().flatten().tolist()}\n".encode())
    return sha.hexdigest()[:16]


def dealt_order() -> list[int]:
    """Of the samples in the first epoch, from which all replicas are dealt."""
    order: list[int] = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(SEED)).tolist()
    return order


def shared() -> int:
    """Bytes of the memory that all ranks share."""
    found = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and "resilient-whole" in os.readlink(fd)]
    return sum(fd.stat().st_size for fd in found)


def await_order(run: resilient.Run) -> None:
    """Until the supervisor has named the boundary of a snapshot, by its own clock: only the board tells."""
    while run._link.board.words[SNAPSHOT_STEP] == NONE:
        time.sleep(0.01)


def await_snapshot() -> None:
    """Until the supervisor says that one is whole."""
    journal = Path(os.environ["RESILIENT_JOURNAL"]) / "journal.jsonl"
    while '"kind":"snapshot"' not in journal.read_text().replace(" ", ""):
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["fsdp", "tp", "both", "ddp"], required=True)
    parser.add_argument("--steps", type=int, required=True, help="of the whole run")
    parser.add_argument("--result", type=Path, required=True, help="directory that the digests go to")
    parser.add_argument("--kill", type=int, default=0, help="the step in which the last rank kills itself, once")
    parser.add_argument("--snapshot-every", type=int, default=1)
    train(parser.parse_args())


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Network()
    spread(options.kind, model)
    if options.kind != "tp":
        torch.manual_seed(RANK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    mine: dict[str, Any] = {"rank": RANK, "born": RANKS}
    run = resilient.Run(
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler, "mine": mine},
        snapshot_every=options.snapshot_every,
    )
    network = DistributedDataParallel(model) if options.kind == "ddp" else model
    data = TensorDataset(torch.arange(SAMPLES), torch.randn(SAMPLES, 9, generator=torch.Generator().manual_seed(5)))
    replicas, replica = (1, 0) if options.kind == "tp" else (RANKS, RANK)
    if options.kind == "both" and RANKS % 2 == 0:
        replicas, replica = RANKS // 2, RANK // 2
    sampler: Any = DistributedSampler(data, num_replicas=replicas, rank=replica, seed=SEED)
    loader: Any = DataLoader(data, batch_size=BATCH, sampler=sampler)

    def tell(what: str) -> None:
        found = digest(model.state_dict(), optimizer.state_dict())
        line = {"what": what, "step": run.step_number, "ranks": RANKS, "digest": found, "shared": shared(), **mine}
        with (options.result / f"trail-{RANK}").open("a") as trail:
            trail.write(json.dumps({**line, "random": torch.rand(1).item() if what == "step" else None}) + "\n")

    @run.step
    def step(batch: Tensor) -> None:
        if options.kill and run.step_number == 0:
            await_order(run)
        if run.step_number + 1 == options.kill and run.attempt == 1:
            dist.barrier()  # all have noted the step before
            if RANK == RANKS - 1:
                await_snapshot()
                os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()

    if run.resumed_from is not None:
        tell("restored")
    for numbers, batch in run.batches(loader, steps=options.steps):
        step(batch)
        scheduler.step()
        with (options.result / f"samples-{RANK}").open("a") as samples:
            samples.write(json.dumps([run.step_number, sampler.rank, numbers.tolist()]) + "\n")
        tell("step")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
