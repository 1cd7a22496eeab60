# SPDX-License-Identifier: Apache-2.0
"""Makes journals for tests: the real machine and the real journal, at times that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resilient.core import events as ev
from resilient.core import wire
from resilient.core.commands import Exit
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase
from resilient.core.machine import advance, begin
from resilient.core.policy import Terms
from resilient.core.redact import Redactor
from resilient.supervisor.journal import Journal

BOOT = 900.0
"""Seconds of the wall clock before the monotonic clock began."""


class Recorder:
    """A supervisor without its effects: the machine, its journal, and a clock that the test sets."""

    def __init__(
        self, directory: Path, *, at: float = 100.0, pod: str = "", store: bool = True, **start: object
    ) -> None:
        self.at = at
        self.journal = Journal(directory, Redactor(), wall=lambda: BOOT + self.at, monotonic=lambda: self.at)
        fields = {
            "run": "torchrun's", "submission": "s1", "index": 0, "in_kubernetes": bool(pod), "pod": pod,
            "node": "node-a" if pod else "", "pid": 1, "command": ["train.py", "--lr", "1"], "ranks": 2, "version": "1",
        }  # fmt: skip
        run = start.pop("run", "r1")
        self.journal.write("start", **{**fields, **start})
        if store:
            self.journal.write("opened", run=run)
        self.job, _ = begin(Job(terms=Terms(), ranks=2, has_store=store), at)
        self.happen()

    def happen(self, *events: ev.Event, at: float | None = None) -> None:
        """Events for the machine, all at one time, and every preflight finds it sound; its commands go to the journal
        as the loop writes them."""
        self.at = self.at if at is None else at
        rest = list(events)
        while rest or self.job.phase is Phase.EXAMINING:
            event = ev.Examined() if self.job.phase is Phase.EXAMINING else rest.pop(0)
            phase = self.job.phase
            self.job, commands = advance(self.job, event, self.at)
            data = wire.to_data(commands)
            self.journal.write("event", event=event, phase=phase.value, next=self.job.phase.value, commands=data)
            for command in commands:
                if isinstance(command, Exit):
                    name = ExitCode(command.code).name.lower()
                    self.journal.write("exit", code=command.code, name=name, why=command.why, do=command.do)

    def write(self, kind: str, at: float, **fields: object) -> None:
        self.at = at
        self.journal.write(kind, **fields)

    def train(self, at: float, *, step: int, name: str = "", launch: int = 1) -> None:
        """Workers come up from `step`: 1 s for the spawn, 2 s more to `Run`, 1 s to restore, 1 s for the step."""
        self.write("workers", at + 0.1, attempt=self.job.attempt, launch=launch, pids={0: 7, 1: 8})
        for rank in (0, 1):
            self.write("hello", at + 2.0 + rank, rank=rank, pid=7 + rank, import_s=1.0, construct_s=1.0)
        self.happen(ev.HeartbeatOpened())
        self.write("restore", at + 3.1, attempt=self.job.attempt, name=name, step=step, refused=[])
        for rank in (0, 1):
            self.write("restored", at + 3.5 + rank / 2, rank=rank, step=step)
        self.write("first_step", at + 5.0, attempt=self.job.attempt, step=step + 1)


@contextmanager
def recording(directory: Path, **start: object) -> Iterator[Recorder]:
    recorder = Recorder(directory, **start)  # type: ignore[arg-type]  # fields of all types
    try:
        yield recorder
    finally:
        recorder.journal.close()
