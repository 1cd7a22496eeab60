# SPDX-License-Identifier: Apache-2.0
"""Whole incidents of two pods that train together: an Indexed Job as it is generated, real supervisors, gloo between
their workers, the simulator as Job controller, and what comes of it all.

Both make the same few steps. In one of them a worker of one pod stops and waits to be told what is to go wrong.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from cluster import LOST, Cluster, PodEnd, RunningPod, Submitted
from once import Once
from submissions import submission
from supervised import HEAD, LIMIT_S, ROOT, until_event
from test_incidents import COMPLETE, OOM_KILLED, RECORDED, STOPPED, XID, check_reason

from resilient.core.edges_ending import YIELD_S
from resilient.core.exit_codes import PREEMPTED, ExitCode
from resilient.kubernetes.manifest import write
from resilient.report.story import Story, read_story

STEPS, AT = 80, 7
"""Of the run, and the one in which something happens, or a later one if no checkpoint is there by then."""
TRAINING = (
    HEAD
    + f"""
import time
import light_torch
import torch.distributed as dist
import trainer

dist.init_process_group("gloo")
happens_here = os.environ["RANK"] == (HERE / "index").read_text()
JOURNAL = HERE.parent / "pods" / "1" / "journal" / "journal.jsonl"

def led_to(kind):
    return JOURNAL.exists() and f'"kind":"{{kind}}"' in JOURNAL.read_text().replace(" ", "")

def fault(step):
    time.sleep(0.01)  # what a step takes
    if step >= {AT} and happens_here and led_to("snapshot") and once("reached"):
        while not led_to("checkpoint"):
            time.sleep(0.01)
        (HERE / "at").write_text(str(step))
        print("reached", flush=True)
        exec((HERE / "told").read_text())  # a pipe: waits until something is told
    if happens_here and (HERE / "bug").exists() and step == int((HERE / "at").read_text()):
        raise KeyError("labels")

trainer.train("plain", {STEPS}, HERE / "result", fault=fault)
"""
)

Act = Callable[["Stage"], None]


def nothing(stage: Stage) -> None:
    stage.tell("")


def device_fault(stage: Stage) -> None:
    stage.tell(f"sys.stderr.write({XID!r} + chr(10)), sys.exit(1)")


def code_fault(stage: Stage) -> None:
    stage.bug.touch()
    stage.tell("")


def code_fault_seen_late(stage: Stage) -> None:
    """The Job controller is busy elsewhere until all pods have ended."""
    code_fault(stage)
    for pod in stage.pods:
        pod.running.process.wait(LIMIT_S)


def preemption(stage: Stage) -> None:
    stage.pod.evict()
    if stage.pod.index:
        until_event(stage.pods[0].running, "PeerAsked")
    stage.tell("")


def oom_kill(stage: Stage) -> None:
    stage.pod.kill()


def node_lost(stage: Stage) -> None:
    stage.pod.lose_node()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One row of the table."""

    act: Act
    index: int = 1
    """Of the pod to which it happens."""
    first: tuple[int | None, ...] = (0,)
    """How the pods of index 0 end."""
    second: tuple[int | None, ...] = (0,)
    """And those of index 1."""
    end: tuple[str, str] = COMPLETE
    nodes: tuple[str, ...] = ("node-a", "node-b", "node-c")
    before: str = ""
    """What a pod takes for the likely end of the one before it, where no word of that has reached the store."""


INCIDENTS: Final = {
    "device fault": Incident(act=device_fault, second=(194, 0)),
    "OOM kill of the pod that leads": Incident(act=oom_kill, index=0, first=(OOM_KILLED, 0), before="killed"),
}
SLOW: Final = {
    "preemption": Incident(act=preemption, second=(195, 0)),
    "preemption of the pod that leads": Incident(act=preemption, index=0, first=(195, 0)),
    "OOM kill": Incident(act=oom_kill, second=(OOM_KILLED, 0), before="killed"),
    "node lost": Incident(act=node_lost, second=(LOST, 0), before="evicted"),
    "node of the pod that leads lost": Incident(act=node_lost, index=0, first=(LOST, 0), before="evicted"),
    "device fault of the pod that leads": Incident(act=device_fault, index=0, first=(194, 0)),
    "denied node": Incident(act=device_fault, second=(194, 198, 0), nodes=("node-a", "node-b", "node-b", "node-c")),
}


