# SPDX-License-Identifier: Apache-2.0
"""A cluster for one pod at a time: the simulator is the Job controller, this is the kubelet, and the pods are real.

A container is a process group with the environment, the volumes and the termination log that its manifest asks for. It
is started again in its pod, with the volumes that it had, where its restart rules say so. How the pod ends is told to
the controller, which says whether another follows; its delays pass on a simulated clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from supervised import Ended, Running, descendants, until_event

from resilient.core.kube_job import Job, JobCondition, JobSpec, Pod, PodPhase
from resilient.core.kube_kubelet import end_containers
from resilient.core.kube_pod_failure import PodCondition
from resilient.core.kube_simulation import BATCH_S
from resilient.core.kube_sync import sync
from resilient.kubernetes.documents import read
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
        return tuple(pod.code for pod in self.pods)

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
        self.deleted = self.lost = False

    def evict(self) -> None:
        """It is deleted for a disruption, and asked to leave; returns when its supervisor knows."""
        self.deleted = True
        self.running.signal(signal.SIGTERM)
        until_event(self.running, "LeaveAsked")

    def kill(self) -> None:
        """The OOM killer of cgroup v2: all processes of the container at once, the supervisor included."""
        self.running.signal(signal.SIGSTOP)  # it is not to see the others go first
        for pid in descendants(self.running.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lose_node(self) -> None:
        """Nothing of it runs any more, and nobody is told; the Node goes, and then the pod is deleted and failed."""
        self.deleted = self.lost = True
        self.kill()

    def wait(self) -> Ended:
        """Its end; the kubelet kills what outlives its grace."""
        if self.deleted:
            try:
                self.running.process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.running.wait()

    def end(self, ended: Ended) -> PodEnd:
        code = 128 - ended.code if ended.code < 0 else ended.code
        begun = max(at for at, entry in enumerate(ended.journal) if entry["kind"] == "start")
        ended = dataclasses.replace(ended, journal=ended.journal[begun:])  # what lies before is an earlier container's
        return PodEnd(name=self.pod.name, node=self.node, code=LOST if self.lost else code, ended=ended)


class Script(Protocol):
    """What happens in the cluster besides."""

    def before(self, number: int, container: int) -> None:
        """A container of a pod is about to start."""

    def during(self, pod: RunningPod) -> None:
        """It has started, and nobody waits for its end before this returns."""


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
        """Create the Job and run its pods, one after the other, until it is Complete or Failed."""
        (document,) = read(manifest, "the manifest")
        spec = find_workload([document]).spec
        assert isinstance(spec, JobSpec)
        template = document.data["spec"]["template"]["spec"]
        job, uid, now_s, ends = Job(spec=spec), next(self._uids), 0.0, list[PodEnd]()
        while job.end is None:
            done = sync(job, now_s)
            job = done.job
            now_s += max(BATCH_S, done.wake_in_s or 0.0)
            for pod in done.created:
                assert len(ends) < MOST_PODS, [end.code for end in ends]
                number, node = next(self._numbers), next(self._nodes)
                with self._volumes(number) as place:
                    for container in itertools.count(1):
                        script.before(number, container)
                        with self._started(number, container, template, job, pod, uid, node, place) as running:
                            script.during(running)
                            end = running.end(running.wait())
                        ends.append(end)
                        now_s += POD_LASTS_S
                        job, is_over = _told(job, running, end, now_s)
                        if is_over:
                            break
        return Submitted(uid=uid, pods=tuple(ends), job=job)

    @contextlib.contextmanager
    def _volumes(self, number: int) -> Iterator[Path]:
        """Where a pod's own volumes lie, as long as it lives."""
        place = self._pods / str(number)
        try:
            yield place
        finally:
            shutil.rmtree(place)

    @contextlib.contextmanager
    def _started(
        self, number: int, container: int, template: Any, job: Job, pod: Pod, uid: str, node: str, place: Path
    ) -> Iterator[RunningPod]:
        """Volumes, environment and command, as the kubelet makes them."""
        (trainer,) = template["containers"]
        mounts = self._mounts(template, trainer, place)
        asked = _environment(trainer, _fields(job, pod, uid, node))
        environ = {**self._environ, **PLATFORM, **{name: _in_pod(value, mounts) for name, value in asked.items()}}
        environ["TMPDIR"] = str(mounts["/tmp"])
        journal = Path(environ["RESILIENT_JOURNAL"])
        environ["RESILIENT_TERMINATION_LOG"] = str(journal.with_suffix(".termination"))
        assert trainer["command"] == ["resilient", "run"]
        words = [re.sub(r"\$\((\w+)\)", lambda found: environ[found[1]], word) for word in trainer["args"]]
        command = [sys.executable, "-m", *trainer["command"], *words]
        grace_s = template["terminationGracePeriodSeconds"]
        with Running(command, self.image, journal, environ, group=True) as running:
            yield RunningPod(number, container, pod, node, running, grace_s)

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
    if running.deleted:
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
