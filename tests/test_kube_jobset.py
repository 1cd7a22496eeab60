# SPDX-License-Identifier: Apache-2.0
"""JobSets: what becomes of the set when a Job of it fails, and when pods of the next attempt begin."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pytest
from kube_specs import created_s, ends, gang

from resilient.core.kube_job import Job, JobCondition
from resilient.core.kube_jobset import FailurePolicy, JobSet, JobSetSpec, ReplicatedJob, SetAction, SetRule, judge
from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending, Simulation, Suspension

SPENT = gang(backoff_limit_per_index=0)


def jobset(*rules: SetRule, restarts: int = 2, blocking: bool = False, **more: object) -> JobSetSpec:
    """Two Jobs of two pods each."""
    policy = FailurePolicy(max_restarts=restarts, rules=rules, waits_for_all=blocking)
    given: dict[str, object] = {
        "failure": policy,
        "replicated": (ReplicatedJob(name="node", job=SPENT, replicas=2),),
        **more,
    }
    return JobSetSpec(name="js", **given)  # type: ignore[arg-type]  # by name


def fails(at_s: float, code: int, job: str = "js-node-0", index: int = 0) -> Ending:
    return ends(at_s, code, index, job=job)


def outcome(done: Simulation) -> tuple[str, str, int, int]:
    """How the set ended, and its restarts, all and counted."""
    assert done.jobset is not None
    end = done.jobset.end
    return (end.type if end else "", end.reason if end else "", done.jobset.restarts, done.jobset.counted)


STOP = SetRule(action=SetAction.FAIL, reasons=frozenset({"PodFailurePolicy"}))


def test_the_set_is_done_when_all_jobs_are() -> None:
    """Not before."""
    assert outcome(simulate(jobset(), [fails(9, 0), fails(9, 0, index=1)])) == ("", "", 0, 0)
    done = simulate(jobset(), [ends(9, 0, None)])
    assert outcome(done) == ("Completed", "AllJobsCompleted", 0, 0)


def test_without_a_policy_one_failure_ends_it() -> None:
    """The message names the first Job that failed; the others are deleted."""
    done = simulate(jobset(failure=None), [fails(100, 1)])
    assert outcome(done) == ("Failed", "FailedJobs", 0, 0)
    assert done.jobset is not None
    assert done.jobset.end is not None
    assert done.jobset.end.message == "jobset failed due to one or more job failures (first failed job: js-node-0)"
    assert [job.spec.name for job in done.jobs] == ["js-node-0"]


def test_the_default_is_to_restart_all_and_count_it() -> None:
    """Both Jobs are made again, until that has happened often enough."""
    done = simulate(jobset(), [fails(100, 1), fails(1000, 1), fails(2000, 1)])
    assert outcome(done) == ("Failed", "ReachedMaxRestarts", 2, 2)
    assert len(created_s(done)) == 12


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((STOP,), ("Failed", "FailJobSetFailurePolicyAction", 0, 0)),
        ((SetRule(action=SetAction.RESTART_UNCOUNTED), STOP), ("", "", 1, 0)),
        ((SetRule(action=SetAction.RESTART, targets=frozenset({"other"})), STOP), ("Failed", STOP.action, 0, 0)),
        ((SetRule(action=SetAction.RESTART, messages=(re.compile("exit code 114 "),)), STOP), ("", "", 1, 1)),
        ((SetRule(action=SetAction.RESTART, messages=(re.compile("exit code 115 "),)), STOP), ("Failed", "", 0, 0)),
        ((SetRule(action=SetAction.FAIL, reasons=frozenset({"DeadlineExceeded"})),), ("", "", 1, 1)),
    ],
)
def test_the_first_rule_that_fits_decides(rules: Sequence[SetRule], expected: tuple[str, str, int, int]) -> None:
    """By reason, message and template; without one that fits all are restarted."""
    found = outcome(simulate(jobset(*rules), [fails(100, 114)]))
    assert (found[0], found[2:]) == (expected[0], expected[2:])
    assert found[1].startswith(expected[1])


def test_a_rule_takes_the_job_that_failed_first() -> None:
    """Rules are asked in order, and each of all Jobs that have failed."""
    first, second, third = (
        Job(
            spec=dataclasses.replace(SPENT, name=f"js-node-{index}"),
            conditions=(JobCondition(type="Failed", reason=reason, message="", at_s=at_s),),
        )
        for index, reason, at_s in [(0, "FailedIndexes", 10), (1, "PodFailurePolicy", 30), (2, "PodFailurePolicy", 20)]
    )
    policy = FailurePolicy(rules=(STOP,), max_restarts=1)
    js = JobSet(spec=jobset(failure=policy, replicated=(ReplicatedJob(name="node", job=SPENT, replicas=3),)))
    assert judge(js, [first, second], 99).job == "js-node-1"
    verdict = judge(js, [first, second, third], 99)
    assert (verdict.rule, verdict.action, verdict.is_end, verdict.job) == (0, SetAction.FAIL, True, "js-node-2")
    verdict = judge(js, [first], 99)
    assert (verdict.rule, verdict.action, verdict.job) == (None, SetAction.RESTART, "js-node-0")


def test_one_job_can_be_restarted_alone() -> None:
    """The other goes on; it counts towards the same limit."""
    rule = SetRule(action=SetAction.RESTART_JOB)
    done = simulate(jobset(rule, restarts=1), [fails(100, 1), fails(1000, 1)])
    assert outcome(done) == ("Failed", "ReachedMaxRestarts", 0, 1)
    assert [entry.job for entry in done.entries if entry.event == "removed"] == ["js-node-0", "js-node-1"]
    assert len(created_s(done)) == 6


@pytest.mark.parametrize(("blocking", "begins_s"), [(False, [162, 222]), (True, [222, 222])])
def test_when_the_next_attempt_begins(blocking: bool, begins_s: list[float]) -> None:
    """Each Job when its own pods are gone, or all when all are: the peers have a minute to go, twice."""
    done = simulate(jobset(blocking=blocking), [fails(100, 1)])
    assert [entry.at_s for entry in done.entries if entry.event == "removed"] == [162, 162]
    first = {entry.job: entry.at_s for entry in reversed(done.entries) if entry.event == "created" and entry.at_s}
    assert sorted(first.values()) == begins_s


def test_an_ending_is_for_what_runs_then() -> None:
    """One comes while a pod goes with its set, and is spent on it; later ones are for the pods after it."""
    later = [fails(3000, 0, "js-node-1"), fails(3000, 0, "js-node-1", index=1)]
    done = simulate(jobset(), [fails(100, 1), fails(200, 0, "js-node-1"), *later])
    assert [entry.at_s for entry in done.entries if entry.event == "gone" and entry.job == "js-node-1"] == [222]
    assert [entry.at_s for entry in done.entries if "exit code 0" in entry.what] == [3000, 3000]
    assert done.unused == ()


def test_names_are_not_used_twice() -> None:
    """A pod of the next attempt has another name."""
    done = simulate(jobset(), [fails(100, 1)])
    names = [name for entry in done.entries if entry.event == "created" for name in entry.pods]
    assert len(set(names)) == len(names) == 8


@pytest.mark.parametrize(("status", "begins_s"), [("Complete", 101), ("Ready", 0)])
def test_a_template_waits_for_what_it_depends_on(status: str, begins_s: float) -> None:
    """As Trainer's nodes do for the initializer of the data set."""
    first = ReplicatedJob(name="data", job=gang(1))
    node = ReplicatedJob(name="node", job=gang(2), needs=(("data", status),))
    done = simulate(jobset(replicated=(node, first)), [ends(100, 0, 0, job="data")])
    [made] = {entry.at_s for entry in done.entries if entry.event == "created" and entry.job == "js-node-0"}
    assert made == begins_s


