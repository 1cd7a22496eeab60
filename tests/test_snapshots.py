# SPDX-License-Identifier: Apache-2.0
"""Tests of snapshots by real workers: what is restored is what the script had at that step, or nothing is."""

import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from host import Host, taken
from snapshot_scripts import KINDS, bits, train

from resilient.link.board import SPILL
from resilient.link.messages import Note, NotTaken, Taken, Try
from resilient.training.snapshots import Snapshots

BEHIND = [
    "Training", "Scaling", "Accumulating", "AccumulatingOverCalls", "SteppingBehind", "TwoOptimizers",
    "AveragingBefore", "AveragingBehind", "AveragingInside", "Searching", "Reshaping",
]  # fmt: skip
COMPILED = ["Compiled", "CompiledGraph"]
AT_ONCE = {"Foreign": "no torch.optim.Optimizer", "Renormalising": "max_norm"}
CHANGED = ["Changing", "Clipping"]


def notes(host: Host) -> list[str]:
    return [message.text for _, message in host.heard if isinstance(message, Note)]


def missed(host: Host) -> list[NotTaken]:
    return [message for _, message in host.heard if isinstance(message, NotTaken)]


def snapshot(host: Host, kind: str, folder: Path, step: int, slot: int = 0) -> None:
    """One attempt that takes a snapshot after a step, and goes on to its end."""
    host.final_slot = None
    host.launch(train, kind, folder)
    host.order(step, snapshot=slot)
    host.begin()
    assert host.wait() == [0]


def restores(host: Host, kind: str, folder: Path, step: int, slot: int = 0) -> None:
    """A new process has what the one before had."""
    host.launch(train, kind, folder)
    assert host.begin([Try(name="memory", step=step, slot=slot)]) == "memory", host.refusals()
    assert host.wait() == [0]
    restored, trained = bits(folder, step)
    assert restored == trained


@pytest.mark.parametrize("kind", [*BEHIND, *(pytest.param(kind, marks=pytest.mark.slow) for kind in COMPILED)])
def test_what_is_copied_behind_the_training_is_what_there_was(kind: str, tmp_path: Path) -> None:
    """Bit by bit as the script's own ``state_dict`` had it at the boundary; nothing made the training wait."""
    with Host() as host:
        for step, slot in ((3, 0), (6, 1)):
            snapshot(host, kind, tmp_path, step, slot)
            assert (taken(host), notes(host), missed(host)) == ([step], [], [])
            restores(host, kind, tmp_path, step, slot)


@pytest.mark.parametrize("kind", AT_ONCE)
def test_what_nobody_would_wait_for_is_copied_at_once(kind: str, tmp_path: Path) -> None:
    """The reason is said once, and the bits are right."""
    with Host() as host:
        snapshot(host, kind, tmp_path, 4)
        assert (taken(host), missed(host)) == ([4], [])
        (said,) = notes(host)
        assert AT_ONCE[kind] in said
        restores(host, kind, tmp_path, 4)


def test_what_is_added_later_is_looked_at_as_well(tmp_path: Path) -> None:
    """Snapshots are copied behind the training until something comes that would not wait for them."""
    with Host() as host:
        host.launch(partial(train, late=False), "GrowingRenormalising", tmp_path, 10**9)
        host.order(2, snapshot=0)
        host.begin()
        host.hear(Taken)
        assert notes(host) == []
        for count in range(2, 6):  # one boundary after the other
            host.name(snapshot=count % 2)
            host.hear(Taken, count)
        assert ["max_norm" in text for text in notes(host)] == [True]
        host.kill()


