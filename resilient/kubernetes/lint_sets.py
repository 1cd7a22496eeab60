# SPDX-License-Identifier: Apache-2.0
"""What is around the Job: a JobSet's failure policy, a runtime's container, a CronJob's overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from resilient.kubernetes.api_problems import inside, items, mapping, number, text
from resilient.kubernetes.lint_rows import Hit, Rule, Scope, error, warning
from resilient.kubernetes.lint_subject import TRAINER_CONTAINER, Subject

STOPPED: Final = "PodFailurePolicy"
"""Why a Job failed whose own rule said FailJob."""
SPENT: Final = ("BackoffLimitExceeded", "MaxFailedIndexesExceeded")
_DEFAULT: Final = "RestartJobSet"
FAIL: Final = "FailJobSet"
_ALPHA: Final = frozenset({"RestartJob", "RestartJobAndIgnoreMaxRestarts", "InPlaceRestart"})
"""What JobSet 0.12 refuses unless the feature gate of that name is switched on."""
UNCOUNTED: Final = frozenset({"RestartJobSetAndIgnoreMaxRestarts", "RestartJobAndIgnoreMaxRestarts"})


def set_action(subject: Subject, reason: str) -> tuple[str, int | None]:
    """What the JobSet does when this Job fails for this reason, and by which rule."""
    return action_of(items(inside(subject.jobset, "failurePolicy", "rules")), subject.step, reason)


def action_of(rules: Sequence[Any], name: str, reason: str) -> tuple[str, int | None]:
    """The same of these rules and the replicated Job of that name.

    A rule that asks for a message as well may not fit: it decides only if the answer is the same without it.
    """
    for index, rule in enumerate(rules):
        reasons = items(inside(rule, "onJobFailureReasons"))
        targets = items(inside(rule, "targetReplicatedJobs"))
        if (not reasons or reason in reasons) and (not targets or name in targets):
            return text(inside(rule, "action")), index
    return _DEFAULT, None


def _first_of_set(subject: Subject) -> bool:
    """What is about the set as a whole is said once."""
    return subject.jobset is not None and subject.job_path[len(subject.jobset_path) + 1] == 0


def _policy_missing(subject: Subject) -> Iterator[Hit]:
    if _first_of_set(subject) and not isinstance(inside(subject.jobset, "failurePolicy"), dict):
        yield Hit(path=subject.jobset_path)


def _stop_restarts(subject: Subject) -> Iterator[Hit]:
    if subject.jobset is None or not isinstance(subject.jobset.get("failurePolicy"), dict):
        return
    action, rule = set_action(subject, STOPPED)
    if action != FAIL:
        path = (*subject.jobset_path, "failurePolicy")
        yield Hit(path=path if rule is None else (*path, "rules", rule), detail=action)


def _unbounded(subject: Subject) -> Iterator[Hit]:
    if subject.jobset is None:
        return
    for reason in SPENT:
        action, rule = set_action(subject, reason)
        if action in UNCOUNTED and rule is not None:
            path = (*subject.jobset_path, "failurePolicy", "rules", rule)
            yield Hit(path=path, detail=f"{action} after {reason}")
            return


def _never_restarts(subject: Subject) -> Iterator[Hit]:
    policy = mapping(inside(subject.jobset, "failurePolicy"))
    if _first_of_set(subject) and policy and not number(policy.get("maxRestarts")):
        yield Hit(path=(*subject.jobset_path, "failurePolicy", "maxRestarts"))


def _alpha(subject: Subject) -> Iterator[Hit]:
    policy, path = mapping(inside(subject.jobset, "failurePolicy")), (*subject.jobset_path, "failurePolicy")
    if not _first_of_set(subject):
        return
    if (strategy := text(policy.get("restartStrategy"))) in _ALPHA:
        yield Hit(path=(*path, "restartStrategy"), detail=strategy)
    for index, rule in enumerate(items(policy.get("rules"))):
        if (action := text(inside(rule, "action"))) in _ALPHA:
            yield Hit(path=(*path, "rules", index, "action"), detail=action)


def _made_again(subject: Subject) -> Iterator[Hit]:
    """A set of one Job is over before its time runs out."""
    replicated = items(inside(subject.jobset, "replicatedJobs"))
    counts = [number(inside(one, "replicas")) for one in replicated]
    jobs = sum(1 if count is None else count for count in counts)
    if subject.job is not None and jobs > 1 and number(subject.job.get("ttlSecondsAfterFinished")) is not None:
        yield Hit(path=(*subject.job_path, "ttlSecondsAfterFinished"))


def _container_name(subject: Subject) -> Iterator[Hit]:
    names = [text(container.get("name")) for container in subject.containers]
    if subject.kind.endswith("Runtime") and names and TRAINER_CONTAINER not in names:
        yield Hit(path=(*subject.trainer_path, "name"), detail=subject.name)


def _overlap(subject: Subject) -> Iterator[Hit]:
    if subject.kind == "CronJob" and text(inside(subject.whole, "spec", "concurrencyPolicy")) in ("", "Allow"):
        yield Hit(path=("spec", "concurrencyPolicy"))


RULES: Final[tuple[Rule, ...]] = (
    warning(
        "jobset-policy-missing",
        "Without failurePolicy the first Job that fails ends the JobSet, also when a backstop was all that was spent.",
        "add failurePolicy with maxRestarts and the rule that fails the set for PodFailurePolicy",
        _policy_missing,
    ),
    error(
        "jobset-restarts-stops",
        "A Job that was stopped for a fault of the code is started again with the whole set.",
        "let the first rule be action: FailJobSet with onJobFailureReasons: [PodFailurePolicy]",
        _stop_restarts,
    ),
    error(
        "jobset-unbounded",
        "The set is restarted without a limit after a Job has spent its own.",
        "write RestartJobSet, which maxRestarts bounds",
        _unbounded,
    ),
    warning(
        "jobset-never-restarts",
        "maxRestarts is 0, so that the set fails where the policy says that it is restarted.",
        "write maxRestarts: a backstop, since it never refills",
        _never_restarts,
    ),
    error(
        "jobset-made-again",
        "A Job that has finished is deleted after this time, and the JobSet, which knows those only that are there, "
        "makes it again.",
        "remove it, and write it into the JobSet's own spec",
        _made_again,
        scope=Scope.EVERY_POD,
    ),
    warning(
        "jobset-alpha",
        "JobSet refuses this unless its alpha feature gate, RestartJob or InPlaceRestart, is switched on.",
        "write RestartJobSet and BlockingRecreate, or make sure that the gate is on",
        _alpha,
    ),
    error(
        "runtime-container-name",
        "A TrainJob's image, command and variables go to the container called node, and there is none.",
        "call the container node, in the rules as well",
        _container_name,
        scope=Scope.TRAINING,
    ),
    warning(
        "cron-overlap",
        "The next run starts while the last one trains; the second supervisor is refused and ends with 115.",
        "write concurrencyPolicy: Forbid",
        _overlap,
    ),
)
