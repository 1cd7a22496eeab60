# SPDX-License-Identifier: Apache-2.0
"""For each row of the linter's table that is about the contract, manifests that have just that wrong."""

from __future__ import annotations

from typing import Any, Final

from lint_manifests import (
    CRON,
    GANG,
    IN_PLACE,
    JOB,
    JOBSET,
    POD,
    POD_SPEC,
    REMOVED,
    RUNTIME,
    RUNTIME_JOB,
    SET_JOB,
    SET_OF_BACKUPS,
    TRAINER,
    edited,
    variable,
)

RULES: Final = "spec.podFailurePolicy.rules"
SET_RULES: Final = "spec.failurePolicy.rules"
_SHM: Final = f"{POD_SPEC}.volumes.2"
_GRACE: Final = f"{variable('RESILIENT_GRACE_S')}.value"
_PERIOD: Final = f"{POD_SPEC}.terminationGracePeriodSeconds"
_LIMITS: Final = f"{TRAINER}.resources.limits"
_NATIVE: Final = {"name": "metrics", "image": "m", "restartPolicy": "Always"}
_STOPS, _INTERNAL, _DISRUPTED, _RETRIES, _COMMANDS = JOB["spec"]["podFailurePolicy"]["rules"]
_OF_THE_JOB: Final = {
    "name": "RESILIENT_SUBMISSION",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}},
}
_UNNAMED: Final = (f"{RULES}.0.onExitCodes.containerName", REMOVED)


BARE: Final = edited(
    RUNTIME,
    (f"{RUNTIME_JOB}.podFailurePolicy", REMOVED),
    *((f"{RUNTIME_JOB}.template.spec.containers.0.{name}", REMOVED) for name in ("command", "args", "env")),
)
"""A runtime of somebody who has never heard of exit codes; its command comes with the TrainJob."""
UNTOLD: Final = edited(
    JOB,
    (variable("RESILIENT_CHECKPOINTS"), {"name": "A"}),
    (variable("RESILIENT_JOURNAL"), {"name": "B"}),
)
"""The Job whose variables say no place."""


def flags(*given: str) -> Any:
    """That Job with these flags."""
    return edited(UNTOLD, (f"{TRAINER}.args", [*given, "train.py"]))


def asking(*fields: tuple[str, str]) -> Any:
    """The Job that is to ask Kubernetes of its own pod, without a token, told these besides."""
    told = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields]
    known = JOB["spec"]["template"]["spec"]["containers"][0]["env"]
    env = [*known, {"name": "RESILIENT_POD_API", "value": "write"}, *told]
    return edited(JOB, (f"{TRAINER}.env", env))


def script(text: str) -> Any:
    """The Job with a shell before the supervisor."""
    return edited(JOB, (f"{TRAINER}.command", ["bash", "-ec", text]), (f"{TRAINER}.args", REMOVED))


def started(*words: str) -> Any:
    """The Job with these words, and the example's flags behind them."""
    return edited(JOB, (f"{TRAINER}.command", list(words)))


def rules(*given: Any) -> Any:
    """The Job with these rules."""
    return edited(JOB, (RULES, list(given)))


def codes(action: str, *values: int, operator: str = "In") -> dict[str, Any]:
    """A rule about the trainer's codes."""
    return {"action": action, "onExitCodes": {"containerName": "trainer", "operator": operator, "values": list(values)}}


