# SPDX-License-Identifier: Apache-2.0
"""Tests of scripts with several loops over ``run.batches``: each hands over its last state, and none waits for ever."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import HEAD, LIMIT_S, Folder

from resilient.link.board import OUTSIDE, STEP, Board, Pulse
from resilient.training.progress import Progress

_SCRIPT = (
    HEAD
    + """
import resource, time
import light_torch
import torch
import resilient

torch.set_num_threads(1)
model = torch.nn.Linear(1, 1 << 19)
LIMIT
run = resilient.Run(state={"model": model}, every="1h", snapshot_every="1h")
rank = int(os.environ["RANK"])

@run.step
def train_step(batch):
    time.sleep(0.05 * rank)
    note(f"{rank}:{run.step_number + 1}")

loader = [torch.ones(1)] * 4
for steps in (2, 4, 6):
    for batch in run.batches(loader, steps=steps):
        train_step(batch)
    AFTER
"""
)
SAVED = "while steps not in [entry['step'] for entry in told('checkpoint')]: time.sleep(0.01)"
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"


def script_of(*, limit: str = "", after: str = "time.sleep(0.3)") -> str:
    return _SCRIPT.replace("LIMIT", limit).replace("AFTER", after)


@pytest.mark.parametrize("ranks", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_each_loop_hands_over_its_last_state(tmp_path: Path, ranks: int) -> None:
    """Of all ranks, whichever comes to its end first."""
    folder = Folder(tmp_path)
    script = folder.script(script_of(after=SAVED))
    ended = folder.run("--checkpoints", folder.checkpoints, "--nproc-per-node", str(ranks), script)
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert sorted(folder.notes) == [f"{rank}:{step}" for rank in range(ranks) for step in range(1, 7)]
    assert [entry["step"] for entry in ended.entries("checkpoint")] == [2, 4, 6]


def test_a_last_state_without_room_does_not_end_the_training(tmp_path: Path) -> None:
    """Whatever it is offered then, the next loop goes on."""
    folder = Folder(tmp_path)
    script = folder.script(script_of(limit=FULL))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert folder.notes == [f"0:{step}" for step in range(1, 7)]


def test_a_script_of_its_own_ends_although_its_last_state_has_no_room(tmp_path: Path) -> None:
    """It is told that the state is not saved, and waits no longer."""
    folder = Folder(tmp_path)
    script = folder.script(script_of(limit=FULL).replace("Run(", "Run(checkpoints=HERE / 'saved', "))
    environ = folder.environment(tmp_path / "no-journal", {"RANK": "0", "WORLD_SIZE": "1"})
    done = subprocess.run(
        [sys.executable, str(script)], env=environ, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, b"could not be saved" in done.stderr) == (0, True), done.stderr


def _left_by(leave: Callable[[], object]) -> Pulse:
    """What the board says of a worker that ends in good order, after one step and ``leave`` in the next."""
    board = Board.create(1)
    progress = Progress(board, 0, begin=lambda: None, boundary=lambda step: None, fence=[None])
    progress.open()
    step = progress.wrap(lambda does: does())
    progress.drive(by_batches=True)
    for does in (lambda: None, leave):
        progress.pass_boundary()
        with contextlib.suppress(SystemExit, ZeroDivisionError):
            step(does)
    progress.drive(by_batches=False)
    progress.leave()
    pulse = board.pulse(0)
    board.close()
    return pulse


@pytest.mark.parametrize("code", [0, 256, None])
def test_a_step_that_is_left_is_no_end_of_the_training(code: int | None) -> None:
    """``sys.exit(256)`` is 0 as well, and a handler of the script's own may exit with 0 in the middle of anything."""
    assert _left_by(lambda: sys.exit(code)).place == STEP


def test_a_loop_that_is_left_is_an_end_of_the_training() -> None:
    """After a step that was done, or that raised what the script has handled, ``break`` is a normal end."""
    for leave in (lambda: None, lambda: 1 // 0):
        pulse = _left_by(leave)
        assert (pulse.place, pulse.looping) == (OUTSIDE, False)
