# SPDX-License-Identifier: Apache-2.0
"""The training that ``checkpoint.py`` saves: the same for every candidate, with a clock around all that may wait.

A step is forward and backward over micro-batches, then AdamW. Its state is what a real one has: parameters and
Adam's two moments, fp32, in tensors of a transformer's sizes.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

BYTES_PER_PARAMETER = 12
"""fp32: the parameter and Adam's two moments."""
WARM_UP = 2
"""Saves of each process that are not counted: the first ones allocate."""
BLOCKS = 19


class Block(nn.Module):
    """What a transformer's block consists of, but for attention; the residual keeps its numbers ordinary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, rows: Tensor) -> Tensor:
        hidden: Tensor = self.down(nn.functional.gelu(self.up(self.norm(rows))))
        return rows + hidden


def model_of(size_bytes: float) -> nn.Module:
    """About so many bytes with Adam's state."""
    parameters = size_bytes / BYTES_PER_PARAMETER
    width = max(64, round(math.sqrt(parameters / BLOCKS / 8) / 64) * 64)
    return nn.Sequential(*(Block(width) for _ in range(max(1, round(parameters / (8 * width * width))))))


class Training:
    """Model, optimizer, and the times of every step."""

    def __init__(self, *, size_gib: float, threads: int, rows: int, repeats: int, device: str) -> None:
        """``repeats``: micro-batches of a step, each of so many ``rows``."""
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.model = model_of(size_gib * 2**30).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        width = next(self.model.parameters()).shape[0]
        self.batches = [torch.randn(rows, width, device=self.device) for _ in range(4)]
        self.repeats = repeats
        self.times: list[tuple[float, float, float, float]] = []
        """Of each step, by the monotonic clock: begun, backward done, free to change the state, ended."""
        self._free = 0.0
        # An optimizer's own hooks come after those of all optimizers, in which others may wait.
        self.optimizer.register_step_pre_hook(self._set_free)

    def _set_free(self, *_: object) -> None:
        self._free = time.monotonic()

    def forward_backward(self, batch: Tensor) -> None:
        for _ in range(self.repeats):
            self.model(batch).square().mean().backward()

    def step(self, batch: Tensor, before_update: Callable[[], None] | None = None) -> None:
        """One step; ``before_update`` is what a peer has to wait for before the state changes."""
        begun = time.monotonic()
        self.optimizer.zero_grad(set_to_none=False)
        self.forward_backward(batch)
        backward = time.monotonic()
        if before_update is not None:
            before_update()
        self.optimizer.step()
        self.wait_for_device()
        self.times.append((begun, backward, self._free, time.monotonic()))

    def wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure_compute(self) -> float:
        """Seconds of forward and backward, nothing else going on."""
        taken = []
        for number in range(8):
            begun = time.monotonic()
            self.forward_backward(self.batches[number % len(self.batches)])
            self.wait_for_device()
            taken.append(time.monotonic() - begun)
        return statistics.median(taken[3:])

    def size_bytes(self) -> int:
        """Of parameters and optimizer state."""
        moments = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum(t.numel() * t.element_size() for t in (*self.model.parameters(), *moments))

    def fingerprint(self) -> list[float]:
        """Sums of some tensors of each kind: whoever loads something else is found out."""
        parameters = list(self.model.parameters())
        found = [p.detach().double().sum().item() for p in parameters[::7]]
        for parameter in parameters[::7]:
            state = self.optimizer.state.get(parameter, {})
            found += [state[name].double().sum().item() for name in ("exp_avg", "exp_avg_sq") if name in state]
        return found


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every worker is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--size", type=float, required=True, help="GiB")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--saves", type=int, default=0)
    parser.add_argument("--pause", type=int, default=0, help="undisturbed steps between two saves")
    return parser


def training_of(options: argparse.Namespace) -> Training:
    return Training(
        size_gib=options.size,
        threads=options.threads,
        rows=options.rows,
        repeats=options.repeats,
        device=options.device,
    )


def write_result(directory: Path, **found: object) -> None:
    """Whole or not at all: the reader may be early."""
    staged = directory / "result.new"
    staged.write_text(json.dumps(found))
    os.replace(staged, directory / "result.json")


def watch_memory(directory: Path) -> None:
    """From here on whoever started us may look at our memory, which takes time; what follows is not timed."""
    (directory / "memory").touch()
