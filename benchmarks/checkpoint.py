# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint costs a training, how soon it is durable, how fast it is restored: us and others, side by side.

Every candidate saves the same training (a plain model, AdamW, fp32) in fresh processes of its own, by turns; we as a
script under ``resilient run``. Its step runs on one thread, so that a core is free as on hosts of GPUs, with forward
and backward ``--compute`` times as long as copying the state takes; then short steps on all cores, as information.
Restores are real restarts: warm from memory or the page cache, cold from a disk whose caches were dropped. What this
machine can do at best is measured before, between and after. It exits with 1 if a promise does not hold.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import checkpoint_supervised
from checkpoint_figures import (
    CANDIDATES,
    GIB,
    LOADS,
    MAPPED,
    RESTORE_COLUMNS,
    SAVE_COLUMNS,
    Samples,
    ratios,
    saved,
    shown,
    summary,
    table,
)
from checkpoint_limits import MEMCPY, WRITES, drop_caches, read_all
from checkpoint_runs import LIMITS, Workload, run, worker
from checkpoint_targets import Measured, verdicts

LONG, SHORT = "long steps, one thread", "short steps, all cores"
SECTIONS = {"long": LONG, "short": SHORT, "restore": "restore"}
WARM_UP = 2
"""As in the workers."""
ROWS = 32
PAUSE = 4
"""Undisturbed steps between two saves."""