CASES: Final[dict[str, tuple[Any, ...]]] = {
    # what is started
    "not-supervised": (
        started("torchrun", "--nproc-per-node", "8"),
        started("tini", "--", "python", "-m", "torch.distributed.run"),
        script("cd /app && python train.py"),
    ),
    "command-unseen": (
        edited(JOB, (f"{TRAINER}.command", REMOVED)),
        edited(JOB, (f"{TRAINER}.command", ["/app/start.sh"])),
        edited(JOB, (f"{TRAINER}.command", ["bash", "start.sh"])),
    ),
    "shell-in-front": (
        script("resilient run train.py"),
        script("cd /app && python -m resilient run \\\n  train.py; echo done"),
    ),
    "pipe-takes-the-code": (script("exec resilient run train.py 2>&1 | tee train.log"),),
    "wrapper-unknown": (started("nsys", "profile", "resilient", "run"),),
    "observing": (
        started("resilient", "run", "--observe"),
        edited(JOB, (f"{TRAINER}.env.99", {"name": "RESILIENT_OBSERVE", "value": "true"})),
    ),
    "container-restarts": (
        edited(POD, ("spec.restartPolicy", REMOVED)),
        edited(POD, ("spec.restartPolicy", "OnFailure")),
        edited(JOB, (f"{TRAINER}.restartPolicy", "OnFailure")),
    ),
    # the pod's end
    "classic-sidecar": (edited(JOB, (f"{POD_SPEC}.containers.1", {"name": "metrics", "image": "m"})),),
    "sidecar-injected": (
        edited(JOB, ("spec.template.metadata.labels", {"sidecar.istio.io/inject": "true"})),
        edited(JOB, ("spec.template.metadata.annotations", {"linkerd.io/inject": "enabled"})),
    ),
    "grace-too-short": (
        edited(JOB, (_GRACE, "300")),
        edited(JOB, (_PERIOD, REMOVED)),
        edited(JOB, (f"{TRAINER}.args", ["--grace", "5min", "train.py"])),
    ),
    "grace-unused": (edited(JOB, (_PERIOD, 600)), edited(JOB, (variable("RESILIENT_GRACE_S"), {"name": "A"}))),
    "grace-not-told": (edited(JOB, (variable("RESILIENT_GRACE_S"), {"name": "A"}), (_PERIOD, 30)),),
    "pre-stop": (edited(JOB, (f"{TRAINER}.lifecycle", {"preStop": {"sleep": {"seconds": 5}}})),),
    "probe-kills": (edited(JOB, (f"{TRAINER}.livenessProbe", {"exec": {"command": ["true"]}})),),
    "foreign-processes": (edited(JOB, (f"{POD_SPEC}.shareProcessNamespace", True)),),
    "token-mounted": (edited(JOB, (f"{POD_SPEC}.automountServiceAccountToken", REMOVED)),),
    "token-missing": (asking(("RESILIENT_POD_UID", "metadata.uid")),),
    "message-policy": (edited(JOB, (f"{TRAINER}.terminationMessagePolicy", "File")),),
    "message-elsewhere": (edited(JOB, (f"{TRAINER}.terminationMessagePath", "/last-word")),),
    "bare-pod": (edited(POD, ("metadata.ownerReferences", REMOVED)),),
    # what becomes of each code
    "policy-missing": (edited(JOB, ("spec.podFailurePolicy", REMOVED)),),
    "stop-code-goes-on": (
        rules(_INTERNAL, _DISRUPTED, _RETRIES, _COMMANDS),
        rules(codes("FailJob", 114, 115), _INTERNAL, _DISRUPTED, _RETRIES, _COMMANDS),
        edited(JOB, (f"{RULES}.0.action", "FailIndex")),
    ),
    "stop-code-after-disruption": (rules(_INTERNAL, _DISRUPTED, _STOPS, _RETRIES, _COMMANDS),),
    "retry-code-counted": (
        rules(_STOPS, _INTERNAL, _DISRUPTED, codes("Ignore", 194, 195, 196, 197), _COMMANDS),
        rules(_STOPS, _INTERNAL, _DISRUPTED, codes("Count", 193, 197), _RETRIES, _COMMANDS),
    ),
    "retry-code-fails": (
        rules(_STOPS, codes("FailJob", 194), _INTERNAL, _DISRUPTED, _RETRIES, _COMMANDS),
        rules(_STOPS, codes("FailJob", 199), _DISRUPTED, _RETRIES, _COMMANDS),
    ),
    "unrecorded-code-ignored": (
        rules(_STOPS, codes("Ignore", 199), _DISRUPTED, _RETRIES, _COMMANDS),
        rules(_STOPS, _INTERNAL, _DISRUPTED, codes("Ignore", *range(193, 199)), _COMMANDS),
    ),
    "internal-code-after-disruption": (rules(_STOPS, _DISRUPTED, _RETRIES, _COMMANDS),),
    "disruption-counted": (
        rules(_STOPS, _RETRIES, _COMMANDS),
        edited(JOB, (f"{RULES}.2.onPodConditions.0.status", "False")),
    ),
    "unknown-death-ignored": (rules(_STOPS, _INTERNAL, _DISRUPTED, codes("Ignore", 137), _RETRIES, _COMMANDS),),
    "unknown-death-fails": (rules(_STOPS, _INTERNAL, _DISRUPTED, codes("FailJob", 1, 139), _RETRIES, _COMMANDS),),
    "command-code-retried": (rules(_STOPS, _INTERNAL, _DISRUPTED, _RETRIES),),
    "container-unnamed-among-others": (edited(JOB, _UNNAMED, (f"{POD_SPEC}.initContainers", [_NATIVE])),),
    "container-unnamed": (edited(JOB, _UNNAMED),),
    "condition-status-missing": (edited(JOB, (f"{RULES}.2.onPodConditions.0.status", REMOVED)),),
    "exit-code-impossible": (rules(codes("FailJob", 114, 115, 116, 300), _INTERNAL, _DISRUPTED, _RETRIES, _COMMANDS),),
    "rule-never-reached": (rules(_STOPS, _INTERNAL, _DISRUPTED, _RETRIES, _COMMANDS, codes("Ignore", 114, 195)),),
    "restarts-in-place-unbounded": (
        edited(IN_PLACE, (f"{TRAINER}.restartPolicyRules.0.exitCodes.values", [114, 193, 197])),
        edited(IN_PLACE, (f"{TRAINER}.restartPolicyRules.0.exitCodes", {"operator": "NotIn", "values": [1]})),
    ),
    "restart-rule-incomplete": (
        edited(
            IN_PLACE,
            (f"{TRAINER}.restartPolicyRules.0.exitCodes.values", [193]),
            (f"{RULES}.3.onExitCodes.values", [194, 195, 196, 197, 198]),
        ),
    ),
    # counters
    "backoff-limit-small": (
        edited(
            JOB,
            *((f"spec.{name}", REMOVED) for name in ("completionMode", "backoffLimitPerIndex", "maxFailedIndexes")),
        ),
        edited(
            JOB,
            *((f"spec.{name}", REMOVED) for name in ("completionMode", "backoffLimitPerIndex", "maxFailedIndexes")),
            ("spec.backoffLimit", 19),
        ),
        edited(JOB, ("spec.backoffLimit", 6)),
    ),
    "per-index-missing": (
        edited(
            JOB,
            *((f"spec.{name}", REMOVED) for name in ("backoffLimitPerIndex", "maxFailedIndexes")),
            ("spec.backoffLimit", 20),
        ),
    ),
    "per-index-small": (edited(JOB, ("spec.backoffLimitPerIndex", 3)),),
    "gang-outlives-an-index": (
        edited(GANG, ("spec.maxFailedIndexes", REMOVED)),
        edited(GANG, ("spec.maxFailedIndexes", 1)),
    ),
    "gang-never-whole": (edited(GANG, ("spec.parallelism", 3)),),
    "deadline-ends-it": (edited(JOB, ("spec.activeDeadlineSeconds", 3600)),),
    "deleted-soon": (edited(JOB, ("spec.ttlSecondsAfterFinished", 0)),),
    "two-pods-at-once": (edited(BARE, (f"{RUNTIME_JOB}.podReplacementPolicy", REMOVED)),),
    # what the supervisor is told
    "setting-refused": (
        edited(JOB, (f"{TRAINER}.env.99", {"name": "RESILIENT_CHECKPOINT", "value": "s3://bucket/run"})),
        edited(JOB, (f"{TRAINER}.env.99", {"name": "RESILIENT_KEEP", "value": "many"})),
        edited(JOB, (_GRACE, "2min")),
    ),
    "submission-not-told": (edited(JOB, (variable("RESILIENT_SUBMISSION"), {"name": "A"})),),
    "downward-missing": (
        edited(JOB, (variable("RESILIENT_NODE"), {"name": "A"})),
        edited(JOB, (variable("RESILIENT_IGNORED_COUNT"), {"name": "A"})),
    ),
    "own-pod-not-told": (edited(asking(), (f"{POD_SPEC}.automountServiceAccountToken", True)),),
    "downward-wrong": (
        edited(JOB, (f"{variable('RESILIENT_NODE')}.valueFrom.fieldRef.fieldPath", "metadata.name")),
        edited(JOB, (variable("RESILIENT_INDEX"), {"name": "RESILIENT_INDEX", "value": "0"})),
        edited(JOBSET, (f"{SET_JOB}.{variable('RESILIENT_SUBMISSION').removeprefix('spec.')}", _OF_THE_JOB)),
        edited(IN_PLACE, (variable("RESILIENT_POD_UID", IN_PLACE), {"name": "RESILIENT_POD_UID", "value": "1"})),
    ),
    "index-shared": (edited(JOBSET, ("spec.replicatedJobs.0.replicas", 2)),),
    "checkpoints-not-said": (flags("--journal", "/var/lib/resilient"),),
    "checkpoints-die-with-the-pod": (
        edited(JOB, (f"{POD_SPEC}.volumes.0", {"name": "checkpoints", "emptyDir": {}})),
        edited(JOB, (f"{POD_SPEC}.volumes.0", {"name": "checkpoints", "hostPath": {"path": "/mnt"}})),
        flags("--checkpoints=/data/run", "--journal=/var/lib/resilient"),
    ),
    "journal-dies-with-the-container": (
        flags("--checkpoints", "s3://bucket/run"),
        flags("--checkpoints", "/checkpoints/a", "--journal", "/var/journal"),
    ),
    "snapshots-die-with-the-container": (edited(IN_PLACE, (variable("RESILIENT_SNAPSHOTS", IN_PLACE), {"name": "A"})),),
    "snapshots-not-in-memory": (
        edited(IN_PLACE, (f"{POD_SPEC}.volumes.4.emptyDir", {})),
        edited(IN_PLACE, (f"{variable('RESILIENT_SNAPSHOTS', IN_PLACE)}.value", "/var/snapshots")),
    ),
    "pod-not-told": (edited(IN_PLACE, (variable("RESILIENT_POD_UID", IN_PLACE), {"name": "A"})),),
    "shm-small": (edited(JOB, (f"{TRAINER}.volumeMounts.2.mountPath", "/shm")),),
    "shm-on-disk": (edited(JOB, (f"{_SHM}.emptyDir", {})),),
    "shm-over-memory": (edited(JOB, (f"{_SHM}.emptyDir.sizeLimit", "256Gi")),),
    "memory-unlimited": (edited(JOB, (_LIMITS, {"nvidia.com/gpu": "8"})),),
    # what is around the Job
    "jobset-policy-missing": (edited(JOBSET, ("spec.failurePolicy", REMOVED)),),
    "jobset-restarts-stops": (
        edited(JOBSET, (SET_RULES, REMOVED)),
        edited(JOBSET, (f"{SET_RULES}.0.action", "RestartJobSet")),
        edited(RUNTIME, (f"spec.template.{SET_RULES}.0.onJobFailureReasons", ["BackoffLimitExceeded"])),
    ),
    "jobset-unbounded": (
        edited(JOBSET, (f"{SET_RULES}.1", {"name": "rest", "action": "RestartJobSetAndIgnoreMaxRestarts"})),
    ),
    "jobset-never-restarts": (edited(JOBSET, ("spec.failurePolicy.maxRestarts", REMOVED)),),
    "jobset-made-again": (
        edited(SET_OF_BACKUPS, ("spec.replicatedJobs.0.template.spec.ttlSecondsAfterFinished", 864000)),
    ),
    "jobset-alpha": (
        edited(JOBSET, (f"{SET_RULES}.1", {"name": "rest", "action": "RestartJob"})),
        edited(JOBSET, ("spec.failurePolicy.restartStrategy", "InPlaceRestart")),
    ),
    "runtime-container-name": (
        edited(
            RUNTIME,
            (f"{RUNTIME_JOB}.template.spec.containers.0.name", "trainer"),
            *(
                (f"{RUNTIME_JOB}.podFailurePolicy.rules.{at}.onExitCodes.containerName", "trainer")
                for at in (0, 1, 3, 4)
            ),
        ),
    ),
    "cron-overlap": (
        edited(CRON, ("spec.concurrencyPolicy", "Allow")),
        edited(CRON, ("spec.concurrencyPolicy", REMOVED)),
    ),
}
