# SPDX-License-Identifier: Apache-2.0
"""What in a set of manifests can be simulated: a Job, a CronJob's, a JobSet, a TrainJob or its runtime.

A TrainJob becomes a JobSet of its name, made from the runtime that it refers to, which must be among the manifests.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from resilient.core.kube_job import JobSpec
from resilient.core.kube_jobset import FailurePolicy, JobSetSpec, ReplicatedJob, SetAction, SetRule
from resilient.errors import SettingsError
from resilient.kubernetes.documents import Document
from resilient.kubernetes.job_specs import IN_JOBSET, MOST_PODS, job_spec
from resilient.kubernetes.parts import Part, refusal

_STEP_LABEL: Final = "trainer.kubeflow.org/trainjob-ancestor-step"
_JOBSET_CONTROLLER: Final = "jobset.sigs.k8s.io/jobset-controller"
_TRAINER_CONTROLLER: Final = "trainer.kubeflow.org/trainjob-controller"
_MOST_PATTERN_CHARS: Final = 200
_REPEATED_GROUP: Final = re.compile(r"(?<!\\)(?:\\\\)*\)[*+{?]|\\[1-9]|\(\?[=!<P]")
"""What RE2 does in a moment, or not at all, and this machine's engine perhaps never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Something that runs pods, by the name that people know it by."""

    kind: str
    name: str
    spec: JobSpec | JobSetSpec


def find_workload(documents: Sequence[Document], name: str = "") -> Workload:
    """The one workload of these manifests, or the one of that name."""
    parts = [found for document in documents for found in _parts(Part(document=document, data=document.data))]
    found = [(kind, part) for kind, part in parts if kind in _READERS]
    if any(kind == "TrainJob" for kind, _ in found):
        found = [(kind, part) for kind, part in found if kind not in _RUNTIMES]
    names = [f"{kind}/{_name(part)}" for kind, part in found]
    chosen = [one for one, known in zip(found, names, strict=True) if name in ("", known, known.partition("/")[2])]
    if not found:
        raise SettingsError(
            "cannot simulate: there is no Job, CronJob, JobSet, TrainJob or training runtime in these files; give one"
        )
    if len(chosen) != 1:
        listed = ", ".join(names)
        raise refusal(f"cannot simulate: {len(chosen)} workloads are meant; choose one by --name from {listed}")
    kind, part = chosen[0]
    spec = _READERS[kind](part, [part for _, part in parts])
    return Workload(kind=kind, name=_name(part), spec=spec)


def _parts(part: Part) -> Iterator[tuple[str, Part]]:
    """Objects with their kinds; a List of kubectl's is what it holds."""
    kind = part.at("kind").text()
    if kind == "List":
        for item in part.at("items").items():
            yield from _parts(item)
    else:
        yield kind, part


def _name(part: Part) -> str:
    metadata = part.at("metadata")
    return metadata.at("name").text() or metadata.at("generateName").text() or "unnamed"


def _namespace(part: Part) -> str:
    return part.at("metadata", "namespace").text() or "default"


def _job(part: Part, _: Sequence[Part]) -> JobSpec:
    return job_spec(part.at("spec"), name=_name(part), namespace=_namespace(part))


def _cron_job(part: Part, _: Sequence[Part]) -> JobSpec:
    return job_spec(part.at("spec", "jobTemplate", "spec"), name=_name(part), namespace=_namespace(part))


def _jobset(part: Part, _: Sequence[Part]) -> JobSetSpec:
    return _jobset_spec(part.at("spec"), name=_name(part), namespace=_namespace(part))


def _runtime(part: Part, _: Sequence[Part], nodes: int | None = None, job: Part | None = None) -> JobSetSpec:
    """The JobSet that Trainer makes from a runtime, for a TrainJob or for one that would only name it."""
    whose = job or part
    spec = _jobset_spec(part.at("spec", "template", "spec"), name=_name(whose), namespace=_namespace(whose))
    count = nodes or part.at("spec", "mlPolicy", "numNodes").whole(least=1) or 1
    if count > MOST_PODS:
        raise whose.at("spec").wrong(f"asks for more than {MOST_PODS} nodes", "simulate fewer")
    trained = {
        one.at("name").text()
        for one in part.at("spec", "template", "spec", "replicatedJobs").items()
        if one.at("template", "metadata", "labels", _STEP_LABEL).text() == "trainer"
    }
    replicated = tuple(_with_nodes(one, count) if one.name in trained else one for one in spec.replicated)
    spec = dataclasses.replace(spec, replicated=replicated)
    if job is None:
        return spec
    suspended = job.at("spec", "suspend").flag() or spec.suspended
    left_to = _other_than(_TRAINER_CONTROLLER, job.at("spec")) or spec.left_to
    return dataclasses.replace(spec, suspended=suspended, left_to=left_to)


