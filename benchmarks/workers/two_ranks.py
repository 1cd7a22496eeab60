# SPDX-License-Identifier: Apache-2.0
"""What ``recovery.py`` starts: two ranks of DDP that say when they have come how far.

``--by resilient`` leaves saving and resuming to us. ``--by torch`` does what a user of torchrun does: rank 0 saves with
``torch.save`` every few steps, under another name and then renamed, and every rank loads that at the start.
"""

import time

BEGUN = time.monotonic()  # before anything is imported

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

RANK, LOCAL_RANK = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])


def mark(what: str, step: int = 0, at: float | None = None) -> None:
    """One line, in one write; the monotonic clock is the same for all processes of a machine."""
    at = time.monotonic() if at is None else at
    line = json.dumps({"mark": what, "at": at, "rank": RANK, "pid": os.getpid(), "step": step})
    os.write(1, f"{line}\n".encode())


mark("begun", at=BEGUN)

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Training:
    """A model of 8 MB with its AdamW state, and one step of it."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
        self.device = torch.device("cuda", LOCAL_RANK) if on_gpu else torch.device("cpu")
        torch.manual_seed(0)
        layers = [nn.Linear(416, 416) for _ in range(4)]
        self.model = nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU()))).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.batches = [torch.randn(64, 416) for _ in range(16)]
        mark("imported")  # the first optimizer imports more than torch itself did
        dist.init_process_group("nccl" if on_gpu else "gloo")
        mark("grouped")

    def stepping(self) -> Callable[[Tensor], None]:
        """The step, over DDP."""
        network = DistributedDataParallel(self.model)

        def step(batch: Tensor) -> None:
            self.optimizer.zero_grad()
            network(batch.to(self.device)).square().mean().backward()
            self.optimizer.step()

        return step


def by_resilient(directory: Path, steps: int) -> None:
    import resilient

    training = Training()
    run = resilient.Run(
        state={"model": training.model, "optimizer": training.optimizer}, checkpoints=directory / "checkpoints"
    )
    mark("restored", run.step_number)
    step = run.step(training.stepping())
    for batch in run.batches(training.batches, steps=steps):
        step(batch)
        mark("step", run.step_number)


def by_torch(directory: Path, steps: int, every: int) -> None:
    training = Training()
    saved, begun = directory / "checkpoint.pt", 0
    if saved.exists():
        state = torch.load(saved, map_location=training.device, weights_only=True)
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        begun = state["step"]
    mark("restored", begun)
    step = training.stepping()
    for number in range(begun + 1, steps + 1):
        step(training.batches[number % len(training.batches)])
        mark("step", number)
        if RANK == 0 and number % every == 0:
            state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(), "step": number}
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--by", choices=["resilient", "torch"], required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, default=10, help="how often torch.save is called, in steps")
    options = parser.parse_args()
    if options.by == "resilient":
        by_resilient(options.directory, options.steps)
    else:
        by_torch(options.directory, options.steps, options.every)
    dist.destroy_process_group()
