# SPDX-License-Identifier: Apache-2.0
"""Several pods train one run: real supervisors and savers, real gloo between their workers, real signals."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from once import Once
from several import Pods
from supervised import HEAD, Ended, Folder, until_entry

from resilient.core.exit_codes import ExitCode
from resilient.supervisor.pods import named

STEPS, AT = 60, 30
"""Of the run, and the one in which something happens, or a later one if no snapshot is there by then."""
SCRIPT = (
    HEAD
    + f"""
import time
import light_torch
import torch.distributed as dist
import trainer

dist.init_process_group("gloo")
rank = int(os.environ["RANK"])

def fault(step):
    time.sleep(0.01)  # what a step takes
    if step >= {AT} and rank == int(os.environ.get("AT_RANK", -1)) and told("snapshot"):
        if "ALWAYS" in os.environ or once("reached"):
            (HERE / "at").write_text(str(step))
            print("reached", flush=True)
            exec(os.environ["FAULT"])

trainer.train("plain", {STEPS}, HERE / "result", fault=fault)
print("attempt", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
"""
)
EVALUATION = (
    HEAD
    + """
import time
import light_torch
import torch
import torch.distributed as dist
import resilient

dist.init_process_group("gloo")
run = resilient.Run(state={"model": torch.nn.Linear(1, 1)})

@run.step
def step(batch):
    dist.all_reduce(batch)

for batch in run.batches([torch.ones(1)] * 6, steps=6):
    step(batch)
    if run.step_number == 3 and os.environ["RANK"] == "1":
        with run.phase("evaluation"):
            time.sleep(4)  # what it takes, far beyond the floor; and the other rank waits within a step
"""
)
WAIT = "signal.pause()"
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, name=python, GPU has fallen off the bus."
BROKEN = f"sys.stderr.write({XID!r} + chr(10)), sys.exit(1)"


def digests(folder: Folder, ranks: int) -> list[str]:
    return [(folder.path / f"result.{rank}").read_text() for rank in range(ranks)]


@pytest.fixture
def undisturbed(once: Once) -> Sequence[str]:
    """What two ranks of one pod come to."""

    def fill(path: Path) -> None:
        folder = Folder(path)
        ended = folder.run("--nproc-per-node", "2", folder.script(SCRIPT))
        assert ended.code == 0, ended.stderr

    return digests(Folder(once("two-ranks-of-one-pod", fill)), 2)


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    """Two, which save in every other step."""
    folder = Folder(tmp_path)
    folder.script(SCRIPT)
    return Pods(folder, 2, "--checkpoints", folder.checkpoints, "--every", "2", "--snapshot-every", "2")


def codes(ended: Sequence[Ended]) -> list[int]:
    return [one.code for one in ended]


def at(pods: Pods) -> int:
    """The step in which it happened."""
    return int((pods.folder.path / "at").read_text())


def step_of(ended: Ended) -> int:
    """The step that the last attempt went on from."""
    return int(ended.entries("restore")[-1]["step"])


def test_a_crash_in_one_pod_restarts_all_in_place_from_memory(pods: Pods, undisturbed: Sequence[str]) -> None:
    """Rung 2: no pod ends, and no bit tells of it."""
    first, second = pods.run("train.py", AT_RANK="1", FAULT="os.kill(os.getpid(), signal.SIGKILL)")
    assert codes([first, second]) == [0, 0], first.stderr + second.stderr
    assert digests(pods.folder, 2) == undisturbed
    assert [first.attempts, second.attempts] == [2, 2]
    assert first.entries("restore")[-1]["name"] == "memory"
    assert "rank 1 was killed by a SIGKILL" in first.stderr
    assert pods.folder.ask("checkpoints", "verify", pods.folder.checkpoints).returncode == 0


@pytest.mark.parametrize("pod", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_pod_that_is_preempted_has_all_save_and_go_on_together(
    pods: Pods, undisturbed: Sequence[str], pod: int
) -> None:
    """All finish one common step and save it; the other pod waits for the next one, and then they go on from there."""
    with pods.started("train.py", AT_RANK=str(pod), FAULT=WAIT) as running:
        running[pod].until("reached")
        running[pod].signal(signal.SIGTERM)
        left = running[pod].wait()
        assert left.code == ExitCode.PREEMPTED_SAVED, left.stderr
        with pods.start(pod, "train.py") as again:
            ended = [again.wait(), running[1 - pod].wait()]
    assert codes(ended) == [0, 0], ended[0].stderr + ended[1].stderr
    assert digests(pods.folder, 2) == undisturbed
    leader = ended[0] if pod == 0 else ended[1]
    assert step_of(leader) == at(pods)


@pytest.mark.parametrize("pod", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_pod_that_vanishes_is_waited_for(pods: Pods, undisturbed: Sequence[str], pod: int) -> None:
    """Its supervisor is killed; the last checkpoint that all have is what the next one goes on from."""
    with pods.started("train.py", AT_RANK=str(pod), FAULT=WAIT) as running:
        running[pod].until("reached")
        until_entry(running[0], "checkpoint")
        running[pod].signal(signal.SIGKILL)
        running[pod].wait()
        with pods.start(pod, "train.py") as again:
            ended = [again.wait(), running[1 - pod].wait()]
    assert codes(ended) == [0, 0], ended[0].stderr + ended[1].stderr
    assert digests(pods.folder, 2) == undisturbed
    leader = ended[0] if pod == 0 else ended[1]
    assert 2 <= step_of(leader) < at(pods)


def test_a_broken_device_moves_its_pod_only(pods: Pods, undisturbed: Sequence[str]) -> None:
    """The pod that has it ends with 194, on record; the other one waits for its replacement."""
    with pods.started("train.py", AT_RANK="1", FAULT=BROKEN) as running:
        left = running[1].wait()
        assert left.code == ExitCode.RESCHEDULE, left.stderr
        assert left.termination["rank"] == 1
        with pods.start(1, "train.py") as again:
            ended = [running[0].wait(), again.wait()]
    assert codes(ended) == [0, 0], ended[0].stderr + ended[1].stderr
    assert digests(pods.folder, 2) == undisturbed
    debits = [*(pods.folder.checkpoints / "debits").rglob("1/*.json")]
    assert len(debits) == 1


def test_a_code_fault_stops_all_pods(pods: Pods) -> None:
    """Of one pod; all end with the same code and say whose it is."""
    ended = pods.run("train.py", AT_RANK="1", FAULT="raise KeyError('labels')", ALWAYS="1")
    assert codes(ended) == [ExitCode.CODE_FAULT] * 2, ended[0].stderr
    assert [one.termination["rank"] for one in ended] == [1, 1]
    assert all("KeyError" in one.termination["why"] for one in ended)


def test_a_hang_is_told_of_the_rank_that_hangs(pods: Pods, undisturbed: Sequence[str]) -> None:
    """Its peer in the other pod stands still as well, in a collective, and may be seen first."""
    first, second = pods.run("--hang-floor", "1s", "train.py", AT_RANK="0", FAULT="time.sleep(600)")
    assert codes([first, second]) == [0, 0], first.stderr + second.stderr
    assert "rank 0 stood still at " in first.stderr
    assert digests(pods.folder, 2) == undisturbed


def test_a_rank_that_waits_for_an_evaluation_in_another_pod_does_not_hang(pods: Pods) -> None:
    """Whatever the floor is: the pod that evaluates has the time to say so."""
    pods.folder.script(EVALUATION)
    ended = pods.run("--hang-floor", "1s", "train.py")
    assert [(one.code, one.attempts) for one in ended] == [(0, 1)] * 2, ended[0].stderr


def test_a_pod_that_ends_for_a_reason_of_its_own_is_not_waited_for(pods: Pods) -> None:
    """Its command is not there: no evidence comes of it, and it waits for the others to settle what was reached."""
    with pods.start(0, "train.py") as first, pods.start(1, "--no-python", "./nothing") as second:
        ended = [first.wait(), second.wait()]
    assert codes(ended) == [ExitCode.NOT_FOUND] * 2, ended[0].stderr
    assert "pod 1: " in ended[0].termination["why"]
    assert not any(event["event"]["type"] == "DeadlinePassed" for event in ended[1].entries("event"))


@pytest.mark.parametrize(("pod", "why"), [(0, "pod 1 did not come"), (1, "pod 0, which leads, was away")])
def test_a_pod_that_waits_in_vain_ends_on_record(pods: Pods, pod: int, why: str) -> None:
    """197: nothing is wrong with it, and it names who is missing."""
    with pods.start(pod, "--pod-patience", "1s", "train.py") as running:
        ended = running.wait()
    assert ended.code == ExitCode.PEER_FAILED, ended.stderr
    assert why in ended.termination["why"]
    assert len([*(pods.folder.checkpoints / "debits").rglob(f"{pod}/*.json")]) == 1


def test_many_pods_are_not_all_named() -> None:
    """A sentence has to be read."""
    assert [named(range(1, last)) for last in (1, 2, 3)] == ["", "pod 1", "pods 1, 2"]
    assert named(range(1, 100)) == "pods 1, 2, 3, 4, 5, 6, 7, 8 and 91 others"


def test_pods_that_do_not_fit_together_are_told(pods: Pods) -> None:
    """Both end with 115, and say what differs."""
    with pods.start(0, "train.py") as first, pods.start(1, "--nproc-per-node", "2", "train.py") as second:
        ended = [first.wait(), second.wait()]
    assert codes(ended) == [ExitCode.CONFIG_FAULT] * 2, ended[0].stderr
    assert all("pod 1 starts 2 workers, and pod 0 starts 1" in one.stderr for one in ended)