class Bench:
    """One run of the benchmark, below one directory."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.limits: Samples = {}
        self.saves: dict[str, dict[str, Samples]] = {}
        self.restores: dict[str, Samples] = {}
        self.size_bytes = options.size * GIB
        self.per_round = math.ceil(options.saves / options.rounds)
        self.limit_s = 180 + 40 * options.size * (self.per_round + WARM_UP + 2)

    def new_directory(self, name: str) -> Path:
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def measure_limits(self) -> None:
        directory = self.new_directory("limits")
        command = [sys.executable, str(LIMITS), "--directory", str(directory), f"--size={self.options.size}"]
        finished = run(command, directory, limit_s=self.limit_s)
        if finished is None:
            raise SystemExit(f"cannot measure what {directory} can do: see above; do give --dir on a local disk")
        for name, rates in finished.result.items():
            self.limits.setdefault(name, []).extend(rates)
        self.say("limits: " + ", ".join(f"{name} {shown(rates)}" for name, rates in finished.result.items()))

    def workload(self, section: str) -> Workload:
        """The long one's forward and backward are made as long as was asked for."""
        short = section == "short"
        given = Workload(
            size_gib=self.options.size,
            threads=os.cpu_count() or 1 if short else 1,
            rows=1 if short else ROWS,
            repeats=1,
            device=self.options.device,
        )
        if short:
            return given
        samples = self.baseline(given)
        wanted_s = self.options.compute * self.size_bytes / (statistics.median(self.limits[MEMCPY]) * 1e9)
        return replace(given, repeats=max(1, math.ceil(wanted_s / statistics.median(samples["compute_s"]))))

    def baseline(self, workload: Workload) -> Samples:
        """The training that saves nothing."""
        directory = self.new_directory("none")
        command = [sys.executable, *worker("peers", directory, workload, "--what", "none")]
        finished = run(command, directory, threads=workload.threads, limit_s=self.limit_s)
        if finished is None:
            raise SystemExit("cannot train: see above")
        self.size_bytes = finished.result["size_bytes"]
        steps = finished.result["steps"]
        took = [step[-1] - before[-1] for before, step in itertools.pairwise(steps)]
        memory = float(finished.memory_bytes)
        return {"step_s": took, "compute_s": [finished.result["compute_s"]], "memory_bytes": [memory]}

    def measure_saves(self, section: str) -> None:
        """By turns: a machine is not the same for long."""
        workload = self.workload(section)
        found: dict[str, Samples] = {}
        self.saves[section] = found
        for number in range(self.options.rounds):
            self.measure_limits()
            extend(found, "none", self.baseline(workload))
            for name in self.options.only:
                samples = self.ours(workload, found) if name == "resilient" else self.peer(name, workload)
                memory = samples.pop("memory_bytes", [])
                base = statistics.median(found["none"]["memory_bytes"])
                samples["extra_bytes"] = [peak - base for peak in memory]
                extend(found, name, samples)
                shares = ", ".join(f"{figure} {shown(values, digits=4)}" for figure, values in samples.items())
                self.say(f"{SECTIONS[section]}, round {number + 1}, {name}: {shares}")

    def peer(self, name: str, workload: Workload) -> Samples:
        directory = self.new_directory(name)
        more = ["--what", name, "--saves", self.per_round, "--pause", PAUSE]
        command = [sys.executable, *worker("peers", directory, workload, *more)]
        finished = run(command, directory, threads=workload.threads, limit_s=self.limit_s)
        shutil.rmtree(directory)
        if finished is None:
            return {}
        saves = finished.result["saves"]
        samples = saved(finished.result["steps"], saves, WARM_UP)
        disk = [save["disk_bytes"] for save in saves[WARM_UP:-1]]
        return {**samples, "disk_bytes": disk, "memory_bytes": [float(finished.memory_bytes)]}

    def ours(self, workload: Workload, found: dict[str, Samples]) -> Samples:
        """Saves are so many steps apart that one is durable, with undisturbed steps after it, before the next."""
        write = max(statistics.median(self.limits[name]) for name in WRITES) * 1e9
        durable_s = 3 * self.size_bytes / write + 0.5
        every = math.ceil(durable_s / statistics.median(found["none"]["step_s"])) + PAUSE + 2
        directory = self.new_directory("resilient")
        samples = checkpoint_supervised.measure_saves(
            directory, workload, saves=self.per_round, every=every, pause=PAUSE, warm_up=WARM_UP, limit_s=self.limit_s
        )
        shutil.rmtree(directory)
        return samples

    def measure_restores(self) -> None:
        self.measure_limits()
        workload = Workload(size_gib=self.options.size, threads=1, rows=ROWS, repeats=1, device=self.options.device)
        directory = self.new_directory("loads")
        written = run(
            [sys.executable, *worker("peers", directory, workload, "--what", "write")], directory, limit_s=600
        )
        if written is not None:
            self.size_bytes = written.result["size_bytes"]
            for _ in range(self.options.restores):
                for name in LOADS:
                    extend(self.restores, name, self.load(name, directory, workload))
        shutil.rmtree(directory)
        if "resilient" in self.options.only:
            for measure in (checkpoint_supervised.restore_from_memory, checkpoint_supervised.restore_from_durable):
                directory = self.new_directory("resilient")
                found = measure(directory, workload, restores=self.options.restores, limit_s=self.limit_s)
                self.restores.update(found)
                shutil.rmtree(directory)

    def load(self, name: str, directory: Path, workload: Workload) -> Samples:
        """In fresh processes, as after a crash; what is in the page cache is brought there or dropped before."""
        found: Samples = {}
        for figure, prepare in (("warm_s", read_all), ("cold_s", drop_caches)):
            prepare(directory)
            finished = run(
                [sys.executable, *worker("peers", directory, workload, "--what", name)], directory, limit_s=600
            )
            if finished is not None and not finished.result["same"]:
                raise SystemExit(f"cannot trust {name}: what it loaded is not what was saved")
            if finished is not None:
                found[figure] = [finished.result["seconds"]]
        return found

    def measured(self) -> Measured:
        return Measured(
            size_bytes=self.size_bytes,
            limits=self.limits,
            saves=self.saves.get("long", {}),
            restores=self.restores,
        )


def extend(found: dict[str, Samples], name: str, samples: Samples) -> None:
    for figure, values in samples.items():
        found.setdefault(name, {}).setdefault(figure, []).extend(values)


