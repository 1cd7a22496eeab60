# SPDX-License-Identifier: Apache-2.0
"""What a generated manifest says beside its fields: each comment gives the reason, not the meaning, of a value."""

from __future__ import annotations

from typing import Final

from resilient.core import backstop
from resilient.core.backstop import Plan
from resilient.core.contract_policy import policy_rules
from resilient.core.exit_codes import ExitCode
from resilient.kubernetes.submission import MAILBOX, SNAPSHOT_SLOTS, Submission
from resilient.kubernetes.writing import Path

_SNAPSHOTS: Final = (
    "memory that lives as long as the pod: after 193 and 197 the next container goes on from the snapshot in it. "
    "It counts against the memory limit, as every snapshot does"
)
_TOKEN: Final = "for its own annotation, Events and its own status; see the Role"
_STATIC: Final[dict[Path, str]] = {
    ("spec", "completionMode"): "only Indexed pods are told the counters of their own failures (see env), and only "
    "then does a pod's back-off not grow with the failures of others",
    ("maxFailedIndexes",): "an index that has spent its backstop fails the whole training",
    ("podReplacementPolicy",): "never two pods of one index at a time",
    ("ttlSecondsAfterFinished",): "a week to read what happened; then the finished Job and its pods are deleted",
    ("labels", "sidecar.istio.io/inject"): "a classic sidecar keeps the pod running, and no rule is ever evaluated",
    ("annotations", "linkerd.io/inject"): "the same for Linkerd",
    (
        "template",
        "spec",
        "restartPolicy",
    ): "`podFailurePolicy` requires it; in place the supervisor restarts",
    ("terminationGracePeriodSeconds",): "one step and one save; the same as RESILIENT_GRACE_S",
    ("enableServiceLinks",): "other Services of the namespace are no business of the training's environment",
    ("runAsNonRoot",): "this and what follows is what the restricted Pod Security profile asks for",
    ("fsGroupChangePolicy",): "not every file of a large claim at every start",
    ("tolerations",): "300 s by default, for which a dead node's pod is not replaced",
    ("affinity",): "one pod a node: a node that is lost takes one of them, and each has its devices for itself",
    ("containers", "trainer", "command"): "in exec form, so that the supervisor (or tini, or dumb-init before it) is "
    "PID 1: `sh -c` loses signals and codes",
    ("containers", "node", "command"): "in exec form, so that the supervisor is PID 1. A TrainJob may give other args "
    "and another RESILIENT_CHECKPOINTS; its own command would replace the supervisor",
    ("env", "RESILIENT_GRACE_S"): "a pod cannot read its own grace period",
    ("env", "RESILIENT_SUBMISSION"): "what budgets belong to: submitted again, the training has full ones",
    ("env", "RESILIENT_IGNORED_COUNT"): "empty as long as nothing was ignored",
    ("env", "HOME"): "caches of torch and others; the image's own file system is read-only",
    ("terminationMessagePolicy",): "the supervisor's last word, else the last lines of the log",
    ("restartPolicyRules",): "the kubelet has no limit for these; the supervisor has, on record before each exit",
    ("volumes", "journal"): "lives as long as the pod: a restart of the container finds it again",
    ("volumes", "snapshots"): _SNAPSHOTS,
    ("env", "RESILIENT_POD_UID"): "which pod this is",
    ("spec", "suspend"): "Kueue lets it run when there is room in the queue",
    ("policyTypes",): "rendezvous, gloo and NCCL ask nobody who they are: only the training's own pods may connect",
    ("publishNotReadyAddresses",): "pods find each other before they are ready",
    ("clusterIP",): "headless: a name for each pod, and no address of its own",
    ("restartStrategy",): "no pod of the new set before every old one is gone",
    ("rules", "stop"): "Only the FailJob rules below fail the Job for this reason. Any other failure, of an index that "
    "has spent its backstop, recreates the set, counted.",
    (
        "mlPolicy",
        "torch",
    ): "Trainer sets PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE and the address of the first pod, "
    "which resilient run reads as torchrun does",
}


