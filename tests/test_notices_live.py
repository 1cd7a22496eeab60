# SPDX-License-Identifier: Apache-2.0
"""Real supervisors, told by the cloud that their machine goes away: in a network of their own, at the real address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from supervised import ROOT, Folder, training

from resilient.cloud.clouds import cloud_here
from resilient.core.cloud import Cloud

PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
QUIET = {PREEMPTED: "FALSE", MAINTENANCE: "NONE"}
WAITS = """
import time
STEPS = 100_000
def fault(step):
    print("has begun", step, flush=True)
    time.sleep(0.01)
"""


class Machine:
    """A machine of a cloud's: its network, and what its service says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.enter = ("nsenter", f"--net=/proc/{process.pid}/ns/net")

    def say(self, path: str, text: str) -> None:
        assert self._process.stdin is not None
        print(json.dumps([path, text]), file=self._process.stdin, flush=True)


@contextmanager
def machine(answers: Mapping[str, str]) -> Iterator[Machine]:
    server = [sys.executable, str(ROOT / "tests/metadata_server.py"), json.dumps(answers)]
    command = ["unshare", "--net", *server]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "serving\n":
            pytest.skip("this machine does not let us make a network")
        yield Machine(process)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_preemption_is_left_before_sigterm_comes(folder: Folder) -> None:
    """The step is saved within what the cloud leaves; nobody has sent a signal."""
    arguments = ("--preemption-notices", "gcp", "--grace", "600s", "--checkpoints", folder.checkpoints)
    script = folder.script(training(WAITS))
    with machine(QUIET) as cloud, folder.start(*arguments, script, init=cloud.enter) as running:
        running.until("has begun 3")
        cloud.say(PREEMPTED, "TRUE")
        ended = running.wait()
    assert ended.code == 195, ended.stderr
    why = "asked to leave by a notice of the cloud (gcp announced: the machine is being preempted, 30 s ahead)"
    assert ended.termination["why"].startswith(why)
    [asked] = [entry["event"] for entry in ended.entries("event") if entry["event"]["type"] == "LeaveAsked"]
    assert asked["within_s"] == 30.0, "not the ten minutes of the pod's grace"
    assert [entry["notice"]["cloud"] for entry in ended.entries("notice")] == ["gcp"]


CRASHES = (
    WAITS
    + """
def fault(step):
    print("has begun", step, flush=True)
    time.sleep(0.01)
    if run.attempt == 1 and (HERE / "crash").exists():
        os.kill(os.getpid(), signal.SIGKILL)
"""
)


def test_what_does_not_end_the_machine_is_evidence(folder: Folder) -> None:
    """A migration may be why a worker failed; it is no reason to leave. Under ``--observe`` nothing is."""
    script = folder.script(training(CRASHES))
    arguments = ("--preemption-notices", "gcp", "--observe", "--max-restarts", "1", script)
    with machine(QUIET) as cloud, folder.start(*arguments, init=cloud.enter) as running:
        running.until("has begun 3")
        cloud.say(MAINTENANCE, "MIGRATE_ON_HOST_MAINTENANCE")
        running.until("migrated to another host")
        cloud.say(PREEMPTED, "TRUE")
        running.until("is being preempted")
        (folder.path / "crash").touch()
        running.until("restart all workers")
        ended = running
        ended.process.terminate()
        done = ended.wait()
    commands = [command for entry in done.entries("event") for command in entry["commands"]]
    evidence = next(command["verdict"] for command in commands if command.get("verdict"))["evidence"]
    assert evidence[-2:] == [
        "gcp announced: the machine is going to be migrated to another host",
        "gcp announced: the machine is being preempted",
    ]
    asked = [entry["event"]["by"] for entry in done.entries("event") if entry["event"]["type"] == "LeaveAsked"]
    assert asked == ["SIGTERM"]


@pytest.mark.skipif(cloud_here(Cloud.AUTO) is not None, reason="this machine is a cloud's")
def test_a_machine_of_no_cloud_is_said_to_be_none(folder: Folder) -> None:
    """Somebody relies on notices; training goes on without them."""
    ended = folder.run("--preemption-notices", "auto", folder.script(training()))
    assert ended.code == 0
    assert "cannot hear the notices of the cloud: the firmware does not say which cloud this is" in ended.stderr
    assert len(ended.entries("no_notices")) == 1
