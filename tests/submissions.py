# SPDX-License-Identifier: Apache-2.0
"""Submissions for tests, and what their manifests hold."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from resilient.core.kube_pod_failure import (
    ContainerStatus,
    Outcome,
    PodCondition,
    PodStatus,
    match,
)
from resilient.kubernetes import documents
from resilient.kubernetes.job_specs import failure_policy
from resilient.kubernetes.manifest import write
from resilient.kubernetes.parts import Part
from resilient.kubernetes.submission import Submission

Json = dict[str, Any]


def submission(**changes: Any) -> Submission:
    """One that is right, but for what is changed."""
    given = {
        "name": "train",
        "image": "registry.example.com/train:1.0",
        "command": ("train.py", "--steps", "100"),
        "memory": "64Gi",
        "claim": "checkpoints",
        "devices": 8,
    }
    return Submission(**{**given, **changes})


def applied(kind: str, **changes: Any) -> list[Json]:
    """What kubectl would send of the manifest's text."""
    text = write(kind, submission(**changes))
    return [document.data for document in documents.read(text, "manifest")]


def job_specs(found: Sequence[Json]) -> Iterator[Json]:
    """The Jobs of a manifest, also those that another controller makes of it."""
    for one in found:
        if one["kind"] == "Job":
            yield one["spec"]
        spec = (
            one["spec"].get("template", {}).get("spec", {}) if one["kind"].endswith("Runtime") else one.get("spec", {})
        )
        yield from (job["template"]["spec"] for job in spec.get("replicatedJobs", ()))


def trainer(spec: Json) -> Json:
    """The one container of a Job."""
    (container,) = spec["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def judged(spec: Json, code: int, *, disrupted: bool = False, sidecar: int | None = None) -> Outcome:
    """What the Job controller does when the trainer ends with this code."""
    (document,) = documents.read(json.dumps(spec["podFailurePolicy"]), "the policy")
    pod = PodStatus(
        namespace="default",
        name="train-0",
        containers=(ContainerStatus(name=trainer(spec)["name"], exit_code=code),),
        init_containers=() if sidecar is None else (ContainerStatus(name="mesh", exit_code=sidecar),),
        conditions=(PodCondition(type="DisruptionTarget"),) if disrupted else (),
    )
    return match(failure_policy(Part(document=document, data=document.data)), pod)
