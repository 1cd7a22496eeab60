# SPDX-License-Identifier: Apache-2.0
"""What the API server refuses to change in a Job (``ValidateJobSpecUpdate``, and the options of the Job's strategy)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

from resilient.kubernetes.api_defaults import template_form
from resilient.kubernetes.api_job import defaulted
from resilient.kubernetes.api_problems import Problem, Spec, inside, invalid, items, mapping
from resilient.kubernetes.building import PartPath

_IMMUTABLE: Final = (
    "selector",
    "completionMode",
    "podFailurePolicy",
    "backoffLimitPerIndex",
    "managedBy",
    "successPolicy",
)
_SCHEDULING: Final = ("nodeSelector", "tolerations", "schedulingGates")


def job_update(old: Spec, new: Spec, path: PartPath) -> Iterator[Problem]:
    """What of the old spec the new one must not change."""
    old, new = _filled(old), _filled(new)
    yield from _completions(old, new, path)
    for name in _IMMUTABLE:
        if old.get(name) != new.get(name):
            yield invalid("api-immutable", (*path, name), new.get(name), "field is immutable")
    yield from _template(old, new, path)


def _template(old: Spec, new: Spec, path: PartPath) -> Iterator[Problem]:
    """Of a suspended Job only the pod is compared, without what a queue may change."""
    before, after = template_form(old.get("template")), template_form(new.get("template"))
    if old.get("suspend") is not True:
        if before != after:
            yield invalid("api-immutable", (*path, "template"), new.get("template"), "field is immutable")
    elif _with_scheduling_of(after["spec"], before["spec"]) != after["spec"]:
        pod = inside(new, "template", "spec")
        yield invalid("api-immutable", (*path, "template", "spec"), pod, "field is immutable")


def _completions(old: Spec, new: Spec, path: PartPath) -> Iterator[Problem]:
    before, after, where = old.get("completions"), new.get("completions"), (*path, "completions")
    if before == after or (new["completionMode"] == "Indexed" and after is None):
        return
    if new["completionMode"] != "Indexed":
        yield invalid("api-immutable", where, after, "field is immutable")
    elif after != new.get("parallelism"):
        yield invalid("api-immutable", where, after, f"can only be modified in tandem with {path[0]}.parallelism")


def _filled(spec: Spec) -> dict[str, Any]:
    """With the defaults of what is compared."""
    filled: dict[str, Any] = copy.deepcopy(defaulted(spec))
    for rule in items(inside(filled, "podFailurePolicy", "rules")):
        for pattern in items(inside(rule, "onPodConditions")):
            pattern.setdefault("status", "True")
    return filled


def _with_scheduling_of(new: Spec, old: Spec) -> dict[str, Any]:
    """The old pod with what the queue of a suspended Job may change: where its pods go, and what they take."""
    adopted: dict[str, Any] = copy.deepcopy(dict(old))
    _adopt(adopted, new, _SCHEDULING)
    affinity, new_affinity = dict(mapping(adopted.get("affinity"))), new.get("affinity")
    _adopt(affinity, mapping(new_affinity), ("nodeAffinity",))
    _adopt(adopted, {"affinity": affinity if affinity or new_affinity is not None else None}, ("affinity",))
    for group in ("containers", "initContainers"):
        for container, new_one in zip(items(adopted.get(group)), items(new.get(group)), strict=False):
            _adopt(container, new_one, ("resources",))
    return adopted


def _adopt(old: Any, new: Spec, names: tuple[str, ...]) -> None:
    for name in names:
        if new.get(name) is None:
            old.pop(name, None)
        else:
            old[name] = new[name]
