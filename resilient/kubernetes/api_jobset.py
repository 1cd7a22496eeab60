# SPDX-License-Identifier: Apache-2.0
"""What the JobSet CRD and its webhook refuse, and what the API server will refuse of the Jobs that it makes.

Facts from JobSet's ``pkg/webhooks/jobset_webhook.go`` and API types (0.12). In a runtime of Trainer the pods are
finished by the TrainJob, so that they need not be whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from resilient.core.kube_jobset import SetAction
from resilient.kubernetes import api_names
from resilient.kubernetes.api_claim_policies import claim_policies, claimed
from resilient.kubernetes.api_job import managed_by
from resilient.kubernetes.api_objects import embedded_job
from resilient.kubernetes.api_problems import (
    INT32,
    Problem,
    Spec,
    contradiction,
    duplicate,
    inside,
    invalid,
    items,
    mapping,
    number,
    required,
    text,
    too_many,
    unless_one_of,
    unsupported,
)
from resilient.kubernetes.building import PartPath

REASONS: Final = (
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
)
_ACTIONS: Final = tuple(action.value for action in SetAction)
_STRATEGIES: Final = ("Recreate", "BlockingRecreate", "InPlaceRestart")
_RULE_NAME: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_RULE_NAME_CHARS: Final = 128
_MOST_RULES: Final = 20
_LABEL_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035_WORDS: Final = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_ORDERS: Final = ("AnyOrder", "InOrder")
_OPERATORS: Final = ("All", "Any")
_STATES: Final = ("Ready", "Complete")
"""Of the Jobs that a replicated job depends on."""
_ABSENT: Final = "does not appear in .spec.ReplicatedJobs"


def jobset_spec(spec: Spec, path: PartPath, *, name: str) -> Iterator[Problem]:
    """A JobSet's spec; without a name where a runtime has it."""
    replicated = [mapping(one) for one in items(spec.get("replicatedJobs"))]
    names: set[str] = set()
    for index, one in enumerate(replicated):
        own, where = text(one.get("name")), (*path, "replicatedJobs", index)
        if not own:
            yield required("jobset-replicated-name", (*where, "name"))
        elif own in names:
            yield duplicate("jobset-replicated-name", (*where, "name"), own)
        names.add(own)
        yield from _needs(items(one.get("dependsOn")), own, names, (*where, "dependsOn"), is_first=index == 0)
        yield from _size_and_group(one, where)
        yield from embedded_job(_with_defaults(one), (*where, "template", "spec"), claimed=claimed(spec))
        if name and own:
            yield from _made_names(name, one, where)
    if isinstance(policy := spec.get("failurePolicy"), dict):
        yield from _failure_policy(policy, names, (*path, "failurePolicy"))
    subdomain, where = text(inside(spec, "network", "subdomain")), (*path, "network", "subdomain")
    if isinstance(coordinator := spec.get("coordinator"), dict):
        place = (*path, "coordinator")
        yield from _coordinator(coordinator, replicated, place, jobset=name, subdomain=subdomain)
    yield from _order_and_success(spec, replicated, names, path)
    yield from managed_by(spec, path)
    yield from claim_policies(spec, path, name=name)
    if subdomain and not (len(subdomain) <= api_names.LABEL_BYTES and _LABEL_1035.fullmatch(subdomain)):
        yield invalid("jobset-names", where, subdomain, _LABEL_1035_WORDS)


def _order_and_success(spec: Spec, replicated: list[Spec], names: set[str], path: PartPath) -> Iterator[Problem]:
    order, where = inside(spec, "startupPolicy", "startupPolicyOrder"), (*path, "startupPolicy", "startupPolicyOrder")
    yield from unless_one_of("jobset-words", where, order, _ORDERS)
    operator, where = inside(spec, "successPolicy", "operator"), (*path, "successPolicy", "operator")
    yield from unless_one_of("jobset-words", where, operator, _OPERATORS)
    if order == _ORDERS[1] and any("dependsOn" in one for one in replicated):
        why = "StartupPolicy and DependsOn APIs are mutually exclusive"
        yield contradiction("jobset-depends-on", (*path, "startupPolicy"), why)
    for at, target in enumerate(items(inside(spec, "successPolicy", "targetReplicatedJobs"))):
        if target not in names:
            where = (*path, "successPolicy", "targetReplicatedJobs", at)
            yield invalid("jobset-target-unknown", where, target, _ABSENT)


def _with_defaults(one: Spec) -> dict[str, Any]:
    """The Job's spec with what JobSet's webhook fills in."""
    job = dict(mapping(inside(one, "template", "spec")))
    job.setdefault("completionMode", "Indexed")
    template = dict(mapping(job.get("template")))
    pod = dict(mapping(template.get("spec")))
    pod["restartPolicy"] = pod.get("restartPolicy") or "OnFailure"
    return {**job, "template": {**template, "spec": pod}}


def _size_and_group(one: Spec, path: PartPath) -> Iterator[Problem]:
    parallelism, replicas = number(inside(one, "template", "spec", "parallelism")), number(one.get("replicas"))
    if (1 if parallelism is None else parallelism) * (1 if replicas is None else replicas) > INT32:
        why = f"the product of replicas and parallelism must not exceed {INT32} for replicatedJob '{one.get('name')}'"
        yield contradiction("jobset-size", (*path, "replicas"), why)
    group = text(one.get("groupName"))
    if group and not _LABEL_1035.fullmatch(group):
        yield invalid("jobset-names", (*path, "groupName"), group, _LABEL_1035_WORDS)
    elif len(group) > api_names.LABEL_BYTES:
        why = ".spec.replicatedJob[].groupName is too long, must be less than 63 characters"
        yield invalid("jobset-names", (*path, "groupName"), group, why)


