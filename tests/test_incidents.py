# SPDX-License-Identifier: Apache-2.0
"""Whole incidents: a generated manifest, real supervisors, the simulator as Job controller, and what comes of it all.

Every run makes the same few steps. In one of them its first pod stops and waits to be told what is to go wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cluster import LOST, MOST_PODS, Cluster, PodEnd, RunningPod, Submitted
from failing_store import VARIABLE, plugin
from once import Once
from submissions import submission
from supervised import HEAD, ROOT

from resilient.core.exit_codes import ExitCode
from resilient.kubernetes.manifest import write

STEPS, AT = 12, 7
"""Of the run, and the one in which something happens."""
OOM_KILLED = 137
COMPLETE, STOPPED = ("Complete", "CompletionsReached"), ("Failed", "PodFailurePolicy")
RECORDED = range(193, 199)
"""Codes that the controller ignores, or the kubelet answers with another container."""
GIVEN_UP = ("Failed", "MaxFailedIndexesExceeded")
TRAINING = (
    HEAD
    + f"""
import light_torch
import trainer

def fault(step):
    if step == {AT} and once("reached"):
        print("reached", flush=True)
        exec((HERE / "told").read_text())  # a pipe: waits until something is told
    if step == {AT} and (HERE / "bug").exists():
        raise KeyError("labels")
    if step == {AT} and (HERE / "stale").exists():
        raise OSError(71, "Protocol error")

trainer.train("plain", {STEPS}, HERE / "result", fault=fault)
"""
)
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, name=python, GPU has fallen off the bus."


Act = Callable[["Stage", RunningPod], None]


def nothing(stage: Stage, pod: RunningPod) -> None:
    stage.tell("")


def device_fault(stage: Stage, pod: RunningPod) -> None:
    stage.tell(f"sys.stderr.write({XID!r} + chr(10)), sys.exit(1)")


def code_fault(stage: Stage, pod: RunningPod) -> None:
    stage.bug.touch()
    stage.tell("")


def stale_container(stage: Stage, pod: RunningPod) -> None:
    """What no restart in place cures, but a fresh container does."""
    stage.stale.touch()
    stage.tell("")


def preemption(stage: Stage, pod: RunningPod) -> None:
    pod.evict()
    stage.tell("")


def oom_kill(stage: Stage, pod: RunningPod) -> None:
    pod.kill()


def node_lost(stage: Stage, pod: RunningPod) -> None:
    pod.lose_node()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One row of the table."""

    act: Act
    codes: tuple[tuple[int | None, ...], ...]
    """Of the pods of each Job that is submitted; the code's fault is mended before the second."""
    ends: tuple[tuple[str, str], ...] = (COMPLETE,)
    nodes: tuple[str, ...] = ("node-a", "node-b")
    away: range = range(0)
    """The pods that have no checkpoint store: the first from the moment on in which it happens, others all the time. In
    a third container it is back."""
    in_place: bool = False
    """The kubelet restarts containers by rules."""
    before: str = ""
    """What a later pod takes for the likely end of the first, where no word of it has reached the store."""


INCIDENTS: Final = {
    "device fault": Incident(act=device_fault, codes=((194, 0),)),
    "code fault, and submitted again": Incident(act=code_fault, codes=((114,), (0,)), ends=(STOPPED, COMPLETE)),
    "preemption": Incident(act=preemption, codes=((195, 0),)),
    "OOM kill": Incident(act=oom_kill, codes=((OOM_KILLED, 0),), before="killed"),
    "node lost": Incident(act=node_lost, codes=((LOST, 0),), before="evicted"),
    "denied node": Incident(act=device_fault, codes=((194, 198, 0),), nodes=("node-a", "node-a", "node-b")),
}
SLOW: Final = {
    "stale container": Incident(act=stale_container, codes=((193, 0),), in_place=True),
    "store lost, stale container": Incident(
        act=stale_container, codes=((193, 193, 0),), in_place=True, away=range(1, 2), before="killed"
    ),
    "no node but the denied": Incident(act=device_fault, codes=((194, 198, 198, 198, 0),), nodes=("node-a",)),
    "store lost": Incident(act=nothing, codes=((0,),), away=range(1, 2)),
    "store lost, device fault": Incident(act=device_fault, codes=((194, 193, 0),), away=range(1, 3), before="killed"),
    "store lost, code fault, and submitted again": Incident(
        act=code_fault, codes=((114,), (193, 0)), ends=(STOPPED, COMPLETE), away=range(1, 3)
    ),
    "store lost, preemption": Incident(act=preemption, codes=((196, 193, 0),), away=range(1, 3), before="killed"),
    "store lost, OOM kill": Incident(act=oom_kill, codes=((OOM_KILLED, 193, 0),), away=range(1, 3), before="killed"),
    "store lost, node lost": Incident(act=node_lost, codes=((LOST, 193, 0),), away=range(1, 3), before="killed"),
    "store lost, denied node": Incident(
        act=device_fault,
        codes=((194, 193, 198, 0),),
        nodes=("node-a", "node-a", "node-a", "node-b"),
        away=range(2, 3),
    ),
    # Twenty ends that nobody could record; then none is trusted to a rule that ignores, and the backstop is reached.
    "store lost for ever, device fault": Incident(
        act=device_fault, codes=((194, *[193] * 20, 199),), ends=(GIVEN_UP,), away=range(1, MOST_PODS)
    ),
}


