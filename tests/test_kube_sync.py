# SPDX-License-Identifier: Apache-2.0
"""The Job controller: counting, delays, limits and ends, each with the moment at which it happens."""

from __future__ import annotations

import dataclasses

import pytest
from kube_specs import POLICY, TEMPLATE, conditions, created_s, ends, ends_of, evicted, gang, on_codes, plain, run

from resilient.core.kube_backoff import container_delay_s, pod_delay_s
from resilient.core.kube_job import Container, Job, PodTemplate, SuccessRule
from resilient.core.kube_kubelet import end_containers
from resilient.core.kube_simulation import simulate
from resilient.core.kube_sync import sync
from resilient.core.kube_timeline import Ending, Suspension


def test_a_job_completes_when_all_indexes_have() -> None:
    """The controller looks a second after the last one."""
    done, job = run(gang(), ends(100, 0, 0), ends(200, 0, 1))
    reason = "CompletionsReached"
    assert conditions(job) == [("SuccessCriteriaMet", reason, 201), ("Complete", reason, 201)]
    assert (job.succeeded, job.failed, set(job.completed_indexes)) == (2, 0, {0, 1})
    assert created_s(done) == [0, 0]


def test_an_ignored_failure_costs_a_delay_and_no_budget() -> None:
    """10 s for the first of its index, 20 s for the second, whatever the other index does."""
    done, job = run(gang(), ends(100, 194, 0), ends(200, 194, 0), ends(200, 197, 1))
    assert created_s(done) == [0, 0, 110, 210, 220]
    assert job.failed == 0
    counters = {(pod.index, pod.failure_count, pod.ignored_count) for pod in job.pods if pod.is_active}
    assert counters == {(0, 0, 2), (1, 0, 1)}


def test_a_counted_failure_is_counted_when_its_replacement_is_there() -> None:
    """Until then the failed pod keeps its finalizer, for its counters go to the next."""
    spec = gang(1)
    job = sync(Job(spec=spec), 0).job
    failed = end_containers(job.pods[0], spec.template, {"trainer": 1}, 100).pod
    job, counts = dataclasses.replace(job, live=(failed,)), []
    for now_s in (101, 110, 111):
        job = sync(job, now_s).job
        counts.append((now_s, len(job.pods), job.failed))
    assert counts == [(101, 1, 0), (110, 2, 0), (111, 2, 1)]
    assert [pod.failure_count for pod in job.pods] == [0, 1]


@pytest.mark.parametrize(
    ("failures", "delay_s"), [(0, 0), (1, 10), (2, 20), (6, 320), (7, 600), (8, 600), (10**6, 600)]
)
def test_delays_double_up_to_ten_minutes(failures: int, delay_s: float) -> None:
    """From the end of the last failure."""
    assert pod_delay_s(failures) == delay_s


def test_without_a_limit_for_each_index_all_failures_delay_all_pods() -> None:
    """The ignored ones too: four pods that fail together wait 80 s, not 10."""
    spec = gang(4, backoff_limit_per_index=None, max_failed_indexes=None, backoff_limit=6)
    done, job = run(spec, ends(100, 194, None))
    assert created_s(done) == [0, 0, 0, 0, 180, 180, 180, 180]
    assert (job.failed, job.end) == (0, None)


def test_a_success_forgets_the_failures_before_it() -> None:
    """Only those after it delay the next pod."""
    spec = plain(completions=3, parallelism=2, policy=POLICY, only_failed_replaced=True)
    done, _ = run(spec, ends(100, 194), ends(200, 194), ends(300, 0), ends(400, 194))
    assert created_s(done) == [0, 0, 110, 220, 301, 410]


@pytest.mark.parametrize(("fails_s", "succeeds_s", "next_s"), [(100, 100.5, 101), (100.5, 100, 110.5)])
def test_of_one_moment_only_failures_after_the_success_delay(fails_s: float, succeeds_s: float, next_s: float) -> None:
    """Both are seen in one pass; what counts is which came last."""
    done, _ = run(plain(completions=3, parallelism=2), *sorted([ends(fails_s, 1), ends(succeeds_s, 0)], key=in_time))
    assert created_s(done)[2] == next_s


def in_time(ending: Ending) -> float:
    return ending.at_s


