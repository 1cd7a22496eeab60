# SPDX-License-Identifier: Apache-2.0
"""The processes that ``checkpoint.py`` starts: their commands, their end, their memory, and what they leave behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).with_name("workers")
LIMITS = Path(__file__).with_name("checkpoint_limits.py")
STOPS_WITHIN_S = 40.0
WATCHED_EVERY_S = 0.05
SAID_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained."""

    size_gib: float
    threads: int
    rows: int
    repeats: int
    device: str

    def arguments(self) -> list[str]:
        given = {"size": self.size_gib, "threads": self.threads, "rows": self.rows, "repeats": self.repeats}
        return [*(f"--{name}={value}" for name, value in given.items()), "--device", self.device]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that ended well."""

    result: dict[str, Any]
    begun: float
    """When it was started, by the monotonic clock."""
    memory_bytes: int
    """The peak of all its processes while that was looked at."""


def worker(name: str, directory: Path, workload: Workload, *more: object) -> list[str]:
    """The command of ``workers/checkpoint_<name>.py``."""
    script = str(WORKERS / f"checkpoint_{name}.py")
    return [script, "--directory", str(directory), *workload.arguments(), *map(str, more)]


def supervised(command: list[str], directory: Path, *flags: object) -> list[str]:
    """The command under ``resilient run``, with a journal of its own."""
    run = [sys.executable, "-m", "resilient", "run", "--journal", str(directory / "journal")]
    return [*run, "--termination-log", str(directory / "last-word"), *map(str, flags), *command]


def run(command: list[str], directory: Path, *, threads: int = 1, limit_s: float) -> Finished | None:
    """Run it to its end; ``None``, and its last lines on stderr, if it failed or took too long."""
    for old in ("result.json", "memory"):
        (directory / old).unlink(missing_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "TMPDIR": str(directory)}
    said = directory / "said.log"
    code: int | None = None
    begun = time.monotonic()
    with (
        open(said, "wb") as log,
        _started(command, environ, log.fileno()) as process,
        _Watch(process.pid, directory) as seen,
        contextlib.suppress(subprocess.TimeoutExpired),
    ):
        code = process.wait(limit_s)
    if code == 0 and (directory / "result.json").exists():
        result = json.loads((directory / "result.json").read_text())
        return Finished(result=result, begun=begun, memory_bytes=seen.peak)
    ended = f"no end within {limit_s:.0f} s" if code is None else f"exit code {code}"
    lines = said.read_text(errors="replace").splitlines()[-SAID_LINES:]
    print(f"{' '.join(command)}\n    {ended}; it said last:", *lines, sep="\n    ", file=sys.stderr)
    return None


@contextlib.contextmanager
def _started(command: list[str], environ: dict[str, str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process; in the end none of its descendants is there."""
    process = subprocess.Popen(command, env=environ, start_new_session=True, stdout=log, stderr=log)
    try:
        yield process
    finally:
        left = [] if process.poll() is not None else [*_descendants(process.pid)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN_S)
        process.kill()
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid, started in left:
            if _started_at(pid) == started:  # else the number is somebody else's by now
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat after the name, which may hold anything; proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started_at(pid: int) -> str:
    return (_stat(pid) or [""] * 20)[19]


def _descendants(root: int) -> Iterator[tuple[int, str]]:
    """A process, its children and theirs, each with the time that it began."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid, _started_at(pid)
        waiting += children.get(pid, [])


def _memory_bytes(root: int) -> int:
    """Anonymous and shared memory of a process tree; what several share is counted once, page cache not at all."""
    total = 0
    for pid, _ in _descendants(root):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) << 10
    return total


class _Watch:
    """Looks at the memory of a process tree from the moment that the worker asks for it: looking takes time."""

    def __init__(self, pid: int, directory: Path) -> None:
        self.peak = 0
        self._pid = pid
        self._asked = directory / "memory"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(WATCHED_EVERY_S):
            if self._asked.exists():
                self.peak = max(self.peak, _memory_bytes(self._pid))


def journal(directory: Path) -> list[dict[str, Any]]:
    """All entries of a supervisor that ended."""
    return [json.loads(line) for line in (directory / "journal" / "journal.jsonl").read_text().splitlines()]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def disk_bytes(path: Path) -> int:
    return sum(found.stat().st_blocks * 512 for found in path.rglob("*") if found.is_file())
