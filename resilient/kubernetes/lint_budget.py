# SPDX-License-Identifier: Apache-2.0
"""Whether the controllers' counters are backstops: large enough, each pod's its own, and those of a gang the gang's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resilient.core import backstop
from resilient.kubernetes.api_job import defaulted
from resilient.kubernetes.api_problems import inside, number, text
from resilient.kubernetes.lint_rows import Hit, Rule, Scope, error, warning
from resilient.kubernetes.lint_subject import Subject

_DEFAULT: Final = 6
"""``backoffLimit``, where there is no limit for each index."""

_READ_S: Final = 3600
"""What a person needs at least until they look."""


def _is_small(subject: Subject) -> bool:
    if subject.job is None:
        return False
    limit = number(subject.job.get("backoffLimit"))
    if limit is None and subject.is_per_index:  # then it is as large as can be
        return False
    if limit == 0 and not subject.is_supervised:  # somebody means that the first failure ends it
        return False
    needed = max(backstop.LEAST, subject.pods) if subject.is_supervised else subject.pods
    return (_DEFAULT if limit is None else limit) < needed


def _backoff_small(subject: Subject) -> Iterator[Hit]:
    if _is_small(subject) and subject.job is not None:
        limit = number(subject.job.get("backoffLimit"))
        shown = f"{_DEFAULT} by default" if limit is None else str(limit)
        yield Hit(path=(*subject.job_path, "backoffLimit"), detail=f"backoffLimit {shown}, pods {subject.pods}")


def _no_index(subject: Subject) -> Iterator[Hit]:
    if subject.job is not None and not subject.is_per_index and not _is_small(subject):
        yield Hit(path=subject.job_path)


def _per_index_small(subject: Subject) -> Iterator[Hit]:
    limit = number(inside(subject.job, "backoffLimitPerIndex"))
    if limit is not None and limit < backstop.LEAST:
        yield Hit(path=(*subject.job_path, "backoffLimitPerIndex"), detail=str(limit))


def _gang_outlives_index(subject: Subject) -> Iterator[Hit]:
    if subject.is_gang and subject.is_per_index and number(inside(subject.job, "maxFailedIndexes")) != 0:
        yield Hit(path=(*subject.job_path, "maxFailedIndexes"))


def _gang_incomplete(subject: Subject) -> Iterator[Hit]:
    filled = defaulted(subject.job or {})
    completions, parallelism = number(filled.get("completions")), number(filled.get("parallelism"))
    if subject.is_gang and subject.nodes is None and (parallelism or 0) < (completions or 0):
        detail = f"parallelism {parallelism}, completions {completions}"
        yield Hit(path=(*subject.job_path, "parallelism"), detail=detail)


def _two_at_once(subject: Subject) -> Iterator[Hit]:
    job = subject.job
    if job is not None and "podFailurePolicy" not in job and text(job.get("podReplacementPolicy")) != "Failed":
        yield Hit(path=(*subject.job_path, "podReplacementPolicy"))


def _deadline(subject: Subject) -> Iterator[Hit]:
    if number(inside(subject.job, "activeDeadlineSeconds")) is not None:
        yield Hit(path=(*subject.job_path, "activeDeadlineSeconds"))


def _deleted_soon(subject: Subject) -> Iterator[Hit]:
    kept_s = number(inside(subject.job, "ttlSecondsAfterFinished"))
    if kept_s is not None and kept_s < _READ_S:
        yield Hit(path=(*subject.job_path, "ttlSecondsAfterFinished"), detail=f"{kept_s} s")


RULES: Final[tuple[Rule, ...]] = (
    error(
        "backoff-limit-small",
        "All pods of the Job spend one backoffLimit, which never refills: one incident may spend it whole.",
        "write backoffLimitPerIndex: 20 (completionMode: Indexed) and no backoffLimit, or raise backoffLimit",
        _backoff_small,
        scope=Scope.TRAINING,
    ),
    warning(
        "per-index-missing",
        "Without backoffLimitPerIndex a pod is not told its failures, and waits longer with every failure of others.",
        "make it completionMode: Indexed with backoffLimitPerIndex: 20; one pod is completions: 1",
        _no_index,
    ),
    warning(
        "per-index-small",
        "The controller's counter never refills, so that a long run ends by it and not by the run's own budget.",
        "make it max(20, 10 x the faults expected over the planned run)",
        _per_index_small,
    ),
    error(
        "gang-outlives-an-index",
        "An index that has spent its limit is gone for good, and the other pods hold their devices and wait for it.",
        "write maxFailedIndexes: 0",
        _gang_outlives_index,
        scope=Scope.TRAINING,
    ),
    error(
        "gang-never-whole",
        "Fewer pods run at a time than train together, so that all wait for one that never starts.",
        "make parallelism equal to completions",
        _gang_incomplete,
        scope=Scope.TRAINING,
    ),
    warning(
        "deadline-ends-it",
        "The Job fails at that time however the training goes, and nothing starts it again, preempted or not.",
        "remove activeDeadlineSeconds: a run without progress is ended by the supervisor",
        _deadline,
    ),
    warning(
        "deleted-soon",
        "The pods are deleted with their last words and logs before anybody has read why they ended.",
        "make ttlSecondsAfterFinished a day or more",
        _deleted_soon,
    ),
    warning(
        "two-pods-at-once",
        "A pod that is still terminating is replaced already, and two pods of one training write at the same time.",
        "write podReplacementPolicy: Failed",
        _two_at_once,
        scope=Scope.TRAINING,
    ),
)