@pytest.mark.parametrize("kind", CHANGED)
def test_a_change_before_the_optimizers_step_drops_the_snapshot(kind: str, tmp_path: Path) -> None:
    """It is noticed always; from then on snapshots are taken at once, and are right."""
    assert kind in KINDS
    with Host() as host:
        host.final_slot = None
        host.launch(train, kind, tmp_path)
        host.order(2, snapshot=0)
        host.begin()
        (dropped,) = host.hear(NotTaken)
        assert (dropped.step, dropped.slot, dropped.soon, dropped.full) == (2, 0, True, False)
        assert "was changed before the optimizer's step" in dropped.why
        assert host.records(0) == [None]
        assert host.wait() == [0]
        assert [("step 2 is dropped" in text, "copied at once" in text) for text in notes(host)] == [(True, True)]


@pytest.mark.parametrize("kind", CHANGED)
def test_what_is_taken_after_a_dropped_one_is_right(kind: str, tmp_path: Path) -> None:
    """In the same process, at a later step, while the training waits."""
    with Host() as host:
        host.final_slot = 1
        snapshot_steps = _drop_then_hand_over(host, kind, tmp_path)
        restores(host, kind, tmp_path, snapshot_steps, slot=1)


def _drop_then_hand_over(host: Host, kind: str, folder: Path) -> int:
    host.launch(train, kind, folder)
    host.order(2, snapshot=0)
    host.begin()
    host.hear(NotTaken)
    assert host.wait() == [0]
    (step,) = taken(host)
    return step


def test_a_snapshot_on_disk_is_the_same(tmp_path: Path) -> None:
    """The training waits, and what is read back is what there was."""
    with Host() as host:
        snapshot(host, "Training", tmp_path, 3, slot=SPILL)
        assert taken(host) == [3]
        restores(host, "Training", tmp_path, 3, slot=SPILL)


def test_a_model_that_grows_is_refused_until_it_is_built_that_way(tmp_path: Path) -> None:
    """A process that begins with the small model is told what is missing; one that builds the large one goes on."""
    with Host() as host:
        snapshot(host, "Growing", tmp_path, 2)
        restores(host, "Growing", tmp_path, 2)
        snapshot(host, "Growing", tmp_path, 6)
        host.launch(train, "Growing", tmp_path)
        assert host.begin([Try(name="memory", step=6, slot=0)]) == ""
        (why,) = host.refusals()
        assert "state.model: 3.bias: saved, but not in the model" in why
        assert "other parameter groups" in why
        assert host.wait() == [0]
        snapshot(host, "Growing", tmp_path, 6)
        (tmp_path / "trained" / "6").rename(tmp_path / "kept")
        host.launch(partial(train, grown=True), "Growing", tmp_path)
        assert host.begin([Try(name="memory", step=6, slot=0)]) == "memory", host.refusals()
        assert host.wait() == [0]
        assert (tmp_path / "restored" / "6").read_text() == (tmp_path / "kept").read_text()


def test_workers_killed_while_they_take_snapshots_have_a_whole_one(tmp_path: Path) -> None:
    """Into one slot and the other, with the kill at whatever point of it: the newest whole one is what there was."""
    candidates: list[Try] = []
    with Host() as host:
        for number in range(8):
            host.launch(partial(train, late=False), "Training", tmp_path, 10**9)
            assert bool(host.begin(candidates)) == bool(candidates), host.refusals()
            host.name(snapshot=0)
            host.hear(Taken)
            if candidates:
                restored, trained = bits(tmp_path, candidates[0].step)
                assert restored == trained
            host.name(snapshot=1)
            if number % 2:
                host.hear(Taken, 2)
                host.name(snapshot=0)
            host.kill()
            whole = [record for slot in (0, 1) for record in host.records(slot) if record]
            assert whole
            newest = max(whole, key=lambda record: (record.attempt, record.step))
            candidates = [Try(name="memory", step=newest.step, slot=newest.slot)]


def test_a_script_that_makes_errors_of_warnings_trains_on() -> None:
    """That a snapshot cannot be taken is a warning, and never what ends a training."""
    said: list[Any] = []
    link: Any = SimpleNamespace(slot_fds=(), index=0, board=SimpleNamespace(rows=1), send=said.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Snapshots(link, {}, lambda: {"step": print}, [None]).take(1, slot=0)
    assert "run['step']" in said[0].why
