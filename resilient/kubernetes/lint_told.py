# SPDX-License-Identifier: Apache-2.0
"""Whether the supervisor is told who and where it is, and has the places that it keeps things in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from resilient import settings
from resilient.errors import SettingsError
from resilient.kubernetes.api_problems import inside, items, mapping, text
from resilient.kubernetes.api_resources import quantity
from resilient.kubernetes.building import PartPath
from resilient.kubernetes.downward import COUNTERS, JOB_UID, JOBSET_UID, PLACE, POD_UID
from resilient.kubernetes.lint_command import flag_value
from resilient.kubernetes.lint_rows import Hit, Rule, Scope, error, warning
from resilient.kubernetes.lint_subject import Subject

_INDEX: Final = "RESILIENT_INDEX"
_SUBMISSION: Final = "RESILIENT_SUBMISSION"
_NODE: Final = "RESILIENT_NODE"
_POD: Final = "RESILIENT_POD"
_NAMESPACE: Final = "RESILIENT_NAMESPACE"
_OTHERWISE: Final[Mapping[str, tuple[str, ...]]] = {
    _INDEX: ("metadata.labels['batch.kubernetes.io/job-completion-index']",),
    _SUBMISSION: ("metadata.labels['controller-uid']",),
}
"""Other fields that hold the same."""
_JOB_INDEX: Final = tuple(
    f"metadata.{kind}['jobset.sigs.k8s.io/job-global-index']" for kind in ("annotations", "labels")
)
"""Which Job of the set it is, counted over all of them."""
_SHM: Final = "/dev/shm"
_CHECKPOINTS: Final = "RESILIENT_CHECKPOINTS"
_JOURNAL: Final = "RESILIENT_JOURNAL"
_SNAPSHOTS: Final = "RESILIENT_SNAPSHOTS"


def _sources(subject: Subject) -> dict[str, tuple[str, ...]]:
    """What each variable may come from here, the usual field first."""
    usual = {_NODE: PLACE[_NODE], **COUNTERS, **POD_UID}
    sources = {name: (field, *_OTHERWISE.get(name, ())) for name, field in usual.items()}
    if subject.jobset is not None:
        sources[_SUBMISSION] = (JOBSET_UID,)
    elif subject.job is not None:
        sources[_SUBMISSION] = (JOB_UID, *_OTHERWISE[_SUBMISSION])
    if subject.jobset is not None and subject.pods == 1:  # then the number of the Job is that of its pod
        sources[_INDEX] += _JOB_INDEX
    return sources


def _submission_missing(subject: Subject) -> Iterator[Hit]:
    if subject.job is not None and _SUBMISSION not in subject.env:
        yield Hit(path=(*subject.trainer_path, "env"))


def _not_told(subject: Subject) -> Iterator[Hit]:
    if subject.is_partial:
        return
    wanted = (_NODE, *(COUNTERS if subject.is_per_index else ()))
    missing = [name for name in wanted if name not in subject.env]
    if missing:
        yield Hit(path=(*subject.trainer_path, "env"), detail=", ".join(missing))


def _own_pod_untold(subject: Subject) -> Iterator[Hit]:
    missing = [name for name in (_POD, _NAMESPACE, *POD_UID) if name not in subject.env]
    if subject.asks_api and missing:
        yield Hit(path=(*subject.trainer_path, "env"), detail=", ".join(missing))


def _told_wrongly(subject: Subject) -> Iterator[Hit]:
    for name, sources in _sources(subject).items():
        path, entry = subject.env.get(name, ((), {}))
        field = _field(entry)
        if path and field not in sources:
            found = field or ("a value that is written out" if "value" in entry else "another source")
            yield Hit(path=path, detail=f"{name} is {found}, and must be {sources[0]}")


def _index_shared(subject: Subject) -> Iterator[Hit]:
    """The completion index counts the pods of one Job, and the submission is the whole set's."""
    path, entry = subject.env.get(_INDEX, ((), {}))
    if path and subject.replicas > 1 and _field(entry) in (COUNTERS[_INDEX], *_OTHERWISE[_INDEX]):
        yield Hit(path=path, detail=f"{subject.replicas} Jobs")


def _field(entry: Mapping[str, Any]) -> str:
    return text(inside(entry, "valueFrom", "fieldRef", "fieldPath"))


