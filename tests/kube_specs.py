# SPDX-License-Identifier: Apache-2.0
"""Small Jobs for tests of the simulator, and endings in few words."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from resilient.core.kube_job import UNLIMITED, Container, Job, JobSpec, PodTemplate
from resilient.core.kube_pod_failure import OnExitCodes, PodCondition, Policy, PolicyRule
from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending, Simulation

DISRUPTED = PodCondition(type="DisruptionTarget")
TEMPLATE = PodTemplate(containers=(Container(name="trainer"),), grace_s=60)


def on_codes(
    action: str, codes: Collection[int], *, container: str | None = "trainer", operator: str = "In"
) -> PolicyRule:
    """A rule about exit codes."""
    wanted = OnExitCodes(operator=operator, values=frozenset(codes), container_name=container)
    return PolicyRule(action=action, on_exit_codes=wanted)


def on_condition(action: str, condition: PodCondition = DISRUPTED) -> PolicyRule:
    """A rule about a condition."""
    return PolicyRule(action=action, on_pod_conditions=(condition,))


POLICY: Policy = (on_codes("FailJob", {114}), on_condition("Ignore"), on_codes("Ignore", {194, 197}))


def plain(**changes: Any) -> JobSpec:
    """A Job without indexes or policy."""
    return dataclasses.replace(JobSpec(name="train", template=TEMPLATE), **changes)


def gang(pods: int = 2, **changes: Any) -> JobSpec:
    """An Indexed Job as the contract has it."""
    spec = plain(
        completions=pods,
        parallelism=pods,
        is_indexed=True,
        backoff_limit=UNLIMITED,
        backoff_limit_per_index=3,
        max_failed_indexes=0,
        policy=POLICY,
        only_failed_replaced=True,
    )
    return dataclasses.replace(spec, **changes)


def ends(at_s: float, code: int, index: int | None = 0, **more: Any) -> Ending:
    """The main container of an index ends with this code."""
    return Ending(at_s=at_s, codes={"": code}, index=index, **more)


def ends_of(at_s: float, **codes: int) -> Ending:
    """Containers of index 0 end with these codes."""
    return Ending(at_s=at_s, codes=codes, index=0)


def evicted(at_s: float, code: int, index: int = 0, *, deleted_s: float) -> Ending:
    """A pod that is deleted in a disruption, and ends a moment later."""
    return ends(at_s, code, index, deleted_s=deleted_s, conditions=(DISRUPTED,))


def run(spec: JobSpec, *endings: Ending) -> tuple[Simulation, Job]:
    """The simulation of one Job, and the Job at its end."""
    done = simulate(spec, endings)
    [job] = done.jobs
    return done, job


def created_s(done: Simulation) -> list[float]:
    """When pods were made."""
    return [entry.at_s for entry in done.entries if entry.event == "created" for _ in entry.pods]


def conditions(job: Job) -> list[tuple[str, str, float]]:
    """Type, reason and moment of each."""
    return [(condition.type, condition.reason, condition.at_s) for condition in job.conditions]
