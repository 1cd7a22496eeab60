# SPDX-License-Identifier: Apache-2.0
"""A cluster for one Job at a time: the simulator is its controller, this is the kubelet and the DNS, the pods are real.

A container is a process group with the environment, the volumes and the termination log that its manifest asks for. It
is started again in its pod, with the volumes that it had, where its restart rules say so. How a pod ends is told to
the controller, which says whether another follows; its delays pass on a simulated clock. The name of the first of
several pods leads to this machine, and its port to one that is free here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from chaos_run import free_port
from supervised import LIMIT_S, Ended, Running, descendants, until_event

from resilient.core.kube_job import Job, JobCondition, JobSpec, Pod, PodPhase
from resilient.core.kube_kubelet import end_containers
from resilient.core.kube_pod_failure import PodCondition
from resilient.core.kube_simulation import BATCH_S
from resilient.core.kube_sync import sync
from resilient.kubernetes.documents import read
from resilient.kubernetes.pod import PORT
from resilient.kubernetes.simulated import find_workload

DISRUPTED: Final = PodCondition(type="DisruptionTarget")
LOST: Final = None
"""The code of a container whose node went away: nobody ever learns it."""
POD_LASTS_S: Final = 3600.0
"""On the simulated clock."""
MOST_PODS: Final = 60
"""More of one Job than anything in these tests may need: a loop without a bound ends here."""
PLATFORM: Final = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
"""What the kubelet gives every container, asked or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEnd:
    """What is known of a pod that has ended, or of a container that is started again."""

    name: str
    index: int
    node: str
    code: int | None
    ended: Ended
    """With what a lost pod never told anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A Job that is over."""

    uid: str
    pods: tuple[PodEnd, ...]
    job: Job

    @property
    def codes(self) -> tuple[int | None, ...]:
        """In the order in which the pods have ended."""
        return tuple(pod.code for pod in self.pods)

    def of_index(self, index: int) -> tuple[PodEnd, ...]:
        return tuple(pod for pod in self.pods if pod.index == index)

    @property
    def end(self) -> JobCondition:
        assert self.job.end is not None
        return self.job.end


