# SPDX-License-Identifier: Apache-2.0
"""The contract added to a manifest that somebody already has; whatever it does not concern stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.redact import Redactor
from resilient.errors import SettingsError
from resilient.kubernetes import documents, downward, lint, writing
from resilient.kubernetes.aliases import Rest
from resilient.kubernetes.api_problems import inside
from resilient.kubernetes.carrying import carried
from resilient.kubernetes.changes import sentences
from resilient.kubernetes.comments import of_addition
from resilient.kubernetes.completing import Addition, JobDraft, mapping, mappings, plain, refused
from resilient.kubernetes.completing_set import complete_set
from resilient.kubernetes.documents import Document
from resilient.kubernetes.granting import Account, account_of, pod_fields, with_permissions
from resilient.kubernetes.lint_subject import STEP_LABEL

_GROUPS: Final = {
    "Job": "batch",
    "CronJob": "batch",
    "JobSet": "jobset.x-k8s.io",
    "TrainingRuntime": "trainer.kubeflow.org",
    "ClusterTrainingRuntime": "trainer.kubeflow.org",
}
"""Which API a kind belongs to: Volcano and others have Jobs too."""
_NAMES: Final = frozenset(
    ("name-malformed", "indexed-name-too-long", "job-name-too-long", "cron-name-too-long", "jobset-names")
)
"""Rows of the linter."""
_SHOWN_CHARS: Final = 300
_MOST_LEFT: Final = 10


def add_contract(manifest: str | Sequence[Document], asked: Addition) -> tuple[str, tuple[str, ...]]:
    """The text of a manifest with the contract in every training of it, and what a person should know of the change:
    a sentence for each part that is new or another now, and what follows from it."""
    found = documents.read(manifest, "the manifest") if isinstance(manifest, str) else manifest
    notes: list[str] = []
    said: list[str] = []
    accounts: list[Account] = []
    done = [_added(document, asked, notes, said, accounts) for document in found]
    if not any(done):
        kinds = ", ".join(sorted({str(_kind(document)) for document in found})) or "nothing"
        raise SettingsError(
            f"cannot add the contract: the manifest holds {kinds}, and no Job; give a Job, CronJob, JobSet or "
            "TrainingRuntime"
        )
    whole = [new if new else _text(document) for new, document in zip(done, found, strict=True)]
    text = "".join(whole)
    notes += _left(text, found)
    return with_permissions(text, accounts, found), tuple(dict.fromkeys((*said, *notes)))


def _left(text: str, found: Sequence[Document]) -> list[str]:
    """What is still wrong with a manifest that has the contract, and was before.

    A malformed name is refused, as with indexes it becomes a host's; unless a template is still to fill it in.
    """
    left = []
    for finding in lint.check(documents.read(text, found[0].name)):
        said = Redactor().clean(finding.detail or finding.row.why, _SHOWN_CHARS)
        if finding.row.id in _NAMES and "Invalid value" in said and "{{" not in said:
            raise refused(found[0], said, finding.row.fix)
        if finding.is_error:
            left.append(f"{finding.file}: left as it is, and wrong: {said}: {finding.row.fix}")
    more = [f"{found[0].name}: {len(left) - _MOST_LEFT} others: see resilient manifest --check"]
    return [*left[:_MOST_LEFT], *(more if left[_MOST_LEFT:] else ())]


def _text(document: Document) -> str:
    return f"{document.head}{document.body}{document.tail}"


def _kind(document: Document) -> object:
    return document.data.get("kind") if isinstance(document.data, Mapping) else None


def _added(document: Document, asked: Addition, notes: list[str], said: list[str], accounts: list[Account]) -> str:
    """The document's new text; nothing where it has no training."""
    tree = documents.tree(document)
    jobs = list(_jobs(tree, document))
    if not jobs:
        return ""
    drafts = [JobDraft(job.spec, asked, document, job.uid, job.pods, notes) for job in jobs]
    if asked.permissions:
        accounts += _granted(document, jobs, drafts, asked, notes)
    places = {part: keys for draft in drafts for part, keys in draft.places.items()}
    places.update({id(job.around): ("failurePolicy",) for job in jobs if job.around is not None})
    before = Rest(tree, places)
    plans = [draft.complete() for draft in drafts]
    for job, plan in zip(jobs, plans, strict=True):
        if job.around is not None:
            complete_set(job.around, job.name, plan, document, notes)
    if plain(tree) == document.data:
        return _text(document)
    if before.is_shared or Rest(tree, places).data != before.data:
        why = "what has to change in it stands in several places, by an anchor and its aliases"
        raise refused(document, why, "write it out in each of them")
    told = of_addition(restart_rules=asked.restart_rules, plan=plans[0])
    said += sentences(document.name, document.data, plain(tree), told)
    if document.body.lstrip().startswith("{"):  # JSON knows no comments
        body = json.dumps(plain(tree), indent=2, ensure_ascii=False) + "\n"
        return f"{document.head}{body}{document.tail}"
    body = carried(document, tree)
    (after,) = documents.read(body, document.name)
    body = writing.with_comments(body, told, at=set(writing.new_parts(document.data, after.data)))
    if "\r\n" in document.body:
        body = body.replace("\n", "\r\n")
    if not f"{document.body}{document.tail}".endswith("\n"):
        body = body.rstrip("\r\n")
    return f"{document.head}{body}{document.tail}"


