# SPDX-License-Identifier: Apache-2.0
"""The kubelet: what is restarted in place, when, and when a pod has ended."""

from __future__ import annotations

import pytest
from kube_specs import conditions, created_s, ends, ends_of, gang, run

from resilient.core.kube_job import Container, PodPhase, PodTemplate, RestartRule
from resilient.core.kube_kubelet import RESTART, RESTART_ALL, restart_action
from resilient.report.as_kubectl import kubectl_lines


def trainer(*rules: RestartRule, policy: str | None = "Never") -> Container:
    """The main container with rules of its own."""
    return Container(name="trainer", restart_policy=policy, restart_rules=rules)


def rule(*codes: int, action: str = RESTART, operator: str = "In") -> RestartRule:
    return RestartRule(action=action, operator=operator, values=frozenset(codes))


SIDECAR = Container(name="mesh", is_init=True, restart_policy="Always")
PREFLIGHT = Container(name="preflight", is_init=True)


@pytest.mark.parametrize(
    ("container", "pod_policy", "code", "expected"),
    [
        (trainer(rule(193)), "Never", 193, RESTART),
        (trainer(rule(193)), "Never", 194, None),
        (trainer(rule(193, action=RESTART_ALL)), "Never", 193, RESTART_ALL),
        (trainer(rule(193), rule(193, action=RESTART_ALL)), "Never", 193, RESTART),
        (trainer(rule(0, 1, operator="NotIn")), "Never", 7, RESTART),
        (trainer(rule(193, action="Explode")), "Never", 193, None),
        (trainer(rule(193, operator="Equals")), "Never", 193, None),
        (trainer(rule(193), policy=None), "Never", 193, None),
        (trainer(policy=None), "OnFailure", 1, RESTART),
        (trainer(policy=None), "OnFailure", 0, None),
        (trainer(policy="Always"), "Never", 0, RESTART),
        (trainer(policy="Never"), "OnFailure", 1, None),
        (SIDECAR, "Never", 1, RESTART),
    ],
)
def test_who_restarts_a_container(container: Container, pod_policy: str, code: int, expected: str | None) -> None:
    """Its own rules if it has a policy beside them, then that policy, then the pod's."""
    assert restart_action(container, PodTemplate(containers=(container,), restart_policy=pod_policy), code) == expected


def test_a_container_restarted_in_place_is_no_failure() -> None:
    """The Job sees the code that ends the pod, and only that; the kubelet waits 0, 10 and 20 s."""
    template = PodTemplate(containers=(trainer(rule(193, 197)),))
    done, job = run(gang(1, template=template), *[ends(100, code) for code in (193, 197, 193, 194)])
    assert [entry.at_s for entry in done.entries if entry.event == "ended"] == [100, 100, 110, 130]
    assert created_s(done) == [0, 140]
    first, _ = job.pods
    assert (first.restarts, first.containers[0].last_code, first.containers[0].exit_code) == (3, 193, 194)
    assert job.failed == 0


def test_all_containers_are_restarted_together() -> None:
    """The others are killed for it; init containers run again, and are not counted before they end."""
    template = PodTemplate(
        containers=(PREFLIGHT, SIDECAR, trainer(rule(193, action=RESTART_ALL)), Container(name="helper"))
    )
    _, job = run(gang(1, template=template), ends_of(50, helper=0), ends_of(100, trainer=193))
    [pod] = job.pods
    assert pod.is_active
    assert {run.name: (run.restarts, run.exit_code) for run in pod.containers} == {
        "preflight": (1, 0),
        "mesh": (1, None),
        "trainer": (1, None),
        "helper": (1, None),
    }


def test_nothing_is_restarted_in_a_pod_that_is_being_deleted() -> None:
    """Whatever the rules say."""
    template = PodTemplate(containers=(trainer(rule(193)),))
    done, _ = run(gang(1, template=template), ends(110, 193, deleted_s=100))
    assert created_s(done) == [0, 120]


def test_a_native_sidecar_ends_with_the_others() -> None:
    """Well, unless the ending says otherwise; its code does not make the pod a failed one."""
    template = PodTemplate(containers=(SIDECAR, trainer()))
    _, job = run(gang(1, template=template), ends_of(100, trainer=0, mesh=143))
    assert job.end is not None
    assert (job.end.type, job.pods[0].phase) == ("Complete", PodPhase.SUCCEEDED)


@pytest.mark.parametrize(("fails_s", "next_s"), [(4, 10), (10, 11), (500, 501)])
def test_an_init_container_that_fails_ends_the_pod(fails_s: float, next_s: float) -> None:
    """The trainer has not run, so it has no code, and the delay runs from when the pod was not ready: its beginning.

    ``getFinishedTime`` wants every container terminated, and takes the Ready condition's last transition otherwise.
    """
    template = PodTemplate(containers=(PREFLIGHT, trainer()))
    done, job = run(gang(1, template=template), ends_of(fails_s, preflight=198))
    assert created_s(done) == [0, next_s]
    assert [run.exit_code for run in job.pods[0].containers] == [198, None]


def test_a_stop_is_seen_although_others_were_restarted_before() -> None:
    """114 matches no restart rule, so it ends the pod and then the Job."""
    template = PodTemplate(containers=(trainer(rule(193, 197)),))
    _, job = run(gang(1, template=template), ends(10, 193), ends(20, 114))
    assert conditions(job)[-1] == ("Failed", "PodFailurePolicy", 21)


def test_kubectl_shows_a_container_that_waits() -> None:
    """Until the kubelet starts it again, and for how long ago it ended."""
    template = PodTemplate(containers=(trainer(rule(193)),))
    done, _ = run(gang(1, template=template), ends(100, 193), ends(100, 193), ends(100, 193))
    row = next(line for line in kubectl_lines(done) if line.startswith("train-0-sim01"))
    assert row.split() == ["train-0-sim01", "0/1", "CrashLoopBackOff", "3", "(1s", "ago)", "111s"]
