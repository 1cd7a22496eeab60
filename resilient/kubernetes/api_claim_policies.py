# SPDX-License-Identifier: Apache-2.0
"""What JobSet refuses in the claims that it makes for its pods, and the API server in the claims that are made.

Facts from JobSet 0.12: ``validateVolumeClaimPolicies`` of ``pkg/webhooks/jobset_webhook.go``, the API types, and
``pkg/controllers/volume_claim_policy.go``, which adds a volume of the claim's name to each pod that mounts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resilient.kubernetes import api_names, api_schema
from resilient.kubernetes.api_claims import claim_spec
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    contradiction,
    inside,
    invalid,
    invalids,
    items,
    mapping,
    text,
    too_many,
    unless_one_of,
)
from resilient.kubernetes.building import PartPath

_MOST: Final = 50
_MOST_NAME: Final = 63
_RETENTIONS: Final = ("Delete", "Retain")
_POD: Final = ("template", "spec", "template", "spec")


def claimed(spec: Spec) -> tuple[str, ...]:
    """The names of the claims, which are those of the volumes that are added."""
    policies = items(spec.get("volumeClaimPolicies"))
    return tuple(_name(template) for policy in policies for template in items(inside(policy, "templates")))


def claim_policies(spec: Spec, path: PartPath, *, name: str) -> Iterator[Problem]:
    """Of a JobSet; without a name where a runtime has it, whose mounts are for the TrainJob to finish."""
    policies, where = items(spec.get("volumeClaimPolicies")), (*path, "volumeClaimPolicies")
    if len(policies) > _MOST:
        yield too_many("jobset-claim", where, len(policies), _MOST)
    names: set[str] = set()
    for index, policy in enumerate(map(mapping, policies)):
        templates, place = items(policy.get("templates")), (*where, index)
        if len(templates) > _MOST:
            yield too_many("jobset-claim", (*place, "templates"), len(templates), _MOST)
        for at, template in enumerate(templates):
            yield from _template(template, at, name, names, place)
            yield from _use(_name(template), spec, path, (*place, "templates", at), is_whole=bool(name))
        kept, own = inside(policy, "retentionPolicy", "whenDeleted"), (*place, "retentionPolicy", "whenDeleted")
        yield from unless_one_of("jobset-claim-retention", own, kept, _RETENTIONS)


def _name(template: object) -> str:
    return text(inside(template, "metadata", "name"))


def _template(template: object, at: int, jobset: str, names: set[str], policy: PartPath) -> Iterator[Problem]:
    path, named = (*policy, "templates", at), (*policy, "template", at, "name")  # as the webhook writes it
    where, name = (*path, "metadata", "name"), _name(template)
    if name in names:
        why = "names must be unique for VolumeClaimPolicies template"
        yield invalid("jobset-claim", where, name, why, named=named)
    names.add(name)
    yield from invalids("jobset-claim", where, name, api_names.subdomain(name), named=named)
    if jobset and len(f"{name}-{jobset}") > _MOST_NAME:
        yield invalid("jobset-claim", where, name, "VolumeClaimPolicies template name is too long", named=named)
    if text(inside(template, "metadata", "namespace")):
        why = "namespace cannot be set for VolumeClaimPolicies templates"
        yield contradiction("jobset-claim", (*path, "metadata", "namespace"), why, named=policy)
    wrong = list(api_schema.fields(template, "V1PersistentVolumeClaim", path))
    yield from wrong
    if not any(problem.id == "api-type" for problem in wrong):
        yield from claim_spec(mapping(inside(template, "spec")), (*path, "spec"))


def _use(name: str, spec: Spec, path: PartPath, template: PartPath, *, is_whole: bool) -> Iterator[Problem]:
    """Somebody must mount it, and nobody have a volume of that name."""
    mounted: set[str] = set()
    for index, one in enumerate(items(spec.get("replicatedJobs"))):
        pod = mapping(inside(one, *_POD))
        for at, volume in enumerate(items(pod.get("volumes"))):
            if name and text(inside(volume, "name")) == name:
                where = (*path, "replicatedJobs", index, *_POD, "volumes", at, "name")
                why = f"volume name conflicts with VolumeClaimPolicy template name: {name}"
                yield invalid("jobset-claim", where, name, why)
        for container in (*items(pod.get("initContainers")), *items(pod.get("containers"))):
            mounted |= {text(inside(mount, "name")) for mount in items(inside(container, "volumeMounts"))}
    if is_whole and name not in mounted:
        why = f"replicatedJob containers don't have a matching volumeMount: {name} from VolumeClaimPolicies"
        yield contradiction("jobset-claim-unused", template, why, named=(*path, "replicatedJobs"))