def _granted(
    document: Document, jobs: Sequence[_Job], drafts: Sequence[JobDraft], asked: Addition, notes: list[str]
) -> Iterator[Account]:
    """The accounts that pods run as, which their drafts are told."""
    for job, draft in zip(jobs, drafts, strict=True):
        account = account_of(document, job.metadata, draft.pod, asked.namespace)
        draft.grant(pod_fields(account))
        if not (job.metadata or {}).get("namespace"):
            notes.append(f"the permissions hold in namespace {account.namespace}: apply the manifest there")
        yield account


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A Job in a document."""

    metadata: Any
    """The object's."""
    spec: Any
    uid: str
    """Where the pod's submission is named."""
    pods: int | None = None
    """How many it has, where that is said elsewhere."""
    around: Any = None
    """The spec of the JobSet that it is in."""
    name: str = ""
    """As a replicated Job of that set."""


def _jobs(tree: Any, document: Document) -> Iterator[_Job]:
    """Those in a document, or in what a List of kubectl's holds."""
    kind, spec = (tree.get("kind"), tree.get("spec")) if isinstance(tree, Mapping) else (None, None)
    if kind == "List" and isinstance(tree.get("items"), list):
        for item in tree["items"]:
            yield from _jobs(item, document)
        return
    group = str(tree.get("apiVersion", "")).partition("/")[0] if isinstance(tree, Mapping) else ""
    if not isinstance(spec, Mapping) or group not in ("", _GROUPS.get(str(kind))):
        return
    metadata = tree.get("metadata")
    if kind == "Job":
        yield _Job(metadata=metadata, spec=spec, uid=downward.JOB_UID)
    elif kind == "CronJob":
        inner = _below(document, spec, "jobTemplate", "spec")
        yield _Job(metadata=metadata, spec=inner, uid=downward.JOB_UID)
    elif kind in ("JobSet", "TrainingRuntime", "ClusterTrainingRuntime"):
        is_set = kind == "JobSet"
        pods = None if is_set else mapping(document, spec.get("mlPolicy") or {}, "mlPolicy").get("numNodes", 1)
        around = spec if is_set else _below(document, spec, "template", "spec")
        replicated = mappings(document, around.get("replicatedJobs"), "replicatedJobs")
        if len(replicated) != 1:  # beside those that fetch the model and the data a runtime names the one that trains
            replicated = [one for one in replicated if _step(one) == "trainer"] or replicated
        if len(replicated) != 1:
            raise refused(document, f"it has {len(replicated)} replicated Jobs", "add it to each by hand")
        inner, name = _below(document, replicated[0], "template", "spec"), str(replicated[0].get("name"))
        uid = downward.JOBSET_UID
        yield _Job(metadata=metadata, spec=inner, uid=uid, pods=pods, around=around, name=name)


def _step(replicated: Any) -> object:
    return inside(plain(replicated), "template", "metadata", "labels", STEP_LABEL)


def _below(document: Document, place: Any, *keys: str) -> Any:
    for key in keys:
        place = mapping(document, place.get(key), key)
    return place
