# SPDX-License-Identifier: Apache-2.0
"""Several pods of one training under kills, for ``chaos.py --pods``: what is drawn, how it is done, what is promised.

Whoever ends a supervisor starts it again, as a controller would; what any of them ends with by itself is checked.
"""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_run import (
    PATIENCE_S,
    RESULT,
    SCRIPT,
    STORE,
    Event,
    Failed,
    check_bits,
    child_of,
    committed,
    environment,
    free_port,
    journal_of,
    numbers,
    parse,
    send,
    unfinished,
)

from resilient.core.exit_codes import PREEMPTED

VICTIMS = ("worker", "worker", "supervisor", "saver", "mailbox", "preempted", "supervisors", "all preempted")
MOMENTS = ("step", "step", "snapshot", "save", "start", "restore", "assembling")
FEWEST, MOST = 3, 15
"""New steps between two kills."""
LOOK_S = 0.001
GONE_S = 10.0
"""How long a process may outlive its run; a store that pods meet at is kept for those who have not read it."""
KILLED = -signal.SIGKILL
NOT_ASKED_YET = -signal.SIGTERM
"""Of a supervisor that was asked to leave before it was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What is to be killed, and when."""

    victim: str
    """A ``worker``; a pod's ``supervisor``, ``saver`` or ``mailbox``; a supervisor that is ``preempted`` (SIGTERM); all
    ``supervisors`` at once, or ``all preempted``."""
    rank: int
    """Of the worker; the pod is the one that has it."""
    moment: str
    """In a ``step``; while a ``snapshot`` is taken or a ``save`` goes on; at the ``start`` or in the ``restore`` of
    workers that replace killed ones; while pods are ``assembling`` as another one was killed."""
    after: int
    """New steps before it."""
    pause_s: float
    """From the moment to the kill."""


def plan(seed: int, pods: int, ranks: int, kills: int) -> list[Kill]:
    """The kills of a seed; few kills are of different kinds."""
    draw = random.Random(f"{seed} {pods} {ranks} {kills}")
    drawn: list[Kill] = []
    victims: list[str] = []
    moments: list[str] = []
    for _ in range(kills):
        victims = victims or draw.sample(VICTIMS, len(VICTIMS))
        moments = moments or draw.sample(MOMENTS, len(MOMENTS))
        moment = moments.pop()
        longest = 3.0 if moment == "assembling" else draw.choice((0.0, 0.001, 0.05))
        kill = Kill(
            victim=victims.pop(),
            rank=draw.randrange(pods * ranks),
            moment=moment,
            after=draw.randint(FEWEST, MOST),
            pause_s=longest * draw.random(),
        )
        drawn.append(kill)
    return drawn