def _needs(needs: list[Any], own: str, names: set[str], path: PartPath, *, is_first: bool) -> Iterator[Problem]:
    """``names``: of the replicated jobs up to this one."""
    if needs and is_first:
        yield contradiction("jobset-depends-on", path, "DependsOn can't be set for the first ReplicatedJob")
        return
    for index, need in enumerate(needs):
        name, state = text(inside(need, "name")), text(inside(need, "status"))
        if name not in names:
            why = f"replicatedJob: {own} cannot depend on replicatedJob: {name}"
            yield invalid("jobset-depends-on", (*path, index, "name"), name, why)
        if state not in _STATES:
            yield unsupported("jobset-depends-on", (*path, index, "status"), state, _STATES)


def _coordinator(
    coordinator: Spec, replicated: list[Spec], path: PartPath, *, jobset: str, subdomain: str
) -> Iterator[Problem]:
    """``jobset``: its name, where that is known."""
    name = text(coordinator.get("replicatedJob"))
    one = next((one for one in replicated if text(one.get("name")) == name), None)
    if one is None:
        why = f"coordinator replicatedJob {name} does not exist"
        yield contradiction("jobset-coordinator", (*path, "replicatedJob"), why)
        return
    replicas, job = number(one.get("replicas")), mapping(inside(one, "template", "spec"))
    counts = {"jobIndex": 1 if replicas is None else replicas, "podIndex": number(job.get("completions"))}
    if counts["podIndex"] is None or text(job.get("completionMode")) not in ("", "Indexed"):
        why = "job for coordinator pod must be indexed completion mode, and completions number must be set"
        yield contradiction("jobset-coordinator", path, why)
        return
    indexes = {key: number(coordinator.get(key)) or 0 for key in counts}
    for key, index in indexes.items():
        if not 0 <= index < (counts[key] or 0):
            of = "job" if key == "jobIndex" else "pod"
            why = f"coordinator {of} index {index} is invalid for replicatedJob {name}"
            yield invalid("jobset-coordinator", (*path, key), index, why)
    if not jobset:
        return
    label = f"{jobset}-{name}-{indexes['jobIndex']}-{indexes['podIndex']}.{subdomain or jobset}"
    for complaint in api_names.label_value(label):
        why = f'spec will lead to invalid label value "{label}" for coordinator label "jobset.sigs.k8s.io/coordinator"'
        yield contradiction("jobset-names", path, f"{why} (long JobSet / ReplicatedJob / SubDomain name?): {complaint}")


def _made_names(name: str, one: Spec, path: PartPath) -> Iterator[Problem]:
    """The longest names of a Job and, where it has indexes, of a pod."""
    replicas, job = number(one.get("replicas")), mapping(inside(one, "template", "spec"))
    made = f"{name}-{text(one.get('name'))}-{(1 if replicas is None else replicas) - 1}"
    completions = number(job.get("completions"))
    kind = "job"
    if text(job.get("completionMode")) in ("", "Indexed") and completions is not None:
        kind, made = "pod", f"{made}-{completions - 1}-abcde"
    if len(made) > api_names.LABEL_BYTES:
        why = f"JobSet name is too long, {kind} names generated for this JobSet will exceed 63 characters"
        yield invalid("jobset-names", ("metadata", "name"), name, why)
    elif not _LABEL_1035.fullmatch(made):
        yield invalid("jobset-names", (*path, "name"), made, _LABEL_1035_WORDS)


def _failure_policy(policy: Spec, names: set[str], path: PartPath) -> Iterator[Problem]:
    strategy = text(policy.get("restartStrategy"))
    if strategy and strategy not in _STRATEGIES:
        yield unsupported("jobset-strategy-unknown", (*path, "restartStrategy"), strategy, _STRATEGIES)
    rules = [mapping(rule) for rule in items(policy.get("rules"))]
    if len(rules) > _MOST_RULES:
        yield too_many("jobset-rules-over-20", (*path, "rules"), len(rules), _MOST_RULES)
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        yield from _rule(rule, index, seen, names, (*path, "rules", index))


def _rule(rule: Spec, index: int, seen: set[str], names: set[str], path: PartPath) -> Iterator[Problem]:
    name = text(rule.get("name")) or f"failurePolicyRule{index}"
    if len(name) > _RULE_NAME_CHARS or not _RULE_NAME.fullmatch(name):
        why = "must start with a letter, go on with letters, digits or '_,:', and end with a letter, a digit or '_'"
        yield invalid("jobset-rule-name", (*path, "name"), name, why)
    if name in seen:
        yield duplicate("jobset-rule-name", (*path, "name"), name)
    seen.add(name)
    action = text(rule.get("action"))
    if action not in _ACTIONS:
        yield unsupported("jobset-action-unknown", (*path, "action"), action, _ACTIONS)
    for at, reason in enumerate(items(rule.get("onJobFailureReasons"))):
        if reason not in REASONS:
            yield unsupported("jobset-reason-unknown", (*path, "onJobFailureReasons", at), reason, REASONS)
    for at, target in enumerate(items(rule.get("targetReplicatedJobs"))):
        if target not in names:
            yield invalid("jobset-target-unknown", (*path, "targetReplicatedJobs", at), target, _ABSENT)
