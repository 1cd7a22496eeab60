# SPDX-License-Identifier: Apache-2.0
"""What ``make demo`` runs: one training twice, the second time with a worker killed half-way.

It exits with 0 only if the second training went on in place, near the step where it was hit, and ended with the same
bits as the undisturbed one.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class BrokenPromise(Exception):
    """Something did not happen as the project says it does."""


EXAMPLE = Path(__file__).with_name("char_gpt.py")
RANKS = 2
VICTIM = 1
STARTED = re.compile(r"rank (\d+) of \d+ on \S+, process (\d+)")
STEP = re.compile(r"step (\d+)/\d+, loss ")
READ_MORE = "resilient: read more: "
"""Of a directory that is gone when the demo ends; the page is printed here instead, and no command for it."""

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass(kw_only=True)
class Training:
    """One training: how it is started, and what its output says of it."""

    title: str
    directory: Path
    checkpoints: str
    steps: int
    pids: dict[int, int] = field(default_factory=dict)
    """The process of each rank, in the newest attempt."""
    reported: list[list[int]] = field(default_factory=list)
    """The steps that rank 0 reported, one list for each attempt."""

    @property
    def journal(self) -> Path:
        """Directory that the supervisor writes down in what happened."""
        return self.directory / "journal"

    @property
    def digest(self) -> Path:
        """File that rank 0 writes a fingerprint of the final state to."""
        return self.directory / "digest.json"

    @property
    def command(self) -> list[str]:
        """The command line, as a person would type it."""
        supervisor = [sys.executable, "-m", "resilient", "run", "--nproc-per-node", str(RANKS)]
        places = ["--checkpoints", self.checkpoints, "--journal", str(self.journal)]
        script = [str(EXAMPLE), "--steps", str(self.steps), "--layers", "2", "--digest", str(self.digest)]
        # By itself it would find that every ten seconds or so pays, which is long in so short a training.
        return [*supervisor, "--snapshot-every", str(max(1, self.steps // 20)), *places, *script]

    @property
    def in_memory(self) -> int:
        """The step of the newest snapshot that the journal tells of."""
        lines = (self.journal / "journal.jsonl").read_text().split("\n")[:-1]  # the last may be on its way
        return max((entry["step"] for entry in map(json.loads, lines) if entry["kind"] == "snapshot"), default=0)

    def read(self, line: str) -> int | None:
        """Take in a line of output; the step, where it reports one."""
        for started in STARTED.finditer(line):
            rank, pid = int(started[1]), int(started[2])
            self.pids[rank] = pid
            if rank == 0:
                self.reported.append([])
        step = STEP.search(line)
        if step is None or not self.reported:
            return None
        self.reported[-1].append(int(step[1]))
        return int(step[1])


def follow(training: Training, at_step: Callable[[int], None]) -> int:
    """Run the training to its end, show how it goes, call `at_step` with each step reported; the exit code."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    if not console.is_terminal:
        console.print(training.title)
    with (
        subprocess.Popen(
            training.command,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # DDP warns that no parameter was unused
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
        bar,
    ):
        task = bar.add_task(training.title, total=training.steps)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                step = training.read(line)
                if line.startswith(READ_MORE):
                    continue
                if step is None or not console.is_terminal:
                    console.print(f"    {line.rstrip()}", style="dim")
                if step is not None:
                    bar.update(task, completed=step)
                    at_step(step)
        except BaseException:  # Ctrl-C above all: the supervisor is told, and waited for
            process.terminate()
            raise
    return process.returncode


def kill_half_way(training: Training) -> Callable[[int], None]:
    """What to call at each step: from half-way on it kills the victim, once, if there is something to go on from."""
    killed = False

    def kill_once(step: int) -> None:
        nonlocal killed
        if not killed and step >= training.steps // 2 and training.in_memory > training.steps // 4:
            killed = True
            console.print(f"    >>> kill -KILL {training.pids[VICTIM]}: rank {VICTIM}, after step {step}", style="bold")
            os.kill(training.pids[VICTIM], signal.SIGKILL)

    return kill_once


def explain(training: Training) -> None:
    """Print the page that says what happened."""
    page = subprocess.run(
        [sys.executable, "-m", "resilient", "explain", str(training.journal)], stdout=subprocess.PIPE, text=True
    )
    console.print("\nWhat resilient explain says of the second training:\n", style="bold")
    console.print(page.stdout)
    promise(page.returncode == 0 and bool(page.stdout.strip()), "the page says what happened")


def promise(kept: bool, what: str) -> None:
    """Say that a promise was kept, or end the demo."""
    if not kept:
        raise BrokenPromise(what)
    console.print(f"  ok  {what}", style="green")


def demo(directory: Path, steps: int, store: str) -> None:
    def training(title: str, name: str) -> Training:
        (directory / name).mkdir()
        return Training(title=title, directory=directory / name, checkpoints=f"{store}/{name}", steps=steps)

    undisturbed, disturbed = training("1. undisturbed", "undisturbed"), training("2. with a kill", "disturbed")
    promise(follow(undisturbed, lambda step: None) == 0, "the undisturbed training ended with 0")
    promise(follow(disturbed, kill_half_way(disturbed)) == 0, "the training that lost a worker ended with 0")
    explain(disturbed)
    promise(len(disturbed.reported) == 2, "it took two attempts")
    promise(disturbed.reported[1][0] > steps // 4, "the second attempt went on from a snapshot, not from the start")
    promise(
        undisturbed.digest.read_text() == disturbed.digest.read_text(),
        f"both ended with the same bits: {json.loads(disturbed.digest.read_text())['sha256']}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of each training; default: %(default)s")
    parser.add_argument("--checkpoints", help="a directory or URL for those of both; default: a directory of its own")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="resilient-demo-") as directory:
            demo(Path(directory), options.steps, options.checkpoints or f"{directory}/checkpoints")
    except BrokenPromise as broken:
        console.print(f"cannot keep a promise: not true that {broken}; do report the output above", style="bold red")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
