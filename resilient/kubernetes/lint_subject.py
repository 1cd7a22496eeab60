# SPDX-License-Identifier: Apache-2.0
"""What in a manifest is to be judged: one pod template that trains, and the Job around it, however it is wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from resilient.core.exit_codes import ExitCode
from resilient.core.pod_status import PodAccess
from resilient.kubernetes.api_job import defaulted
from resilient.kubernetes.api_problems import inside, items, mapping, number, text
from resilient.kubernetes.api_resources import is_extended
from resilient.kubernetes.building import PartPath
from resilient.kubernetes.downward import POD_API_SETTING
from resilient.kubernetes.lint_command import CommandLine, Starts, flag_value, is_training, read_command

Tree = Mapping[str, Any]

TRAINER_CONTAINER: Final = "node"
"""The container of a runtime that a TrainJob's image, command and variables go to."""
STEP_LABEL: Final = "trainer.kubeflow.org/trainjob-ancestor-step"
_STOP: Final = int(ExitCode.CODE_FAULT)
_SEVERAL: Final = frozenset({"MASTER_ADDR", "NNODES", "PET_NNODES", "WORLD_SIZE", "PET_MASTER_ADDR"})


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One training. Paths lead to its parts in the document; what the document does not have is empty."""

    kind: str
    whole: Tree
    """The document."""
    pod: Tree
    pod_path: PartPath
    metadata: Tree
    """That of the pod template."""
    metadata_path: PartPath
    job: Tree | None = None
    """The spec of the Job around it, where there is one."""
    job_path: PartPath = ()
    jobset: Tree | None = None
    jobset_path: PartPath = ()
    step: str = ""
    """Its name in the JobSet."""
    replicas: int = 1
    """How many Jobs the JobSet makes of it."""
    nodes: int | None = None
    """How many pods there will be, where that stands elsewhere than in the Job."""
    is_partial: bool = False
    """Only the container is told here, as in a TrainJob; the pod is another document's."""

    @cached_property
    def containers(self) -> list[Tree]:
        return [mapping(container) for container in items(self.pod.get("containers"))]

    @cached_property
    def index(self) -> int:
        """Which of the containers trains."""
        ranked = sorted(range(len(self.containers)), key=lambda at: (-_evidence(self.containers[at]), at))
        return ranked[0] if ranked else 0

    @cached_property
    def trainer(self) -> Tree:
        return self.containers[self.index] if self.containers else {}

    @cached_property
    def trainer_path(self) -> PartPath:
        return self.pod_path if self.is_partial else (*self.pod_path, "containers", self.index)

    @cached_property
    def name(self) -> str:
        """The container's."""
        return text(self.trainer.get("name"))

    @cached_property
    def command(self) -> CommandLine:
        return read_command(argv(self.trainer))

    @cached_property
    def is_supervised(self) -> bool:
        """Whether the contract is meant: where the command is not to be seen, the rest of the manifest says it."""
        if self.command.starts is Starts.NOTHING and not self.is_partial:
            return any(name.startswith("RESILIENT_") for name in self.env) or self._names_codes()
        return self.command.starts is Starts.SUPERVISOR

    def _names_codes(self) -> bool:
        rules = items(inside(self.job, "podFailurePolicy", "rules"))
        return any(_STOP in items(inside(rule, "onExitCodes", "values")) for rule in rules)

    @cached_property
    def is_training(self) -> bool:
        return self.is_partial or self.kind.endswith("Runtime") or _evidence(self.trainer) > 0

    @cached_property
    def env(self) -> dict[str, tuple[PartPath, Tree]]:
        """The variables of the container, each with its place."""
        entries = enumerate(items(self.trainer.get("env")))
        return {text(inside(entry, "name")): ((*self.trainer_path, "env", at), mapping(entry)) for at, entry in entries}

    def variable(self, name: str) -> str | None:
        """The value of a variable, where it is written out."""
        return text(self.env[name][1].get("value")) or None if name in self.env else None

    @property
    def asks_api(self) -> bool:
        """The supervisor is to ask Kubernetes of its own pod."""
        asked = flag_value(self.command.arguments, "--pod-api") or self.variable(POD_API_SETTING)
        return not self.is_partial and asked in [access.value for access in PodAccess]

    @property
    def pods(self) -> int:
        """How many pods run at a time."""
        if self.job is None:
            return 1
        filled = defaulted(self.job)
        return self.nodes or number(filled.get("completions")) or number(filled.get("parallelism")) or 1

    @property
    def is_gang(self) -> bool:
        """Whether its pods are one training that goes on only together."""
        names_peers = bool(_SEVERAL & set(self.env)) or "subdomain" in self.pod or self.jobset is not None
        nnodes = any(word.startswith("--nnodes") for word in argv(self.trainer))
        return self.pods > 1 and (names_peers or nnodes or self.kind.endswith("Runtime"))

    @property
    def is_per_index(self) -> bool:
        return self.job is not None and number(self.job.get("backoffLimitPerIndex")) is not None


