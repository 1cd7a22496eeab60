# SPDX-License-Identifier: Apache-2.0
"""What holds for every Job, every policy and every list of endings."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from kube_specs import DISRUPTED, POLICY, ends, gang, on_codes, plain, run

from resilient.core.kube_job import UNLIMITED, Job, JobSpec, SuccessRule
from resilient.core.kube_kubelet import end_containers, kill
from resilient.core.kube_sync import sync
from resilient.core.kube_timeline import Ending

CODES = st.sampled_from([0, 1, 42, 114, 137, 194, 197])
POLICIES = st.sampled_from(
    [None, POLICY, (on_codes("FailIndex", {42}), *POLICY), (on_codes("Ignore", {0}, operator="NotIn"),)]
)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    """Jobs as the API server allows them."""
    policy = draw(POLICIES)
    pods = draw(st.integers(1, 4))
    common = {"policy": policy, "only_failed_replaced": policy is not None or draw(st.booleans())}
    if draw(st.booleans()):
        completions = draw(st.one_of(st.none(), st.integers(1, 4)))
        return plain(completions=completions, parallelism=pods, backoff_limit=draw(st.integers(0, 4)), **common)
    per_index = draw(st.one_of(st.none(), st.integers(0, 3)))
    return gang(
        pods,
        parallelism=draw(st.integers(1, 4)),
        backoff_limit=UNLIMITED if per_index is not None else draw(st.integers(0, 6)),
        backoff_limit_per_index=per_index,
        max_failed_indexes=None if per_index is None else draw(st.one_of(st.none(), st.integers(0, 2))),
        success=draw(st.sampled_from([None, (SuccessRule(indexes=frozenset({0})),), (SuccessRule(count=2),)])),
        deadline_s=draw(st.sampled_from([None, 500.0])),
        **common,
    )


STEPS = st.lists(
    st.tuples(
        st.integers(0, 9), CODES, st.sampled_from(["end", "delete", "disrupt", "suspend", "wait"]), st.integers(0, 700)
    ),
    max_size=40,
)


@given(specs(), STEPS)
def test_every_pass_keeps_what_was_counted(spec: JobSpec, steps: list[tuple[int, int, str, int]]) -> None:
    """Counters and conditions never go back, no index runs twice, and what has ended stays as it is."""
    job, now_s = sync(Job(spec=spec), 0).job, 0.0
    for pick, code, what, later_s in steps:
        now_s += later_s
        job = disturbed(job, pick, code, what, now_s)
        done = sync(job, now_s + 1)
        check(job, done.job)
        assert done.wake_in_s is None or done.wake_in_s > 0
        job = done.job


def disturbed(job: Job, pick: int, code: int, what: str, now_s: float) -> Job:
    """Something happens to one of the pods that run, or to all."""
    running = [pod for pod in job.live if pod.is_running]
    if what == "suspend":
        spec = dataclasses.replace(job.spec, suspended=not job.spec.suspended)
        return dataclasses.replace(job, spec=spec)
    if not running or what == "wait":
        return job
    pod = running[pick % len(running)]
    if what == "end":
        after = end_containers(pod, job.spec.template, {"trainer": code}, now_s).pod
    elif pod.deleted_s is not None:
        after = kill(pod, job.spec.template, now_s)
    else:
        shown = (DISRUPTED,) if what == "disrupt" else ()
        after = dataclasses.replace(pod, deleted_s=now_s, conditions=shown)
    stay = (after if other is pod else other for other in job.live)
    return dataclasses.replace(job, live=tuple(other for other in stay if not other.is_gone))


def check(before: Job, after: Job) -> None:
    """The invariants of one pass."""
    assert after.failed >= before.failed
    assert after.succeeded >= before.succeeded
    assert after.completed_indexes >= before.completed_indexes
    assert after.failed_indexes >= before.failed_indexes
    assert after.conditions[: len(before.conditions)] == before.conditions
    assert len({condition.type for condition in after.conditions}) == len(after.conditions)
    active = [pod for pod in after.pods if pod.is_active]
    assert not any(pod.is_running or pod.tracked for pod in after.past)
    assert len(active) <= after.spec.parallelism
    if after.spec.is_indexed:
        assert len({pod.index for pod in active}) == len(active)
        assert not {pod.index for pod in active} & after.failed_indexes
    if after.conditions or after.spec.suspended:
        assert not active
        assert after.pods_made == before.pods_made
    if before.end is not None:
        assert after == before


@given(specs(), st.lists(st.tuples(st.integers(0, 3), CODES, st.integers(0, 2000)), max_size=30))
def test_a_simulation_comes_to_its_end(spec: JobSpec, given_: list[tuple[int, int, int]]) -> None:
    """It makes no more pods than endings ask for, its clock never goes back, and no ending is lost."""
    endings = [
        ends(at_s, code, index)
        for index, code, at_s in given_
        if not spec.is_indexed or index < (spec.completions or 0)
    ]
    done, job = run(spec, *endings)
    moments = [entry.at_s for entry in done.entries]
    assert moments == sorted(moments)
    assert job.pods_made <= spec.most_pods + len(endings)
    happened = sum(entry.what.startswith("trainer ended with exit code") for entry in done.entries)
    assert happened + len(done.unused) == len(endings)
    assert job.failed + job.succeeded <= job.pods_made


@given(specs(), st.lists(st.sampled_from([1, 42, 137]), min_size=80, max_size=80))
def test_where_all_failures_count_there_is_an_end(spec: JobSpec, codes: list[int]) -> None:
    """No Job starts pods for ever if no rule ignores what ends them."""
    if spec.policy is not None:
        spec = dataclasses.replace(spec, policy=POLICY)
    _, job = run(spec, *[Ending(at_s=0, codes={"": code}) for code in codes])
    assert job.end is not None
    assert job.end.type == "Failed"


@given(specs(), st.integers(0, 3), st.integers(0, 5000))
def test_a_stop_ends_the_job(spec: JobSpec, index: int, at_s: int) -> None:
    """Whichever pod says it, and whenever, unless the Job was over before."""
    spec = dataclasses.replace(spec, policy=POLICY, only_failed_replaced=True, deadline_s=None)
    place = min(index, spec.most_pods - 1)
    _, job = run(spec, ends(at_s, 114, place))
    assert job.end is not None
    assert (job.end.type, job.end.reason) == ("Failed", "PodFailurePolicy")
    assert job.failed == spec.most_pods