def report(bench: Bench) -> Iterator[str]:
    """For people."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {bench.options.device}"
    yield f"state: {bench.size_bytes / GIB:.2f} GiB; {machine}"
    yield "\nlimits, GB/s: median [least-most]"
    yield from (f"{name:<36}{shown(rates):>24}" for name, rates in bench.limits.items())
    for section, found in bench.saves.items():
        yield from table(SECTIONS[section], found, SAVE_COLUMNS)
        yield f"forward and backward of a step: {shown(found['none']['compute_s'], digits=3)} s"
        told = shown(found.get("resilient", {}).get("told_s"), 1e3, 1)
        yield f"stall as resilient's own journal tells it: {told} ms"
        yield from ratios(found)
    if bench.restores:
        yield from table("restore in a fresh process", bench.restores, RESTORE_COLUMNS)
        yield f"{' and '.join(MAPPED)} return before the file was read, so no target is compared with them"
        for name, samples in bench.restores.items():
            more = [f"{figure} {shown(values, digits=3)}" for figure, values in samples.items() if ":" in figure]
            if more:
                yield f"{name}: {', '.join(more)}"
    yield ""
    yield from (verdict.line() for verdict in verdicts(bench.measured()))


def as_json(bench: Bench) -> str:
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    found = {
        **machine,
        "size_bytes": bench.size_bytes,
        "limits_gb_s": summary(bench.limits),
        "saves": {section: {n: summary(s) for n, s in of.items()} for section, of in bench.saves.items()},
        "restores": {name: summary(samples) for name, samples in bench.restores.items()},
        "targets": [
            {"target": v.target, "unit": v.unit, "bound": v.bound, "measured": v.measured, "holds": v.holds}
            for v in verdicts(bench.measured())
        ],
    }
    return json.dumps(found, indent=2)


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, help="GiB of state; default: %(default)s")
    parser.add_argument("--saves", type=int, default=10, help="of each candidate; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="in which they are made; default: %(default)s")
    parser.add_argument("--restores", type=int, default=5, help="of each kind; default: %(default)s")
    parser.add_argument(
        "--compute", type=float, default=1.5, help="forward and backward, in copies; default: %(default)s"
    )
    parser.add_argument("--only", help=f"candidates, with commas; of {', '.join(CANDIDATES)}")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument("--dir", type=Path, help="on the disk to be measured; default: a temporary directory")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else list(CANDIDATES)
    options.sections = options.sections.split(",")
    for given, known in ((options.only, CANDIDATES), (options.sections, SECTIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"cannot measure {', '.join(sorted(unknown))}: known are {', '.join(known)}")
    options.only = [name for name in options.only if is_there(name, options.device)]
    return options


def is_there(name: str, device: str) -> bool:
    """Says so where it is not."""
    candidate = CANDIDATES[name]
    if candidate.needs and importlib.util.find_spec(candidate.needs) is None:
        print(f"{name} is left out: {candidate.needs} is not installed", file=sys.stderr)
        return False
    if candidate.needs_gpu and device == "cpu":
        print(f"{name} is left out: it needs a GPU", file=sys.stderr)
        return False
    return True


def check_room(directory: Path, size_gib: float) -> None:
    """On disk two checkpoints and what peers stage; in memory the training and the most that a candidate adds."""
    free = shutil.disk_usage(directory).free
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) << 10
    for what, there, wanted in (("disk space", free, 5), ("memory", available, 4)):
        if there < (wanted * size_gib + 1) * GIB:
            raise SystemExit(
                f"cannot measure {size_gib} GiB: that takes {wanted * size_gib + 1:.0f} GiB of {what}, and "
                f"{there / GIB:.1f} are free; do give a smaller --size, or --dir elsewhere"
            )


def main() -> int:
    options = options_of()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="resilient-bench-", dir=options.dir, ignore_cleanup_errors=True) as path:
        check_room(Path(path), options.size)
        bench = Bench(options, Path(path))
        bench.measure_limits()
        for section in options.sections:
            if section == "restore":
                bench.measure_restores()
            else:
                bench.measure_saves(section)
        bench.measure_limits()
    print(as_json(bench) if options.json else "\n".join(report(bench)))
    return 1 if any(verdict.holds is False for verdict in verdicts(bench.measured())) else 0


if __name__ == "__main__":
    sys.exit(main())
