# SPDX-License-Identifier: Apache-2.0
"""A probe's errand: one measurement in a child process, with a limit in time.

A dead mount or a driver that hangs holds the child, never us: at its limit it is killed, and
where even that has no effect (state D: the kernel does not come back from a call) it is left
and named. What the child tells comes as lines of JSON over a pipe and is checked against the
facts that its probe promises.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from resilient.core import wire
from resilient.core.devices import Look
from resilient.core.measured import (
    AllReduceFacts,
    DenyListFacts,
    FolderFacts,
    HostFacts,
    NamesFacts,
    StoreFacts,
    TorchFacts,
    Unmeasured,
)
from resilient.supervisor import programs

FACTS: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (
        AllReduceFacts,
        DenyListFacts,
        FolderFacts,
        HostFacts,
        Look,
        NamesFacts,
        StoreFacts,
        TorchFacts,
        Unmeasured,
    )
}
ANSWER_LIMIT: Final = 1 << 20
DYING_S: Final = 5.0
"""From SIGKILL to the end of a process that the kernel does not hold, on a machine with more to do than it can."""
_SAID_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Which probe is sent, what it is to measure, and how long it may take."""

    probe: str
    """The name of a function in :mod:`resilient.preflight.probes`."""
    limit_s: float
    given: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments, as JSON has them."""


class Runner:
    """The child process on an errand."""

    def __init__(self, errand: Errand, environ: Mapping[str, str]) -> None:
        self.errand = errand
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self._said = _file(b"")
        request = _file(json.dumps({"probe": errand.probe, "given": dict(errand.given)}).encode())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "resilient.preflight.probes", str(write), str(os.getpid())],
                stdin=request,  # not an argument, which anybody here could read: it may hold a URL with a password
                stdout=self._said,
                stderr=self._said,
                pass_fds=[write],
                env=dict(environ),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._read)
            os.close(self._said)
            raise
        finally:
            os.close(write)
            os.close(request)
        self._data = b""
        self._result: object | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._read

    def read(self) -> object | None:
        """Take what has come; the facts once there are any, or why there are none."""
        while self._result is None:
            try:
                piece = os.read(self._read, 1 << 16)
            except BlockingIOError:
                return None
            self._data += piece
            if not piece or len(self._data) > ANSWER_LIMIT:
                self._result = self._answer()
        return self._result

    def overdue(self) -> object:
        """Its time is over: take what it has told after all, else kill it and say where it was."""
        facts = self.read()
        if facts is None:
            facts = self._result = self._give_up()
        return facts

    def close(self) -> None:
        """Let go of it, whatever it does."""
        self._kill()
        os.close(self._read)
        os.close(self._said)

    def _answer(self) -> object:
        if not self._kill():
            return Unmeasured(why=self._left_behind("it has told all and does not end"), stuck=True)
        lines = self._data.split(b"\n")[:-1]
        answers = [line for line in lines if not line.startswith(b'{"at":')]
        if not answers:
            return Unmeasured(why=f"the probe {self._ending()}")
        try:
            return wire.decode(answers[-1], FACTS)
        except ValueError as error:
            return Unmeasured(why=f"the probe answered what cannot be read: {error}")

    def _give_up(self) -> Unmeasured:
        held = _held(self.pid)
        at = f" while {place}" if (place := self._place()) else ""
        late = f"no answer within {self.errand.limit_s:g} s{at}"
        if self._kill():
            why = f"{late}; it waited in the kernel for {', '.join(held)}" if held else late
            return Unmeasured(why=why, late=True, stuck=bool(held))
        return Unmeasured(why=self._left_behind(late), late=True, stuck=True)

    def _left_behind(self, why: str) -> str:
        return f"{why}; process {self.pid} cannot be killed (the kernel holds it) and is left behind"

    def _kill(self) -> bool:
        """End it and all of its session; False where it does not end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:  # else the number may be a stranger's by now
                os.killpg(self.pid, signal.SIGKILL)
        return programs.kill(self._process, DYING_S)

    def _place(self) -> str:
        """What it said last that it was about to do."""
        for line in reversed(self._data.split(b"\n")[:-1]):
            with contextlib.suppress(ValueError):
                at = json.loads(line).get("at")
                if isinstance(at, str):
                    return at[:200]
        return ""

    def _ending(self) -> str:
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, _SAID_BYTES, max(0, size - _SAID_BYTES)).decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return f"{how}: {last[:300]}" if last else how


def _file(data: bytes) -> int:
    """A file in memory. One in TMPDIR might lie on the dead mount."""
    fd = os.memfd_create("resilient-probe")
    os.pwrite(fd, data, 0)
    return fd


def _held(pid: int) -> list[str]:
    """What threads of a process wait for that no signal interrupts; empty where none does."""
    held = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if thread.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "D":
                held.append(_waits_for(thread))
    return held


def _waits_for(thread: Path) -> str:
    try:
        return thread.joinpath("wchan").read_text().strip("\0\n") or "a call of the kernel"
    except OSError:
        return "a call of the kernel"