class PodsRun:
    """One training over all lives of the supervisors of its pods."""

    def __init__(self, directory: Path, pods: int, ranks: int, steps: int) -> None:
        """``ranks`` are those of one pod."""
        self.directory, self.pods, self.ranks, self.steps = directory, pods, ranks, steps
        self.store, self.result = directory / STORE, directory / RESULT
        self.temporary, self._quick = directory / "tmp", directory / "quick"
        for made in (self.result, self.temporary):
            made.mkdir(parents=True)
        os.mkfifo(directory / "events")
        self._events = os.open(directory / "events", os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._port = free_port()
        self.lives = [0] * pods
        self.highest = 0
        self.pids: dict[int, int] = {}
        self.history: list[str] = []
        self._supervisors: dict[int, subprocess.Popen[bytes]] = {}
        self._durable: list[tuple[int, int]] = []
        """What was newest when each life of the first pod began."""

    def __enter__(self) -> "PodsRun":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._events)
        for supervisor in self._supervisors.values():
            supervisor.terminate()
        for supervisor in self._supervisors.values():
            try:
                supervisor.wait(60)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()

    # The supervisors.

    def start(self, pod: int) -> None:
        """Begin the next life of a pod."""
        self.lives[pod] += 1
        life = self.lives[pod]
        if pod == 0:
            self._durable.append(max(committed(self.store), default=(0, 0)))
        meet = ("--nnodes", str(self.pods), "--node-rank", str(pod), "--master-addr", "localhost")
        with (self.directory / f"output.{pod}.{life}").open("wb") as output:
            self._supervisors[pod] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "resilient", "run", *meet, "--master-port", str(self._port)),
                    *("--nproc-per-node", str(self.ranks)),
                    *("--checkpoints", str(self.store), "--journal", str(self.journal(pod, life))),
                    *(str(SCRIPT), "--steps", str(self.steps), "--result", str(self.result)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(self.directory, self.temporary, self._quick, life),
            )

    def hurry(self) -> None:
        """Nothing is to be done in a step any more."""
        self._quick.touch()

    def journal(self, pod: int, life: int) -> Path:
        return self.directory / f"journal.{pod}.{life}"

    def supervisor(self, pod: int) -> "subprocess.Popen[bytes]":
        return self._supervisors[pod]

    def child(self, pod: int, module: str) -> int | None:
        """The process of a pod's supervisor that runs this module, if there is one now."""
        return child_of(self._supervisors[pod].pid, module)

    def await_end(self, pod: int, *codes: int) -> None:
        """Until a supervisor has ended, with one of these codes."""
        while self._supervisors[pod].poll() is None:
            for _ in self._hear(PATIENCE_S, may_end={*range(self.pods)}):
                pass
        self._check_code(pod, codes)

    def _check_code(self, pod: int, codes: Sequence[int]) -> None:
        code = self._supervisors.pop(pod).wait()
        self.note(f"pod {pod} ended with {code}")
        if code not in codes:
            raise Failed(f"pod {pod} ended with {code}; see {self.directory}/output.{pod}.{self.lives[pod]}")

    def end(self) -> None:
        """Until all have finished."""
        while any(supervisor.poll() is None for supervisor in self._supervisors.values()):
            for _ in self._hear(PATIENCE_S, may_end={*range(self.pods)}):
                pass
        for pod in [*self._supervisors]:
            self._check_code(pod, [0])

    def note(self, what: str) -> None:
        """Add to the history."""
        self.history.append(f"step {self.highest}: {what}")

    # What the workers say.

    def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """The next event of a present worker that is wanted; none that is heard with it is lost to the count."""
        while True:
            found = [event for event in self._hear(PATIENCE_S) if wanted(event)]
            if found:
                return found[0]

    def listen(self, seconds: float) -> None:
        """Take in what is said in so many seconds at most."""
        if self._ready(seconds):
            for _ in self._hear(seconds):
                pass

    def _hear(self, patience_s: float, may_end: set[int] | None = None) -> Iterator[Event]:
        ready = self._ready(patience_s)
        if not ready:
            raise Failed(f"nothing was heard for {patience_s:.0f} s")
        for pod, supervisor in [*self._supervisors.items()]:
            if supervisor.poll() is not None and pod not in (may_end or ()):
                self._check_code(pod, [])
        with contextlib.suppress(BlockingIOError):
            *lines, self._rest = (self._rest + os.read(self._events, 1 << 16)).split(b"\n")
            for event in map(parse, lines):
                if event.life == self.lives[event.rank // self.ranks]:
                    self.pids[event.rank] = event.pid
                    self.highest = max(self.highest, event.step)
                    yield event

    def _ready(self, seconds: float) -> list[int]:
        """Which can be read: the words, or the end of a supervisor."""
        with contextlib.ExitStack() as stack:
            pidfds = []
            for supervisor in self._supervisors.values():
                if supervisor.poll() is not None:
                    return [self._events]
                pidfds.append(os.pidfd_open(supervisor.pid))
                stack.callback(os.close, pidfds[-1])
            return select.select([self._events, *pidfds], [], [], seconds)[0]

    # What is promised.

    def check(self) -> None:
        """All but the bits."""
        for life in range(1, self.lives[0] + 1):
            self._check_restores(life, self._durable[life - 1])
        self._check_nobody_left()
        left = [path.name for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")]
        if left:
            raise Failed(f"left behind: {left}")

    def restores(self) -> list[str]:
        """What each attempt went on from."""
        lives = range(1, self.lives[0] + 1)
        entries = [(life, entry) for life in lives for entry in journal_of(self.journal(0, life))]
        return [
            f"life {life} of pod 0, attempt {entry['attempt']}: {entry['name']} {entry['step']}"
            for life, entry in entries
            if entry["kind"] == "restore"
        ]

    def _check_restores(self, life: int, durable: tuple[int, int]) -> None:
        """Nothing durable is lost, and no memory either while all pods are there."""
        in_memory: int | None = None
        for entry in journal_of(self.journal(0, life)):
            match entry["kind"]:
                case "snapshot":
                    in_memory = entry["step"]
                case "peer" if entry["what"] != "joined":
                    in_memory = None
                case "checkpoint":
                    durable = max(durable, numbers(entry["name"]))
                case "restore":
                    self._check_restore(entry, in_memory, durable)

    def _check_restore(self, entry: dict[str, Any], in_memory: int | None, durable: tuple[int, int]) -> None:
        if entry["refused"]:
            raise Failed(f"something was refused: {entry}")
        if in_memory is not None and (entry["name"] != "memory" or entry["step"] < in_memory):
            raise Failed(f"step {in_memory} was in memory, but it went on from {entry}")
        begun = numbers(entry["name"]) if entry["name"] not in ("", "memory") else (0, entry["step"])
        lost = entry["step"] < durable[1] if entry["name"] == "memory" else begun < durable
        if lost:
            raise Failed(f"{durable[0]}-{durable[1]} was durable, but it went on from {entry}")

    def _check_nobody_left(self) -> None:
        """No process of the run is there any more; those that are about to end get the time."""
        marker = f"TMPDIR={self.temporary}\0".encode()
        until = time.monotonic() + GONE_S
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if marker not in environ.read_bytes():
                    continue
                pidfd = os.pidfd_open(int(environ.parent.name))
                words = (environ.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                gone = select.select([pidfd], [], [], max(0.0, until - time.monotonic()))[0]
                os.close(pidfd)
                if not gone:
                    raise Failed(f"left behind: {words}")


class Killer:
    """Kills processes of one run."""

    def __init__(self, run: PodsRun) -> None:
        self._run = run

    def kill(self, kill: Kill) -> None:
        """Wait for the moment, and kill; all pods are there again afterwards."""
        run = self._run
        goal = run.highest + kill.after
        run.wait_for(lambda event: event.step >= goal)
        run.note(f"about to: {kill}")
        self._await_moment(kill)
        time.sleep(kill.pause_s)  # not to wait for something, but to be somewhere else in it each time
        self._strike(kill.victim, kill.rank // run.ranks, kill.rank)

    def _await_moment(self, kill: Kill) -> None:
        run = self._run
        match kill.moment:
            case "snapshot":
                run.wait_for(lambda event: event.what == "capture" and event.rank == kill.rank)
            case "save":
                before, last = unfinished(run.store), run.highest + 2 * MOST
                while run.highest < last and not unfinished(run.store) - before:
                    run.listen(LOOK_S)
            case "start" | "restore":
                self._await_workers(kill, "start" if kill.moment == "start" else "load")
            case "assembling":
                pod = (kill.rank // run.ranks + 1) % run.pods
                self._strike("supervisor", pod, 0)

    def _await_workers(self, kill: Kill, what: str) -> None:
        run = self._run
        first = (kill.rank + 1) % (run.pods * run.ranks)
        old = run.pids[kill.rank]
        send(run.pids[first], signal.SIGKILL)
        if any(committed(run.store)):  # else there may be nothing to restore
            run.wait_for(lambda event: event.rank == kill.rank and event.pid != old and event.what == what)

    def _strike(self, victim: str, pod: int, rank: int) -> None:
        run = self._run
        match victim:
            case "worker":
                send(run.pids[rank], signal.SIGKILL)
            case "saver":
                send(run.child(pod, "saver_process"), signal.SIGKILL)
            case "mailbox":
                send(run.child(pod, "supervisor.mailbox"), signal.SIGKILL)
            case "supervisor" | "preempted":
                self._end([pod], signal.SIGKILL if victim == "supervisor" else signal.SIGTERM)
            case "supervisors" | "all preempted":
                self._end([*range(run.pods)], signal.SIGKILL if victim == "supervisors" else signal.SIGTERM)

    def _end(self, pods: Sequence[int], number: signal.Signals) -> None:
        run = self._run
        codes = [KILLED] if number is signal.SIGKILL else [NOT_ASKED_YET, *PREEMPTED]
        for pod in pods:
            run.supervisor(pod).send_signal(number)
        for pod in pods:
            run.await_end(pod, *codes)
        for pod in pods:
            run.start(pod)


def compare(undisturbed: Path, directory: Path, pods: int, ranks: int, steps: int, kills: Sequence[Kill]) -> PodsRun:
    """Train under the kills; raises ``Failed`` unless every bit is that of the undisturbed training in one pod."""
    with PodsRun(directory, pods, ranks, steps) as run:
        try:
            for pod in range(pods):
                run.start(pod)
            killer = Killer(run)
            for kill in kills:
                killer.kill(kill)
            run.hurry()
            run.end()
            run.check()
            for rank in range(pods * ranks):
                check_bits(run.result, undisturbed / RESULT, rank)
        except Failed as error:
            raise Failed("\n  ".join([str(error), *run.history, *run.restores()])) from error
        return run
