# SPDX-License-Identifier: Apache-2.0
"""A supervised training that ``chaos.py`` disturbs: its processes, what they say, and what is promised of it."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS / "chaos_train.py"
STORE, RESULT = "checkpoints", "result"
"""Folders in the directory of a run."""
PATIENCE_S = 120.0
"""Without a word from the run, on a machine that is busy with other things."""


class Failed(Exception):
    """The run did not do what is promised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One word of a worker."""

    life: int
    rank: int
    pid: int
    what: str
    step: int


class Run:
    """One training over all lives of its supervisor."""

    def __init__(self, directory: Path, ranks: int, steps: int) -> None:
        self.directory, self.ranks, self.steps = directory, ranks, steps
        self.store, self.result = directory / STORE, directory / RESULT
        self.temporary, self._quick = directory / "tmp", directory / "quick"
        for made in (self.result, self.temporary):
            made.mkdir(parents=True)
        os.mkfifo(directory / "events")
        self._events = os.open(directory / "events", os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._waiting: list[Event] = []
        self.life = 0
        self.highest = 0
        self.pids: dict[int, int] = {}
        self.saver: int | None = None
        self.history: list[str] = []
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._durable: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._events)
        if self._supervisor is not None and self._supervisor.poll() is None:
            send(self.saver, signal.SIGCONT)
            self._supervisor.terminate()
            try:
                self._supervisor.wait(60)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()

    # The supervisor.

    def start(self) -> None:
        """Begin the next life."""
        self.life += 1
        self._durable[self.life] = max(committed(self.store), default=(0, 0))
        with (self.directory / f"output.{self.life}").open("wb") as output:
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-m", "resilient", "run", "--nproc-per-node", str(self.ranks)),
                    *("--checkpoints", str(self.store), "--journal", str(self.journal(self.life))),
                    *(str(SCRIPT), "--steps", str(self.steps), "--result", str(self.result)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(self.directory, self.temporary, self._quick, self.life),
            )
        self.pids, self.saver = {}, None

    def hurry(self) -> None:
        """Nothing is to be done in a step any more."""
        self._quick.touch()

    def journal(self, life: int) -> Path:
        return self.directory / f"journal.{life}"

    def entries(self, life: int) -> list[dict[str, Any]]:
        """What the journal of a life says."""
        return journal_of(self.journal(life))

    def count(self, kind: str) -> int:
        """How many entries of a kind the journal of this life has by now."""
        return sum(entry["kind"] == kind for entry in self.entries(self.life))

    @property
    def supervisor(self) -> "subprocess.Popen[bytes]":
        assert self._supervisor is not None
        return self._supervisor

    def find_saver(self) -> None:
        """Look which process the present saver is."""
        self.saver = child_of(self.supervisor.pid, "saver_process")

    def unfinished(self) -> set[str]:
        """Names of the checkpoints that have some file and no manifest yet."""
        return unfinished(self.store)

    # What the workers say.

    def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """The next event of this life that is wanted."""
        while True:
            while self._waiting:
                event = self._next()
                if event.life == self.life and wanted(event):
                    return event
            if not self._hear(PATIENCE_S):
                raise Failed(f"the supervisor ended with {self.supervisor.wait()} too early")

    def listen(self, seconds: float) -> None:
        """Take in what is said in so many seconds at most."""
        if self._ready(seconds) and not self._hear(seconds):
            raise Failed(f"the supervisor ended with {self.supervisor.wait()} too early")
        while self._waiting:
            self._next()

    def end(self) -> int:
        """Wait for the exit code."""
        while self._hear(PATIENCE_S):
            while self._waiting:
                self._next()
        return self.supervisor.wait()

    def note(self, what: str) -> None:
        """Add to the history."""
        self.history.append(f"life {self.life}, step {self.highest}: {what}")

    def _next(self) -> Event:
        event = self._waiting.pop(0)
        if event.life == self.life:
            self.pids[event.rank] = event.pid
        self.highest = max(self.highest, event.step)
        return event

    def _hear(self, patience_s: float) -> bool:
        """Wait for words; False when the supervisor has ended and all is heard."""
        ready = self._ready(patience_s)
        if not ready:
            raise Failed(f"nothing was heard for {patience_s:.0f} s")
        if self._events not in ready:
            return False
        try:
            said = os.read(self._events, 1 << 16)
        except BlockingIOError:  # it had no writer when it was looked at, and has one again
            return True
        *lines, self._rest = (self._rest + said).split(b"\n")
        self._waiting += map(parse, lines)
        return True

    def _ready(self, seconds: float) -> list[int]:
        """Which can be read, the words or the supervisor's end."""
        pidfd = os.pidfd_open(self.supervisor.pid)
        try:
            return select.select([self._events, pidfd], [], [], seconds)[0]
        finally:
            os.close(pidfd)

    # What is promised.

    def check_restores(self) -> list[str]:
        """No life lost more than it had to; gives what each attempt went on from."""
        found = []
        for life in range(1, self.life + 1):
            newest: int | None = None
            for entry in self.entries(life):
                if entry["kind"] == "snapshot":
                    newest = entry["step"]
                elif entry["kind"] == "restore":
                    found.append(f"life {life}, attempt {entry['attempt']}: {entry['name']} {entry['step']}")
                    self._check_restore(life, entry, newest)
        return found

    def _check_restore(self, life: int, entry: dict[str, Any], newest: int | None) -> None:
        if entry["refused"]:
            raise Failed(f"life {life}: something was refused: {entry}")
        if newest is not None and (entry["name"] != "memory" or entry["step"] < newest):
            raise Failed(f"life {life}: step {newest} was in memory, but it went on from {entry}")
        attempt, step = self._durable[life]
        if newest is None and entry["name"] != "memory":
            begun = numbers(entry["name"]) if entry["name"] else (0, 0)
            if begun < (attempt, step):
                raise Failed(f"life {life}: {attempt}-{step} was durable, but it went on from {entry}")

    def check_leftovers(self) -> None:
        """Whatever was killed, no temporary file of ours stays."""
        left = [path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")]
        if left:
            raise Failed(f"left behind: {left}")

    def check_bits(self, undisturbed: Path) -> None:
        """Whatever any attempt has computed is in the result of the undisturbed run, to the end."""
        for rank in range(self.ranks):
            check_bits(self.result, undisturbed, rank)


def environment(directory: Path, temporary: Path, quick: Path, life: int) -> dict[str, str]:
    """Of a supervisor."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **keep,
        "PYTHONPATH": str(TESTS.parent),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
        "CHAOS_EVENTS": str(directory / "events"),
        "CHAOS_LIFE": str(life),
        "CHAOS_QUICK": str(quick),
    }


def parse(line: bytes) -> Event:
    """What a worker has written to the pipe."""
    life, rank, pid, what, step = line.decode().split()
    return Event(life=int(life), rank=int(rank), pid=int(pid), what=what, step=int(step))


def journal_of(directory: Path) -> list[dict[str, Any]]:
    """What a journal says; a supervisor that was killed may have left half a line."""
    entries = []
    path = directory / "journal.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def committed(store: Path) -> Iterator[tuple[int, int]]:
    """Attempt and step of every checkpoint that is committed."""
    for manifest in store.glob("checkpoints/*/manifest.json"):
        yield numbers(manifest.parent.name)


def unfinished(store: Path) -> set[str]:
    """Names of the checkpoints that have some file and no manifest yet."""
    found = set()
    for directory in store.glob("checkpoints/*"):
        with contextlib.suppress(OSError):
            names = os.listdir(directory)
            if names and "manifest.json" not in names:
                found.add(directory.name)
    return found


def check_bits(result: Path, undisturbed: Path, rank: int) -> None:
    """Whatever any attempt of a rank has computed is in the result of the undisturbed run, to the end."""
    ours, theirs = trail(result, rank), trail(undisturbed, rank)
    if not ours <= theirs:
        raise Failed(f"rank {rank} has other bits first at step {min(step for step, _ in ours - theirs)}")
    if not is_whole(ours, theirs):
        raise Failed(f"rank {rank} never reached step {max(step for step, _ in theirs)}")


def trail(result: Path, rank: int) -> set[tuple[int, str]]:
    """Steps of a rank, each with the digest of its state after it."""
    lines = (line.split() for line in (result / str(rank)).read_text().splitlines())
    return {(int(step), digest) for step, digest in lines}


def is_whole(ours: set[tuple[int, str]], theirs: set[tuple[int, str]]) -> bool:
    """Whether all states up to the end are those of the undisturbed run.

    A run that was killed after the snapshot of a step and before its digest went on from there: that digest is missing,
    and every later one depends on what it would have shown.
    """
    return ours <= theirs and max(theirs) in ours


def numbers(name: str) -> tuple[int, int]:
    """Attempt and step of a checkpoint's name: ``<attempt>-<step>``, of a later try with ``.<try>`` behind it."""
    attempt, step = name.split(".")[0].split("-")
    return int(attempt), int(step)


def send(pid: int | None, number: signal.Signals) -> None:
    """Signal a process, if there is one."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):  # it has ended already, which is as good
            os.kill(pid, number)


def child_of(pid: int, module: str) -> int | None:
    """The newest child of a process that runs this module."""
    found = None
    for child in _children(pid):
        with contextlib.suppress(OSError):
            if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                found = child
    return found


def free_port() -> int:
    """At which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in listing.read_text().split()]
    return found