def argv(container: Tree) -> list[str]:
    """The command line; nothing where the image decides what is started."""
    command = [text(word) for word in items(container.get("command"))]
    return command + [text(word) for word in items(container.get("args"))] if command else []


def devices(container: Tree) -> list[str]:
    """The extended resources that a container asks for."""
    limits = {
        **mapping(inside(container, "resources", "requests")),
        **mapping(inside(container, "resources", "limits")),
    }
    return [name for name in limits if is_extended(name)]


def subjects(found: Tree, path: PartPath = ()) -> Iterator[Subject]:
    """What a document has to be judged, by its kind; nothing for the kinds of others."""
    kind = known_kind(found)
    if kind is not None:
        yield from _READERS[kind](found, path)


def known_kind(found: Tree) -> str | None:
    """The kind of an object that can be judged; others have kinds of the same name (Volcano has a Job)."""
    kind = text(found.get("kind"))
    group = text(found.get("apiVersion")).rpartition("/")[0]
    return kind if kind in VERSIONS and group in ("", VERSIONS[kind].rpartition("/")[0]) else None


def _evidence(container: Tree) -> int:
    """How much a container looks like the one that trains."""
    line = read_command(argv(container))
    return 4 * (line.starts is Starts.SUPERVISOR) + 2 * bool(devices(container)) + is_training(argv(container))


def _subject(found: Tree, spec: Tree, path: PartPath, **more: Any) -> Subject:
    """A Job's spec."""
    template, where = mapping(spec.get("template")), (*path, "template")
    return Subject(
        kind=text(found.get("kind")),
        whole=found,
        job=spec,
        job_path=path,
        pod=mapping(template.get("spec")),
        pod_path=(*where, "spec"),
        metadata=mapping(template.get("metadata")),
        metadata_path=(*where, "metadata"),
        **more,
    )


def _job(found: Tree, path: PartPath) -> Iterator[Subject]:
    yield _subject(found, mapping(found.get("spec")), (*path, "spec"))


def _cron_job(found: Tree, path: PartPath) -> Iterator[Subject]:
    spec = mapping(inside(found, "spec", "jobTemplate", "spec"))
    yield _subject(found, spec, (*path, "spec", "jobTemplate", "spec"))


def _pod(found: Tree, path: PartPath) -> Iterator[Subject]:
    yield Subject(
        kind="Pod",
        whole=found,
        pod=mapping(found.get("spec")),
        pod_path=(*path, "spec"),
        metadata=mapping(found.get("metadata")),
        metadata_path=(*path, "metadata"),
    )


def _jobset(found: Tree, path: PartPath) -> Iterator[Subject]:
    yield from _replicated(found, mapping(found.get("spec")), (*path, "spec"), None)


def _runtime(found: Tree, path: PartPath) -> Iterator[Subject]:
    nodes = number(inside(found, "spec", "mlPolicy", "numNodes"))
    spec, where = mapping(inside(found, "spec", "template", "spec")), (*path, "spec", "template", "spec")
    yield from _replicated(found, spec, where, nodes)


def _replicated(found: Tree, spec: Tree, path: PartPath, nodes: int | None) -> Iterator[Subject]:
    for index, one in enumerate(items(spec.get("replicatedJobs"))):
        step = text(inside(one, "template", "metadata", "labels", STEP_LABEL))
        if step not in ("", "trainer"):  # what fetches the model or the data is no training
            continue
        job = dict(mapping(inside(one, "template", "spec")))
        job.setdefault("completionMode", "Indexed")  # JobSet's default, not the API server's
        where = (*path, "replicatedJobs", index, "template", "spec")
        yield _subject(
            found,
            job,
            where,
            jobset=spec,
            jobset_path=path,
            step=text(inside(one, "name")),
            replicas=number(inside(one, "replicas")) or 1,
            nodes=nodes,
        )


def _train_job(found: Tree, path: PartPath) -> Iterator[Subject]:
    trainer = mapping(inside(found, "spec", "trainer"))
    yield Subject(
        kind="TrainJob",
        whole=found,
        pod={"containers": [{"name": TRAINER_CONTAINER, **trainer}]},
        pod_path=(*path, "spec", "trainer"),
        metadata={},
        metadata_path=(*path, "spec", "trainer"),
        nodes=number(trainer.get("numNodes")),
        is_partial=True,
    )


_READERS: Final[Mapping[str, Callable[[Tree, PartPath], Iterator[Subject]]]] = {
    "Job": _job,
    "CronJob": _cron_job,
    "Pod": _pod,
    "JobSet": _jobset,
    "TrainJob": _train_job,
    "TrainingRuntime": _runtime,
    "ClusterTrainingRuntime": _runtime,
}
VERSIONS: Final[Mapping[str, str]] = {
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "Pod": "v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
    "TrainingRuntime": "trainer.kubeflow.org/v1alpha1",
    "ClusterTrainingRuntime": "trainer.kubeflow.org/v1alpha1",
}
"""The version in which each kind is served."""
