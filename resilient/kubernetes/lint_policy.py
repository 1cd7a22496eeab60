# SPDX-License-Identifier: Apache-2.0
"""Whether a Job's ``podFailurePolicy`` and container restart rules do with each exit what the contract promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resilient.core.contract_policy import ON_RECORD, RESTARTED_IN_PLACE
from resilient.core.exit_codes import STOP, ExitCode
from resilient.core.kube_pod_failure import Action
from resilient.kubernetes.api_problems import inside, items, number
from resilient.kubernetes.lint_outcomes import differing, listed, outcome_of, policy_of, restarted, rules_path
from resilient.kubernetes.lint_rows import Hit, Rule, Scope, error, warning
from resilient.kubernetes.lint_subject import Subject

UNCLASSIFIED: Final = (1, 2, 128, 134, 137, 139, 143)
"""What a training dies of that nobody judged: exceptions, signals, the OOM killer."""
_COMMAND: Final = (ExitCode.CANNOT_EXECUTE, ExitCode.NOT_FOUND)


def _stops_only_undisturbed(subject: Subject) -> Iterator[Hit]:
    """Stop codes that the policy has right, unless a disruption came at the same time."""
    if not any(_STOP_LIVES(subject)):
        yield from _STOP_LIVES_DISRUPTED(subject)


def _internal_disrupted(subject: Subject) -> Iterator[Hit]:
    """The same for 199, which is to be counted."""
    if not any(_IGNORED(subject)):
        yield from _INTERNAL_IGNORED(subject)


_STOP_LIVES: Final = differing(STOP, lambda wanted, found: found is not wanted)
_STOP_LIVES_DISRUPTED: Final = differing(STOP, lambda wanted, found: found is not wanted, disrupted=True)
_INTERNAL_IGNORED: Final = differing((ExitCode.INTERNAL,), lambda wanted, found: found is Action.IGNORE, disrupted=True)
_IGNORED: Final = differing(
    (ExitCode.RESTART, ExitCode.INTERNAL), lambda wanted, found: found is Action.IGNORE and found is not wanted
)
_FAILS: Final = frozenset({Action.FAIL_JOB, Action.FAIL_INDEX})


def _missing(subject: Subject) -> Iterator[Hit]:
    if subject.job is not None and policy_of(subject.job) is None:
        yield Hit(path=subject.job_path)


def _others(subject: Subject) -> bool:
    """Whether another container than the training's can end a pod's story."""
    return len(subject.containers) > 1 or bool(items(subject.pod.get("initContainers")))


def _unnamed(subject: Subject, *, with_others: bool) -> Iterator[Hit]:
    if subject.job is None or _others(subject) is not with_others:
        return
    for index, rule in enumerate(items(inside(subject.job, "podFailurePolicy", "rules"))):
        codes = inside(rule, "onExitCodes")
        if isinstance(codes, dict) and codes.get("containerName") is None:
            yield Hit(path=(*rules_path(subject), index, "onExitCodes"))


def _statusless(subject: Subject) -> Iterator[Hit]:
    for index, rule in enumerate(items(inside(subject.job, "podFailurePolicy", "rules"))):
        for at, pattern in enumerate(items(inside(rule, "onPodConditions"))):
            if inside(pattern, "status") in (None, ""):
                yield Hit(path=(*rules_path(subject), index, "onPodConditions", at))


def _impossible(subject: Subject) -> Iterator[Hit]:
    for index, rule in enumerate(items(inside(subject.job, "podFailurePolicy", "rules"))):
        values = [number(value) for value in items(inside(rule, "onExitCodes", "values"))]
        wrong = [value for value in values if value is not None and not 0 <= value <= 255]
        if wrong:
            path = (*rules_path(subject), index, "onExitCodes", "values")
            yield Hit(path=path, detail=listed(wrong))


def _shadowed(subject: Subject) -> Iterator[Hit]:
    policy = (policy_of(subject.job) if subject.job is not None else None) or ()
    for index, rule in enumerate(policy):
        codes = rule.on_exit_codes
        if codes is None or codes.operator != "In" or not codes.values:
            continue
        name = codes.container_name or subject.name
        before = {outcome_of(policy[:index], name, code, disrupted=False).rule for code in codes.values}
        if None not in before:
            earlier = listed(sorted(at for at in before if at is not None))
            yield Hit(path=(*rules_path(subject), index), detail=f"rule {index}, by rule {earlier}")


def _restart_rules(subject: Subject, *, forbidden: bool) -> Iterator[Hit]:
    codes = restarted(subject.trainer)
    if not codes:
        return
    path = (*subject.trainer_path, "restartPolicyRules")
    wanted = frozenset(map(int, RESTARTED_IN_PLACE))
    wrong = sorted(codes - wanted) if forbidden else sorted(wanted - codes)
    if wrong:
        shown = listed(wrong) if len(wrong) <= 12 else f"{listed(wrong[:6])} and {len(wrong) - 6} others"
        yield Hit(path=path, detail=shown)


RULES: Final[tuple[Rule, ...]] = (
    error(
        "policy-missing",
        "Without podFailurePolicy all exits are alike: a code fault is retried, a preemption spends the budget.",
        "add the contract's podFailurePolicy: resilient manifest --from FILE",
        _missing,
    ),
    error(
        "stop-code-goes-on",
        "A fault that the same code or settings will meet again does not end the Job, and holds devices for nothing.",
        "give 114, 115 and 116 the action FailJob, in the first rule",
        _STOP_LIVES,
    ),
    error(
        "stop-code-after-disruption",
        "A code fault that comes with a disruption is ignored, since the rule about DisruptionTarget comes before it.",
        "put the rule for 114, 115 and 116 first",
        _stops_only_undisturbed,
    ),
    error(
        "retry-code-counted",
        "An exit on record in the run's own budget is counted by the controller too, whose counters never refill.",
        "give 194 to 198 the action Ignore (without 197 where the kubelet restarts it in place)",
        differing(ON_RECORD, lambda wanted, found: wanted is Action.IGNORE and found is Action.COUNT),
    ),
    error(
        "retry-code-fails",
        "An exit that asks for another pod ends the Job instead.",
        "take the codes 193 to 199 out of the rules that fail the Job",
        differing((ExitCode.RESTART, *ON_RECORD, ExitCode.INTERNAL), lambda wanted, found: found in _FAILS),
    ),
    error(
        "unrecorded-code-ignored",
        "193 and 199 have to be counted: with Ignore nothing bounds a loop of them when storage is what fails.",
        "leave 193 to no rule, and give 199 the action Count",
        _IGNORED,
    ),
    error(
        "internal-code-after-disruption",
        "199 says that an exit could not be recorded, and with a disruption it is ignored: that loop has no bound.",
        "add a rule with the action Count for 199 before the one about DisruptionTarget",
        _internal_disrupted,
    ),
    error(
        "disruption-counted",
        "Preemptions, evictions and lost nodes spend the Job's failures: they end with 137 or 143 and a condition.",
        'add a rule with the action Ignore and onPodConditions: [{type: DisruptionTarget, status: "True"}]',
        differing(UNCLASSIFIED, lambda wanted, found: found is Action.COUNT, disrupted=True),
    ),
    error(
        "unknown-death-ignored",
        "A death that nobody judged is retried without any bound.",
        "take these codes out of the rules with the action Ignore, so that they are counted",
        differing(UNCLASSIFIED, lambda wanted, found: found is Action.IGNORE),
    ),
    warning(
        "unknown-death-fails",
        "A crash or an OOM kill of the container, which a new pod may survive, ends the Job.",
        "take these codes out of the rules that fail the Job, so that they are counted",
        differing(UNCLASSIFIED, lambda wanted, found: found in _FAILS),
    ),
    warning(
        "command-code-retried",
        "A command that cannot be executed, or does not exist, is retried, and no node will change that.",
        "give 126 and 127 the action FailJob",
        differing(_COMMAND, lambda wanted, found: found is not wanted),
    ),
    error(
        "container-unnamed-among-others",
        "A rule without containerName looks at every container, and takes a sidecar's 143 for the training's.",
        "write containerName into each onExitCodes",
        lambda subject: _unnamed(subject, with_others=True),
        scope=Scope.EVERY_POD,
    ),
    warning(
        "container-unnamed",
        "A rule without containerName will look at every container that somebody injects, and at its 137 or 143.",
        "write containerName into each onExitCodes",
        lambda subject: _unnamed(subject, with_others=False),
        scope=Scope.EVERY_POD,
    ),
    warning(
        "condition-status-missing",
        "The schema of Kubernetes 1.34 and older requires the status, which newer servers fill in.",
        'write status: "True"',
        _statusless,
        scope=Scope.EVERY_POD,
    ),
    warning(
        "exit-code-impossible",
        "No process can end with a code outside 0 to 255, so that this never matches.",
        "remove the value",
        _impossible,
        scope=Scope.EVERY_POD,
    ),
    warning(
        "rule-never-reached",
        "Earlier rules match every code of this one, and the first match decides.",
        "remove the rule, or put it before them",
        _shadowed,
        scope=Scope.EVERY_POD,
    ),
    error(
        "restarts-in-place-unbounded",
        "The kubelet restarts the container after these codes without any limit, and the Job never sees them.",
        "let restartPolicyRules name 193 and 197 alone",
        lambda subject: _restart_rules(subject, forbidden=True),
    ),
    warning(
        "restart-rule-incomplete",
        "Where the kubelet restarts the container in place, 193 and 197 both mean just that.",
        "add the missing code to restartPolicyRules",
        lambda subject: _restart_rules(subject, forbidden=False),
    ),
)
"""In the order in which they are asked."""