def comments(asked: Submission) -> dict[Path, str]:
    """The comments of one submission, by the ends of paths."""
    return {
        **_STATIC,
        **_policy(restart_rules=asked.restart_rules),
        ("backoffLimitPerIndex",): f"A backstop, never the budget, since it does not refill. {formula(asked.plan)}",
        ("failurePolicy", "maxRestarts"): f"A backstop, never the budget. {formula(asked.plan)}",
        ("automountServiceAccountToken",): _TOKEN if asked.permissions else "the training asks the cluster for nothing",
        ("limits", "memory"): _memory(asked),
        ("volumes", "shm"): _shm(asked),
        **_claim(asked),
    }


def of_addition(*, restart_rules: bool, plan: Plan) -> dict[Path, str]:
    """The comments of what is added to a manifest that somebody has."""
    return {
        **_STATIC,
        **_policy(restart_rules=restart_rules),
        ("backoffLimitPerIndex",): f"A backstop, never the budget, since it does not refill. {formula(plan)}",
        ("failurePolicy", "maxRestarts"): f"A backstop, never the budget. {formula(plan)}",
        ("spec", "backoffLimit"): "no limit of its own: backoffLimitPerIndex is one for each pod",
        ("automountServiceAccountToken",): _TOKEN,
        ("serviceAccountName",): "the training's own; see its Role",
        ("command",): "`resilient run` is PID 1, or the child of the init: it owns signals and the exit code",
        ("volumes", "resilient-journal"): _STATIC["volumes", "journal"],
        ("volumes", "resilient-snapshots"): _SNAPSHOTS,
        ("volumes", "resilient-shm"): "DataLoader workers and NCCL need more than the 64 MiB that a container has; it "
        "counts against the memory limit, as snapshots do",
    }


def formula(plan: Plan) -> str:
    """How the backstop came about, with its inputs and their source."""
    rate = plan.faults_per_device_day
    source = f" ({backstop.SOURCE})" if rate == backstop.FAULTS_PER_DEVICE_DAY else ""
    return (
        f"max({backstop.LEAST}, {backstop.FACTOR} x faults expected over the planned run) = {plan.backstop}: "
        f"{plan.devices} {'device' if plan.devices == 1 else 'devices'} x {plan.days:g} days x {rate:g} faults a "
        f"device and day{source} = {plan.faults:.3g}."
    )


def _policy(*, restart_rules: bool) -> dict[Path, str]:
    others = "1, 134, 137 ..." if restart_rules else f"1, 134, 137, {int(ExitCode.RESTART)} ..."
    rules = policy_rules(restarts_in_place=restart_rules)
    return {
        ("podFailurePolicy",): f"The first match decides; what matches no rule ({others}) is counted. Every rule names "
        "its container: a sidecar that dies of SIGTERM must not be taken for the training.",
        **{("podFailurePolicy", "rules", at): rule.why for at, rule in enumerate(rules)},
    }


def _memory(asked: Submission) -> str:
    parts = [f"{asked.memory} for the training, /dev/shm included"]
    if asked.pods > 1:
        parts.append(f"{MAILBOX} for the process that carries word between the pods, which loads torch")
    if asked.state:
        parts.append(
            f"{SNAPSHOT_SLOTS} x {asked.state} for snapshots of the state of all its ranks: one is kept while the "
            "other is written"
        )
        return ", + ".join(parts)
    sum_ = f"{', + '.join(parts)}. " if parts[1:] else ""
    return f"{sum_}Snapshots take twice the state of all ranks of the pod, within this limit: give --state for the sum."


def _shm(asked: Submission) -> str:
    half = "" if asked.shm else ", which is half of the training's memory"
    return f"DataLoader workers and NCCL need more than the 64 MiB that a container has; it may take no more{half}"


def _claim(asked: Submission) -> dict[Path, str]:
    if asked.claim is None:
        return {}
    shared = ", and ReadWriteMany, as all pods write to it" if asked.pods > 1 else ""
    return {("volumes", "checkpoints"): f"must exist{shared}"}
