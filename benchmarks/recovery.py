# SPDX-License-Identifier: Apache-2.0
"""From SIGKILL of one of two ranks to the first step that the new workers complete: us and torchrun, side by side.

The same DDP training (AdamW, 8 MB of state; NCCL where there is a GPU for each rank, else gloo) runs under each
launcher by turns; rank 1 is killed in the same step. ``torchrun`` is ``torchrun --max-restarts 3`` with a static port;
``torchrun, own stores`` is the same with ``--standalone`` and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: a store for every
attempt, without which new gloo ranks find the addresses of old ones. It resumes from its own ``torch.save``, every 10
steps; we from memory. A run that does not finish within the limit has failed to resume, and is counted.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WORKER = Path(__file__).with_name("workers") / "two_ranks.py"
RANKS = 2
KILLED_AFTER = 35
"""Step: half-way between two saves of the peer."""
STEPS = 60
STOPS_WITHIN_S = 40.0
"""torchrun gives its workers 30 s to end."""
PHASES = ("detect", "stop", "start", "import", "rendezvous", "restore", "first step")
MARK = re.compile(rb'\{"mark": .*\}')
PEER_DETECTS = re.compile(rb"closing signal SIGTERM|failed \(exitcode")
PEER_STOPPED = re.compile(rb"will restart worker group")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a worker says: it has come so far."""

    what: str
    at: float
    rank: int
    pid: int
    step: int