class Stage:
    """A cluster with the training in its image, and what is to happen."""

    def __init__(self, path: Path, incident: Incident) -> None:
        self._incident = incident
        search = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
        self._cluster = Cluster(path / "cluster", incident.nodes, environ)
        self._image = self._cluster.image
        self.pods: list[RunningPod] = []
        """The first of each index, in order."""
        self.bug = self._image / "bug"
        """While this is there, the code of the training has a fault."""
        self._pipe = self._image / "told"
        os.mkfifo(self._pipe)
        (self._image / "index").write_text(str(incident.index))
        (self._image / "train.py").write_text(TRAINING)

    def submit(self) -> Submitted:
        given = submission(
            command=("--every", "2", "--snapshot-every", "2", "train.py"), devices=0, memory="1Gi", pods=2
        )
        return self._cluster.submit(write("indexed", given), self)

    def before(self, number: int, container: int) -> None:
        """Nothing has to be put in place."""

    def during(self, pod: RunningPod) -> None:
        if len(self.pods) == 2:
            return
        self.pods.append(pod)
        if len(self.pods) == 2:
            self.pod.running.until("reached")
            self._incident.act(self)

    @property
    def pod(self) -> RunningPod:
        """The one to which it happens."""
        return self.pods[self._incident.index]

    @property
    def at(self) -> int:
        """The step in which it happened."""
        return int((self._image / "at").read_text())

    def tell(self, code: str) -> None:
        """Let the worker that waits go on, and do this first."""
        self._pipe.write_text(code)

    @property
    def bits(self) -> list[str]:
        """The digests of all that was trained, of each rank that has trained to the end."""
        return [path.read_text() for path in sorted(self._image.glob("result.*"))]

    def story(self) -> Story:
        """As ``resilient explain`` tells it."""
        return read_story(str(self._cluster.claim / "train"), now_s=time.time())

    def debits(self, uid: str, index: int) -> list[int]:
        """The exits of an index that are on record, in order."""
        found = (self._cluster.claim / "train").glob(f"debits/{uid}/{index}/*.json")
        rows = [json.loads(path.read_bytes()) for path in found]
        return [row["code"] for row in sorted(rows, key=lambda row: row["attempt"])]


@pytest.fixture
def bits(once: Once) -> list[str]:
    """Of a run to which nothing happens."""

    def fill(folder: Path) -> None:
        incident = Incident(act=nothing)
        stage = Stage(folder, incident)
        check(stage, incident)
        (folder / "bits").write_text(" ".join(stage.bits))

    found = (once("gang-incident", fill) / "bits").read_text().split()
    assert len(found) == 2
    return found


