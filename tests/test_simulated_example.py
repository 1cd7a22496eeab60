# SPDX-License-Identifier: Apache-2.0
"""``examples/kubernetes/job.yaml`` under the simulator: every code leads where the contract's table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilient.core.exit_codes import STOP, ExitCode
from resilient.core.kube_job import Job, JobSpec
from resilient.core.kube_simulation import simulate
from resilient.core.kube_timeline import Ending
from resilient.kubernetes.documents import read_file
from resilient.kubernetes.simulated import find_workload

STOPS = {*STOP, ExitCode.CANNOT_EXECUTE, ExitCode.NOT_FOUND}
COUNTED = {1, 2, 128, 134, 137, 139, 143, ExitCode.RESTART, ExitCode.INTERNAL}
IGNORED = set(ExitCode) - STOPS - COUNTED - {ExitCode.FINISHED}


def example() -> JobSpec:
    path = Path(__file__).parents[1] / "examples/kubernetes/job.yaml"
    spec = find_workload(read_file(str(path)), "char-gpt").spec
    assert isinstance(spec, JobSpec)
    return spec


def after(*codes: int) -> Job:
    """The Job once its pods have ended with these codes, one after the other."""
    [job] = simulate(example(), [Ending(at_s=60, codes={"": code}) for code in codes]).jobs
    return job


def test_a_finished_training_completes_the_job() -> None:
    """And only that."""
    job = after(ExitCode.FINISHED)
    assert job.end is not None
    assert (job.end.type, job.succeeded, job.failed) == ("Complete", 1, 0)


@pytest.mark.parametrize("code", sorted(STOPS))
def test_a_stop_fails_the_job(code: int) -> None:
    """At once, with the code in the message."""
    job = after(code)
    assert job.end is not None
    assert (job.end.type, job.end.reason, job.failed) == ("Failed", "PodFailurePolicy", 1)
    assert f"exit code {code} " in job.end.message


@pytest.mark.parametrize("code", sorted(COUNTED | IGNORED))
def test_every_other_code_brings_another_pod(code: int) -> None:
    """It knows by its counters what it replaces; only what counts is a failure of the Job."""
    job = after(code)
    counted = code in COUNTED
    assert job.end is None
    assert [pod.is_active for pod in job.pods] == [False, True]
    assert (job.failed, job.pods[1].failure_count, job.pods[1].ignored_count) == (counted, counted, not counted)


def test_an_index_that_only_fails_is_given_up_in_the_end() -> None:
    """The backstop: one failure more than it allows."""
    limit = example().backoff_limit_per_index
    assert limit is not None
    job = after(*[1] * (limit + 5))
    assert job.end is not None
    assert (job.end.reason, job.failed) == ("MaxFailedIndexesExceeded", limit + 1)


def test_what_is_ignored_goes_on_for_ever() -> None:
    """The controller has no limit for it: the supervisor's own budget is the only one."""
    job = after(*[ExitCode.RESCHEDULE] * 100)
    assert (job.end, job.failed, job.pods_made) == (None, 0, 101)
