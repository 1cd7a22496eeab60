# SPDX-License-Identifier: Apache-2.0
"""What ``step_overhead.py`` starts: blocks of empty steps, by turns in a bare loop and in ours."""

import json
import sys
import time
from pathlib import Path

import torch

import resilient

BATCH = torch.zeros(1)
BLOCK = 2_000


def empty(batch: torch.Tensor) -> torch.Tensor:
    return batch


def bare() -> float:
    """Seconds that one block takes without us; it counts and compares as ours does."""
    batches = [BATCH] * BLOCK
    steps = 0
    begun = time.perf_counter()
    for batch in batches:
        empty(batch)
        steps += 1  # noqa: SIM113 (it stands for the counting in `main`)
        if steps == BLOCK:
            break
    return time.perf_counter() - begun


def main(blocks: int, result: Path) -> None:
    torch.set_num_threads(1)
    # Snapshots have a price and a cap of their own: here is what every step pays.
    run = resilient.Run(state={"empty": {"of": "state"}}, snapshot_every="24h")
    ours = run.step(empty)
    measured: dict[str, list[float]] = {"bare": [], "ours": []}
    steps = 0
    begun = time.perf_counter()
    for batch in run.batches([BATCH] * BLOCK, steps=BLOCK * (blocks + 1)):
        ours(batch)
        steps += 1
        if steps == BLOCK:
            measured["ours"].append(time.perf_counter() - begun)
            measured["bare"].append(bare())
            steps = 0
            begun = time.perf_counter()
    # The first block warms up.
    per_step = {name: [seconds / BLOCK for seconds in times[1:]] for name, times in measured.items()}
    result.write_text(json.dumps(per_step))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
