# SPDX-License-Identifier: Apache-2.0
"""A small real training for tests: everything random that a script may use, and a digest of all of its state."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

import resilient


class Noisy(Dataset[Tensor]):
    """Samples with noise of all three generators, drawn where they are loaded."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return torch.full((4,), float(index)) / 20 + 0.1 * noise


def loader_of(kind: str) -> DataLoader[Any]:
    """Loaders of five batches an epoch."""
    if kind == "generator":
        return DataLoader(Noisy(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
    if kind == "replacement":
        sampler = RandomSampler(Noisy(), replacement=True, num_samples=20)
        return DataLoader(Noisy(), batch_size=4, sampler=sampler)
    if kind == "unbatched":
        return DataLoader(Noisy(), batch_size=None, shuffle=True)
    workers = {"plain": 0, "workers": 2, "persistent": 2}[kind]
    return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers, persistent_workers=kind == "persistent")


def no_fault(step: int) -> None:
    """What goes wrong in a step of an undisturbed run."""


def train(kind: str, steps: int, result: Path, batched: bool = True, fault: Callable[[int], None] = no_fault) -> None:
    """Train and write the digest of everything that was trained; ``fault`` may do harm within a step."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.manual_seed(7 + rank)
    random.seed(8 + rank)
    np.random.seed(9 + rank)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)).double()
    if kind == "unbatched":
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
    seen: list[float] = []
    loader = loader_of(kind)
    run = resilient.Run(
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler, "seen": seen, "data": loader}
    )
    torch.rand(1 if run.resumed_from is None else 3)  # what is drawn between a resume and the loop must not matter

    @run.step
    def step(batch: Tensor | None) -> None:
        if batch is None:
            batch = torch.rand(4, 4)  # without run.batches a script's draws repeat from the decorated call on
        fault(run.step_number + 1)
        loss = model(batch.double()).square().mean() * (1 + random.random() + np.random.rand())
        optimizer.zero_grad()
        loss.backward()
        if ranks > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
        optimizer.step()
        seen.append(batch.sum().item())

    if batched:
        for batch in run.batches(loader, steps=steps):
            step(batch)
            scheduler.step()
    else:
        while run.step_number < steps:
            step(None)
            scheduler.step()
    result.with_suffix(f".{rank}").write_text(digest(model, optimizer, scheduler, seen))


def digest(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, seen: list[float]) -> str:
    """Of every bit: parameters, buffers, moments, generators, and the data that was seen."""
    sha = hashlib.sha256()
    moments = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    for tensor in [*model.state_dict().values(), *moments, torch.get_rng_state()]:
        sha.update(tensor.numpy().tobytes())
    for value in (random.getstate(), np.random.get_state()[1].tobytes(), scheduler.state_dict(), seen):  # type: ignore[index]  # numpy's state is a tuple here
        sha.update(repr(value).encode())
    return sha.hexdigest()
