# SPDX-License-Identifier: Apache-2.0
"""Manifests of two pods that train together under the simulator: every code of one of them leads where the contract's
table says, and the other one stays unless the run is over."""

from __future__ import annotations

import functools

import pytest
from submissions import submission
from test_simulated_example import COUNTED, IGNORED, STOPS

from resilient.core.contract_policy import RESTARTED_IN_PLACE
from resilient.core.exit_codes import ExitCode
from resilient.core.kube_job import Job, JobSpec
from resilient.core.kube_jobset import JobSetSpec
from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending, Simulation
from resilient.kubernetes.documents import read
from resilient.kubernetes.manifest import write
from resilient.kubernetes.simulated import find_workload

kinds = pytest.mark.parametrize("kind", ["indexed", "jobset", "runtime"])
both = pytest.mark.parametrize("restart_rules", [False, True])
SPENT = 21
"""Failures of an index, one more than its backstop."""


@functools.cache
def workload(kind: str, *, restart_rules: bool = False) -> JobSpec | JobSetSpec:
    documents = read(write(kind, submission(pods=2, restart_rules=restart_rules)), "manifest")
    return find_workload(documents).spec


def after(kind: str, *endings: Ending, restart_rules: bool = False) -> tuple[Simulation, Job]:
    """What becomes of two pods of which some end."""
    done = simulate(workload(kind, restart_rules=restart_rules), endings)
    (job,) = done.jobs
    return done, job


def second(code: int, at_s: float = 60.0) -> Ending:
    return Ending(at_s=at_s, codes={"": code}, index=1)


def set_end(done: Simulation) -> tuple[str, int] | None:
    """How the JobSet ended, where there is one, and its restarts."""
    if done.jobset is None:
        return None
    return done.jobset.end.type if done.jobset.end else "", done.jobset.restarts


def pods(done: Simulation, event: str) -> list[str]:
    """Those of which the timeline says this, in order."""
    return [name for entry in done.entries if entry.event == event for name in entry.pods]


@kinds
def test_it_is_done_when_both_have_finished(kind: str) -> None:
    """One that has finished before is not replaced."""
    done, job = after(kind, second(0))
    assert (job.end, len(job.pods), set_end(done)) == (None, 2, done.jobset and ("", 0))
    done, job = after(kind, second(0), Ending(at_s=90, codes={"": 0}, index=0))
    assert job.end is not None
    assert (job.end.type, set_end(done)) == ("Complete", done.jobset and ("Completed", 0))


@pytest.mark.parametrize("code", sorted(STOPS))
@both
@kinds
def test_a_stop_of_one_pod_ends_both(kind: str, restart_rules: bool, code: int) -> None:
    """The Job says which pod it was, and the other one is deleted."""
    done, job = after(kind, second(code), restart_rules=restart_rules)
    assert job.end is not None
    assert (job.end.type, job.end.reason) == ("Failed", "PodFailurePolicy")
    other, blamed = pods(done, "created")
    assert f"/{blamed} failed with exit code {code} " in job.end.message
    assert (pods(done, "deleted"), set_end(done)) == ([other], done.jobset and ("Failed", 0))


@pytest.mark.parametrize("code", sorted(COUNTED | IGNORED))
@kinds
def test_any_other_code_of_one_pod_replaces_that_one(kind: str, code: int) -> None:
    """The other one stays, and the set is not made anew; only what counts is a failure of the Job."""
    done, job = after(kind, second(code))
    counted = code in COUNTED
    assert (job.end, set_end(done)) == (None, done.jobset and ("", 0))
    first, ended, again = job.pods
    assert (first.index, ended.index, again.index) == (0, 1, 1)
    assert (first.is_active, ended.is_active, again.is_active) == (True, False, True)
    assert (job.failed, again.failure_count, again.ignored_count) == (counted, counted, not counted)
    assert not pods(done, "deleted")


@pytest.mark.parametrize("code", sorted(COUNTED | IGNORED))
@kinds
def test_where_containers_restart_in_place_two_codes_replace_no_pod(kind: str, code: int) -> None:
    """193 and 197; every other one does, as without these rules."""
    done, job = after(kind, second(code), restart_rules=True)
    in_place = code in RESTARTED_IN_PLACE
    assert (job.end, set_end(done)) == (None, done.jobset and ("", 0))
    assert [pod.index for pod in job.pods] == [0, 1] if in_place else [0, 1, 1]
    assert [pod.restarts for pod in job.pods if pod.index == 1] == [1] if in_place else [0, 0]
    assert job.failed == (code in COUNTED and not in_place)
    assert not pods(done, "deleted")


@kinds
def test_both_ends_of_one_preemption_count_nothing(kind: str) -> None:
    """Two nodes that go at once, the second pod too late to save."""
    first = Ending(at_s=60, codes={"": ExitCode.PREEMPTED_SAVED}, index=0)
    done, job = after(kind, first, second(ExitCode.PREEMPTED_UNSAVED))
    assert (job.end, job.failed, set_end(done)) == (None, 0, done.jobset and ("", 0))
    assert [pod.index for pod in job.pods if pod.is_active] == [0, 1]


@kinds
def test_an_index_that_only_fails_ends_the_job_in_the_end(kind: str) -> None:
    """A JobSet begins anew after that, counted."""
    done = simulate(workload(kind), [second(ExitCode.INTERNAL)] * SPENT)
    if done.jobset is None:
        (job,) = done.jobs
        assert job.end is not None
        assert (job.end.reason, job.failed) == ("MaxFailedIndexesExceeded", SPENT + 1)  # and the pod that it deletes
    else:
        assert set_end(done) == ("", 1)


@kinds
def test_what_is_ignored_goes_on_for_ever(kind: str) -> None:
    """The controller has no limit for it: the supervisors' own budget is the only one."""
    done, job = after(kind, *[second(ExitCode.RESCHEDULE)] * 100)
    assert (job.end, job.failed, job.pods_made, set_end(done)) == (None, 0, 102, done.jobset and ("", 0))
