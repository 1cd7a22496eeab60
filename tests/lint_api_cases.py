# SPDX-License-Identifier: Apache-2.0
"""For each row about what the API server refuses, manifests of no training that have just that wrong, and its words."""

from __future__ import annotations

from typing import Any, Final

from lint_manifests import BACKUP, CRON, REMOVED, RUNTIME, SET_OF_BACKUPS, TRAIN_JOB, edited

_POD: Final = "spec.template.spec"
_COPY: Final = f"{_POD}.containers.0"
_INDEXED: Final = edited(BACKUP, ("spec.completionMode", "Indexed"), ("spec.completions", 5))
_PER_INDEX: Final = edited(_INDEXED, ("spec.backoffLimitPerIndex", 1))
_MANY: Final = edited(_PER_INDEX, ("spec.completions", 100_001), ("spec.maxFailedIndexes", 1))
_NIGHTLY: Final = {**CRON, "spec": {"schedule": "@daily", "jobTemplate": {"spec": BACKUP["spec"]}}}
_DISRUPTED: Final = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
_SET: Final = SET_OF_BACKUPS
_NEED: Final = {"name": "copy", "status": "Ready"}
_COORDINATED: Final = edited(
    _SET,
    ("spec.coordinator", {"replicatedJob": "copy", "jobIndex": 1, "podIndex": 1}),
    ("spec.replicatedJobs.0.template.spec.completions", 2),
)
_LIMITED: Final = edited(_SET, ("spec.failurePolicy", {"maxRestarts": 3}))


def policy(*rules: Any) -> Any:
    """The Job with these rules."""
    return edited(BACKUP, ("spec.podFailurePolicy", {"rules": list(rules)}))


def codes(values: Any, **more: Any) -> Any:
    """The Job with one rule about these codes."""
    return policy({"action": "FailJob", "onExitCodes": {"operator": "In", "values": values, **more}})


def conditions(*patterns: Any) -> Any:
    """The Job with one rule about conditions."""
    return policy({"action": "Ignore", "onPodConditions": list(patterns)})


def success(*rules: Any) -> Any:
    """The Indexed Job of five with these rules of success."""
    return edited(_INDEXED, ("spec.successPolicy", {"rules": list(rules)}))


def set_rule(**rule: Any) -> Any:
    """The JobSet with one rule of failure."""
    return edited(_LIMITED, ("spec.failurePolicy.rules", [{"name": "one", "action": "FailJobSet", **rule}]))


def two_steps(*changes: tuple[str, Any]) -> Any:
    """The JobSet with a second replicated job; of ``0.`` and ``1.`` something is changed."""
    step = {**_SET["spec"]["replicatedJobs"][0], "name": "check"}
    both = edited(_SET, ("spec.replicatedJobs.1", step))
    return edited(both, *((f"spec.replicatedJobs.{place}", value) for place, value in changes))