@pytest.mark.parametrize("name", [*INCIDENTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_an_incident_of_one_pod_ends_as_the_contract_says(tmp_path: Path, bits: Sequence[str], name: str) -> None:
    """The pod to which it happens is replaced, the other one stays; then both finish, with every bit."""
    incident = (INCIDENTS | SLOW)[name]
    stage = Stage(tmp_path, incident)
    submitted = check(stage, incident)
    assert stage.bits == bits
    restored, saved = restore_of(submitted.of_index(0))
    if (
        ExitCode.PREEMPTED_SAVED in submitted.codes
    ):  # at the step that all finished: a late order finds them in the next
        assert restored == saved >= stage.at
    else:
        assert saved <= restored < stage.at
    check_story(stage.story(), submitted)
    guesses = [entry["likely"] for pod in submitted.pods for entry in pod.ended.entries("before")]
    assert guesses == [incident.before] * bool(incident.before)


def test_a_code_fault_of_one_pod_fails_the_job_by_that_one(tmp_path: Path) -> None:
    """It ends first, so that the Job says whose fault it is; the other one is still there when it is deleted for that,
    and whoever is asked to leave ends like that."""
    stage = Stage(tmp_path, Incident(act=code_fault))
    submitted = stage.submit()
    blamed, other = submitted.pods
    assert (blamed.index, blamed.code, other.index) == (1, 114, 0), other.ended.stderr
    assert other.code in PREEMPTED
    assert stage.debits(submitted.uid, 0) == [other.code]
    assert blamed.ended.termination["why"] in other.ended.termination["why"]
    check_stopped(submitted)


@pytest.mark.slow
def test_a_code_fault_that_nobody_sees_ends_both_pods(tmp_path: Path) -> None:
    """One after the other, with as much time between them as the Job controller may need to see the first."""
    submitted = Stage(tmp_path, Incident(act=code_fault_seen_late)).submit()
    blamed, other = submitted.pods
    assert (blamed.index, blamed.code, other.index, other.code) == (1, 114, 0, 114), other.ended.stderr
    decided = next(entry for entry in other.ended.entries("event") if "Dismiss" in kinds_of(entry))
    assert other.ended.journal[-1]["m"] - decided["m"] >= YIELD_S
    told = [{name: pod.ended.termination[name] for name in ("why", "rank", "node")} for pod in submitted.pods]
    assert told[0] == told[1]
    check_stopped(submitted)


def check(stage: Stage, incident: Incident) -> Submitted:
    """Let it happen, and hold what is the same for all against the table."""
    submitted = stage.submit()
    told = "\n".join(f"{pod.name}: {pod.ended.stderr}" for pod in submitted.pods)
    for index, codes in enumerate((incident.first, incident.second)):
        pods = submitted.of_index(index)
        assert tuple(pod.code for pod in pods) == codes, told
        assert stage.debits(submitted.uid, index) == [code for code in codes if code in RECORDED]
        for pod in pods:
            check_reason(pod)
    assert (submitted.end.type, submitted.end.reason) == incident.end
    return submitted


def check_story(story: Story, submitted: Submitted) -> None:
    """The attempts are those of the run, each told once, and of the pods that do not lead there is how they ended."""
    assert [attempt.number for attempt in story.attempts] == [1, 2]
    assert sum(attempt.standstill.seconds for attempt in story.attempts if attempt.standstill) <= (
        story.last_s - story.started_s
    )
    codes = {pod.pod: pod.exit.code if pod.exit else None for pod in story.others}
    killed = {LOST, OOM_KILLED}
    assert codes == {pod.name: None if pod.code in killed else pod.code for pod in submitted.of_index(1)}
    assert story.exit is not None
    assert story.exit.code == ExitCode.FINISHED


def kinds_of(entry: Mapping[str, Any]) -> set[str]:
    """Of the commands that followed an event."""
    return {command["type"] for command in entry["commands"]}


def check_stopped(submitted: Submitted) -> None:
    """It names the container of the pod that is to blame, and that says why."""
    (blamed,) = submitted.of_index(1)
    assert (submitted.end.type, submitted.end.reason) == STOPPED
    check_reason(blamed)
    assert f"pod default/{blamed.name} failed with exit code 114 " in submitted.end.message
    assert blamed.ended.termination["rank"] == 1
    assert "KeyError" in blamed.ended.termination["why"]


def restore_of(leaders: Sequence[PodEnd]) -> tuple[int, int]:
    """The step that the last attempt went on from, and the highest that was durable by then, as the pods that led the
    run know it."""
    entries = [entry for pod in leaders for entry in pod.ended.journal]
    last = max(at for at, entry in enumerate(entries) if entry["kind"] == "restore")
    return int(entries[last]["step"]), max(entry["step"] for entry in entries[:last] if entry["kind"] == "checkpoint")