def _place(subject: Subject, variable: str, flag: str) -> tuple[PartPath, str] | None:
    """Where a directory or URL of the supervisor's is said, and what."""
    value = flag_value(subject.command.arguments, flag)
    if value is not None:
        return (*subject.trainer_path, "args"), value
    if variable in subject.env:
        return subject.env[variable][0], subject.variable(variable) or ""
    return None


def _checkpoints_unsaid(subject: Subject) -> Iterator[Hit]:
    if _place(subject, _CHECKPOINTS, "--checkpoints") is None:
        yield Hit(path=(*subject.trainer_path, "env"))


def _volume_at(subject: Subject, path: str) -> Mapping[str, Any] | None:
    """The volume that a path of the container lies in; nothing where it is the container's own disk."""
    mounts = {text(inside(mount, "mountPath")).rstrip("/"): text(inside(mount, "name")) for mount in _mounts(subject)}
    around = [place for place in mounts if path == place or path.startswith(f"{place}/")]
    if not around:
        return None
    name = mounts[max(around, key=len)]
    return next((mapping(one) for one in items(subject.pod.get("volumes")) if text(inside(one, "name")) == name), {})


def _mounts(subject: Subject) -> list[Any]:
    return items(subject.trainer.get("volumeMounts"))


def _checkpoints_on_node(subject: Subject) -> Iterator[Hit]:
    said = _place(subject, _CHECKPOINTS, "--checkpoints")
    if said is None or subject.is_partial or not said[1].startswith(("/", "file://")):
        return
    volume = _volume_at(subject, said[1].removeprefix("file://"))
    lost = {"emptyDir": "an emptyDir", "hostPath": "a directory of the node"}
    where = "the container's own disk" if volume is None else next((lost[k] for k in lost if k in volume), "")
    if where:
        yield Hit(path=said[0], detail=f"{said[1]} is {where}")


def _journal_lost(subject: Subject) -> Iterator[Hit]:
    said = _place(subject, _JOURNAL, "--journal")
    if subject.is_partial or (said is not None and (not said[1] or _volume_at(subject, said[1]) is not None)):
        return
    yield Hit(path=said[0] if said else (*subject.trainer_path, "env"), detail=said[1] if said else "")


def _snapshots_lost(subject: Subject) -> Iterator[Hit]:
    rules = not subject.is_gang and subject.trainer.get("restartPolicyRules")  # no pod of a gang has all snapshots
    if rules and not subject.is_partial and _place(subject, _SNAPSHOTS, "--snapshots") is None:
        yield Hit(path=(*subject.trainer_path, "restartPolicyRules"))


def _snapshots_not_in_memory(subject: Subject) -> Iterator[Hit]:
    said = _place(subject, _SNAPSHOTS, "--snapshots")
    if said is None or subject.is_partial:
        return
    volume = _volume_at(subject, said[1]) or {}
    if text(inside(volume, "emptyDir", "medium")) != "Memory":
        yield Hit(path=said[0], detail=said[1])


def _pod_not_told(subject: Subject) -> Iterator[Hit]:
    said = _place(subject, _SNAPSHOTS, "--snapshots")
    if said is not None and not POD_UID.keys() & subject.env.keys() and not subject.is_partial:
        yield Hit(path=said[0])


def _shm(subject: Subject) -> Mapping[str, Any] | None:
    return _volume_at(subject, _SHM)


def _shm_small(subject: Subject) -> Iterator[Hit]:
    if not subject.is_partial and _shm(subject) is None and subject.pod.get("hostIPC") is not True:
        yield Hit(path=(*subject.trainer_path, "volumeMounts"))


def _shm_on_disk(subject: Subject) -> Iterator[Hit]:
    volume = _shm(subject) or {}
    if "emptyDir" in volume and text(inside(volume, "emptyDir", "medium")) != "Memory":
        yield Hit(path=(*subject.pod_path, "volumes"), detail=text(volume.get("name")))


def _shm_over_memory(subject: Subject) -> Iterator[Hit]:
    size = quantity(inside(_shm(subject) or {}, "emptyDir", "sizeLimit"))
    memory = quantity(inside(subject.trainer, "resources", "limits", "memory"))
    if size is not None and memory is not None and size >= memory:
        yield Hit(path=(*subject.pod_path, "volumes"), detail=text(inside(_shm(subject), "name")))


def _no_memory_limit(subject: Subject) -> Iterator[Hit]:
    if not subject.is_partial and inside(subject.trainer, "resources", "limits", "memory") is None:
        yield Hit(path=(*subject.trainer_path, "resources"))