def _other_than(own: str, part: Part) -> str | None:
    """Who manages an object, if it is not the controller that does so where nobody is named."""
    named = part.at("managedBy").text(own)
    return None if named == own else named


def _with_nodes(one: ReplicatedJob, count: int) -> ReplicatedJob:
    return dataclasses.replace(one, job=dataclasses.replace(one.job, completions=count, parallelism=count))


def _train_job(part: Part, everything: Sequence[Part]) -> JobSetSpec:
    ref = part.at("spec", "runtimeRef")
    wanted = (ref.at("kind").text("ClusterTrainingRuntime"), ref.at("name").text())
    runtime = next((one for one in everything if (one.at("kind").text(), _name(one)) == wanted), None)
    if runtime is None:
        kind, name = wanted
        raise ref.wrong(f"names the {kind} {name}, which is not among the files", "give its manifest as well")
    return _runtime(runtime, everything, part.at("spec", "trainer", "numNodes").whole(least=1), part)


_Reader = Callable[[Part, Sequence[Part]], "JobSpec | JobSetSpec"]
_RUNTIMES: Final = frozenset({"TrainingRuntime", "ClusterTrainingRuntime"})
_READERS: Final[Mapping[str, _Reader]] = {
    "Job": _job,
    "CronJob": _cron_job,
    "JobSet": _jobset,
    "TrainJob": _train_job,
    **dict.fromkeys(_RUNTIMES, _runtime),
}


def _jobset_spec(part: Part, *, name: str, namespace: str) -> JobSetSpec:
    policy, success = part.at("failurePolicy"), part.at("successPolicy")
    spec = JobSetSpec(
        name=name,
        namespace=namespace,
        replicated=tuple(_replicated(one, namespace) for one in part.at("replicatedJobs").items()),
        failure=_failure_policy(policy) if policy.is_there else None,
        any_success=success.at("operator").text("All") == "Any",
        success_targets=frozenset(success.at("targetReplicatedJobs").texts()),
        in_order=part.at("startupPolicy", "startupPolicyOrder").text() == "InOrder",
        suspended=part.at("suspend").flag(),
        left_to=_other_than(_JOBSET_CONTROLLER, part),
    )
    if sum(one.replicas * max(one.job.most_pods, one.job.completions or 0) for one in spec.replicated) > MOST_PODS:
        raise part.at("replicatedJobs").wrong(f"ask for more than {MOST_PODS} pods", "simulate fewer")
    if not spec.replicated:
        raise part.at("replicatedJobs").wrong("is empty", "give the manifest of a JobSet that has Jobs")
    return spec


def _replicated(part: Part, namespace: str) -> ReplicatedJob:
    name, replicas = part.at("name").text(), part.at("replicas").whole()
    needs = [(one.at("name").text(), one.at("status").text("Ready")) for one in part.at("dependsOn").items()]
    return ReplicatedJob(
        name=name,
        job=job_spec(part.at("template", "spec"), name=name, namespace=namespace, defaults=IN_JOBSET),
        replicas=1 if replicas is None else min(replicas, MOST_PODS + 1),
        needs=tuple(needs),
    )


def _failure_policy(part: Part) -> FailurePolicy:
    strategy = part.at("restartStrategy")
    if strategy.text("Recreate") not in ("Recreate", "BlockingRecreate"):
        raise strategy.wrong("is not simulated", "take Recreate or BlockingRecreate")
    return FailurePolicy(
        max_restarts=part.at("maxRestarts").whole() or 0,
        rules=tuple(_set_rule(rule) for rule in part.at("rules").items()),
        waits_for_all=strategy.text() == "BlockingRecreate",
    )


def _set_rule(part: Part) -> SetRule:
    action = part.at("action")
    if action.text() not in {known.value for known in SetAction}:
        raise action.wrong("is no action of JobSet", f"take one of {', '.join(known.value for known in SetAction)}")
    return SetRule(
        action=SetAction(action.text()),
        name=part.at("name").text(),
        reasons=frozenset(part.at("onJobFailureReasons").texts()),
        messages=tuple(_pattern(one) for one in part.at("onJobFailureMessagePatterns").items()),
        targets=frozenset(part.at("targetReplicatedJobs").texts()),
    )


def _pattern(part: Part) -> re.Pattern[str]:
    text = part.text()
    if len(text) > _MOST_PATTERN_CHARS or _REPEATED_GROUP.search(text):
        raise part.wrong("is too long or repeats a group, which can take for ever here", "simplify it")
    try:
        return re.compile(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise part.wrong(f"is no pattern that can be read ({error})") from error
