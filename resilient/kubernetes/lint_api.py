# SPDX-License-Identifier: Apache-2.0
"""Why the API server refuses what it refuses, and what to do: a row for each id of a ``Problem``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from resilient.kubernetes import lint_api_pod
from resilient.kubernetes.lint_rows import Row, Severity

_TABLE: Final[Mapping[str, tuple[str, str]]] = {
    "kind-missing": (
        "A document that is no object with a kind is no manifest: a list, a text, the values of a chart.",
        "give manifests alone, and see whether what writes them failed",
    ),
    "api-version-unknown": ("No API server serves this kind in this version.", "write the version that is named"),
    "api-type": (
        "A value has another type than its field.",
        'give it the type that is named; quote text such as "on" or "1"',
    ),
    "api-unknown-field": (
        "No field of this name stands there, so that kubectl refuses the manifest, and others drop it in silence.",
        "correct its name or its place",
    ),
    "name-malformed": ("The object's name is missing or cannot be one.", "write lower case letters, digits and '-'"),
    "label-malformed": ("A label's key or value cannot be one.", "write at most 63 letters, digits, '-', '_' and '.'"),
    "annotation-malformed": (
        "An annotation's key cannot be one, or they are too long.",
        "correct the key, or shorten them",
    ),
    "job-name-too-long": ("The name becomes a label of the pods, which has room for 63 bytes.", "shorten the name"),
    "indexed-name-too-long": ("Its pods could not be created: a host name has 63 characters.", "shorten the name"),
    "negative-number": ("A count or a time is below zero.", "write 0 or more"),
    "completion-mode-unknown": ("There are two completion modes.", "write Indexed or NonIndexed"),
    "indexed-completions-missing": ("An Indexed Job must say how many indexes it has.", "write completions"),
    "index-limits": ("An Indexed Job can have only so many pods and failures.", "write a number within the limit"),
    "max-failed-over-completions": (
        "No more indexes can fail than there are.",
        "write at most completions; 0 for a gang",
    ),
    "max-failed-without-per-index": ("An index fails by its own limit only.", "write backoffLimitPerIndex beside it"),
    "per-index-needs-indexed": ("Only the pods of an Indexed Job have an index.", "write completionMode: Indexed"),
    "managed-by-malformed": ("It names a controller by domain and path.", "write for example example.com/controller"),
    "policy-rules-over-20": ("A policy has 20 rules at most.", "put the codes of one action into one rule"),
    "policy-action-unknown": ("A rule must have an action that there is.", "write FailJob, FailIndex, Ignore or Count"),
    "fail-index-without-per-index": ("An index can fail only where it has a limit.", "write backoffLimitPerIndex"),
    "rule-requirement": (
        "A rule asks for exit codes or for conditions.",
        "write one of onExitCodes and onPodConditions",
    ),
    "exit-operator-unknown": ("Codes are compared by an operator that there is.", "write In or NotIn"),
    "exit-container-unknown": (
        "The rule names a container that the pod does not have.",
        "name one of the pod's containers",
    ),
    "exit-values-count": ("A rule compares 1 to 255 codes.", "name the codes that it is about"),
    "exit-values-zero": ("A container that ends with 0 has not failed.", "remove 0"),
    "exit-values-duplicate": ("A code stands twice in one rule.", "remove one"),
    "exit-values-order": ("Codes must ascend.", "sort them"),
    "condition-patterns-over-20": ("A rule has 20 conditions at most.", "remove what is not needed"),
    "condition-type-malformed": ("This cannot be the type of a condition.", "write for example DisruptionTarget"),
    "condition-status-unknown": ("A condition is True, False or Unknown.", 'write status: "True"'),
    "replacement-policy-unknown": (
        "With podFailurePolicy a pod is replaced once it has failed.",
        "write podReplacementPolicy: Failed",
    ),
    "job-restart-policy": (
        "A Job's pods end, so that their containers are not always restarted.",
        "write restartPolicy: Never",
    ),
    "restart-policy-not-never": (
        "A podFailurePolicy sees only containers that the kubelet does not restart.",
        "write restartPolicy: Never",
    ),
    "pod-restart-policy": ("There are three restart policies.", "write Never"),
    "success-needs-indexed": ("Success is judged by index.", "write completionMode: Indexed"),
    "success-rules-count": ("A success policy has 1 to 20 rules.", "write at least one rule, or remove the policy"),
    "success-rule-empty": (
        "A rule must say how many or which indexes suffice.",
        "write succeededCount or succeededIndexes",
    ),
    "success-indexes-malformed": ("These are no ascending indexes of this Job.", 'write for example "0,2-4"'),
    "success-count-too-large": ("More indexes are asked for than there are.", "write fewer"),
    "selector-of-its-own": ("A Job's controller makes the selector.", "remove selector"),
    "label-of-the-controller": (
        "The controller gives its pods this label, with a value of its own.",
        "remove the label",
    ),
    **lint_api_pod.ROWS,
    "cron-name-too-long": ("The Jobs' names are 11 characters longer.", "write at most 52 characters"),
    "cron-schedule": ("This is no schedule.", 'write five fields ("0 3 * * *") or for example @daily'),
    "cron-concurrency-unknown": ("There are three policies.", "write Forbid"),
    "cron-time-zone": ("This is no time zone of IANA's.", "write for example Etc/UTC"),
    "jobset-replicated-name": ("A replicated job's name is missing or taken.", "give each its own"),
    "jobset-depends-on": (
        "A replicated job can wait for one that stands before it, not beside startupPolicy InOrder.",
        "name an earlier one, with status Ready or Complete",
    ),
    "jobset-names": (
        "The names of the Jobs, pods or labels, made from these, are too long or malformed.",
        "shorten the JobSet's name, and begin it with a letter",
    ),
    "jobset-size": ("So many pods cannot be counted.", "write fewer replicas"),
    "jobset-words": ("There is no such order or operator.", "write AnyOrder or InOrder; All or Any"),
    "jobset-coordinator": ("The coordinator is no pod of the set.", "name a replicated job, a Job and a pod of it"),
    "jobset-strategy-unknown": ("There are three strategies.", "write BlockingRecreate"),
    "jobset-rules-over-20": ("A failure policy has 20 rules at most.", "join rules that do the same"),
    "jobset-rule-name": ("A rule's name is malformed or taken.", "give each its own"),
    "jobset-action-unknown": ("A rule must have an action that there is.", "write FailJobSet or RestartJobSet"),
    "jobset-reason-unknown": ("No Job fails for this reason.", "write one that there is, such as PodFailurePolicy"),
    "jobset-claim": (
        "A claim's name is missing, taken, malformed or too long, or it says a namespace, which is the JobSet's.",
        "give each its own name, short enough for '<claim>-<JobSet>' to have 63 characters",
    ),
    "jobset-claim-unused": ("No container mounts the claim.", "mount it by its name, or remove it"),
    "jobset-claim-retention": ("A claim is deleted with its JobSet, or kept.", "write Retain or Delete"),
    "jobset-target-unknown": ("The policy names a replicated job that the JobSet does not have.", "correct the name"),
}

ROWS: Final[Mapping[str, Row]] = MappingProxyType(
    {name: Row(id=name, severity=Severity.ERROR, why=why, fix=fix) for name, (why, fix) in _TABLE.items()}
)