class RunningPod:
    """A pod that runs, and what may become of it.

    ``number`` counts the pods of all Jobs of the cluster from 1 on, ``container`` the containers of the pod.
    """

    def __init__(self, number: int, container: int, pod: Pod, node: str, running: Running, grace_s: float) -> None:
        self.number, self.container, self.pod, self.node, self.running = number, container, pod, node, running
        self._grace_s = grace_s
        self.disrupted = self.lost = False

    @property
    def index(self) -> int:
        assert self.pod.index is not None
        return self.pod.index

    def evict(self) -> None:
        """It is deleted for a disruption, and asked to leave; returns when its supervisor knows."""
        self.disrupted = True
        self.delete()
        until_event(self.running, "LeaveAsked")

    def delete(self) -> None:
        """It is asked to leave, and killed when its grace is over."""
        self.running.signal(signal.SIGTERM)
        threading.Thread(target=self._kill_late, daemon=True).start()

    def _kill_late(self) -> None:
        try:
            self.running.process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """The OOM killer of cgroup v2: all processes of the container at once, the supervisor included."""
        self.running.signal(signal.SIGSTOP)  # it is not to see the others go first
        for pid in descendants(self.running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lose_node(self) -> None:
        """Nothing of it runs any more, and nobody is told; the Node goes, and then the pod is deleted and failed."""
        self.disrupted = self.lost = True
        self.kill()

    def tell_end(self, ended: queue.SimpleQueue[RunningPod]) -> None:
        """Put it there once it has ended."""

        def wait() -> None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # whoever waits for it has given up by then
                self.running.process.wait(LIMIT_S)
                ended.put(self)

        threading.Thread(target=wait, daemon=True).start()

    def end(self) -> PodEnd:
        ended = self.running.wait()
        code = 128 - ended.code if ended.code < 0 else ended.code
        begun = max(at for at, entry in enumerate(ended.journal) if entry["kind"] == "start")
        ended = dataclasses.replace(ended, journal=ended.journal[begun:])  # what lies before is an earlier container's
        return PodEnd(
            name=self.pod.name, index=self.index, node=self.node, code=LOST if self.lost else code, ended=ended
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One submission."""

    uid: str
    name: str
    template: Any
    port: int
    """Where the first of several pods is met."""


class Script(Protocol):
    """What happens in the cluster besides."""

    def before(self, number: int, container: int) -> None:
        """A container of a pod is about to start."""

    def during(self, pod: RunningPod) -> None:
        """It has started, and nobody waits for any pod's end before this returns."""


class Cluster:
    """A folder with the image's files, a claim for checkpoints, and the nodes on which pods are put one after another.

    The last node takes all further pods. ``environ`` is what the image itself sets.
    """

    def __init__(self, path: Path, nodes: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self.image, self.claim, self._pods = path / "image", path / "claim", path / "pods"
        for directory in (self.image, self.claim, self._pods):
            directory.mkdir(parents=True)
        self._environ = environ
        self._nodes = itertools.chain(nodes, itertools.repeat(nodes[-1]))
        self._numbers = itertools.count(1)
        self._uids = (f"job-uid-{number}" for number in itertools.count(1))

    def submit(self, manifest: str, script: Script) -> Submitted:
        """Create the Job and run its pods until it is Complete or Failed."""
        documents = read(manifest, "the manifest")
        spec = find_workload(documents).spec
        assert isinstance(spec, JobSpec)
        (template,) = (one.data["spec"]["template"]["spec"] for one in documents if one.data["kind"] == "Job")
        asked = _Asked(uid=next(self._uids), name=spec.name, template=template, port=free_port())
        job, now_s, ends = Job(spec=spec), 0.0, list[PodEnd]()
        running, ended = dict[str, RunningPod](), queue.SimpleQueue[RunningPod]()
        with contextlib.ExitStack() as stack:

            def start(pod: Pod, number: int, container: int, node: str) -> RunningPod:
                script.before(number, container)
                begun = self._started(asked, job, pod, number, container, node)
                stack.enter_context(begun.running)
                begun.tell_end(ended)
                running[pod.name] = begun
                return begun

            while job.end is None:
                before, done = job, sync(job, now_s)
                job = done.job
                now_s += max(BATCH_S, done.wake_in_s or 0.0)
                for pod in done.deleted:
                    running[pod.name].delete()
                for begun in [start(pod, next(self._numbers), 1, next(self._nodes)) for pod in done.created]:
                    script.during(begun)
                if job != before or done.wake_in_s is not None:
                    continue
                one = ended.get(timeout=LIMIT_S)
                ends.append(one.end())
                assert len(ends) < MOST_PODS, [end.code for end in ends]
                now_s += POD_LASTS_S
                job, is_over = _told(job, one, ends[-1], now_s)
                if is_over:
                    shutil.rmtree(self._volumes(one.number))
                else:
                    script.during(start(one.pod, one.number, one.container + 1, one.node))
        return Submitted(uid=asked.uid, pods=tuple(ends), job=job)

    def _volumes(self, number: int) -> Path:
        """Where a pod's own volumes lie, as long as it lives."""
        return self._pods / str(number)

    def _started(self, asked: _Asked, job: Job, pod: Pod, number: int, container: int, node: str) -> RunningPod:
        """Volumes, environment and command, as the kubelet makes them."""
        (trainer,) = asked.template["containers"]
        mounts = self._mounts(asked.template, trainer, self._volumes(number))
        told = _environment(trainer, _fields(job, pod, asked.uid, node))
        environ = {**self._environ, **PLATFORM, **{name: _in_pod(value, mounts) for name, value in told.items()}}
        environ["TMPDIR"] = str(mounts["/tmp"])
        journal = Path(environ["RESILIENT_JOURNAL"])
        environ["RESILIENT_TERMINATION_LOG"] = str(journal.with_suffix(".termination"))
        assert trainer["command"] == ["resilient", "run"]
        words = [re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], word) for word in trainer["args"]]
        command = [sys.executable, "-m", *trainer["command"], *_resolved(words, asked)]
        grace_s = asked.template["terminationGracePeriodSeconds"]
        return RunningPod(
            number, container, pod, node, Running(command, self.image, journal, environ, group=True), grace_s
        )

    def _mounts(self, template: Any, trainer: Any, place: Path) -> dict[str, Path]:
        """Where what is mounted really lies, memory on a disk. /dev/shm is this machine's own."""
        volumes = {volume["name"]: volume for volume in template["volumes"]}
        mounts = {}
        for mount in trainer["volumeMounts"]:
            volume = volumes[mount["name"]]
            if mount["mountPath"] == "/dev/shm":
                continue
            is_claim = "persistentVolumeClaim" in volume
            mounts[mount["mountPath"]] = self.claim if is_claim else place / mount["name"]
            mounts[mount["mountPath"]].mkdir(parents=True, exist_ok=True)
        return mounts


def _fields(job: Job, pod: Pod, uid: str, node: str) -> dict[str, str]:
    """What the downward API knows of the pod; an annotation that is not there is an empty text."""
    annotation = "metadata.annotations['batch.kubernetes.io/{}']".format
    return {
        "metadata.labels['batch.kubernetes.io/controller-uid']": uid,
        annotation("job-completion-index"): str(pod.index),
        annotation("job-index-failure-count"): str(pod.failure_count),
        annotation("job-index-ignored-failure-count"): str(pod.ignored_count or ""),
        "spec.nodeName": node,
        "metadata.name": pod.name,
        "metadata.uid": f"{uid}-{pod.name}",
        "metadata.namespace": job.spec.namespace,
    }


def _environment(trainer: Any, fields: Mapping[str, str]) -> dict[str, str]:
    return {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in trainer["env"]
    }


def _resolved(words: Sequence[str], asked: _Asked) -> list[str]:
    """The name and the port of the first pod, as everything is on this machine."""
    here = {
        "--master-addr": (f"{asked.name}-0.{asked.template.get('subdomain')}", "localhost"),
        "--master-port": (str(PORT), str(asked.port)),
    }
    resolved = [*words]
    for at, word in enumerate(words):
        if word in here:
            there, resolved[at + 1] = here[word]
            assert words[at + 1] == there
    return resolved


def _in_pod(value: str, mounts: Mapping[str, Path]) -> str:
    """The value, and where it is a path below a mount, the path of what is mounted there."""
    for path, place in mounts.items():
        if value == path or value.startswith(f"{path}/"):
            return str(place) + value.removeprefix(path)
    return value


def _told(job: Job, running: RunningPod, end: PodEnd, now_s: float) -> tuple[Job, bool]:
    """The Job once the API server knows of the end, by the kubelet, or of a lost node by the pod garbage collector; and
    whether that was the pod's, too."""
    pod = next(pod for pod in job.live if pod.name == end.name)
    if running.disrupted:
        pod = dataclasses.replace(pod, deleted_s=now_s, conditions=(DISRUPTED,))
    template = job.spec.template
    is_over = True
    if end.code is LOST:
        pod = dataclasses.replace(pod, phase=PodPhase.FAILED, finished_s=now_s)
    else:
        ended = end_containers(pod, template, {template.main.name: end.code}, now_s)
        pod, is_over = ended.pod, ended.runs_again_s is None
    live = tuple(pod if other.name == pod.name else other for other in job.live)
    return dataclasses.replace(job, live=live), is_over
