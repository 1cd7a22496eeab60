# SPDX-License-Identifier: Apache-2.0
"""A snapshot that outlives its container: two ranks end with 193, and the pod's next container goes on from memory.

The kubelet is played by starting ``resilient run`` once more with the same volume, which the pod keeps.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import HEAD, ROOT, Ended, Folder, Running, until_entry

from resilient.checkpoint.volume import RECORD, disk_of

STEPS = 100
TRAINING = (
    HEAD
    + f"""
import time
import torch.distributed as dist
import trainer

def fault(step):
    if os.environ["RANK"] == "0" and (HERE / "fault").exists():
        saved = min([entry["step"] for entry in told("checkpoint")], default=STEPS)
        taken = max([entry["step"] for entry in told("snapshot")], default=0)
        if taken > saved:
            raise OSError(71, "Protocol error")
        time.sleep(0.02)  # the supervisor names boundaries by its own clock
    while os.environ["RANK"] == "0" and (HERE / "waits").exists() and not told("checkpoint"):
        time.sleep(0.02)

STEPS = {STEPS}
dist.init_process_group("gloo")
trainer.train("plain", STEPS, HERE / "result", fault=fault)
"""
)
"""Fails, where it is meant to, as soon as a snapshot is newer than some checkpoint; waits for a first one, where it is
meant to."""
POD = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "RESILIENT_SUBMISSION": "job-uid-1",
    "RESILIENT_POD": "train-0",
    "RESILIENT_POD_UID": "pod-uid-1",
}


class Pod(Folder):
    """A pod with its volume in memory."""

    def __init__(self, path: Path, volume: Path) -> None:
        super().__init__(path, **POD, RESILIENT_SNAPSHOTS=str(volume), PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        self.volume = volume
        self.fault = path / "fault"
        """While this is there, the training fails."""
        self.waits = path / "waits"
        """While this is there, no step ends before something has been saved."""
        self.script(TRAINING)

    def begin(self) -> Running:
        """A container of it."""
        cadence = ("--every", "4", "--snapshot-every", "2")
        return self.start("--nproc-per-node", "2", "--checkpoints", self.checkpoints, *cadence, "train.py")

    def live(self) -> Ended:
        """A container of it, to its end."""
        with self.begin() as running:
            return running.wait()

    @property
    def saved(self) -> dict[int, Path]:
        """The checkpoints by their step."""
        found = self.checkpoints.glob("checkpoints/*/manifest.json")
        return {int(path.parent.name.split("-")[1]): path.parent for path in found}

    @property
    def bits(self) -> list[str]:
        """The digests of all that each rank has trained."""
        return [(self.path / f"result.{rank}").read_text() for rank in (0, 1)]


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """Where volumes in memory are made."""
    with tempfile.TemporaryDirectory(prefix="resilient-test-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def undisturbed(memory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The bits of a run to which nothing happens; it leaves nothing in memory."""
    pod = Pod(tmp_path_factory.mktemp("undisturbed"), memory / "undisturbed")
    assert pod.live().code == 0
    assert list(pod.volume.iterdir()) == []
    return pod.bits


@pytest.fixture(scope="module")
def before(memory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pod, int]:
    """A pod whose container ended with 193, and the step of the snapshot that it left."""
    pod = Pod(tmp_path_factory.mktemp("before"), memory / "before")
    pod.fault.touch()
    ended = pod.live()
    assert ended.code == 193, ended.stderr
    (kept,) = ended.entries("kept")
    assert kept["why"] is None
    return pod, kept["step"]


@pytest.fixture
def pod(before: tuple[Pod, int], memory: Path, tmp_path: Path) -> Pod:
    """What the next container of that pod finds, had its last save come to nothing; the fault is gone."""
    old, taken = before
    pod = Pod(tmp_path / "pod", memory / tmp_path.name)
    shutil.copytree(old.checkpoints, pod.checkpoints)
    shutil.copytree(old.volume, pod.volume)
    shutil.rmtree(pod.saved[taken])
    assert 0 < max(pod.saved) < taken
    return pod


def test_a_restart_of_the_container_goes_on_from_memory(
    before: tuple[Pod, int], pod: Pod, undisturbed: list[str]
) -> None:
    """From a step that the store never got, with every bit; it is saved then, and nothing stays behind."""
    taken = before[1]
    pod.waits.touch()
    ended = pod.live()
    assert ended.code == 0, ended.stderr
    assert [(entry["name"], entry["step"]) for entry in ended.entries("restore")] == [("memory", taken)]
    assert ended.entries("checkpoint")[0]["step"] == taken
    assert pod.bits == undisturbed
    assert list(pod.volume.iterdir()) == []
    told = pod.ask("explain", pod.path / "journal-1").stdout
    assert f"Note: adopted the snapshot of step {taken} of attempt 1" in told


@pytest.mark.slow
def test_a_flipped_bit_is_refused(pod: Pod, undisturbed: list[str]) -> None:
    """By the rank that finds it, for both; they go on from what is saved, with every bit."""
    (slot,) = pod.volume.glob("slots/1-*")
    with slot.open("r+b") as file:
        file.seek(5000)
        (byte,) = file.read(1)
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    saved = max(pod.saved)
    ended = pod.live()
    assert ended.code == 0, ended.stderr
    (restore,) = ended.entries("restore")
    assert (restore["name"], restore["step"]) == (f"1-{saved}", saved)
    assert [aside["why"].partition(": ")[0] for aside in restore["refused"]] == ["rank 1"]
    assert pod.bits == undisturbed


@pytest.mark.slow
def test_a_supervisor_that_is_killed_leaves_nothing_to_go_on_from(pod: Pod) -> None:
    """Neither what it had found nor what it took; the next one removes it."""
    pod.fault.touch()
    with pod.begin() as running:
        until_entry(running, "first_step")
        assert not (pod.volume / "slots" / RECORD).exists()
        running.signal(signal.SIGKILL)
        assert running.process.wait() == -signal.SIGKILL
    pod.fault.unlink()
    assert len(list(pod.volume.glob("slots/*"))) == 4
    ended = pod.live()
    assert ended.code == 0, ended.stderr
    assert [entry["why"] for entry in ended.entries("adopted")] == ["a supervisor that was killed has left it"]
    assert [entry["name"] for entry in ended.entries("restore")] != ["memory"]
    assert list(pod.volume.iterdir()) == []


def test_other_exits_leave_nothing(tmp_path: Path) -> None:
    """And 193 neither where no snapshot was taken; a volume of which nobody says whose pod it is of is refused.

    That it lies on a disk is said, once, where it does.
    """
    folder = Folder(tmp_path, **POD)
    script = folder.script("raise OSError(71, 'Protocol error')")
    flags = ("--snapshots", folder.path / "volume", "--checkpoints", folder.checkpoints)
    kind = disk_of(tmp_path)
    for code in (193, 194):
        ended = folder.run(*flags, script)
        assert ended.code == code
        said = f"volume is on {kind}, not in memory, so that every snapshot is written to a disk"
        assert ended.stderr.count(said) == sum(said in str(entry.get("text")) for entry in ended.entries("note"))
        assert ended.stderr.count(said) == (kind is not None)
        assert list((folder.path / "volume").iterdir()) == []
    refused = folder.run(*flags, script, RESILIENT_POD_UID="")
    assert refused.code == 115
    assert "RESILIENT_POD_UID does not say which pod this is" in refused.stderr