def test_any_job_of_a_template_can_complete_the_set() -> None:
    """The success policy names whose Jobs count."""
    spec = jobset(any_success=True, success_targets=frozenset({"node"}))
    done = simulate(spec, [fails(50, 0, "node-x"), fails(100, 0), fails(100, 0, index=1)])
    assert outcome(done) == ("Completed", "AllJobsCompleted", 0, 0)


def test_a_suspended_set_makes_its_jobs_suspended() -> None:
    """They are there, without pods (``constructJob``); one that depends on another is not, as none is ready."""
    done = simulate(jobset(suspended=True), [fails(100, 1)])
    assert [(job.spec.name, job.spec.suspended, job.pods) for job in done.jobs] == [
        ("js-node-0", True, ()),
        ("js-node-1", True, ()),
    ]
    assert (outcome(done), len(done.unused)) == (("", "", 0, 0), 1)
    first, second = (ReplicatedJob(name=name, job=SPENT) for name in ("data", "node"))
    waiting = dataclasses.replace(second, needs=(("data", "Ready"),))
    assert [job.spec.name for job in simulate(jobset(suspended=True, replicated=(first, waiting)), []).jobs] == [
        "js-data-0"
    ]


@pytest.mark.parametrize(("suspended", "jobs"), [(False, ["js-data-0"]), (True, ["js-data-0", "js-node-0"])])
def test_templates_start_in_order(suspended: bool, jobs: list[str]) -> None:
    """The second when all pods of the first run, which a Job of another controller never has; not while suspended."""
    first = ReplicatedJob(name="data", job=gang(1, managed_by="example.com/other"))
    second = ReplicatedJob(name="node", job=gang(2))
    done = simulate(jobset(replicated=(first, second), in_order=True, suspended=suspended), [])
    assert [job.spec.name for job in done.jobs] == jobs
    first = dataclasses.replace(first, job=gang(1))
    done = simulate(jobset(replicated=(first, second), in_order=True), [])
    assert [entry.job for entry in done.entries if entry.event == "created"] == ["js-data-0", "js-node-0", "js-node-0"]


def test_a_set_of_another_controller_is_left_alone() -> None:
    """As MultiKueue has it in the cluster that only keeps the object."""
    done = simulate(jobset(left_to="kueue.x-k8s.io/multikueue"), [fails(9, 1)], [Suspension(from_s=5, to_s=6)])
    assert (done.jobs, [entry.event for entry in done.entries], len(done.unused)) == ((), ["left alone"], 1)


def test_a_success_policy_whose_templates_have_no_jobs_is_met_by_any_success() -> None:
    """None is expected, so that one is enough (``numJobsExpectedToSucceed``)."""
    none = ReplicatedJob(name="none", job=SPENT, replicas=0)
    node = ReplicatedJob(name="node", job=SPENT, replicas=2)
    spec = jobset(replicated=(node, none), success_targets=frozenset({"none"}))
    assert outcome(simulate(spec, [fails(9, 0), fails(9, 0, index=1)])) == ("Completed", "AllJobsCompleted", 0, 0)


def test_a_set_that_is_suspended_goes_on_later() -> None:
    """Its Jobs stay, their pods go."""
    done = simulate(jobset(), [ends(900, 0, None)], [Suspension(from_s=0, to_s=50), Suspension(from_s=100, to_s=500)])
    assert sorted(set(created_s(done))) == [50, 500]
    assert outcome(done) == ("Completed", "AllJobsCompleted", 0, 0)
