# SPDX-License-Identifier: Apache-2.0
"""The JobSet around a Job of somebody's: what its failure means for the set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resilient.core.backstop import Plan
from resilient.kubernetes.completing import mapping, mappings, plain, put, refused
from resilient.kubernetes.documents import Document
from resilient.kubernetes.lint_sets import FAIL, SPENT, STOPPED, UNCOUNTED, action_of
from resilient.kubernetes.workloads import set_policy


def complete_set(spec: Any, name: str, plan: Plan, document: Document, notes: list[str]) -> None:
    """Give the set that holds the replicated Job of that name the contract's failure policy, where it has none.

    A policy that contradicts it may be a wish, and is refused by name.
    """
    wanted = set_policy(plan)
    policy = spec.get("failurePolicy")
    if policy is None:
        put(spec, "failurePolicy", wanted, before="replicatedJobs")
        return
    policy = mapping(document, policy, "failurePolicy")
    if not mappings(document, policy.get("rules"), "rules of its failurePolicy"):
        put(policy, "rules", wanted["rules"])
    _check(plain(policy), name, document)
    if not policy.get("maxRestarts"):
        notes.append("failurePolicy.maxRestarts is 0: the first Job that spends its backstop ends the set")


def _check(policy: Mapping[str, Any], name: str, document: Document) -> None:
    action, _ = action_of(policy["rules"], name, STOPPED)
    if action != FAIL:
        why = f"its failurePolicy answers {STOPPED}, a fault of the code, with {action}"
        raise refused(document, why, f"let its first rule be action: {FAIL} with onJobFailureReasons: [{STOPPED}]")
    for reason in SPENT:
        action, _ = action_of(policy["rules"], name, reason)
        if action in UNCOUNTED:
            why = f"its failurePolicy answers {reason} with {action}, without a limit"
            raise refused(document, why, "write RestartJobSet, which maxRestarts bounds")
