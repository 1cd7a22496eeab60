# SPDX-License-Identifier: Apache-2.0
"""The training that ``chaos.py`` disturbs: everything random that a script may use, on one rank or on several (DDP).

    chaos_train.py --steps N --result DIR [--checkpoints URL]

Each rank adds a digest of its whole state to ``DIR/<rank>`` every ten steps, and tells ``$CHAOS_EVENTS`` (a named
pipe) where it is, so that it can be killed there. Until the file ``$CHAOS_QUICK`` is there, steps are slow.
"""

import light_torch  # noqa: F401  # before torch

# isort: split
import argparse
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from trainer import Noisy, digest

import resilient

SLOW_S, LAST_S, LAST = 0.05, 1.0, 20
"""How long a step lasts while somebody wants to do something in it, and how long each of the last steps lasts then:
on a slow machine too nothing is over before it has been done."""
PLACES = 3
"""In a step at which it may last: before the loss, the backward pass or the optimizer, each in every third step."""
DIGEST_EVERY = 10
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Told:
    """A part of the state that says when it is saved and when it is loaded."""

    def __init__(self) -> None:
        path, quick = os.environ.get("CHAOS_EVENTS"), os.environ.get("CHAOS_QUICK")
        self._fd = os.open(path, os.O_WRONLY) if path else None
        self._quick = Path(quick) if quick else None
        self.tell("start", 0)

    def tell(self, what: str, step: int) -> None:
        if self._fd is not None:
            line = f"{os.environ['CHAOS_LIFE']} {RANK} {os.getpid()} {what} {step}\n"
            os.write(self._fd, line.encode())  # short, so never torn

    def pause(self, left: int) -> None:
        """Make a step as long as is asked for; ``left``: so many are still to be done."""
        if self._quick is not None and not self._quick.exists():
            time.sleep(LAST_S if left <= LAST else SLOW_S)

    def state_dict(self) -> dict[str, int]:
        self.tell("capture", 0)
        return {"format": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.tell("load", 0)


class Net(nn.Module):
    """With dropout, batch norm, and a layer that takes no part in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3))
        self.often, self.rarely = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, batch: Tensor, rarely: bool) -> Tensor:
        hidden = self.body(batch)
        output: Tensor = self.rarely(hidden) if rarely else self.often(hidden)
        return output


def loader_of(data: Noisy) -> DataLoader[Tensor]:
    """Shuffled, and on several ranks each has its share."""
    if RANKS == 1:
        return DataLoader(data, batch_size=4, shuffle=True)
    return DataLoader(data, batch_size=2, drop_last=True, sampler=DistributedSampler(data, seed=3))


def train(steps: int, result: Path, checkpoints: str | None) -> None:
    torch.set_num_threads(1)
    if RANKS > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(7 + RANK)
    random.seed(8 + RANK)
    np.random.seed(9 + RANK)
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.97)
    seen: list[float] = []
    told = Told()
    loader = loader_of(Noisy())
    state = {"told": told, "model": model, "optimizer": optimizer, "scheduler": scheduler, "seen": seen, "data": loader}
    run = resilient.Run(state=state, checkpoints=checkpoints, every=20, snapshot_every=5, keep=3)
    net: Any = model
    if RANKS > 1:
        net = resilient.exact_ddp(DistributedDataParallel(model, find_unused_parameters=True))

    def pause(place: int) -> None:
        if run.step_number % PLACES == place:
            told.pause(steps - run.step_number)

    @run.step
    def step(batch: Tensor) -> None:
        pause(0)
        # All ranks must agree on which layer is used; the noise in the loss is each rank's own.
        loss = net(batch.double(), run.step_number % 5 == 3).square().mean() * (1 + random.random() + np.random.rand())
        pause(1)
        optimizer.zero_grad()
        loss.backward()
        pause(2)
        optimizer.step()
        seen.append(batch.sum().item())

    for batch in run.batches(loader, steps=steps):
        step(batch)
        scheduler.step()
        told.tell("step", run.step_number)
        if run.step_number % DIGEST_EVERY == 0:
            with (result / str(RANK)).open("a") as trail:
                trail.write(f"{run.step_number} {digest(model, optimizer, scheduler, seen)}\n")
    if RANKS > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, required=True, help="of the whole run")
    parser.add_argument("--result", type=Path, required=True, help="directory that the digests go to")
    parser.add_argument("--checkpoints", help="for a run without a supervisor")
    options = parser.parse_args()
    train(options.steps, options.result, options.checkpoints)


if __name__ == "__main__":
    main()
