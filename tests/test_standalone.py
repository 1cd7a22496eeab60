# SPDX-License-Identifier: Apache-2.0
"""Tests of scripts that run without a supervisor: plain ``python train.py``, and plain ``torchrun`` on one node."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from chaos import Undisturbed, steps_for
from chaos_run import RESULT, SCRIPT, TESTS, is_whole, trail
from supervised import LIMIT_S, Folder, training

STEPS = steps_for(3)
PLAIN = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class Training:
    """One launch; its workers print where they are."""

    def __init__(self, directory: Path, launcher: Sequence[str] = PLAIN) -> None:
        self.result, self.temporary = directory / "result", directory / "tmp"
        self.checkpoints, self._quick = directory / "checkpoints", directory / "quick"
        for path in (self.result, self.temporary):
            path.mkdir(parents=True, exist_ok=True)
        self.last = 0
        """The step that was completed last."""
        self.captured: list[int] = []
        """Steps after which the state was asked for a snapshot."""
        self.pids: dict[int, int] = {}
        self._errors = (directory / "errors").open("w+b")
        self.process = subprocess.Popen(
            [
                *(*launcher, str(SCRIPT), "--steps", str(STEPS)),
                *("--result", str(self.result), "--checkpoints", str(self.checkpoints)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(TESTS.parent),
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(self.temporary),
                "CHAOS_EVENTS": "/dev/stdout",
                "CHAOS_LIFE": "1",
                "CHAOS_QUICK": str(self._quick),
            },
        )

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self._errors.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def events(self) -> Iterator[tuple[str, int]]:
        """What the workers say, to the end of all that hold the pipe."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            _, rank, pid, what, step = line.decode().split()
            self.pids[int(rank)] = int(pid)
            self.last = max(self.last, int(step))
            if what == "capture":
                self.captured.append(self.last)
            yield what, int(step)

    def until(self, there: Callable[[], bool]) -> None:
        """Wait until something is there that comes while the workers train."""
        for _ in self.events():
            if there():
                return
        raise AssertionError(f"it ended after step {self.last}:\n{self.errors}")

    def end(self) -> int:
        """Wait for the exit code; nothing is to be done in a step any more."""
        self._quick.touch()
        for _ in self.events():
            pass
        return self.process.wait()

    @property
    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode()

    def has_all_bits(self, undisturbed: Undisturbed, ranks: int = 1) -> bool:
        """Whether all ranks have gone through the states of an undisturbed, supervised run, to the end."""
        expected = undisturbed(ranks, STEPS) / RESULT
        return all(is_whole(trail(self.result, rank), trail(expected, rank)) for rank in range(ranks))

    @property
    def durable(self) -> list[int]:
        """Steps of the checkpoints that are committed."""
        manifests = self.checkpoints.glob("checkpoints/*/manifest.json")
        return sorted(int(manifest.parent.name.split("-")[1].split(".")[0]) for manifest in manifests)

    @property
    def left(self) -> list[str]:
        """Files of ours in the temporary directory."""
        return [path.name for path in self.temporary.iterdir() if path.name.startswith("resilient")]


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_sigterm_saves_the_very_step_and_the_next_start_goes_on(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """195, a durable checkpoint of the step it left after, the same bits in the end, and nothing left behind. Either
    says so in one line."""
    with Training(tmp_path) as first:
        first.until(lambda: first.last >= 23)
        first.process.terminate()
        assert first.end() == 195, first.errors
        assert first.durable[-1] == first.last < STEPS
        assert first.errors == f"resilient: asked to leave by SIGTERM; step {first.last} is saved\n"
        assert first.left == []
    with Training(tmp_path) as second:
        assert second.end() == 0, second.errors
        assert second.errors == f"resilient: resumed from step {first.last}, checkpoint 1-{first.last}\n"
        assert second.has_all_bits(undisturbed)
        assert second.durable[-1] == STEPS
        assert second.left == []


def test_a_killed_process_has_lost_nothing_but_the_steps_since_its_last_snapshot(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """Its keeper outlives it for as long as it takes to save what lies in memory."""
    with Training(tmp_path) as first:
        first.until(lambda: bool(first.durable))
        known = len(first.captured)
        first.until(lambda: len(first.captured) > known + 1)
        first.process.kill()
        assert first.end() == -signal.SIGKILL
        captured = first.captured
    with Training(tmp_path) as second:
        begun = next(step for what, step in second.events() if what == "step") - 1
        assert begun in captured[-2:], "what was captured last was on its way at the worst, what came before was whole"
        assert second.end() == 0, second.errors
        assert second.has_all_bits(undisturbed)


def test_training_goes_on_without_its_keeper(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """A keeper that is killed costs checkpoints, not the training."""
    with Training(tmp_path) as training:
        training.until(lambda: bool(training.durable))
        (keeper,) = children(training.process.pid)
        os.kill(keeper, signal.SIGKILL)
        assert training.end() == 0, training.errors
        assert training.has_all_bits(undisturbed)
        assert training.durable[-1] < STEPS
        assert "could not be saved: the keeper of the checkpoints has ended" in training.errors


@pytest.mark.slow
def test_torchrun_stops_and_goes_on_with_all_ranks_at_one_step(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Whoever is signalled, all ranks save the same step; a later launch ends with the same bits."""
    with Training(tmp_path, TORCHRUN) as first:
        first.until(lambda: first.last >= 23)
        first.process.terminate()
        assert first.end() != 0
        assert first.durable[-1] == first.last < STEPS
        assert first.left == []
    with Training(tmp_path, TORCHRUN) as second:
        assert second.end() == 0, second.errors
        assert second.has_all_bits(undisturbed, 2)
        assert second.left == []


def test_without_a_place_for_checkpoints_the_script_ends_all_the_same(tmp_path: Path) -> None:
    """Nobody waits for the last state to be saved where nothing is saved."""
    folder = Folder(tmp_path)
    script = folder.script(training())
    environ = folder.environment(tmp_path / "no-journal", {})
    done = subprocess.run([sys.executable, str(script)], env=environ, timeout=LIMIT_S, check=False)
    assert done.returncode == 0
    assert folder.notes == ["1", "2", "3", "4"]
