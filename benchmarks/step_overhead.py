# SPDX-License-Identifier: Apache-2.0
"""What a step pays for being supervised: decorator, heartbeat and the boundary of ``run.batches``.

The steps are empty, so that nothing hides the price. A bare loop and ours take turns in one process, once under
``resilient run`` and once under plain python. It exits with 1 if either pays more than 5 microseconds a step.
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

BOUND_US = 5.0
WORKER = Path(__file__).with_name("workers") / "empty_steps.py"
LIMIT_S = 300.0


def measure(launcher: list[str], blocks: int) -> dict[str, list[float]]:
    """Microseconds a step of each block, for ``bare`` and ``ours``."""
    with tempfile.TemporaryDirectory(prefix="resilient-bench-") as directory:
        result = Path(directory) / "result.json"
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "RESILIENT_JOURNAL": f"{directory}/journal"}
        command = [sys.executable, *launcher, str(WORKER), str(blocks), str(result)]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=LIMIT_S, env=environ)
        measured: dict[str, list[float]] = json.loads(result.read_text())
    return {name: [seconds * 1e6 for seconds in times] for name, times in measured.items()}


def summary(measured: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and the spread of what is paid from the 5th to the 95th percentile of the blocks."""
    bare, ours = (statistics.median(measured[name]) for name in ("bare", "ours"))
    paid = sorted(mine - theirs for mine, theirs in zip(measured["ours"], measured["bare"], strict=True))
    low, high = (paid[round(share * (len(paid) - 1))] for share in (0.05, 0.95))
    figures = {"bare_us": bare, "ours_us": ours, "paid_us": statistics.median(paid), "p5_us": low, "p95_us": high}
    return {**{name: round(value, 3) for name, value in figures.items()}, "ratio": round(ours / bare, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=100, help="of 2000 steps each; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # subprocess.run then ends the worker
    launchers = {"resilient run": ["-m", "resilient", "run"], "plain python": []}
    results = {name: summary(measure(launcher, options.blocks)) for name, launcher in launchers.items()}
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps({"bound_us": BOUND_US, **machine, "results": results}, indent=2))
    else:
        for name, found in results.items():
            print(
                f"{name}: {found['paid_us']:.2f} us a step [{found['p5_us']:.2f} to {found['p95_us']:.2f}], "
                f"{found['paid_us'] / 20_000:.3%} of a step of 20 ms; an empty step takes {found['bare_us']:.2f} us "
                f"in a bare loop and {found['ours_us']:.2f} us in ours, {found['ratio']} times as long"
            )
    return 1 if any(found["paid_us"] > BOUND_US for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
