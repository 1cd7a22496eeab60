# SPDX-License-Identifier: Apache-2.0
"""For each row about the claims, words and sizes of a JobSet, manifests of no training that have just that wrong."""

from __future__ import annotations

from typing import Any, Final

from lint_manifests import SET_OF_BACKUPS, edited

_POD: Final = "spec.replicatedJobs.0.template.spec.template.spec"
_POLICY: Final = "spec.volumeClaimPolicies[0]"
SPEC: Final = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Ti"}}}


def claims(*names: str, mounted: str | None = None, spec: Any = None, **policy: Any) -> Any:
    """The JobSet with claims of these names, of which the first one is mounted."""
    templates = [{"metadata": {"name": name}, "spec": SPEC if spec is None else spec} for name in names]
    mount = {"name": names[0] if mounted is None else mounted, "mountPath": "/data"}
    return edited(
        SET_OF_BACKUPS,
        ("spec.volumeClaimPolicies", [{"templates": templates, **policy}]),
        (f"{_POD}.containers.0.volumeMounts", [mount]),
    )


def led(**changes: Any) -> Any:
    """The JobSet with a coordinator, and other fields than it has."""
    coordinator = {"replicatedJob": "copy", "jobIndex": 1}
    completions = ("spec.replicatedJobs.0.template.spec.completions", 1)
    return edited(SET_OF_BACKUPS, ("spec.coordinator", coordinator), completions, *changes.items())


_COPY: Final = "spec.replicatedJobs.0"
CASES: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "jobset-size": (
        (
            edited(
                SET_OF_BACKUPS,
                (f"{_COPY}.replicas", 1 << 30),
                (f"{_COPY}.template.spec.parallelism", 2),
                (f"{_COPY}.template.spec.completions", 2),
            ),
            "the product of replicas and parallelism must not exceed 2147483647 for replicatedJob 'copy'",
        ),
    ),
    "jobset-words": (
        (
            edited(SET_OF_BACKUPS, ("spec.startupPolicy", {"startupPolicyOrder": "inOrder"})),
            'spec.startupPolicy.startupPolicyOrder: Unsupported value: "inOrder": supported values: "AnyOrder"',
        ),
        (edited(SET_OF_BACKUPS, ("spec.successPolicy", {"operator": "all"})), 'supported values: "All", "Any"'),
    ),
    "jobset-claim": (
        (claims("data", "data"), f'{_POLICY}.template[1].name: Invalid value: "data": names must be unique for Volume'),
        (claims("Data"), f'{_POLICY}.template[0].name: Invalid value: "Data": a lowercase RFC 1123 subdomain'),
        (claims("d" * 56), "VolumeClaimPolicies template name is too long"),
        (
            edited(claims("data"), ("spec.volumeClaimPolicies.0.templates.0.metadata.namespace", "default")),
            f"{_POLICY}: Invalid value: namespace cannot be set for VolumeClaimPolicies templates",
        ),
        (
            edited(claims("data"), (f"{_POD}.volumes", [{"name": "data", "emptyDir": {}}])),
            "spec.replicatedJobs[0].template.spec.template.spec.volumes[0].name: Invalid value: "
            '"data": volume name conflicts with VolumeClaimPolicy template name: data',
        ),
        (
            edited(claims("data"), ("spec.volumeClaimPolicies", claims("data")["spec"]["volumeClaimPolicies"] * 51)),
            "51",
        ),
    ),
    "jobset-claim-unused": (
        (
            edited(claims("data"), (f"{_POD}.containers.0.volumeMounts", [])),
            "spec.replicatedJobs: Invalid value: replicatedJob containers don't have a matching volumeMount: data from",
        ),
    ),
    "jobset-claim-retention": (
        (
            claims("data", retentionPolicy={"whenDeleted": "Keep"}),
            f'{_POLICY}.retentionPolicy.whenDeleted: Unsupported value: "Keep": supported values: "Delete", "Retain"',
        ),
    ),
}
MADE: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "jobset-names": (
        (
            edited(SET_OF_BACKUPS, (f"{_COPY}.groupName", "Group")),
            'spec.replicatedJobs[0].groupName: Invalid value: "Group"',
        ),
        (edited(SET_OF_BACKUPS, (f"{_COPY}.groupName", "g" * 64)), "groupName is too long, must be less than 63"),
        (
            led(**{"metadata.name": "b" * 30}),
            'for coordinator label "jobset.sigs.k8s.io/coordinator" (long JobSet / ReplicatedJob / SubDomain name?)',
        ),
    ),
    "jobset-coordinator": (
        (
            led(**{"spec.coordinator.jobIndex": 2}),
            "Invalid value: 2: coordinator job index 2 is invalid for replicatedJob",
        ),
    ),
    "claim-modes": (
        (claims("data", spec={"resources": SPEC["resources"]}), "templates[0].spec.accessModes: Required"),
    ),
    "claim-size": ((claims("data", spec={"accessModes": ["ReadWriteOnce"]}), "spec.resources[storage]: Required"),),
    "api-unknown-field": ((claims("data", spec={**SPEC, "storageClass": "fast"}), "spec.storageClass"),),
}
"""Of rows that have manifests elsewhere too."""
