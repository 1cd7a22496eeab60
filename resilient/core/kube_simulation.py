# SPDX-License-Identifier: Apache-2.0
"""A simulated clock that runs the controllers and the kubelet over a list of endings.

It owns nothing but the order of things: what happens is decided by :mod:`resilient.core.kube_sync`,
:mod:`resilient.core.kube_kubelet` and :mod:`resilient.core.kube_jobset`. Pods run at once when they are made:
scheduling and images take no time. A pod that is deleted is gone after its grace period at the latest.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from resilient.core.kube_ending import look_at
from resilient.core.kube_job import Job, JobSpec, Pod
from resilient.core.kube_jobset import RESTARTS_ALL, JobSet, JobSetSpec, ReplicatedJob, completed, judge, may_start
from resilient.core.kube_kubelet import end_containers, kill
from resilient.core.kube_pod_failure import PodCondition
from resilient.core.kube_sync import is_left_alone, sync
from resilient.core.kube_timeline import (
    Ending,
    Endings,
    Simulation,
    Story,
    Suspension,
    told_codes,
    told_condition,
    told_verdict,
)

BATCH_S: Final = 1.0
"""The controller looks at a Job so long after something has happened to its pods."""


def simulate(
    workload: JobSpec | JobSetSpec, endings: Sequence[Ending], suspensions: Sequence[Suspension] = ()
) -> Simulation:
    """Run a Job or a JobSet until nothing happens any more."""
    run = _Run(workload=workload, endings=Endings.of(endings, _places(workload)))
    run.begin(suspensions)
    while run.due:
        run.now_s, _, happen = heapq.heappop(run.due)
        run.story.now_s = run.now_s
        happen()
    jobs = tuple(run.jobs.values())
    return Simulation(
        entries=tuple(run.story.entries), jobs=jobs, ended_s=run.now_s, jobset=run.jobset, unused=run.endings.rest()
    )


def _places(workload: JobSpec | JobSetSpec) -> list[tuple[str, str, int | None]]:
    if isinstance(workload, JobSpec):
        return [(workload.name, "", index) for index in _indexes(workload)]
    return [
        (name, one.name, index)
        for one in workload.replicated
        for name in one.names(workload.name)
        for index in _indexes(one.job)
    ]


def _indexes(spec: JobSpec) -> list[int | None]:
    return list(range(spec.completions or 0)) if spec.is_indexed else [None]


@dataclass(slots=True, kw_only=True)
class _Run:
    workload: JobSpec | JobSetSpec
    endings: Endings
    now_s: float = 0.0
    jobs: dict[str, Job] = field(default_factory=dict)
    leaving: dict[str, set[str]] = field(default_factory=dict)
    """Of Jobs that were deleted: pods that have not ended yet."""
    jobset: JobSet | None = None
    story: Story = field(default_factory=Story)
    due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    held: dict[str, Ending] = field(default_factory=dict)
    """What is to come for pods that run."""
    _number: int = 0
    _looks: dict[str, float] = field(default_factory=dict)
    _lives: dict[str, int] = field(default_factory=dict)
    """How often a Job of that name has been made."""
    _pods_made: dict[str, int] = field(default_factory=dict)
    """By those that were deleted: no two pods have one name."""

    def begin(self, suspensions: Sequence[Suspension]) -> None:
        for suspension in suspensions:
            self._at(suspension.from_s, partial(self._suspend, True))
            if suspension.to_s is not None:
                self._at(suspension.to_s, partial(self._suspend, False))
        at_once = self.workload.suspended or any(suspension.from_s == 0 for suspension in suspensions)
        if isinstance(self.workload, JobSpec):
            self._make_job(dataclasses.replace(self.workload, suspended=at_once))
        else:
            self.jobset = JobSet(spec=dataclasses.replace(self.workload, suspended=at_once))
            self._make_jobs()
        if self._is_left_alone():
            assert isinstance(self.workload, JobSetSpec)
            self.story.left_alone(self.workload.name, self.workload.left_to)
        elif at_once:
            self.story.suspension(self.workload.name, suspended=True)

    def _suspend(self, suspended: bool) -> None:
        """Somebody sets ``spec.suspend``; of a JobSet its controller passes it on."""
        whole = self.jobset or next(iter(self.jobs.values()))
        if whole.spec.suspended == suspended or whole.end is not None or self._is_left_alone():
            return
        self.story.suspension(whole.spec.name, suspended)
        for name, job in self.jobs.items():
            self.jobs[name] = dataclasses.replace(job, spec=dataclasses.replace(job.spec, suspended=suspended))
            self._look(name, self.now_s)
        if self.jobset is not None:
            spec = dataclasses.replace(self.jobset.spec, suspended=suspended)
            self.jobset = dataclasses.replace(self.jobset, spec=spec)
            self._make_jobs()

    # Time

    def _at(self, moment_s: float, happen: Callable[[], None]) -> None:
        self._number += 1  # of two things at one moment the first planned happens first
        heapq.heappush(self.due, (max(moment_s, self.now_s), self._number, happen))

    # Jobs

    def _make_job(self, spec: JobSpec) -> None:
        self._lives[spec.name] = self._lives.get(spec.name, 0) + 1
        self._looks.pop(spec.name, None)
        self.jobs[spec.name] = Job(spec=spec, created_s=self.now_s, pods_made=self._pods_made.get(spec.name, 0))
        if is_left_alone(self.jobs[spec.name]):
            self.story.left_alone(spec.name, spec.managed_by)
        self._look(spec.name, self.now_s)

    def _look(self, name: str, moment_s: float) -> None:
        """Have the controller look at a Job then; one look is planned at a time, the earliest."""
        planned_s = self._looks.get(name)
        if planned_s is not None and planned_s <= moment_s:
            return
        self._looks[name] = moment_s
        life = self._lives[name]
        self._at(moment_s, partial(self._sync, name, life, moment_s))

    def _sync(self, name: str, life: int, planned_s: float) -> None:
        if self._lives.get(name) != life or self._looks.get(name) != planned_s or name not in self.jobs:
            return  # of a Job that is gone, or an earlier look was planned since
        del self._looks[name]
        before = self.jobs[name]
        done = sync(before, self.now_s)
        self.jobs[name] = done.job
        self.story.created(done.job, done.created)
        for condition in done.job.conditions[len(before.conditions) :]:
            self.story.tell("condition", name, told_condition(condition))
        if not before.conditions and done.job.conditions and len(stops := look_at(before).stops) > 1:
            said = f"{len(stops)} pods match a FailJob rule at once: a cluster may name any of them"
            self.story.tell("note", name, said)
        self.story.deleted(done.job, done.deleted)
        for pod in done.created:
            self._run_pod(name, pod.name, self.now_s)
        for pod in done.deleted:
            self._at(self.now_s + done.job.spec.template.grace_s, partial(self._kill, name, life, pod.name))
        if done.wake_in_s is not None:
            self.story.wait(done.job, done.wake_in_s)
            self._look(name, self.now_s + max(BATCH_S, done.wake_in_s))
        if done.job != before:
            self._look(name, self.now_s + BATCH_S)
        if done.job.end is not None and before.end is None and self.jobset is not None:
            self._reconcile()
        self._make_jobs()

    # Pods

    def _run_pod(self, job: str, name: str, from_s: float) -> None:
        """Plan what the next ending of its place says."""
        pod = self._pod(job, name)
        ending = None if pod is None else self.endings.take(job, pod.index)
        if ending is None:
            return
        life = self._lives[job]
        self.held[name] = ending
        if ending.deleted_s is not None:
            self._at(max(from_s, ending.deleted_s), partial(self._delete, job, life, name, ending.conditions))
        self._at(max(from_s, ending.at_s), partial(self._end, job, life, name, ending))

    def _pod(self, job: str, name: str) -> Pod | None:
        pods = self.jobs[job].live if job in self.jobs else ()
        return next((pod for pod in pods if pod.name == name), None)

    def _is_there(self, job: str, life: int, name: str) -> bool:
        """Whether the pod still runs. One of a Job that was deleted only has to be gone."""
        if self._lives.get(job) == life and job in self.jobs:
            pod = self._pod(job, name)
            return pod is not None and pod.is_running
        self._gone(job, name)
        return False

    def _put(self, job: str, pod: Pod) -> None:
        """The pod as it is now; one that was deleted and counted is there no longer once it has ended."""
        pods = (pod if other.name == pod.name else other for other in self.jobs[job].live)
        self.jobs[job] = dataclasses.replace(self.jobs[job], live=tuple(one for one in pods if not one.is_gone))
        self._look(job, self.now_s + BATCH_S)

    def _delete(self, job: str, life: int, name: str, conditions: tuple[PodCondition, ...]) -> None:
        if not self._is_there(job, life, name):
            return
        pod = self._pod(job, name)
        assert pod is not None
        if pod.deleted_s is not None:
            return
        self._put(job, dataclasses.replace(pod, deleted_s=self.now_s, conditions=(*pod.conditions, *conditions)))
        why = "".join(f", {condition.type}={condition.status}" for condition in conditions)
        self.story.tell("terminating", name, f"deleted{why}: it is terminating", job)
        self._at(self.now_s + self.jobs[job].spec.template.grace_s, partial(self._kill, job, life, name))

    def _end(self, job: str, life: int, name: str, ending: Ending) -> None:
        if not self._is_there(job, life, name):
            return
        pod = self._pod(job, name)
        assert pod is not None
        self.held.pop(name, None)
        template = self.jobs[job].spec.template
        codes = {container or template.main.name: code for container, code in ending.codes.items()}
        conditions = ending.conditions if ending.deleted_s is None else ()
        done = end_containers(pod, template, codes, self.now_s, conditions)
        self._put(job, done.pod)
        self.story.ended(self.jobs[job], done.pod, told_codes(codes), done.said)
        if done.pod.is_running:
            self._run_pod(job, name, self.now_s if done.runs_again_s is None else done.runs_again_s)

    def _kill(self, job: str, life: int, name: str) -> None:
        if not self._is_there(job, life, name):
            return
        pod = self._pod(job, name)
        assert pod is not None
        ending = self.held.pop(name, None)
        if ending is not None and ending.deleted_s is None:
            self.endings.put_back(job, pod.index, ending)
        killed = kill(pod, self.jobs[job].spec.template, self.now_s)
        self._put(job, killed)
        self.story.ended(self.jobs[job], killed, "its grace period is over: what still ran is killed", ())

    # JobSets

    def _is_left_alone(self) -> bool:
        return self.jobset is not None and self.jobset.spec.left_to is not None

    def _make_jobs(self) -> None:
        """Those that are missing, may start, and whose predecessors' pods are gone; of a suspended set suspended."""
        jobset = self.jobset
        if jobset is None or jobset.end is not None or self._is_left_alone():
            return
        blocks = jobset.spec.failure is not None and jobset.spec.failure.waits_for_all
        if blocks and any(self.leaving.values()):
            return
        for one in jobset.spec.replicated:
            for name in one.names(jobset.spec.name):
                if name not in self.jobs and not self.leaving.get(name) and may_start(jobset, one, self.jobs):
                    self._make_job(_child(one, name, jobset))

    def _reconcile(self) -> None:
        """Look at the set after a Job of it has ended."""
        jobset = self.jobset
        if jobset is None or jobset.end is not None:
            return
        failed = [job for job in self.jobs.values() if job.condition("Failed") is not None]
        if not failed:
            complete = [job for job in self.jobs.values() if job.condition("Complete") is not None]
            self.jobset = completed(jobset, complete, self.now_s)
        else:
            verdict = judge(jobset, failed, self.now_s)
            self.jobset = verdict.jobset
            if not verdict.is_end and verdict.action is not None:
                self.story.tell("restart", jobset.spec.name, told_verdict(verdict))
                for name in list(self.jobs) if verdict.action in RESTARTS_ALL else [verdict.job]:
                    self._delete_job(name)
        if self.jobset.end is not None:
            self.story.tell("condition", jobset.spec.name, told_condition(self.jobset.end))
            for name in [name for name, job in self.jobs.items() if job.end is None]:
                self._delete_job(name)

    def _delete_job(self, name: str) -> None:
        """Its pods go with it: those that run get SIGTERM, and end within their grace period."""
        job = self.jobs.pop(name)
        self._pods_made[name] = job.pods_made
        running = [pod for pod in job.live if pod.is_running]
        self.leaving[name] = {pod.name for pod in running}
        self.story.tell("removed", name, f"deleted, with {len(job.pods)} pods, of which {len(running)} still run")
        for pod in running:
            deleted_s = self.now_s if pod.deleted_s is None else pod.deleted_s
            ends_s = deleted_s + job.spec.template.grace_s
            self._at(ends_s, partial(self._gone, name, pod.name))
            ending = self.held.pop(pod.name, None)
            if ending is not None and ending.at_s > ends_s:
                self.endings.put_back(name, pod.index, ending)

    def _gone(self, job: str, name: str) -> None:
        if name in self.leaving.get(job, ()):
            self.leaving[job].discard(name)
            if not self.leaving[job]:
                self.story.tell("gone", job, "the last pod of the deleted Job is gone")
                self._make_jobs()


def _child(one: ReplicatedJob, name: str, jobset: JobSet) -> JobSpec:
    spec = jobset.spec
    return dataclasses.replace(one.job, name=name, namespace=spec.namespace, suspended=spec.suspended)
