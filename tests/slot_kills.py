# SPDX-License-Identifier: Apache-2.0
"""Two ranks take snapshots; one is killed at a line of taking one, before the other begins and when that has it whole.

Run as a program, with a stride: 1 for every line. Ranks are forks of one process that has imported all and has one
thread. After each kill every snapshot that the host would offer has to be the same step on both ranks, with every bit
of it, and the newest is the one before or the new one. Then both go on, until a rank gets through without having come
to the line.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
import threading
from types import FrameType, SimpleNamespace
from typing import Any

import torch

from resilient.checkpoint.arena import Slot, create_arenas
from resilient.link.board import Board
from resilient.supervisor.slots import Slots
from resilient.training import restore, rng
from resilient.training.snapshots import Snapshots
from resilient.training.state import Part, parts_of

RANKS = (0, 1)
PROTOCOL = ("training/snapshots.py", "training/copying.py", "training/arenas.py", "checkpoint/pair.py",
            "checkpoint/arena.py", "link/board.py")  # fmt: skip
"""Where memory that others see is written to; what is only computed elsewhere is one point."""


class Rank:
    """A rank's state, which says of which rank and step it is."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.step = 0
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for parameter in self.model.parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
        self.parts: dict[str, Part] = parts_of({"model": self.model, "optimizer": self.optimizer})

    @torch.no_grad()
    def train(self, step: int) -> None:
        self.step = step
        for number, value in enumerate(self.values()):
            value.fill_(1000 * self.rank + 10 * step + number / 100)

    def values(self) -> list[torch.Tensor]:
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.parameters(), *(b for b in self.model.buffers() if b.is_floating_point()), *kept]

    def own(self) -> dict[str, Any]:
        return {"step": self.step, "rng": rng.capture(), "data": None}


class Run:
    """A host without its effects, and its ranks."""

    def __init__(self, directory: str) -> None:
        self.board = Board.create(len(RANKS))
        self.arenas: dict[int, list[Slot]] = create_arenas(len(RANKS), directory)
        self.slots = Slots(self.board)

    def take(self, rank: int, step: int, slot: int, kill_at: int = 0) -> bool:
        """Have a rank take a snapshot, in a process of its own; False if it was killed."""
        pid = os.fork()
        if not pid:
            code = 1
            try:
                self._take(rank, step, slot, kill_at)
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        return status == 0

    def _take(self, rank: int, step: int, slot: int, kill_at: int) -> None:
        worker = Rank(rank)
        worker.train(step)
        said: list[Any] = []
        fds = [each.fd for each in self.arenas[rank]]
        link: Any = SimpleNamespace(slot_fds=fds, index=rank, board=self.board, send=said.append)
        snapshots = Snapshots(link, worker.parts, worker.own, [None])
        snapshots.attempt = 1
        if kill_at:
            trace = _killer(kill_at)
            threading.settrace(trace)
            sys.settrace(trace)
        snapshots.take(step, slot)
        snapshots.finish()
        sys.settrace(None)
        assert self.board.record(rank, slot) is not None, said

    def check(self, *newest: int) -> int:
        """What is offered is whole; the step of the newest, which is one of those given."""
        offered = self.slots.whole()
        for whole in offered:
            for rank in RANKS:
                record = self.board.record(rank, whole.slot)
                assert record is not None
                fresh, expected = Rank(rank), Rank(rank)
                candidate = restore.read("memory", record, self.arenas[rank][whole.slot], fresh.parts, ranks=1)
                restore.load(candidate, fresh.parts)
                expected.train(whole.step)
                assert candidate.step == whole.step
                assert all(map(torch.equal, fresh.values(), expected.values())), (rank, whole)
        assert offered, "nothing is left"
        assert offered[0].step in newest, (offered, newest)
        return offered[0].step

    def free(self) -> int:
        slot = self.slots.free()
        assert slot is not None
        return slot


def _killer(nth: int) -> Any:
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(PROTOCOL):
            return None
        if event == "line" and next(lines) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def main(stride: int) -> None:
    torch.set_num_threads(1)
    found: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        run = Run(directory)
        step, slot = 1, run.free()
        for rank in RANKS:
            run.take(rank, step, slot)
        for nth in itertools.count(1, stride):
            before, slot = step, run.free()
            step += 1
            killed = nth % 2  # now the one and then the other
            run.take(killed, step, slot, kill_at=nth)
            run.check(before)
            assert run.take(1 - killed, step, slot)
            survived = run.take(killed, step, slot, kill_at=nth)
            found.append(run.check(before, step) - before)
            if survived:
                break
            step = run.check(before, step) + 1
            slot = run.free()
            for rank in RANKS:
                assert run.take(rank, step, slot)
            run.check(step)
    print(f"{len(found)} kills: {found.count(0)} times the one before, {found.count(1)} times the new one")
    assert found[0] == 0
    assert found[-1] == 1


if __name__ == "__main__":
    main(int(sys.argv[1]))
