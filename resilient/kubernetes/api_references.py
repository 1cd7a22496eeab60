# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses in what a pod names of other objects.

Facts from ``pkg/apis/core/validation/validation.go``: ``ValidatePodSpec``, ``validatePodResourceClaims`` and
``validateResourceClaimNames``. Whether the objects are there, it does not ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from resilient.kubernetes import api_names
from resilient.kubernetes.api_problems import (
    Problem,
    Spec,
    contradiction,
    duplicate,
    inside,
    invalids,
    items,
    mapping,
    not_found,
    required,
    text,
    unless_one_of,
)
from resilient.kubernetes.building import PartPath

_NAMES: Final = ("serviceAccountName", "priorityClassName", "nodeName", "runtimeClassName")
_PREEMPTIONS: Final = ("PreemptLowerPriority", "Never")
_CLAIMED_BY: Final = ("resourceClaimName", "resourceClaimTemplateName")


def references(spec: Spec, path: PartPath) -> Iterator[Problem]:
    """Of a pod."""
    for key in _NAMES:
        name = text(spec.get(key))
        yield from invalids("reference-malformed", (*path, key), name, api_names.subdomain(name) if name else ())
    yield from unless_one_of(
        "preemption-policy-unknown", (*path, "preemptionPolicy"), spec.get("preemptionPolicy"), _PREEMPTIONS
    )
    names: set[str] = set()
    for index, claim in enumerate(map(mapping, items(spec.get("resourceClaims")))):
        yield from _claim(claim, names, (*path, "resourceClaims", index))
    for group in ("initContainers", "containers"):
        for index, container in enumerate(items(spec.get(group))):
            wanted = items(inside(container, "resources", "claims"))
            yield from _wanted(wanted, names, (*path, group, index, "resources", "claims"))


def _claim(claim: Spec, names: set[str], path: PartPath) -> Iterator[Problem]:
    name = text(claim.get("name"))
    if not name:
        yield required("resource-claim", (*path, "name"))
    elif name in names:
        yield duplicate("resource-claim", (*path, "name"), name)
    else:
        yield from invalids("resource-claim", (*path, "name"), name, api_names.label(name))
        names.add(name)
    given = [key for key in _CLAIMED_BY if claim.get(key) is not None]
    if not given:
        why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
        yield contradiction("resource-claim", path, why)
    elif len(given) > 1:
        why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
        yield contradiction("resource-claim", path, why)
    for key in given:
        yield from invalids("resource-claim", (*path, key), claim[key], api_names.subdomain(text(claim[key])))


def _wanted(wanted: list[Any], names: set[str], path: PartPath) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, one in enumerate(map(mapping, wanted)):
        name, request = text(one.get("name")), text(one.get("request"))
        if not name:
            yield required("resource-claim-unknown", (*path, index))
            continue
        key = f"{name}/{request}" if request else name
        if key in seen or name in seen or (not request and any(before.startswith(f"{name}/") for before in seen)):
            yield duplicate("resource-claim-unknown", (*path, index), name if name in seen else key)
        seen.add(key)
        if name not in names:
            known = f": {', '.join(sorted(names))}" if names else " which is empty"
            why = f"must be one of the names in pod.spec.resourceClaims{known}"
            yield not_found("resource-claim-unknown", (*path, index), name, why)
