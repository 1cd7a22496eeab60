# SPDX-License-Identifier: Apache-2.0
"""A run that was killed anywhere ends with the same bits, and goes on from nothing but what it may trust."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from chaos import Undisturbed, compare, steps_for
from chaos_run import RESULT, SCRIPT, STORE, is_whole, numbers, trail
from supervised import Ended, Folder, Running

from resilient.checkpoint import layout

pytestmark = pytest.mark.timeout(600)
STEPS = steps_for(3)
LAST = f"1-{STEPS}"
SEEDS = {1: 61, 2: 8, 3: 5, 4: 3}
"""Of few kills; drawn so that a worker, the saver and the supervisor are among the victims."""


# Kills.


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kills_change_no_bit(tmp_path: Path, undisturbed: Undisturbed, ranks: int, kills: int) -> None:
    """Workers go on from memory, a new supervisor from the newest checkpoint, and no bit tells of it."""
    check_kills(undisturbed, tmp_path, ranks, min(kills, 3))


@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_one_kill_among_more_ranks_changes_no_bit(tmp_path: Path, undisturbed: Undisturbed, ranks: int) -> None:
    """From three ranks on the order of summation could tell."""
    check_kills(undisturbed, tmp_path, ranks, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_many_kills_change_no_bit(tmp_path: Path, undisturbed: Undisturbed, ranks: int, kills: int) -> None:
    """The same, with as many kills as ``--kills`` says."""
    check_kills(undisturbed, tmp_path, ranks, kills)


def check_kills(undisturbed: Undisturbed, directory: Path, ranks: int, kills: int) -> None:
    run = compare(undisturbed(ranks, steps_for(kills)), directory, ranks, kills, SEEDS[ranks])
    assert sum(not line.endswith("before the next") for line in run.history) == kills
    assert any("memory" in line for line in run.check_restores())


# What a new start goes on from.


@pytest.fixture
def whole(undisturbed: Undisturbed) -> Path:
    """The undisturbed run of one rank."""
    return undisturbed(1, STEPS)


@pytest.fixture
def broken_off(tmp_path: Path, whole: Path) -> Folder:
    """The undisturbed run as it was before its last steps, with two checkpoints."""
    folder = Folder(tmp_path)
    shutil.copytree(whole / STORE, folder.checkpoints)
    (folder.checkpoints / "finished.json").unlink()
    shutil.rmtree(folder.checkpoints / "checkpoints" / LAST)
    assert len(checkpoints(folder)) == 2
    return folder


def train(folder: Folder, *flags: str, steps: int = STEPS) -> Ended:
    return folder.run(*flags, *arguments(folder, steps))


def arguments(folder: Folder, steps: int = STEPS) -> list[str | Path]:
    return ["--checkpoints", folder.checkpoints, SCRIPT, "--steps", str(steps), "--result", folder.path]


def checkpoints(folder: Folder) -> list[str]:
    """Names of what is committed, the newest last."""
    return sorted((path.parent.name for path in folder.checkpoints.glob("checkpoints/*/manifest.json")), key=numbers)


def bits_are_right(folder: Folder, whole: Path) -> bool:
    """Whether all states up to the end are those of the undisturbed run."""
    return is_whole(*(trail(result, 0) for result in (folder.path, whole / RESULT)))


def restored(ended: Ended) -> tuple[str, int]:
    """The state that the only attempt began from."""
    (entry,) = ended.entries("restore")
    return entry["name"], entry["step"]


def step_of(name: str) -> int:
    return numbers(name)[1]


def is_saving(running: Running) -> bool:
    return any(entry["kind"] == "checkpoint" for entry in running.entries())


def damage(folder: Folder, name: str) -> None:
    """Flip one bit in the middle of an image."""
    path = folder.checkpoints / "checkpoints" / name / "rank-0.safetensors"
    image = bytearray(path.read_bytes())
    image[len(image) // 2] ^= 1
    path.write_bytes(image)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(broken_off: Folder, whole: Path) -> None:
    """One flipped bit; the journal names the checkpoint, and the end has the same bits all the same."""
    before, newest = checkpoints(broken_off)
    damage(broken_off, newest)
    ended = train(broken_off)
    assert ended.code == 0, ended.stderr
    assert restored(ended) == (before, step_of(before))
    (refused,) = ended.entries("restore")[0]["refused"]
    assert refused["name"] == newest
    assert "digest" in refused["why"]
    assert bits_are_right(broken_off, whole)


def test_nothing_is_trained_when_every_checkpoint_is_damaged(broken_off: Folder) -> None:
    """A start from nothing would throw away what may still be saved by hand."""
    damaged = checkpoints(broken_off)
    for name in damaged:
        damage(broken_off, name)
    ended = train(broken_off)
    assert (ended.code, ended.attempts) == (115, 1)
    assert all(name in ended.termination["why"] for name in damaged)
    assert checkpoints(broken_off) == damaged


def test_another_number_of_ranks_is_refused_where_its_share_is_unknown(broken_off: Folder) -> None:
    """In the middle of an epoch whose order one rank alone knew; it says which loader can, and nothing is trained."""
    ended = train(broken_off, "--nproc-per-node", "2")
    assert ended.code == 115, ended.stderr
    assert "in the middle of an epoch with another number of ranks" in ended.termination["why"]
    assert "DistributedSampler" in ended.stderr
    assert LAST not in checkpoints(broken_off)


def test_fresh_starts_over(broken_off: Folder, whole: Path) -> None:
    """Nothing of the earlier history is used, then or at the next start, and the training is the same."""
    ended = train(broken_off, "--fresh", steps=10)
    assert ended.code == 0, ended.stderr
    assert restored(ended) == ("", 0)
    ended = train(broken_off)
    assert ended.code == 0, ended.stderr
    assert restored(ended) == ("2-10", 10)
    assert bits_are_right(broken_off, whole)


def test_a_later_step_of_an_earlier_attempt_does_not_win(broken_off: Folder, whole: Path) -> None:
    """A supervisor that was given up for dead commits once more when its replacement has begun and saved."""
    before, newest = checkpoints(broken_off)
    between = step_of(newest) - 1
    assert step_of(before) < between
    directory = broken_off.checkpoints / "checkpoints"
    (directory / newest).rename(broken_off.path / "not yet")
    ended = train(broken_off, steps=between)
    assert (ended.code, restored(ended)) == (0, (before, step_of(before)))
    (broken_off.path / "not yet").rename(directory / newest)
    ended = train(broken_off)
    assert (ended.code, restored(ended)) == (0, (f"2-{between}", between))
    assert bits_are_right(broken_off, whole)


def test_a_supervisor_that_was_replaced_ends(broken_off: Folder) -> None:
    """Somebody else claims its next attempt: whatever it would save from then on must not count."""
    claims = broken_off.checkpoints / "attempts"
    os.mkfifo(broken_off.path / "events")
    events = os.open(broken_off.path / "events", os.O_RDWR)
    try:
        with (
            broken_off.start(*arguments(broken_off, 100_000), CHAOS_EVENTS="events", CHAOS_LIFE="1") as running,
            os.fdopen(os.dup(events)) as lines,
        ):
            # What is durable of attempt 2 says that it is claimed.
            line = next(line.split() for line in lines if is_saving(running))
            claim = layout.decode((claims / "2.json").read_bytes(), layout.AttemptRecord, "2.json")
            (claims / "3.json").write_bytes(layout.encode(replace(claim, attempt=3, token="0" * 32)))
            os.kill(int(line[2]), signal.SIGKILL)
            ended = running.wait()
    finally:
        os.close(events)
    assert ended.code == 199
    assert "attempt 3" in ended.termination["why"]
    assert not [name for name in checkpoints(broken_off) if name.startswith("3-")]