@dataclass(kw_only=True)
class Launch:
    """One training under one launcher, and what was seen of it. Times are of the monotonic clock, in seconds."""

    launcher: str
    directory: Path
    marks: list[Mark] = field(default_factory=list)
    workers: dict[int, int] = field(default_factory=dict)
    """A descriptor for each process, so that none is left behind and none is mistaken for another."""
    killed_at: float | None = None
    detected_at: float | None = None
    stopped_at: float | None = None
    said: deque[str] = field(default_factory=lambda: deque(maxlen=10))
    """The last lines that are no marks."""

    def command(self) -> list[str]:
        worker = [str(WORKER), "--directory", str(self.directory), "--steps", str(STEPS)]
        ranks = ["--nproc-per-node", str(RANKS)]
        if self.launcher == "resilient":
            journal = ["--journal", str(self.directory / "journal")]
            return [sys.executable, "-m", "resilient", "run", *ranks, *journal, *worker, "--by", "resilient"]
        meeting = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        if self.launcher == "torchrun, own stores":
            meeting = ["--standalone"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *ranks, *meeting, "--max-restarts", "3"]
        return [*torchrun, *worker, "--by", "torch"]

    def environment(self) -> dict[str, str]:
        # torchrun says when it restarts only at this level.
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "LOGLEVEL": "INFO", "TMPDIR": str(self.directory)}
        if self.launcher == "torchrun, own stores":
            environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        return environ

    def read(self, line: bytes) -> None:
        """Take in one line of output."""
        found = MARK.search(line)
        if not found:
            self.said.append(line.decode(errors="replace"))
        if found:
            said = json.loads(found[0])
            mark = Mark(what=said["mark"], at=said["at"], rank=said["rank"], pid=said["pid"], step=said["step"])
            self.marks.append(mark)
            if mark.pid not in self.workers:
                with contextlib.suppress(ProcessLookupError):  # it was quick to end
                    self.workers[mark.pid] = os.pidfd_open(mark.pid)
            if self.killed_at is None and (mark.what, mark.rank, mark.step) == ("step", 1, KILLED_AFTER):
                self.killed_at = time.monotonic()
                signal.pidfd_send_signal(self.workers[mark.pid], signal.SIGKILL)
        elif self.killed_at is not None and self.detected_at is None and PEER_DETECTS.search(line):
            self.detected_at = time.monotonic()
        elif self.killed_at is not None and self.stopped_at is None and PEER_STOPPED.search(line):
            self.stopped_at = time.monotonic()

    def read_journal(self) -> None:
        """When our supervisor noticed, and had ended the group: it writes both down."""
        for line in (self.directory / "journal" / "journal.jsonl").read_text().splitlines():
            entry = json.loads(line)
            event = entry["event"]["type"] if entry["kind"] == "event" else ""
            if self.killed_at is None or entry["m"] < self.killed_at:
                continue
            if event == "WorkerEnded" and self.detected_at is None:
                self.detected_at = entry["m"]
            elif event == "GroupEnded" and self.stopped_at is None:
                self.stopped_at = entry["m"]

    def figures(self) -> dict[str, float] | None:
        """Seconds of each phase, in all, until the killed step was passed, and steps done again; ``None``: not seen."""
        if self.killed_at is None or self.detected_at is None or self.stopped_at is None:
            return None
        new = [mark for mark in self.marks if mark.at > self.stopped_at]
        # Of several attempts the last counts, and all the time before it.
        begun = sorted((mark for mark in new if mark.what == "begun"), key=lambda mark: mark.at)[-RANKS:]
        last = [mark for mark in new if mark.pid in {mark.pid for mark in begun}]
        reached = [
            max((m.at for m in last if m.what == what), default=0.0) for what in ("begun", "imported", "grouped")
        ]
        steps = {rank: [mark for mark in last if (mark.what, mark.rank) == ("step", rank)] for rank in range(RANKS)}
        restored = [mark for mark in last if mark.what == "restored"]
        if not all(steps.values()) or len(restored) != RANKS:
            return None
        first = max(marks[0].at for marks in steps.values())
        passed = max(next(mark.at for mark in marks if mark.step > KILLED_AFTER) for marks in steps.values())
        times = [self.killed_at, self.detected_at, self.stopped_at, *reached, max(m.at for m in restored), first]
        phases = {name: after - before for name, before, after in zip(PHASES, times, times[1:], strict=False)}
        lost = {"steps done again": float(KILLED_AFTER - restored[0].step), "until past the kill": passed - times[0]}
        return {**phases, "in all": first - self.killed_at, **lost}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def launched(launch: Launch) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher; in the end neither it nor any of its workers is there."""
    process = subprocess.Popen(
        launch.command(),
        env=launch.environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for descriptor in launch.workers.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)
        process.communicate()


def measure(launcher: str, limit_s: float) -> dict[str, float] | None:
    """One training; ``None`` if it did not resume and finish within the limit."""
    with tempfile.TemporaryDirectory(prefix="resilient-bench-", ignore_cleanup_errors=True) as directory:
        launch = Launch(launcher=launcher, directory=Path(directory))
        with launched(launch) as process:
            code = follow(process, launch, time.monotonic() + limit_s)
            if code != 0:
                ended = f"no end within {limit_s:.0f} s" if code is None else f"exit code {code}"
                print(f"{launcher}: {ended}; it said last:", *launch.said, sep="\n    ", file=sys.stderr)
                return None
        if launcher == "resilient":
            launch.read_journal()
        return launch.figures()


def follow(process: subprocess.Popen[bytes], launch: Launch, until: float) -> int | None:
    """Read all that is said; the exit code, ``None`` where the time was over before."""
    assert process.stdout is not None
    pipe, rest = process.stdout.fileno(), b""
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        data = os.read(pipe, 1 << 16)
        if not data:
            return process.wait(STOPS_WITHIN_S)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            launch.read(line)
    return None


def summary(results: list[dict[str, float] | None]) -> dict[str, object]:
    """How many resumed, and median, least and most of each figure."""
    resumed = [result for result in results if result is not None]
    found: dict[str, object] = {"runs": len(results), "resumed": len(resumed)}
    for name in resumed[0] if resumed else ():
        values = [result[name] for result in resumed]
        found[name] = [round(value, 3) for value in (statistics.median(values), min(values), max(values))]
    return found


def report(found: dict[str, dict[str, object]]) -> Iterator[str]:
    """A table for people, and the ratios."""
    names = list(found)
    yield "".join([f"{'seconds, median [least-most]':<30}", *(f"{name:>26}" for name in names)])
    yield "".join([f"{'resumed':<30}", *(f"{found[n]['resumed']} of {found[n]['runs']}".rjust(26) for n in names)])
    for figure in (*PHASES, "in all", "until past the kill", "steps done again"):
        yield "".join([f"{figure:<30}", *(shown(found[name].get(figure)).rjust(26) for name in names)])
    ours = found["resilient"].get("in all")
    for name in names[1:]:
        theirs = found[name].get("in all")
        if isinstance(ours, list) and isinstance(theirs, list):
            yield f"{name} takes {theirs[0] / ours[0]:.2f} times as long as resilient"


def shown(figure: object) -> str:
    if not isinstance(figure, list):
        return "-"
    median, least, most = figure
    return f"{median:.2f} [{least:.2f}-{most:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each launcher; default: %(default)s")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one may take; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    launchers = ("resilient", "torchrun, own stores", "torchrun")
    results: dict[str, list[dict[str, float] | None]] = {launcher: [] for launcher in launchers}
    for _ in range(options.runs):
        for launcher in launchers:  # by turns: a machine is not the same for long
            results[launcher].append(measure(launcher, options.limit))
    found = {launcher: summary(seen) for launcher, seen in results.items()}
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps({**machine, "results": found}, indent=2))
    else:
        print("\n".join(report(found)))
    return 0 if found["resilient"]["resumed"] == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
