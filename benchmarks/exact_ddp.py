# SPDX-License-Identifier: Apache-2.0
"""What a DDP step pays for sums that have the same bits in every process.

Plain DDP, DDP with find_unused_parameters=True (which never lays its buckets out anew) and ``resilient.exact_ddp`` take
turns in the same ranks, NCCL where there is a GPU for each rank, else gloo, on models of many small and of few large
parameters. A step is forward, backward and the sum of the gradients. It judges nothing and exits with 0.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = Path(__file__).with_name("workers") / "ddp_steps.py"
LIMIT_S = 600.0
BASE = "plain"


def measure(ranks: int, blocks: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of each block, for each model and way."""
    with tempfile.TemporaryDirectory(prefix="resilient-bench-") as directory:
        result = Path(directory) / "result.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        command = [*launcher, str(WORKER), str(blocks), str(steps), str(result)]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=LIMIT_S, env=environ)
        measured: dict[str, dict[str, list[float]]] = json.loads(result.read_text())
    return measured


def summary(measured: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, 5th and 95th percentile in milliseconds, and the median of the ratios to plain DDP, block by block."""
    found = {}
    for way, times in measured.items():
        ranked = sorted(times)
        low, high = (ranked[round(share * (len(ranked) - 1))] for share in (0.05, 0.95))
        ratios = [mine / base for mine, base in zip(times, measured[BASE], strict=True)]
        in_ms = {"median_ms": statistics.median(times), "p5_ms": low, "p95_ms": high}
        found[way] = {name: round(seconds * 1e3, 3) for name, seconds in in_ms.items()}
        found[way]["ratio"] = round(statistics.median(ratios), 3)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4], help="default: 2 3 4")
    parser.add_argument("--blocks", type=int, default=20, help="of each way; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="in a block; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # subprocess.run then ends the ranks
    results = {
        f"{ranks} ranks, {model} parameters": summary(times)
        for ranks in options.ranks
        for model, times in measure(ranks, options.blocks, options.steps).items()
    }
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps({**machine, "results": results}, indent=2))
        return 0
    for name, ways in results.items():
        print(f"{name}: milliseconds a step, median [5th to 95th percentile], times plain DDP")
        for way, found in ways.items():
            spread = f"[{found['p5_ms']:.2f} to {found['p95_ms']:.2f}]"
            print(f"    {way:<24}{found['median_ms']:>9.2f} {spread:<22}{found['ratio']:>6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