class Stage:
    """A cluster with the training in its image, a checkpoint store that can be taken away, and what is to happen."""

    def __init__(self, path: Path, incident: Incident) -> None:
        path.mkdir(exist_ok=True)
        environ = plugin(path, ROOT) | {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        self._incident = incident
        self._cluster = Cluster(path / "cluster", incident.nodes, environ)
        self._outage = Path(environ[VARIABLE])
        self._image = self._cluster.image
        self.bug = self._image / "bug"
        """While this is there, the code of the training has a fault."""
        self.stale = self._image / "stale"
        """While this is there, the container that first met it is of no use."""
        self._pipe = self._image / "told"
        os.mkfifo(self._pipe)
        (self._image / "train.py").write_text(TRAINING)

    def submit(self) -> Submitted:
        """The corrected code, but for the first time."""
        self.bug.unlink(missing_ok=True)
        url = f"failing://{self._store}" if self._incident.away else None
        given = submission(
            command=("--every", "2", "--snapshot-every", "2", "--store-patience", "1s", "train.py"),
            devices=0,
            memory="1Gi",
            claim=None if url else "checkpoints",
            checkpoints=url,
            restart_rules=self._incident.in_place,
        )
        return self._cluster.submit(write("job", given), self)

    def before(self, number: int, container: int) -> None:
        if container > 1:
            self.stale.unlink(missing_ok=True)
        is_away = number in self._incident.away and container < 3 and (number, container) != (1, 1)
        self._outage.write_text("denied" if is_away else "")

    def during(self, pod: RunningPod) -> None:
        if (pod.number, pod.container) != (1, 1):
            return
        pod.running.until("reached")
        if pod.number in self._incident.away:
            self._outage.write_text("denied")
        self._incident.act(self, pod)

    def tell(self, code: str) -> None:
        """Let the worker that waits go on, and do this first."""
        self._pipe.write_text(code)

    @property
    def bits(self) -> str | None:
        """The digest of all that was trained, if it was trained to the end."""
        path = self._image / "result.0"
        return path.read_text() if path.exists() else None

    def debits(self, uid: str) -> list[int]:
        """The exits of a Job that are on record, in order."""
        rows = [json.loads(path.read_bytes()) for path in self._store.glob(f"debits/{uid}/*/*.json")]
        return [row["code"] for row in sorted(rows, key=lambda row: row["attempt"])]

    @property
    def _store(self) -> Path:
        """Where the checkpoints lie, by whatever name the manifest has for it."""
        return self._cluster.claim / "train"


@pytest.fixture
def bits(once: Once) -> str:
    """Of a run to which nothing happens."""

    def fill(folder: Path) -> None:
        incident = Incident(act=nothing, codes=((0,),))
        stage = Stage(folder, incident)
        check(stage, incident)
        assert stage.bits is not None
        (folder / "bits").write_text(stage.bits)

    return (once("incident", fill) / "bits").read_text()


@pytest.mark.parametrize("name", [*INCIDENTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_an_incident_ends_as_the_contract_says(tmp_path: Path, bits: str, name: str) -> None:
    """Every pod by its code, the Job by its condition, and a finished training with every bit."""
    incident = (INCIDENTS | SLOW)[name]
    stage = Stage(tmp_path, incident)
    submitted = check(stage, incident)
    assert stage.bits == (bits if submitted.codes[-1] == 0 else None)
    if not incident.away:
        assert stage.debits(submitted.uid) == [code for code in submitted.codes if code in RECORDED]


def check(stage: Stage, incident: Incident) -> Submitted:
    """Let it happen, and hold everything but the bits against the table; gives the last Job."""
    jobs = []
    for codes in incident.codes:
        jobs.append(stage.submit())
        assert jobs[-1].codes == codes, "\n".join(pod.ended.stderr for pod in jobs[-1].pods)
    assert tuple((job.end.type, job.end.reason) for job in jobs) == incident.ends
    pods = [pod for job in jobs for pod in job.pods]
    for pod in pods:
        check_reason(pod)
    if len(pods) > 1 and pods[-1].code == 0:
        (restored,) = pods[-1].ended.entries("restore")
        assert (restored["name"] == "memory") is any(pod.ended.entries("kept") for pod in pods)
        saved = max(saved_steps(pods[0]), default=0)
        if (
            pods[0].code == ExitCode.PREEMPTED_SAVED
        ):  # at the step that all finished: a late order finds them in the next
            assert restored["step"] == saved >= AT
        else:
            assert saved <= restored["step"] <= AT
    # Steps may go by before the supervisor has named a boundary: then there is nothing to leave.
    kept = [entry["why"] for pod in pods for entry in pod.ended.entries("kept")]
    adopted = [entry["why"] for pod in pods for entry in pod.ended.entries("adopted")]
    assert adopted == kept[:1]
    assert incident.in_place or not kept
    guesses = [entry["likely"] for pod in pods for entry in pod.ended.entries("before")]
    assert guesses == [incident.before] * bool(incident.before)
    return jobs[-1]


def saved_steps(pod: PodEnd) -> set[int]:
    """Those after which its state became durable."""
    return {entry["step"] for entry in pod.ended.entries("checkpoint")}


def check_reason(pod: PodEnd) -> None:
    """An exit carries its reason: in the termination message and on stderr; whoever was killed left none."""
    said = pod.ended.termination
    if pod.code in (LOST, OOM_KILLED):
        assert said == {}
        return
    assert (said["code"], said["node"]) == (pod.code, pod.node)
    assert list(said)[:2] == ["why", "do"]
    assert said["why"] in pod.ended.stderr
