# SPDX-License-Identifier: Apache-2.0
"""The part of a Job's manifest that decides what becomes of it, with the API server's defaults.

Only the types are checked: what the API server would refuse is for ``resilient manifest --check`` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from resilient.core.kube_indexes import parse_indexes
from resilient.core.kube_job import UNLIMITED, Container, JobSpec, PodTemplate, RestartRule, SuccessRule
from resilient.core.kube_pod_failure import OnExitCodes, PodCondition, Policy, PolicyRule
from resilient.kubernetes.parts import Part

MOST_PODS = 5000
"""At once; the states of so many are looked through at every step."""
_PLAIN: Mapping[str, str] = MappingProxyType({"completionMode": "NonIndexed", "restartPolicy": ""})
IN_JOBSET: Mapping[str, str] = MappingProxyType({"completionMode": "Indexed", "restartPolicy": "OnFailure"})
"""The defaults of JobSet's webhook, which come before the API server's."""


def job_spec(part: Part, *, name: str, namespace: str, defaults: Mapping[str, str] = _PLAIN) -> JobSpec:
    """A Job's ``spec``."""
    completions, parallelism = part.at("completions").whole(), part.at("parallelism").whole()
    if completions is None and parallelism is None:
        completions = 1
    per_index = part.at("backoffLimitPerIndex").whole()
    backoff_limit = part.at("backoffLimit").whole()
    policy = part.at("podFailurePolicy")
    replacement = part.at("podReplacementPolicy").text()
    deadline_s = part.at("activeDeadlineSeconds").whole()
    spec = JobSpec(
        name=name,
        namespace=namespace,
        template=pod_template(part.at("template", "spec"), defaults["restartPolicy"]),
        completions=completions,
        parallelism=1 if parallelism is None else parallelism,
        is_indexed=part.at("completionMode").text(defaults["completionMode"]) == "Indexed",
        backoff_limit=(6 if per_index is None else UNLIMITED) if backoff_limit is None else backoff_limit,
        backoff_limit_per_index=per_index,
        max_failed_indexes=part.at("maxFailedIndexes").whole(),
        policy=failure_policy(policy) if policy.is_there else None,
        success=_success_policy(part.at("successPolicy"), completions or 0),
        only_failed_replaced=policy.is_there or replacement == "Failed",
        deadline_s=None if deadline_s is None else float(deadline_s),
        suspended=part.at("suspend").flag(),
        managed_by=part.at("managedBy").text() or None,
    )
    if spec.is_indexed and completions is None:
        raise part.at("completions").wrong("is missing, and an Indexed Job must have it", "say how many indexes it has")
    if max(spec.most_pods, (completions or 0) if spec.is_indexed else 0) > MOST_PODS:
        raise part.at("completions").wrong(f"and parallelism ask for more than {MOST_PODS} pods", "simulate fewer")
    return spec


def failure_policy(part: Part) -> Policy:
    """The rules of a ``podFailurePolicy``."""
    return tuple(_policy_rule(rule) for rule in part.at("rules").items())


def _policy_rule(part: Part) -> PolicyRule:
    codes = part.at("onExitCodes")
    name = codes.at("containerName")
    on_exit_codes = OnExitCodes(
        operator=codes.at("operator").text(),
        values=frozenset(codes.at("values").wholes()),
        container_name=name.text() if name.is_there else None,
    )
    return PolicyRule(
        action=part.at("action").text(),
        on_exit_codes=on_exit_codes if codes.is_there else None,
        on_pod_conditions=tuple(_condition(one, "True") for one in part.at("onPodConditions").items()),
    )


def _condition(part: Part, default: str) -> PodCondition:
    return PodCondition(type=part.at("type").text(), status=part.at("status").text(default))


def pod_conditions(part: Part) -> tuple[PodCondition, ...]:
    """The conditions in a pod's status, where nothing is filled in."""
    return tuple(_condition(one, "") for one in part.items())


def pod_template(part: Part, restart_policy: str) -> PodTemplate:
    """A pod's ``spec``."""
    containers = [_container(one, is_init=True) for one in part.at("initContainers").items()]
    mains = [_container(one, is_init=False) for one in part.at("containers").items()]
    if not mains:
        raise part.at("containers").wrong("is empty", "give the manifest of a Job, with its pod template")
    policy = part.at("restartPolicy").text(restart_policy)
    if policy not in ("Never", "OnFailure"):
        raise part.at("restartPolicy").wrong("is neither Never nor OnFailure, and the API server refuses it")
    grace_s = part.at("terminationGracePeriodSeconds").whole()
    return PodTemplate(
        containers=(*containers, *mains), restart_policy=policy, grace_s=30.0 if grace_s is None else float(grace_s)
    )


def _container(part: Part, *, is_init: bool) -> Container:
    return Container(
        name=part.at("name").text(),
        is_init=is_init,
        restart_policy=part.at("restartPolicy").text() or None,
        restart_rules=tuple(
            RestartRule(
                action=rule.at("action").text(),
                operator=rule.at("exitCodes", "operator").text(),
                values=frozenset(rule.at("exitCodes", "values").wholes()),
            )
            for rule in part.at("restartPolicyRules").items()
        ),
    )


def _success_policy(part: Part, completions: int) -> tuple[SuccessRule, ...] | None:
    if not part.is_there:
        return None
    return tuple(_success_rule(rule, completions) for rule in part.at("rules").items())


def _success_rule(part: Part, completions: int) -> SuccessRule:
    indexes = part.at("succeededIndexes")
    return SuccessRule(
        indexes=parse_indexes(indexes.text(), min(completions, MOST_PODS)) if indexes.is_there else None,
        count=part.at("succeededCount").whole(),
    )