def test_eight_pods_that_fail_together_spend_the_default_limit() -> None:
    """6 is exceeded in one moment, and nothing is started again."""
    done, job = run(plain(completions=8, parallelism=8), ends(100, 1, None), *[ends(100, 1)] * 7)
    reason = "BackoffLimitExceeded"
    assert conditions(job) == [("FailureTarget", reason, 101), ("Failed", reason, 101)]
    assert (job.failed, len(created_s(done))) == (8, 8)


def test_the_limit_counts_failures_not_pods() -> None:
    """With a limit of 2 the third failure that counts ends the Job, however many were ignored."""
    spec = plain(backoff_limit=2, policy=POLICY, only_failed_replaced=True)
    _, job = run(spec, *[ends(0, code) for code in (1, 194, 194, 1, 194, 1, 1)])
    assert job.end is not None
    assert (job.end.reason, job.failed) == ("BackoffLimitExceeded", 3)


def test_an_index_that_is_spent_fails_the_gang() -> None:
    """Failures of other indexes are not added up."""
    done, job = run(gang(backoff_limit_per_index=1), ends(100, 1, 0), ends(100, 1, 1), ends(200, 139, 0))
    reason = "MaxFailedIndexesExceeded"
    assert conditions(job) == [("FailureTarget", reason, 201), ("Failed", reason, 262)]
    assert job.failed_indexes == {0}
    assert [entry.at_s for entry in done.entries if entry.event == "deleted"] == [201]


def test_without_a_bound_on_failed_indexes_the_others_go_on() -> None:
    """And the Job fails when all have ended."""
    spec = gang(backoff_limit_per_index=0, max_failed_indexes=None)
    _, job = run(spec, ends(100, 1, 0), ends(5000, 0, 1))
    assert conditions(job) == [("FailureTarget", "FailedIndexes", 5001), ("Failed", "FailedIndexes", 5001)]
    assert (set(job.failed_indexes), set(job.completed_indexes), job.failed) == ({0}, {1}, 1)


def test_an_index_fails_at_once_where_a_rule_says_so() -> None:
    """Its limit would have allowed more."""
    spec = gang(max_failed_indexes=1, policy=(on_codes("FailIndex", {42}),))
    _, job = run(spec, ends(100, 42, 0), ends(200, 0, 1))
    assert (set(job.failed_indexes), job.failed) == ({0}, 1)
    assert job.end is not None
    assert job.end.reason == "FailedIndexes"


def test_a_stop_is_failed_only_when_no_pod_is_terminating() -> None:
    """The others get SIGTERM, are counted as failed, and have their grace period."""
    _, job = run(gang(3), ends(100, 114, 1))
    message = (
        "Container trainer for pod default/train-1-sim02 failed with exit code 114 matching FailJob rule at index 0"
    )
    assert conditions(job) == [("FailureTarget", "PodFailurePolicy", 101), ("Failed", "PodFailurePolicy", 162)]
    assert {condition.message for condition in job.conditions} == {message}
    assert job.failed == 3
    assert [pod.name for pod in job.pods] == ["train-1-sim02"]


def test_of_several_stops_at_once_any_may_be_named() -> None:
    """The controller takes the first of its cache; ours takes the oldest pod, and says so."""
    done, job = run(gang(3), ends(100, 114, 1), ends(100.5, 114, 0))
    assert job.conditions[0].message.startswith("Container trainer for pod default/train-0-sim01 ")
    assert [entry.what for entry in done.entries if entry.event == "note"] == [
        "2 pods match a FailJob rule at once: a cluster may name any of them"
    ]


def test_nothing_is_evaluated_after_the_end() -> None:
    """A pod that ends while the Job fails changes neither reason nor counters."""
    done, job = run(gang(), ends(100, 114, 0), ends(110, 194, 1))
    assert (conditions(job)[-1], job.failed) == (("Failed", "PodFailurePolicy", 111), 2)
    assert done.unused == ()


def test_a_terminating_pod_is_replaced_when_it_has_ended() -> None:
    """With a failure policy; its finalizer keeps it until it is counted, then it is gone."""
    done, job = run(gang(1), evicted(130, 195, deleted_s=100))
    assert created_s(done) == [0, 140]
    assert (job.failed, [pod.name for pod in job.pods]) == (0, ["train-0-sim02"])


