# SPDX-License-Identifier: Apache-2.0
"""A real ``resilient run`` for tests: in a directory of its own, with a clean environment, always with a limit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300.0
"""Far more than any of these runs needs on a machine so busy that torch alone takes 20 s to load."""

HEAD = """
import os, pathlib, signal, sys
HERE = pathlib.Path(__file__).parent

def once(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def note(line):
    with (HERE / "notes").open("a") as file:
        file.write(f"{line}\\n")

def told(kind):
    import json
    lines = (HERE / "journal-1" / "journal.jsonl").read_text().split("\\n")[:-1]
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]
"""
"""What most scripts begin with; ``once`` is True for the first caller of all attempts, ``told`` gives what the journal
of the folder's first run says by now."""

_TRAINING = (
    HEAD
    + """
import light_torch
import torch
import resilient

torch.set_num_threads(1)
model = torch.nn.Linear(1, 1)
STEPS = 4

def fault(step):
    pass

def after():
    pass

BODY
run = resilient.Run(state={"model": model}, ARGUMENTS)

@run.step
def train_step(batch):
    number = run.step_number + 1
    note(number)
    fault(number)

for batch in run.batches([torch.ones(1)] * 4, steps=STEPS):
    train_step(batch)
    LOOP
after()
"""
)


def training(body: str = "", arguments: str = "", loop: str = "pass") -> str:
    """A small training; ``body`` may set STEPS and define ``fault(step)`` and ``after()``, ``loop`` ends its loop."""
    return _TRAINING.replace("BODY", body).replace("ARGUMENTS", arguments).replace("LOOP", loop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a supervisor has left behind."""

    code: int
    stdout: str
    stderr: str
    journal: tuple[Mapping[str, Any], ...]
    termination: Mapping[str, Any]
    """The termination message; empty where none was written."""

    def entries(self, kind: str) -> list[Mapping[str, Any]]:
        """The journal's entries of one kind."""
        return [entry for entry in self.journal if entry["kind"] == kind]

    @property
    def attempts(self) -> int:
        """How often the workers were launched."""
        return len(self.entries("workers"))

    @property
    def rules(self) -> list[str]:
        """The rule of each verdict."""
        commands = [command for entry in self.entries("event") for command in entry["commands"]]
        return [command["verdict"]["rule"] for command in commands if command.get("verdict")]


class Folder:
    """A directory in which ``resilient run`` is started as often as a test wants."""

    def __init__(self, path: Path, **environ: str) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.environ = environ
        self._runs = 0
        (path / "tmp").mkdir(parents=True, exist_ok=True)

    def script(self, text: str, name: str = "train.py") -> Path:
        """Write a script."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, text: str, name: str) -> Path:
        """Write an executable of this interpreter."""
        path = self.script(f"#!{sys.executable}\n{text}", name)
        path.chmod(0o755)
        return path

    @property
    def notes(self) -> list[str]:
        """What the workers have noted, in order."""
        path = self.path / "notes"
        return path.read_text().split() if path.exists() else []

    def run(self, *arguments: str | Path, **environ: str) -> Ended:
        """``resilient run ARGUMENTS`` to its end."""
        with self.start(*arguments, **environ) as running:
            return running.wait()

    def start(self, *arguments: str | Path, init: Sequence[str] = (), **environ: str) -> "Running":
        """Start ``resilient run ARGUMENTS``, by ``init`` where given; end it by leaving the ``with`` block."""
        self._runs += 1
        journal = self.path / f"journal-{self._runs}"
        command = [*init, sys.executable, "-m", "resilient", "run", *map(str, arguments)]
        return Running(command, self.path, journal, self.environment(journal, environ))

    def ask(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Any other command of ``resilient``, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "resilient", *map(str, arguments)],
            cwd=self.path,
            env=self.environment(self.path / "no-journal", {}),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def environment(self, journal: Path, environ: Mapping[str, str]) -> dict[str, str]:
        """Nothing of this process's own but the way to its programs."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.path),
            "TMPDIR": str(self.path / "tmp"),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
            "OMP_NUM_THREADS": "1",
            "RESILIENT_JOURNAL": str(journal),
            "RESILIENT_TERMINATION_LOG": str(journal.with_suffix(".termination")),
            **self.environ,
            **environ,
        }


class Running:
    """One ``resilient run``; its output is read all the time, so that it never waits for us."""

    def __init__(
        self, command: Sequence[str], cwd: Path, journal: Path, environ: Mapping[str, str], *, group: bool = False
    ) -> None:
        self.journal = journal
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=group,
        )
        self._changed = threading.Condition()
        self._texts = [_Text(pipe, self._changed) for pipe in (self.process.stdout, self.process.stderr)]

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *error: object) -> None:
        """End it in order, or at once where that does not help: the test has failed anyway."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for text in self._texts:
            text.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def until(self, words: str) -> None:
        """Wait until a worker or the supervisor has printed ``words``, to either stream."""
        with self._changed:
            came = self._changed.wait_for(lambda: self._said(words) or all(text.ended for text in self._texts), LIMIT_S)
        assert came, f"{words!r} never came:\n{self._texts[1]}"
        assert self._said(words), f"it ended without saying {words!r}:\n{self._texts[1]}"

    def said(self) -> str:
        """What its workers have printed to stdout up to now, without the rank in front."""
        return str(self._texts[0]).replace("[rank0] ", "")

    def wait(self) -> Ended:
        """Wait for its end, and for the end of everything that holds its output."""
        code = self.process.wait(LIMIT_S)
        for text in self._texts:
            text.join()
        message = self.journal.with_suffix(".termination")
        return Ended(
            code=code,
            stdout=str(self._texts[0]),
            stderr=str(self._texts[1]),
            journal=self.entries(),
            termination=json.loads(message.read_bytes()) if message.exists() else {},
        )

    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """The journal up to now; its last line may still be on its way, and a second supervisor begins with an empty
        one."""
        path = self.journal / "journal.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return tuple(json.loads(line) for line in lines if line)

    def _said(self, words: str) -> bool:
        return any(words in str(text) for text in self._texts)


def until_event(running: Running, name: str) -> None:
    """Until the state machine has taken an event."""
    until_entry(running, "event", name)


def until_entry(running: Running, kind: str, event: str | None = None, **fields: object) -> None:
    """Until the journal has such an entry; a file has no event to wait for, so it is read again and again."""
    for _ in range(30_000):
        entries = [entry for entry in running.entries() if entry["kind"] == kind]
        found = [entry for entry in entries if fields.items() <= entry.items()]
        if any(event is None or entry["event"]["type"] == event for entry in found):
            return
        try:
            running.process.wait(0.01)
            break
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"there never was {event or kind}: {running.said()}")


def descendants(pid: int) -> list[int]:
    """Of the supervisor, itself last: everything in its container."""
    found = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for child in listing.read_text().split():
                found += descendants(int(child))
    return [*found, pid]


class _Text:
    """Everything that comes from a pipe."""

    def __init__(self, pipe: Any, changed: threading.Condition) -> None:
        self._pipe = pipe
        self._changed = changed
        self._data = b""
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return self._data.decode(errors="replace")

    def join(self) -> None:
        self._thread.join(LIMIT_S)

    def close(self) -> None:
        self.join()
        self._pipe.close()

    def _read(self) -> None:
        while data := self._pipe.read1(1 << 16):
            with self._changed:
                self._data += data
                self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()
