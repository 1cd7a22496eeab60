# SPDX-License-Identifier: Apache-2.0
"""Manifests that the linter has nothing to say about, and a way to spoil one of their fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from resilient.kubernetes import documents, lint
from resilient.kubernetes.documents import Document
from resilient.kubernetes.lint import Finding

REMOVED: Final = object()
"""Instead of a value: the field is taken away."""
EXAMPLE: Final = Path(__file__).parents[1] / "examples/kubernetes/job.yaml"


def _plain(path: Path) -> Any:
    (document,) = documents.read(path.read_text(), path.name)
    return copy.deepcopy(document.data)


JOB: Final = _plain(EXAMPLE)
"""One pod that trains."""
POD_SPEC: Final = "spec.template.spec"
TRAINER: Final = f"{POD_SPEC}.containers.0"


def edited(base: Any, *edits: tuple[str, Any]) -> Any:
    """A copy with these fields set; what is on the way to them is made."""
    whole = copy.deepcopy(base)
    for path, value in edits:
        *way, last = path.split(".")
        place = whole
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        if value is REMOVED:
            del place[int(last) if isinstance(place, list) else last]
        elif isinstance(place, list):
            place[int(last) : int(last) + 1] = [value]
        else:
            place[last] = value
    return whole


def variable(name: str, base: Any = JOB, at: str = TRAINER) -> str:
    """The path of a variable of the trainer."""
    place = base
    for key in at.split("."):
        place = place[int(key)] if isinstance(place, list) else place[key]
    index = next(index for index, entry in enumerate(place["env"]) if entry["name"] == name)
    return f"{at}.env.{index}"


GANG: Final = edited(JOB, ("spec.completions", 4), ("spec.parallelism", 4), (f"{POD_SPEC}.subdomain", "char-gpt"))
MORE: Final = "99"
"""Behind all that is in a list."""
_SNAPSHOTS: Final = "/var/lib/resilient-snapshots"
_POD_UID: Final = {"name": "RESILIENT_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
IN_PLACE: Final = edited(
    JOB,
    (f"{TRAINER}.env.{MORE}", {"name": "RESILIENT_SNAPSHOTS", "value": _SNAPSHOTS}),
    (f"{TRAINER}.env.{MORE}", _POD_UID),
    (f"{TRAINER}.volumeMounts.{MORE}", {"name": "snapshots", "mountPath": _SNAPSHOTS}),
    (f"{POD_SPEC}.volumes.{MORE}", {"name": "snapshots", "emptyDir": {"medium": "Memory"}}),
    (f"{TRAINER}.restartPolicy", "Never"),
    (
        f"{TRAINER}.restartPolicyRules",
        [{"action": "Restart", "exitCodes": {"operator": "In", "values": [193, 197]}}],
    ),
    ("spec.podFailurePolicy.rules.3.onExitCodes.values", [194, 195, 196, 198]),
)
CRON: Final[dict[str, Any]] = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": "nightly"},
    "spec": {"schedule": "0 3 * * 1-5", "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": JOB["spec"]}},
}
POD: Final = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "char-gpt", "ownerReferences": [{"apiVersion": "x/v1", "kind": "X", "name": "x", "uid": "u"}]},
    "spec": JOB["spec"]["template"]["spec"],
}
_SET_UID: Final = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"}}
_IN_SET: Final = edited(GANG, (f"{variable('RESILIENT_SUBMISSION')}.valueFrom", _SET_UID))["spec"]
SET_SPEC: Final = {
    "failurePolicy": {
        "maxRestarts": 20,
        "restartStrategy": "BlockingRecreate",
        "rules": [{"name": "stop", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    },
    "replicatedJobs": [
        {
            "name": "node",
            "replicas": 1,
            "template": {"spec": {k: v for k, v in _IN_SET.items() if not k.startswith("ttl")}},
        }
    ],
}
JOBSET: Final[dict[str, Any]] = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": "char-gpt"},
    "spec": SET_SPEC,
}
SET_JOB: Final = "spec.replicatedJobs.0.template.spec"


def _for_trainer(spec: Any) -> Any:
    """A runtime's container is called node, also in the rules; how many pods there are stands elsewhere."""
    job = "replicatedJobs.0.template.spec"
    rules = [
        (f"{job}.podFailurePolicy.rules.{at}.onExitCodes.containerName", "node")
        for at, rule in enumerate(_IN_SET["podFailurePolicy"]["rules"])
        if "onExitCodes" in rule
    ]
    names = [(f"{job}.template.spec.containers.0.name", "node")]
    counts = [(f"{job}.{name}", REMOVED) for name in ("completions", "parallelism")]
    return edited(spec, *rules, *names, *counts)


RUNTIME: Final = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainingRuntime",
    "metadata": {"name": "char-gpt"},
    "spec": {"mlPolicy": {"numNodes": 4, "torch": {}}, "template": {"spec": _for_trainer(SET_SPEC)}},
}
RUNTIME_JOB: Final = f"spec.template.{SET_JOB}"
TRAIN_JOB: Final = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "char-gpt"},
    "spec": {
        "runtimeRef": {"name": "char-gpt", "kind": "TrainingRuntime"},
        "trainer": {
            "command": ["resilient", "run"],
            "args": ["train.py"],
            "env": [{"name": "RESILIENT_CHECKPOINTS", "value": "s3://bucket/run"}],
        },
    },
}
CLEAN: Final = {
    "job": JOB,
    "gang": GANG,
    "in place": IN_PLACE,
    "cron": CRON,
    "pod": POD,
    "jobset": JOBSET,
    "runtime": RUNTIME,
    "train job": TRAIN_JOB,
}

BACKUP: Final[dict[str, Any]] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "backup"},
    "spec": {
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "copy", "image": "busybox"}],
                "initContainers": [{"name": "look", "image": "busybox"}],
            }
        }
    },
}
"""No training: only what the API server refuses is said about it."""
SET_OF_BACKUPS: Final[dict[str, Any]] = {
    **JOBSET,
    "metadata": {"name": "backups"},
    "spec": {"replicatedJobs": [{"name": "copy", "replicas": 2, "template": {"spec": BACKUP["spec"]}}]},
}


def findings(whole: Any) -> list[Finding]:
    """What the linter says about plain data; there is no text, so that all of it stands in line 1."""
    return lint.check([Document(name="x.yaml", data=whole, lines={(): 1}, head="", body="", tail="")])


def ids(whole: Any) -> set[str]:
    """The rows that it names."""
    return {finding.row.id for finding in findings(whole)}


WRONG: Final[st.SearchStrategy[Any]] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([{}, 1, None])
)
"""What may stand in any field by mistake."""


def places(manifests: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every field of all these, as the name of the manifest and what ``edited`` takes."""
    return [(name, path) for name, whole in manifests.items() for path in _paths(whole)]


def _paths(value: Any, path: str = "") -> list[str]:
    """Keys with a dot cannot be written in one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        below
        for key, item in inner
        if "." not in str(key)
        for below in (f"{path}{key}", *_paths(item, f"{path}{key}."))
    ]
