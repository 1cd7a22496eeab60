# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose files are written while the step behind them is still being made: a whole run, step and fault."""

import json
from pathlib import Path

import pytest
from supervised import HEAD, Ended, Folder

TRAINING = (
    HEAD
    + """
import time
import torch
import resilient
from resilient.link.board import SNAPSHOT_STEP

torch.set_num_threads(1)
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.AdamW(model.parameters())
run = resilient.Run(state={"model": model, "optimizer": optimizer}, every=2, snapshot_every=1000, keep=9)
DIRECTORY = HERE / "checkpoints" / "checkpoints" / "1-4"

def await_that(happened):
    # Others do it, and tell nobody here.
    while not happened():
        time.sleep(0.01)

@run.step
def train_step(batch):
    model(batch).square().mean().backward()
    if run.step_number in (1, 3):  # a snapshot is ordered at its end, and the store has nothing else to do
        await_that(lambda: run._link.board.words[SNAPSHOT_STEP] == run.step_number + 1)
        await_that(lambda: len(told("checkpoint")) >= run.step_number // 2)
    if run.step_number == 4 and once("came here"):
        await_that((DIRECTORY / "rank-0.safetensors").exists)
        note((DIRECTORY / "manifest.json").exists())
        FAULT
    optimizer.step()
    optimizer.zero_grad()

for batch in run.batches([torch.ones(4, 64)] * 10, steps=6):
    train_step(batch)
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def train(folder: Folder, fault: str) -> Ended:
    script = folder.script(TRAINING.replace("FAULT", fault))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert ended.code == 0, ended.stderr
    assert folder.notes == ["False"], "committed before it was judged"
    return ended


def saved(ended: Ended) -> list[str]:
    return [entry["name"] for entry in ended.entries("checkpoint")]


def test_files_are_there_before_the_optimizer_steps(folder: Folder) -> None:
    """The manifest comes after it; a waiting step is what makes that visible."""
    ended = train(folder, "pass")
    assert saved(ended) == ["1-2", "1-4", "1-6"]
    assert ended.entries("save_failed") == []


def test_what_was_changed_before_the_optimizers_step_leaves_nothing(folder: Folder) -> None:
    """Its files are gone at the end, nobody is told of a store that fails, and what comes later is saved."""
    ended = train(folder, "torch.nn.init.zeros_(model.weight)")
    assert saved(ended) in (["1-2", "1-5", "1-6"], ["1-2", "1-6"])
    assert ended.entries("save_failed") == []
    assert sorted(path.name for path in (folder.checkpoints / "checkpoints").iterdir()) == saved(ended)


@pytest.mark.parametrize("who", ["os.getpid()", "os.getppid()"], ids=["worker", "supervisor"])
def test_killed_before_it_is_judged_it_is_no_checkpoint(folder: Folder, who: str) -> None:
    """The run goes on from the one before, and clears up what was written."""
    script = folder.script(TRAINING.replace("FAULT", f"os.kill({who}, signal.SIGKILL)"))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    if who != "os.getpid()":
        assert ended.code == -9
        ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert ended.code == 0, ended.stderr
    assert folder.notes == ["False"]
    restored = [entry["step"] for entry in ended.entries("restore")]
    assert restored[-1] == 2
    names = [path.parent.name for path in (folder.checkpoints / "checkpoints").glob("*/manifest.json")]
    assert "1-4" not in names
    for path in (folder.checkpoints / "checkpoints").iterdir():
        assert (path / "manifest.json").exists(), f"{path.name} was left behind"
        assert json.loads((path / "manifest.json").read_text())["step"] == int(path.name.split("-")[1])


MOVING = (
    HEAD
    + """
import torch
import resilient

model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
run = resilient.Run(state={"model": model, "optimizer": optimizer}, every=2, snapshot_every=1000)

@run.step
def train_step(batch):
    model(batch).square().mean().backward()
    model.weight.data = model.weight.data.clone()
    optimizer.step()

for batch in run.batches([torch.ones(1, 4)] * 10, steps=20_000):
    train_step(batch)
    if run.step_number % 50 == 0 and told("checkpoint"):
        note(run.step_number)
        break
"""
)


def test_memory_that_is_changed_in_each_step_is_saved_all_the_same(folder: Folder) -> None:
    """And the store is not given in every other step what is dropped in the end."""
    ended = folder.run("--checkpoints", folder.checkpoints, folder.script(MOVING))
    assert ended.code == 0, ended.stderr
    assert folder.notes, "nothing was saved while it trained"
    notes = [entry["text"] for entry in ended.entries("note")]
    assert len([text for text in notes if "later ones are copied at once: the memory of the state" in text]) == 1
