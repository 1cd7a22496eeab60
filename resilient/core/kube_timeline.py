# SPDX-License-Identifier: Apache-2.0
"""What goes into a simulation and what comes out: how pods end, and what was done about it, line by line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from resilient.core.kube_ending import outcome
from resilient.core.kube_job import Job, JobCondition, Pod
from resilient.core.kube_jobset import JobSet, SetVerdict
from resilient.core.kube_pod_failure import Outcome, PodCondition

_NAMED_ONE_BY_ONE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How containers of one pod end. Endings of an index come one after the other, each to whatever runs there then."""

    at_s: float
    """On the simulated clock, or as soon as the pod runs if that is later."""
    codes: Mapping[str, int]
    """Exit codes of containers; the empty name is the main one."""
    index: int | None = None
    """The completion index; None for every one."""
    job: str = ""
    """A child Job of a JobSet, or the template that it is made from; empty for any."""
    conditions: tuple[PodCondition, ...] = ()
    deleted_s: float | None = None
    """When the pod was deleted before that: by an eviction, a preemption, a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """``spec.suspend`` is true for a while, as Kueue has it when it takes back what it admitted."""

    from_s: float
    to_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a timeline."""

    at_s: float
    event: str
    subject: str
    what: str
    job: str = ""
    """The Job that it concerns."""
    pods: tuple[str, ...] = ()
    """Those that were created or deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """All that came of it."""

    entries: tuple[Entry, ...]
    jobs: tuple[Job, ...]
    ended_s: float
    jobset: JobSet | None = None
    unused: tuple[Ending, ...] = ()
    """Endings for which no pod was left."""


@dataclass(slots=True)
class Endings:
    """The endings that are still to come, of each place in turn."""

    _given: dict[tuple[str, int | None], deque[Ending]] = field(default_factory=dict)

    @classmethod
    def of(cls, endings: Iterable[Ending], places: Sequence[tuple[str, str, int | None]]) -> Endings:
        """``places``: Job, template and index of all pods that can be at once; no index: in the order of creation."""
        queues = cls()
        indexes: dict[tuple[str, str], set[int | None]] = {}
        for job, template, index in places:
            indexes.setdefault((job, template), set()).add(index)
        for ending in sorted(endings, key=lambda one: one.at_s):
            for names, there in indexes.items():
                meant = there if ending.index is None or None in there else there & {ending.index}
                for index in meant if ending.job in ("", *names) else ():
                    queues._given.setdefault((names[0], index), deque()).append(ending)
        return queues

    def take(self, job: str, index: int | None) -> Ending | None:
        queue = self._given.get((job, index))
        return queue.popleft() if queue else None

    def put_back(self, job: str, index: int | None, ending: Ending) -> None:
        """It did not happen, as the pod went first; it is for the next one there."""
        self._given.setdefault((job, index), deque()).appendleft(ending)

    def rest(self) -> tuple[Ending, ...]:
        return tuple(ending for queue in self._given.values() for ending in queue)


@dataclass(slots=True)
class Story:
    """The lines of a timeline, as they are written."""

    now_s: float = 0.0
    entries: list[Entry] = field(default_factory=list)
    _waits: dict[str, float] = field(default_factory=dict)
    """Until when each Job waits, as far as that was told."""

    def tell(self, event: str, subject: str, what: str, job: str = "", pods: Sequence[Pod] = ()) -> None:
        names = tuple(pod.name for pod in pods)
        entry = Entry(at_s=self.now_s, event=event, subject=subject, what=what, job=job or subject, pods=names)
        self.entries.append(entry)

    def created(self, job: Job, pods: Sequence[Pod]) -> None:
        per_index = job.spec.backoff_limit_per_index is not None
        self._pods("created", job, pods, "created and started", [told_counters(pod, per_index) for pod in pods])

    def deleted(self, job: Job, pods: Sequence[Pod]) -> None:
        why = "the Job is suspended, and not counted" if job.spec.suspended else "that is one too many, and not counted"
        why = "the Job is ending" if job.conditions else why
        self._pods("deleted", job, pods, f"deleted with SIGTERM, as {why}", [""] * len(pods))

    def left_alone(self, name: str, owner: str | None) -> None:
        self.tell("left alone", name, f"managed by {owner}: the controller that would otherwise do it does nothing")

    def suspension(self, name: str, suspended: bool) -> None:
        said = "no pod is started before spec.suspend is false" if suspended else "its clock begins anew"
        event = "suspended" if suspended else "resumed"
        self.tell(event, name, f"{event}: {said}")

    def _pods(self, event: str, job: Job, pods: Sequence[Pod], done: str, more: Sequence[str]) -> None:
        """A line for each of a few, one for many."""
        if len(pods) > _NAMED_ONE_BY_ONE:
            said = f"{len(pods)} pods {done}: {pods[0].name} to {pods[-1].name}"
            self.tell(event, job.spec.name, said, job.spec.name, pods)
            return
        for pod, its in zip(pods, more, strict=True):
            self.tell(event, pod.name, f"{done}{its}", job.spec.name, [pod])

    def ended(self, job: Job, pod: Pod, how: str, said: Sequence[str]) -> None:
        more = list(said)
        if job.is_failed(pod) and pod.tracked and not job.conditions:
            more.append(told_outcome(pod, outcome(job, pod), job.spec.policy is not None))
        elif not pod.is_running and not more:
            more.append(f"the pod is {pod.phase.value}" if pod.tracked else "the pod is gone")
        self.tell("ended", pod.name, "; ".join([how, *more]), job.spec.name)

    def wait(self, job: Job, wait_s: float) -> None:
        """Once for each delay, whenever the controller looks."""
        until_s = round(self.now_s + wait_s, 3)
        if job.active or job.conditions or self._waits.get(job.spec.name) == until_s:
            return
        self._waits[job.spec.name] = until_s
        self.tell("waits", job.spec.name, f"back-off: no new pod for another {wait_s:g} s")


def told_outcome(pod: Pod, said: Outcome, has_policy: bool) -> str:
    """What the policy makes of a failed pod, in words."""
    if said.rule is None:
        why = "no rule matches" if has_policy else "there is no podFailurePolicy"
        return f"{why}: counted as a failure"
    assert said.action is not None  # a rule that matched has one
    meaning = {
        "FailJob": "the Job fails",
        "FailIndex": f"index {pod.index} fails",
        "Ignore": "replaced, not counted",
        "Count": "counted as a failure",
    }[said.action.value]
    return f"rule {said.rule} ({said.action.value}): {meaning}"


def told_condition(condition: JobCondition) -> str:
    why = f" ({condition.reason})" if condition.reason else ""
    return f"{condition.type}{why}: {condition.message}" if condition.message else f"{condition.type}{why}"


def told_codes(codes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ended with exit code {code}" for name, code in codes.items())


def told_counters(pod: Pod, per_index: bool) -> str:
    """The annotations by which a pod knows how often its index has failed."""
    if not per_index:
        return ""
    return f", index failures {pod.failure_count} counted, {pod.ignored_count} ignored"


def told_verdict(verdict: SetVerdict) -> str:
    """How a JobSet goes on after one of its Jobs has failed."""
    assert verdict.action is not None  # where it goes on there is one
    which = "no rule matches" if verdict.rule is None else f"rule {verdict.rule}"
    policy = verdict.jobset.spec.failure
    counted = f"{verdict.jobset.counted} of {policy.max_restarts if policy else 0}"
    return f"{which}: {verdict.action.value} because of {verdict.job}; restarts that count: {counted}"