CASES: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "kind-missing": tuple(
        (whole, "Object 'Kind' is missing") for whole in ([1, 2], "Error: chart not found", {"image": "x"}, {"kind": 1})
    ),
    "api-version-unknown": (
        (edited(_SET, ("apiVersion", "jobset.x-k8s.io/v1")), 'supported values: "jobset.x-k8s.io/v1alpha2"'),
        (edited(_NIGHTLY, ("apiVersion", "batch/v1beta1")), 'apiVersion: Unsupported value: "batch/v1beta1"'),
        (edited(BACKUP, ("apiVersion", REMOVED)), 'supported values: "batch/v1"'),
    ),
    "api-type": (
        (edited(BACKUP, ("spec.backoffLimit", "6")), "spec.backoffLimit: Invalid value: cannot unmarshal string"),
        (edited(BACKUP, ("spec.backoffLimit", 1 << 31)), "into a field of type int32"),
        (
            edited(BACKUP, (f"{_COPY}.env", [{"name": "A", "value": True}])),
            "spec.template.spec.containers[0].env[0].value: Invalid value",
        ),
        (edited(BACKUP, (f"{_COPY}.command", "sh")), "cannot unmarshal string into a field of type array"),
        (edited(BACKUP, ("spec.template", [])), "cannot unmarshal array into a field of type object"),
        (conditions({"type": "DisruptionTarget", "status": True}), "cannot unmarshal bool into a field of type string"),
        (edited(BACKUP, ("metadata.labels", {"a": 1})), "metadata.labels.a: Invalid value: cannot unmarshal number"),
        (edited(_SET, ("spec.replicatedJobs", {})), "spec.replicatedJobs: Invalid value: must be an array"),
        (edited(_SET, ("spec.network", [])), "spec.network: Invalid value: must be an object"),
        (edited(BACKUP, ("metadata.labels", "a")), "cannot unmarshal string into a field of type object"),
    ),
    "api-unknown-field": (
        (edited(BACKUP, ("spec.backOffLimit", 3)), 'strict decoding error: unknown field "spec.backOffLimit"'),
        (edited(_SET, ("spec.replicatedJobs.0.template.spec.template.spec.image", "x")), "unknown field"),
        (edited(_LIMITED, ("spec.failurePolicy.maxRestart", 3)), 'unknown field "spec.failurePolicy.maxRestart"'),
        (edited(TRAIN_JOB, ("spec.trainer.initializer", {})), 'unknown field "spec.trainer.initializer"'),
        (edited(RUNTIME, ("spec.template.spec.replicatedJobs.0.parallelism", 2)), "replicatedJobs[0].parallelism"),
    ),
    "name-malformed": (
        (edited(BACKUP, ("metadata", {})), "metadata.name: Required value: name or generateName is required"),
        (edited(BACKUP, ("metadata.name", "My_Job")), "a lowercase RFC 1123 subdomain must consist of"),
        (edited(BACKUP, ("metadata.namespace", "a.b")), 'metadata.namespace: Invalid value: "a.b": must not contain'),
    ),
    "annotation-malformed": (
        (edited(BACKUP, ("metadata.annotations", {"a b": "c"})), 'metadata.annotations: Invalid value: "a b": name'),
        (edited(BACKUP, ("spec.template.metadata.annotations", {"a": "b" * 2**18})), "not be more than 262144 bytes"),
    ),
    "label-malformed": (
        (edited(BACKUP, ("metadata.labels", {"a b": "c"})), "name part must consist of alphanumeric characters"),
        (
            edited(BACKUP, ("spec.template.metadata.labels", {"a": "-"})),
            'spec.template.labels: Invalid value: "-": a valid label must be an empty string or',
        ),
    ),
    "job-name-too-long": ((edited(BACKUP, ("metadata.name", "a" * 64)), "must be no more than 63 bytes"),),
    "indexed-name-too-long": (
        (edited(_INDEXED, ("metadata.name", "a" * 62)), "will not able to create pod with invalid DNS label: aaaa"),
        (edited(_INDEXED, ("metadata.name", "a.b")), "invalid DNS label: a.b-4"),
    ),
    "negative-number": (
        *(
            (
                edited(BACKUP, (f"spec.{name}", -1)),
                f"spec.{name}: Invalid value: -1: must be greater than or equal to 0",
            )
            for name in (
                "parallelism",
                "completions",
                "backoffLimit",
                "activeDeadlineSeconds",
                "ttlSecondsAfterFinished",
            )
        ),
        *(
            (edited(_PER_INDEX, (f"spec.{name}", -1)), f"spec.{name}: Invalid value: -1")
            for name in ("backoffLimitPerIndex", "maxFailedIndexes")
        ),
        (success({"succeededCount": -1}), "spec.successPolicy.rules[0].succeededCount: Invalid value: -1"),
        (edited(_NIGHTLY, ("spec.startingDeadlineSeconds", -1)), "spec.startingDeadlineSeconds: Invalid value: -1"),
    ),
    "completion-mode-unknown": (
        (edited(BACKUP, ("spec.completionMode", "indexed")), 'supported values: "NonIndexed", "Indexed"'),
    ),
    "indexed-completions-missing": (
        (
            edited(_INDEXED, ("spec.completions", REMOVED), ("spec.parallelism", 2)),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
    ),
    "index-limits": (
        (
            edited(_INDEXED, ("spec.parallelism", 100_001)),
            "less than or equal to 100000 when completion mode is Indexed",
        ),
        (edited(_MANY, ("spec.maxFailedIndexes", REMOVED)), "must be specified when completions is above 100000"),
        (edited(_MANY, ("spec.parallelism", 50_000)), "spec.parallelism: Invalid value: 50000: must be less than or"),
        (
            edited(_MANY, ("spec.maxFailedIndexes", 50_000)),
            "when completions are above 100000 and used with backoff limit",
        ),
        (edited(_MANY, ("spec.maxFailedIndexes", 100_001)), "100001: must be less than or equal to 100000"),
    ),
    "max-failed-over-completions": (
        (edited(_PER_INDEX, ("spec.maxFailedIndexes", 6)), "6: must be less than or equal to completions"),
    ),
    "max-failed-without-per-index": (
        (
            edited(_INDEXED, ("spec.maxFailedIndexes", 0)),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
    ),
    "per-index-needs-indexed": (
        (
            edited(BACKUP, ("spec.backoffLimitPerIndex", 1)),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed",
        ),
    ),
    "managed-by-malformed": (
        (edited(BACKUP, ("spec.managedBy", "mine")), 'must be a domain-prefixed path (such as "acme.io/foo")'),
        (
            edited(BACKUP, ("spec.managedBy", "a.io/" + "x" * 60)),
            "spec.managedBy: Too long: may not be more than 63 bytes",
        ),
        (edited(_SET, ("spec.managedBy", "x")), "must be a domain-prefixed path"),
        (edited(BACKUP, ("spec.managedBy", "A.io/x")), "a lowercase RFC 1123 subdomain"),
        (edited(BACKUP, ("spec.managedBy", "a.io/x y")), "Invalid path"),
    ),
    "policy-rules-over-20": (
        (policy(*[_DISRUPTED] * 21), "spec.podFailurePolicy.rules: Too many: 21: must have at most 20 items"),
    ),
    "policy-action-unknown": (
        (
            policy({**_DISRUPTED, "action": "Retry"}),
            'action: Unsupported value: "Retry": supported values: "Count", "Fail',
        ),
        (
            policy({**_DISRUPTED, "action": ""}),
            'Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"]',
        ),
    ),
    "fail-index-without-per-index": (
        (policy({**_DISRUPTED, "action": "FailIndex"}), "requires the backoffLimitPerIndex to be set"),
    ),
    "rule-requirement": (
        (
            policy({"action": "FailJob"}),
            "rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is",
        ),
        (
            policy({**_DISRUPTED, "onExitCodes": {"operator": "In", "values": [1], "containerName": "copy"}}),
            "specifying both OnExitCodes and OnPodConditions is not supported",
        ),
    ),
    "exit-operator-unknown": (
        (codes([1], operator=""), 'operator: Required value: valid values: ["In" "NotIn"]'),
        (codes([1], operator="in"), 'operator: Unsupported value: "in": supported values: "In", "NotIn"'),
    ),
    "exit-container-unknown": (
        (codes([1], containerName="xyz"), 'Invalid value: "xyz": must be one of the container or initContainer names'),
        (codes([1], containerName=""), 'containerName: Invalid value: ""'),
    ),
    "exit-values-count": (
        (codes([]), "values: Invalid value: []: at least one value is required"),
        (codes(list(range(256)), operator="NotIn"), "values: Too many: 256: must have at most 255 items"),
    ),
    "exit-values-zero": ((codes([0, 1]), "values[0]: Invalid value: 0: must not be 0 for the In operator"),),
    "exit-values-duplicate": ((codes([12, 13, 13]), "values[2]: Duplicate value: 13"),),
    "exit-values-order": ((codes([19, 11]), "values: Invalid value: [19,11]: must be ordered"),),
    "condition-patterns-over-20": (
        (conditions(*[{"type": f"T{n}", "status": "True"} for n in range(21)]), "onPodConditions: Too many: 21"),
    ),
    "condition-type-malformed": (
        (conditions({"status": "True"}), 'type: Invalid value: "": name part must be non-empty'),
        (
            conditions({"type": "A b", "status": "True"}),
            "name part must consist of alphanumeric characters, '-', '_' or",
        ),
        (conditions({"type": "/a", "status": "True"}), "prefix part must be non-empty"),
        (conditions({"type": "A/a", "status": "True"}), "prefix part a lowercase RFC 1123 subdomain"),
        (conditions({"type": "a/b/c", "status": "True"}), "with an optional DNS subdomain prefix and '/'"),
        (conditions({"type": "a" * 64, "status": "True"}), "name part must be no more than 63 bytes"),
    ),
    "condition-status-unknown": (
        (conditions({"type": "A", "status": "true"}), 'supported values: "False", "True", "Unknown"'),
    ),
    "replacement-policy-unknown": (
        (
            edited(policy(_DISRUPTED), ("spec.podReplacementPolicy", "TerminatingOrFailed")),
            'supported values: "Failed"',
        ),
        (edited(BACKUP, ("spec.podReplacementPolicy", "")), 'supported values: "Failed", "TerminatingOrFailed"'),
    ),
    "job-restart-policy": (
        (edited(BACKUP, (f"{_POD}.restartPolicy", REMOVED)), 'Required value: valid values: "OnFailure", "Never"'),
        (edited(BACKUP, (f"{_POD}.restartPolicy", "Always")), 'Required value: valid values: "OnFailure", "Never"'),
    ),
    "restart-policy-not-never": (
        (
            edited(policy(), (f"{_POD}.restartPolicy", "OnFailure")),
            'only "Never" is supported when podFailurePolicy is',
        ),
        (
            edited(
                _SET,
                ("spec.replicatedJobs.0.template.spec.podFailurePolicy", {"rules": []}),
                ("spec.replicatedJobs.0.template.spec.template.spec.restartPolicy", REMOVED),
            ),
            '"OnFailure": only "Never"',
        ),
    ),
    "pod-restart-policy": (
        (
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "a"},
                "spec": {"restartPolicy": "no", "containers": [{"name": "a", "image": "a"}]},
            },
            'Unsupported value: "no"',
        ),
    ),
    "success-needs-indexed": (
        (edited(BACKUP, ("spec.successPolicy", {"rules": []})), "spec.successPolicy: Invalid value: requires indexed"),
    ),
    "success-rules-count": (
        (success(), "spec.successPolicy.rules: Required value: at least one rules must be specified when the"),
        (success(*[{"succeededCount": 5}] * 21), "spec.successPolicy.rules: Too many: 21: must have at most 20 items"),
    ),
    "success-rule-empty": (
        (success({}), "rules[0]: Required value: at least one of succeededCount or succeededIndexes"),
    ),
    "success-indexes-malformed": (
        (success({"succeededIndexes": "invalid-format"}), 'cannot convert string to integer for index: "invalid"'),
        (
            success({"succeededIndexes": "0-1-2"}),
            "violates the requirement that an index interval can have at most two",
        ),
        (success({"succeededIndexes": "5"}), 'too large index: "5"'),
        (success({"succeededIndexes": "0-5"}), 'too large index: "5"'),
        (success({"succeededIndexes": "3-3"}), "non-increasing order, previous: 3, current: 3"),
        (success({"succeededIndexes": "1,0"}), "non-increasing order, previous: 1, current: 0"),
        (success({"succeededIndexes": "1" * 65_537}), "succeededIndexes: Too long: may not be more than 65536 bytes"),
    ),
    "success-count-too-large": (
        (success({"succeededCount": 6}), "must be less than or equal to 5 (the number of specified completions)"),
        (
            success({"succeededCount": 4, "succeededIndexes": "0-2"}),
            "less than or equal to 3 (the number of indexes in the",
        ),
    ),
    "selector-of-its-own": (
        (edited(BACKUP, ("spec.selector", {"matchLabels": {"a": "b"}})), "`selector` not auto-generated"),
        (edited(BACKUP, ("spec.manualSelector", True)), "spec.selector: Required value"),
        (
            edited(BACKUP, ("spec.manualSelector", True), ("spec.selector", {"matchLabels": {"a": "b"}})),
            "`selector` does not match template `labels`",
        ),
        (edited(_NIGHTLY, ("spec.jobTemplate.spec.selector", {})), "`selector` will be auto-generated"),
    ),
    "label-of-the-controller": (
        (
            edited(BACKUP, ("spec.template.metadata.labels", {"controller-uid": "1"})),
            "must be the uid that the Job is given",
        ),
        (edited(BACKUP, ("spec.template.metadata.labels", {"job-name": "other"})), "Required value: must be 'backup'"),
    ),
    "cron-name-too-long": ((edited(_NIGHTLY, ("metadata.name", "a" * 53)), "must be no more than 52 characters"),),
    "cron-schedule": (
        (edited(_NIGHTLY, ("spec.schedule", "")), "spec.schedule: Required value"),
        (edited(_NIGHTLY, ("spec.schedule", "TZ=UTC 0 0 * * *")), "cannot use TZ or CRON_TZ in schedule"),
        *(
            (edited(_NIGHTLY, ("spec.schedule", wrong)), "spec.schedule: Invalid value")
            for wrong in ("* * * *", "60 * * * *", "* 3-1 * * *", "*/0 * * * *", "* * 0 * *", "* * * foo *", "@never")
        ),
    ),
    "cron-concurrency-unknown": (
        (edited(_NIGHTLY, ("spec.concurrencyPolicy", "forbid")), 'supported values: "Allow", "Forbid", "Replace"'),
    ),
    "cron-time-zone": (
        (edited(_NIGHTLY, ("spec.timeZone", "Local")), "unknown time zone Local"),
        (edited(_NIGHTLY, ("spec.timeZone", "Europe//Rome")), "unknown time zone"),
    ),
    "jobset-replicated-name": (
        (edited(_SET, ("spec.replicatedJobs.1", _SET["spec"]["replicatedJobs"][0])), 'Duplicate value: "copy"'),
        (edited(_SET, ("spec.replicatedJobs.0.name", REMOVED)), "spec.replicatedJobs[0].name: Required value"),
    ),
    "jobset-depends-on": (
        (edited(_SET, ("spec.replicatedJobs.0.dependsOn", [_NEED])), "DependsOn can't be set for the first Replicated"),
        (two_steps(("1.dependsOn", [{**_NEED, "name": "last"}])), '[1].dependsOn[0].name: Invalid value: "last"'),
        (two_steps(("1.dependsOn", [{**_NEED, "status": "Done"}])), 'supported values: "Ready", "Complete"'),
        (
            edited(two_steps(("1.dependsOn", [_NEED])), ("spec.startupPolicy", {"startupPolicyOrder": "InOrder"})),
            "StartupPolicy and DependsOn APIs are mutually exclusive",
        ),
    ),
    "jobset-names": (
        (edited(_SET, ("spec.network", {"subdomain": "a.b"})), 'spec.network.subdomain: Invalid value: "a.b"'),
        (two_steps(("1.name", "copy" * 14)), "job names generated for this JobSet will exceed 63 characters"),
        (
            edited(_SET, ("metadata.name", "a" * 50), ("spec.replicatedJobs.0.template.spec.completions", 2)),
            "pod names generated for this JobSet will exceed 63 characters",
        ),
        (edited(_SET, ("metadata.name", "4-nodes")), "a DNS-1035 label"),
    ),
    "jobset-coordinator": (
        (edited(_COORDINATED, ("spec.coordinator.replicatedJob", "x")), "coordinator replicatedJob x does not exist"),
        (edited(_COORDINATED, ("spec.coordinator.jobIndex", 2)), "coordinator.jobIndex: Invalid value: 2"),
        (edited(_COORDINATED, ("spec.coordinator.podIndex", -1)), "coordinator.podIndex: Invalid value: -1"),
        (edited(_SET, ("spec.coordinator", {"replicatedJob": "copy"})), "completions number must be set"),
    ),
    "jobset-strategy-unknown": (
        (edited(_LIMITED, ("spec.failurePolicy.restartStrategy", "Restart")), 'Unsupported value: "Restart"'),
    ),
    "jobset-rules-over-20": (
        (edited(_LIMITED, ("spec.failurePolicy.rules", [{"action": "FailJobSet"}] * 21)), "rules: Too many: 21"),
    ),
    "jobset-rule-name": (
        (set_rule(name="1st"), 'rules[0].name: Invalid value: "1st"'),
        (
            edited(_LIMITED, ("spec.failurePolicy.rules", [{"name": "a", "action": "FailJobSet"}] * 2)),
            "Duplicate value",
        ),
    ),
    "jobset-action-unknown": (
        (set_rule(action="FailJob"), 'Unsupported value: "FailJob": supported values: "FailJobSet"'),
    ),
    "jobset-reason-unknown": (
        (set_rule(onJobFailureReasons=["OOM"]), 'Unsupported value: "OOM": supported values: "Back'),
    ),
    "jobset-target-unknown": (
        (set_rule(targetReplicatedJobs=["node"]), '"node": does not appear in .spec.ReplicatedJobs'),
        (edited(_SET, ("spec.successPolicy", {"targetReplicatedJobs": ["x"]})), '"x": does not appear in .spec.Rep'),
    ),
}