def test_without_a_policy_a_deleted_pod_is_replaced_and_counted_at_once() -> None:
    """TerminatingOrFailed: two pods of one index may run side by side."""
    done, job = run(plain(), evicted(130, 0, deleted_s=100))
    assert created_s(done) == [0, 110]
    assert job.failed == 1


def test_a_replacement_that_turns_out_to_be_one_too_many_is_deleted() -> None:
    """The pod before it ended well before its failure was counted, so that its index is done."""
    spec = gang(2, policy=None, only_failed_replaced=False)
    done, job = run(spec, evicted(110.5, 0, deleted_s=100), ends(500, 0, 1), ends(9999, 0))
    assert created_s(done) == [0, 0, 110]
    assert [(entry.at_s, entry.what) for entry in done.entries if entry.event == "deleted"] == [
        (111, "deleted with SIGTERM, as that is one too many, and not counted")
    ]
    assert conditions(job)[-1] == ("Complete", "CompletionsReached", 501)
    assert (job.succeeded, job.failed) == (2, 0)


def test_what_is_complete_is_not_suspended() -> None:
    """Whatever its spec says, as the controller looks at that last."""
    job = sync(Job(spec=plain(completions=0, suspended=True)), 0).job
    assert (job.end is not None, job.was_suspended) == (True, False)


def test_a_pod_that_ends_well_while_terminating_has_succeeded() -> None:
    """A trainer that catches SIGTERM and exits with 0 completes its index."""
    _, job = run(gang(1), evicted(110, 0, deleted_s=100))
    assert job.end is not None
    assert (job.end.type, job.succeeded) == ("Complete", 1)


def test_who_overstays_the_grace_period_is_killed() -> None:
    """60 s after the deletion; its replacement comes 10 s later."""
    _, job = run(gang(1, policy=POLICY), evicted(1000, 195, deleted_s=100))
    [pod] = job.pods
    assert (pod.created_s, pod.ignored_count) == (170, 1)


def test_a_deadline_ends_whatever_runs() -> None:
    """Also while a pod waits for its delay."""
    _, job = run(gang(deadline_s=500))
    assert conditions(job) == [("FailureTarget", "DeadlineExceeded", 500), ("Failed", "DeadlineExceeded", 561)]


def test_a_work_queue_is_done_with_its_first_success() -> None:
    """And waits for the pods that still run, without making new ones."""
    done, job = run(plain(completions=None, parallelism=3), ends(100, 0), ends(150, 1), ends(200, 0))
    assert job.end is not None
    assert (job.end.at_s, job.succeeded, job.failed, len(created_s(done))) == (201, 2, 1, 3)


@pytest.mark.parametrize(
    ("rule", "ends_s"),
    [
        (SuccessRule(indexes=frozenset({0})), 101),
        (SuccessRule(count=2), 201),
        (SuccessRule(indexes=frozenset({1, 2}), count=1), 201),
        (SuccessRule(indexes=frozenset({1, 2})), 301),
    ],
)
def test_a_success_policy_ends_the_job_early(rule: SuccessRule, ends_s: float) -> None:
    """The pods that linger are deleted, and not counted as failed."""
    _, job = run(gang(4, success=(rule,)), ends(100, 0, 0), ends(200, 0, 1), ends(300, 0, 2))
    assert conditions(job) == [
        ("SuccessCriteriaMet", "SuccessPolicy", ends_s),
        ("Complete", "SuccessPolicy", ends_s + 61),
    ]
    assert (job.conditions[0].message, job.failed) == ("Matched rules at index 0", 0)


def test_restarts_of_containers_spend_the_limit_under_on_failure() -> None:
    """Three of them for a limit of 3; the kubelet waits before each but the first."""
    template = PodTemplate(containers=TEMPLATE.containers, restart_policy="OnFailure")
    done, job = run(plain(template=template, backoff_limit=3), *[ends(0, 1)] * 9)
    assert [entry.at_s for entry in done.entries if entry.event == "ended"][:4] == [0, 0, 10, 30]
    assert conditions(job)[0] == ("FailureTarget", "BackoffLimitExceeded", 11)


