# SPDX-License-Identifier: Apache-2.0
"""What ``exact_ddp.py`` starts on each rank: blocks of DDP steps, by turns in each way to sum gradients."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import resilient

RANK, LOCAL_RANK = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
ON_GPU = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
DEVICE = torch.device("cuda", LOCAL_RANK) if ON_GPU else torch.device("cpu")
MODELS: dict[str, tuple[int, int]] = {
    "600 small": (300, 64),  # layers of a weight and a bias, and their width: 5 MB of gradients
    "160 mid-sized": (80, 384),  # 47 MB
    "8 large": (4, 1536),  # 38 MB
    "160 mid-sized, used out of order": (80, 384),  # so that gradients must be copied
}
WAYS: dict[str, Callable[[nn.Module], DistributedDataParallel]] = {
    "plain": lambda model: DistributedDataParallel(model),
    "find_unused_parameters": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "exact_ddp": lambda model: resilient.exact_ddp(DistributedDataParallel(model)),
}


class Used(nn.Module):
    """Linear layers, and the order that they are used in."""

    def __init__(self, layers: list[nn.Linear], order: list[int]) -> None:
        super().__init__()
        self.layers, self.order = nn.ModuleList(layers).to(DEVICE), order

    def forward(self, batch: Tensor) -> Tensor:
        for index in self.order:
            batch = self.layers[index](batch)
        return batch


def stepping(model: str, way: str) -> Callable[[], None]:
    """One step: forward, backward and the sum of the gradients; no optimizer, which is the same for all."""
    count, width = MODELS[model]
    torch.manual_seed(0)
    layers = [nn.Linear(width, width) for _ in range(count)]
    network = WAYS[way](Used(layers, sorted(range(count), key=lambda i: i * 7 % count if "order" in model else i)))
    batch: Tensor = torch.randn(16, width, device=DEVICE)

    def step() -> None:
        network.zero_grad()
        network(batch).square().mean().backward()

    return step


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds a step, of all ranks together."""
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    if ON_GPU:
        torch.cuda.synchronize()
    dist.barrier()
    return (time.perf_counter() - begun) / steps


def main(blocks: int, steps: int, result: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if ON_GPU else "gloo", device_id=DEVICE if ON_GPU else None)
    measured: dict[str, dict[str, list[float]]] = {}
    for model in MODELS:
        ways = {way: stepping(model, way) for way in WAYS}
        measured[model] = {way: [] for way in WAYS}
        for block in range(blocks + 1):
            for way, step in ways.items():
                seconds = timed(step, steps)
                if block:  # the first one warms up: DDP lays out its buckets
                    measured[model][way].append(seconds)
    if RANK == 0:
        result.write_text(json.dumps(measured))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