def _setting_refused(subject: Subject) -> Iterator[Hit]:
    """What is written out; a value that refers to other variables is known in the pod only."""
    given = {name: text(entry.get("value")) for name, (_, entry) in subject.env.items()}
    plain = {name: value for name, value in given.items() if value and "$(" not in value}
    try:
        settings.resolve((settings.from_environment(plain),))
    except SettingsError as error:
        named = next((name for name in plain if name in str(error)), None)
        yield Hit(path=subject.env[named][0] if named else (*subject.trainer_path, "env"), detail=str(error))


RULES: Final[tuple[Rule, ...]] = (
    error(
        "setting-refused",
        "The supervisor refuses one of its variables, and ends with 115 before anything starts.",
        "correct the variable; resilient config shows what would hold",
        _setting_refused,
    ),
    error(
        "submission-not-told",
        "Budgets belong to a submission: without its uid every pod begins with full ones, and the loop has no bound.",
        "project the uid into RESILIENT_SUBMISSION through the downward API",
        _submission_missing,
    ),
    warning(
        "downward-missing",
        "Without the node's name a bad node cannot be avoided, and without the counters an unrecorded exit is 199.",
        "project them through the downward API, as resilient manifest writes it",
        _not_told,
    ),
    warning(
        "own-pod-not-told",
        "The supervisor is to ask Kubernetes of its own pod, and is not told which that is: it asks nothing.",
        "project metadata.name, metadata.namespace and metadata.uid, as resilient manifest --rbac writes it",
        _own_pod_untold,
    ),
    error(
        "downward-wrong",
        "The supervisor is told something else than it takes it for, and counts budgets or avoids nodes by it.",
        "project the field that is named",
        _told_wrongly,
    ),
    error(
        "index-shared",
        "Pods of several Jobs of the set have the same index, and count their failures into one budget.",
        "let one replicated job have replicas: 1 and as many completions, or project the job-global-index of JobSet",
        _index_shared,
    ),
    warning(
        "checkpoints-not-said",
        "Until the script constructs Run the supervisor knows no store: no lock, no deny list, no earlier budgets.",
        "write RESILIENT_CHECKPOINTS, or --checkpoints",
        _checkpoints_unsaid,
    ),
    error(
        "checkpoints-die-with-the-pod",
        "A pod that replaces this one finds no checkpoint: what it writes stays on its node, or ends with it.",
        "keep them in a PersistentVolumeClaim or behind a URL",
        _checkpoints_on_node,
    ),
    warning(
        "journal-dies-with-the-container",
        "A restart in place loses what the last container recorded and could not ship, of its budgets too.",
        "mount an emptyDir and name it in RESILIENT_JOURNAL",
        _journal_lost,
    ),
    warning(
        "snapshots-die-with-the-container",
        "A restart in place goes on from the newest checkpoint, since the snapshot in memory ends with the container.",
        "mount an emptyDir with medium: Memory, name it in RESILIENT_SNAPSHOTS, and project RESILIENT_POD_UID",
        _snapshots_lost,
    ),
    error(
        "snapshots-not-in-memory",
        "Snapshots are held up by a disk, or end with the container: what is named for them is no memory of the pod.",
        "mount an emptyDir with medium: Memory there",
        _snapshots_not_in_memory,
    ),
    error(
        "pod-not-told",
        "Without the pod's uid the supervisor cannot tell whose the snapshots are, and ends with 115.",
        "project metadata.uid into RESILIENT_POD_UID through the downward API",
        _pod_not_told,
    ),
    warning(
        "shm-small",
        "A container's /dev/shm has 64 MiB, which DataLoader workers and NCCL fill: then a bus error ends them.",
        "mount an emptyDir with medium: Memory at /dev/shm",
        _shm_small,
        scope=Scope.TRAINING,
    ),
    warning(
        "shm-on-disk",
        "What is mounted at /dev/shm is a directory on the node's disk.",
        "write medium: Memory",
        _shm_on_disk,
        scope=Scope.TRAINING,
    ),
    warning(
        "shm-over-memory",
        "What is in /dev/shm counts against the container's memory, whose limit is reached before the volume's.",
        "make sizeLimit smaller than the memory limit",
        _shm_over_memory,
        scope=Scope.TRAINING,
    ),
    warning(
        "memory-unlimited",
        "Without a limit snapshots are checked against nothing, and it is the node that runs out of memory.",
        "write resources.limits.memory: the training's, twice its state for snapshots, and /dev/shm",
        _no_memory_limit,
    ),
)