def test_a_suspended_job_starts_nothing() -> None:
    """Nor has it begun."""
    done, job = run(gang(suspended=True), ends(100, 0, 0))
    assert (job.pods, job.started_s, created_s(done), len(done.unused)) == ((), None, [], 1)


def test_a_suspended_job_loses_its_pods_and_no_budget() -> None:
    """Kueue takes it back for a while: nothing is counted, and a pod that waited for its delay keeps its counters."""
    spec = gang(2, deadline_s=1500)
    done = simulate(spec, [ends(95, 1, 1), ends(2000, 0, None)], [Suspension(from_s=100, to_s=900)])
    [job] = done.jobs
    assert created_s(done) == [0, 0, 900, 900]
    assert conditions(job)[-1] == ("Complete", "CompletionsReached", 2001), "the deadline's clock began at 900"
    assert job.failed == 1
    assert [(pod.index, pod.failure_count) for pod in job.pods if pod.created_s == 900] == [(0, 0), (1, 1)]


def test_the_deadline_of_a_resumed_job_begins_anew() -> None:
    """However long it was away: from 1.36 on the controller forgets the start of a suspended Job (KEP-5440)."""
    done = simulate(gang(1, deadline_s=1000), [], [Suspension(from_s=100, to_s=5000)])
    assert conditions(done.jobs[0])[0] == ("FailureTarget", "DeadlineExceeded", 6000)


def test_of_two_failed_pods_of_an_index_the_later_one_hands_on_its_counters() -> None:
    """Later and with no fewer failures (``getPodsWithDelayedDeletionPerIndex``); the other is counted at once."""
    spec = gang(1)
    first = sync(Job(spec=spec), 0).job.live[0]
    ended = end_containers(first, spec.template, {"trainer": 1}, 50).pod
    earlier = dataclasses.replace(ended, name="earlier", number=1, failure_count=1, finished_s=40)
    job = sync(Job(spec=spec, live=(ended, earlier), pods_made=2, started_s=0), 60).job
    assert [(pod.name, pod.failure_count) for pod in job.live] == [(ended.name, 0), ("train-0-sim03", 1)]
    assert job.failed == 1


def test_a_job_of_another_controller_is_left_alone() -> None:
    """The built-in one does nothing for it."""
    done, job = run(gang(managed_by="kueue.x-k8s.io/multikueue"))
    assert (job.pods, [entry.event for entry in done.entries]) == ((), ["left alone"])


def test_many_pods_are_made_in_portions() -> None:
    """500 in one pass, the rest a second later."""
    done, _ = run(gang(501))
    assert created_s(done).count(0) == 500
    assert created_s(done).count(1) == 1


def test_while_a_replacement_waits_the_status_says_that_nobody_is_active() -> None:
    """A quirk of the controller; the pods run all the same."""
    _, job = run(gang(policy=(*POLICY, on_codes("Count", {1})), deadline_s=105), ends(100, 194, 0))
    assert job.active == 0


@pytest.mark.parametrize(
    ("backoff_s", "backed_off_s", "ended_s", "expected"),
    [
        (0, None, 5, (0, 10)),
        (10, 5, 6, (10, 20)),
        (160, 5, 6, (160, 300)),
        (300, 5, 6, (300, 300)),
        (300, 5, 606, (0, 10)),
    ],
)
def test_the_kubelet_forgets_after_ten_minutes(
    backoff_s: float, backed_off_s: float | None, ended_s: float, expected: tuple[float, float]
) -> None:
    """At once, then 10 s, doubled up to 5 minutes."""
    assert container_delay_s(backoff_s, backed_off_s, ended_s) == expected


def test_a_classic_sidecar_keeps_the_pod_running() -> None:
    """No rule is evaluated before it has ended too."""
    template = PodTemplate(containers=(Container(name="trainer"), Container(name="mesh")))
    done, job = run(gang(1, template=template), ends(100, 114))
    assert (job.end, job.pods[0].is_active) == (None, True)
    assert done.entries[-1].what.endswith("mesh still runs, so the pod does not end and no rule is evaluated")
    _, job = run(gang(1, template=template), ends(100, 114), ends_of(900, mesh=0))
    assert conditions(job)[0] == ("FailureTarget", "PodFailurePolicy", 901)
