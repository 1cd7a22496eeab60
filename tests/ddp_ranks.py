# SPDX-License-Identifier: Apache-2.0
"""DDP trainings on real gloo groups, each once whole and once resumed by other processes in another group.

    ddp_ranks.py DIR bits RANKS...         prints, for each number of ranks and case, the two digests
    ddp_ranks.py DIR compiled RANKS...     the same for a compiled module
    ddp_ranks.py DIR lose                  prints what a rank is told when another one dies in the middle

Ranks are forked, so that torch is imported once.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import resilient

STEPS, SAVED_AT = 5, 2
WIDTH = 40


class Layers(nn.Module):
    """Layers that may be used in another order than they are registered in, and not all of them each time."""

    def __init__(
        self, order: list[int], dtypes: tuple[torch.dtype, ...] = (torch.float32,), skip: bool = False
    ) -> None:
        super().__init__()
        self.order, self.skip = order, skip
        self.layers = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, dtype=dtypes[index % len(dtypes)]) for index in range(len(order))
        )
        self.used = 0

    def forward(self, batch: Tensor) -> Tensor:
        self.used += 1
        for index in self.order:
            if self.skip and (self.used + index) % 3 == 0:
                continue
            layer = self.layers[index]
            batch = torch.tanh(layer(batch.to(next(layer.parameters()).dtype)))
        return batch.double()


@dataclass(frozen=True)
class Case:
    """A way to use DDP."""

    model: Callable[[], nn.Module] = lambda: Layers(list(range(6)))
    exact: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1

    def wrap(self, model: nn.Module) -> DistributedDataParallel:
        network = DistributedDataParallel(model, **self.options)
        return resilient.exact_ddp(network) if self.exact else network


SHUFFLED = [3, 0, 5, 1, 4, 2]
CASES = {
    "plain": Case(exact=False),
    "exact": Case(),
    "buckets": Case(options={"bucket_cap_mb": 0.008}),
    "views": Case(options={"bucket_cap_mb": 0.008, "gradient_as_bucket_view": True}),
    "accumulated": Case(options={"gradient_as_bucket_view": True}, accumulate=3),
    "static graph": Case(options={"static_graph": True, "bucket_cap_mb": 0.008}),
    "dtypes": Case(lambda: Layers(SHUFFLED, (torch.float32, torch.float64, torch.bfloat16))),
    "out of order": Case(lambda: Layers(SHUFFLED), options={"bucket_cap_mb": 0.008}),
    "unused": Case(
        lambda: Layers(SHUFFLED, skip=True), options={"bucket_cap_mb": 0.008, "find_unused_parameters": True}
    ),
}
COMPILED = {"compiled": Case(lambda: compiled(Layers(SHUFFLED)))}


def compiled(model: nn.Module) -> nn.Module:
    """Without a code generator, which would need a compiler: what DDP sees of it is the same."""
    model.compile(backend="aot_eager")
    return model


def train(case: Case, rank: int, begin: int, saved: Path) -> str:
    """Train from a step on, save on the way, and give the digest of parameters and momenta."""
    torch.manual_seed(0)
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if begin:
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    if isinstance(model, Layers):
        model.used = begin
    network = case.wrap(model)
    for step in range(begin, STEPS):
        if rank == 0 and step == SAVED_AT and not begin:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
        optimizer.zero_grad()
        for part in range(case.accumulate):
            generator = torch.Generator().manual_seed(1000 * step + 10 * part + rank)
            last = part == case.accumulate - 1
            with contextlib.nullcontext() if last else network.no_sync():
                network(torch.randn(8, WIDTH, generator=generator)).square().mean().backward()
        optimizer.step()
    sha = hashlib.sha256()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    for tensor in [*model.parameters(), *momenta]:
        sha.update(tensor.detach().double().numpy().tobytes())
    return sha.hexdigest()


def life(rank: int, ranks: int, directory: Path, begin: int, cases: dict[str, Case]) -> None:
    """One process of one group; rank 0 writes down the digests."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store-{begin}", rank=rank, world_size=ranks)
    digests = {name: train(case, rank, begin, directory / name) for name, case in cases.items()}
    if rank == 0:
        (directory / f"digests-{begin}").write_text(json.dumps(digests))
    dist.destroy_process_group()


def lose(rank: int, ranks: int, directory: Path) -> None:
    """The last rank dies between forward and backward; the first writes down what it is told."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{directory}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    network = CASES["out of order"].wrap(Layers(SHUFFLED))
    try:
        for step in range(3):
            loss = network(torch.ones(8, WIDTH)).sum()
            if rank == ranks - 1 and step == 2:
                os._exit(0)
            loss.backward()
    except Exception as error:
        if rank == 0:
            (directory / "told").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)


def together(ranks: int, what: Callable[..., None], *arguments: Any) -> None:
    """Run a function on all ranks, each in a process of its own."""
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=what, args=(rank, ranks, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a rank failed")


def main(directory: Path, what: str, counts: list[int]) -> None:
    if what == "lose":
        together(2, lose, directory)
        print((directory / "told").read_text())
        return
    torch.optim.SGD([torch.zeros(1)])  # imports more than torch itself did, and each rank would do so again
    cases = CASES if what == "bits" else COMPILED
    found = {}
    for ranks in counts:
        place = directory / str(ranks)
        place.mkdir()
        for begin in (0, SAVED_AT):
            together(ranks, life, place, begin, cases)
        whole, resumed = (json.loads((place / f"digests-{begin}").read_text()) for begin in (0, SAVED_AT))
        found[ranks] = {name: [whole[name], resumed[name]] for name in cases}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(count) for count in sys.argv[3:]])
