# SPDX-License-Identifier: Apache-2.0
"""The fields of JobSets, TrainJobs and their runtimes, of which the ``kubernetes`` client has no models.

Facts from the CRDs of JobSet up to 0.12 and Kubeflow Trainer 2.0 to 2.3, all of them together: what one release has
dropped is no mistake here. What is not in the table nobody has ever read: the API server drops it, or kubectl refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from resilient.kubernetes.api_problems import Problem, contradiction, items, unknown_field
from resilient.kubernetes.building import PartPath

Fields: TypeAlias = Mapping[str, Any]
"""By name: the fields below, in a list of one where they are those of its items; None where nobody looks further."""


def _leaves(*names: str) -> Fields:
    return dict.fromkeys(names)


_TEMPLATE: Final[Fields] = _leaves("metadata", "spec")
JOBSET_SPEC: Final[Fields] = {
    **_leaves("managedBy", "suspend", "ttlSecondsAfterFinished"),
    "coordinator": _leaves("jobIndex", "podIndex", "replicatedJob"),
    "failurePolicy": {
        **_leaves("maxRestarts", "restartStrategy"),
        "rules": [
            _leaves("action", "name", "onJobFailureMessagePatterns", "onJobFailureReasons", "targetReplicatedJobs"),
        ],
    },
    "network": _leaves("enableDNSHostnames", "publishNotReadyAddresses", "subdomain"),
    "replicatedJobs": [
        {
            **_leaves("groupName", "name", "replicas"),
            "dependsOn": [_leaves("name", "status")],
            "template": _TEMPLATE,
        }
    ],
    "startupPolicy": _leaves("startupPolicyOrder"),
    "successPolicy": _leaves("operator", "targetReplicatedJobs"),
    "volumeClaimPolicies": [{"retentionPolicy": _leaves("whenDeleted"), "templates": None}],
}
_SOURCE: Final[Fields] = _leaves("env", "secretRef", "storageUri")
_OBJECT: Final[Fields] = _leaves("apiVersion", "kind", "metadata", "status")
_RUNTIME: Final[Fields] = {
    **_OBJECT,
    "spec": {
        "mlPolicy": _leaves("flux", "jax", "mpi", "numNodes", "torch", "xgboost"),
        "podGroupPolicy": _leaves("coscheduling", "volcano"),
        "template": {"metadata": None, "spec": JOBSET_SPEC},
    },
}
OBJECTS: Final[Mapping[str, Fields]] = {
    "JobSet": {**_OBJECT, "spec": JOBSET_SPEC},
    "TrainJob": {
        **_OBJECT,
        "spec": {
            **_leaves("activeDeadlineSeconds", "annotations", "labels", "managedBy", "suspend"),
            **_leaves("podSpecOverrides", "podTemplateOverrides", "runtimePatches"),
            "initializer": {"dataset": _SOURCE, "model": _SOURCE},
            "runtimeRef": _leaves("apiGroup", "kind", "name"),
            "trainer": _leaves("args", "command", "env", "image", "numNodes", "numProcPerNode", "resourcesPerNode"),
        },
    },
    "TrainingRuntime": _RUNTIME,
    "ClusterTrainingRuntime": _RUNTIME,
}


def fields(found: object, known: Fields | list[Fields] | None, path: PartPath = ()) -> Iterator[Problem]:
    """What of an object has a name that nobody reads, or is no object or list where one belongs."""
    if known is None or found is None:
        return
    if isinstance(known, list):
        if not isinstance(found, list):
            yield contradiction("api-type", path, "must be an array")
        for index, item in enumerate(items(found)):
            yield from fields(item, known[0], (*path, index))
        return
    if not isinstance(found, dict):
        yield contradiction("api-type", path, "must be an object")
        return
    for name, value in found.items():
        if name not in known:
            yield unknown_field((*path, name))
        else:
            yield from fields(value, known[name], (*path, name))
