# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --check``: what of a manifest the API server refuses, and what breaks the exit-code contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient.kubernetes import lint_budget, lint_pod, lint_policy, lint_sets, lint_told
from resilient.kubernetes.api_jobset import jobset_spec
from resilient.kubernetes.api_objects import problems
from resilient.kubernetes.api_others import OBJECTS, fields
from resilient.kubernetes.api_problems import Problem, inside, items, mapping, text, unsupported
from resilient.kubernetes.building import PartPath
from resilient.kubernetes.documents import Document
from resilient.kubernetes.lint_api import ROWS as API_ROWS
from resilient.kubernetes.lint_rows import Row, Rule, Severity
from resilient.kubernetes.lint_subject import VERSIONS, Tree, known_kind, subjects

RULES: Final[tuple[Rule, ...]] = (
    *lint_pod.RULES,
    *lint_policy.RULES,
    *lint_budget.RULES,
    *lint_told.RULES,
    *lint_sets.RULES,
)
ROWS: Final[tuple[Row, ...]] = (*API_ROWS.values(), *(rule.row for rule in RULES))
_ORDER: Final = {row.id: at for at, row in enumerate(ROWS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong at one place."""

    row: Row
    file: str
    line: int
    path: PartPath
    detail: str

    @property
    def is_error(self) -> bool:
        return self.row.severity is Severity.ERROR


def check(documents: Sequence[Document]) -> list[Finding]:
    """What is wrong with these documents, by file and line."""
    found = [finding for document in documents for finding in _document(document)]
    return sorted(found, key=lambda one: (one.line, _ORDER[one.row.id], one.detail))


def kinds(documents: Sequence[Document]) -> tuple[list[str], list[str]]:
    """The kinds that were judged, and those that were not, each in its order in the file."""
    trees = [tree for document in documents for _, tree in objects(document.data)]
    ours = [kind for tree in trees if (kind := known_kind(tree)) is not None]
    return ours, [text(tree["kind"]) for tree in trees if known_kind(tree) is None and text(tree.get("kind"))]


def objects(data: Any, path: PartPath = ()) -> Iterator[tuple[PartPath, Tree]]:
    """The objects of a document: itself, or what a List of kubectl's holds."""
    if text(inside(data, "kind")) == "List" and isinstance(inside(data, "items"), list):
        for index, item in enumerate(items(data["items"])):
            yield from objects(item, (*path, "items", index))
    else:
        yield path, mapping(data)


def _document(document: Document) -> Iterator[Finding]:
    for path, tree in objects(document.data):
        if document.data is not None and not text(tree.get("kind")):
            line, row = document.line(path), API_ROWS["kind-missing"]
            yield Finding(row=row, file=document.name, line=line, path=path, detail="Object 'Kind' is missing")
            continue
        for row, where, detail in (*_refused(tree), *_broken(tree)):
            whole = (*path, *where)
            line = document.line(whole)
            yield Finding(row=row, file=document.name, line=line, path=whole, detail=detail)


def _refused(tree: Tree) -> Iterator[tuple[Row, PartPath, str]]:
    for problem in _problems(tree):
        yield API_ROWS[problem.id], problem.path, problem.brief


def _problems(tree: Tree) -> Iterator[Problem]:
    kind = known_kind(tree)
    if kind is None:
        return
    version = text(tree.get("apiVersion"))
    if version != VERSIONS[kind]:
        yield unsupported("api-version-unknown", ("apiVersion",), version, (VERSIONS[kind],))
    yield from problems(tree)
    yield from fields(tree, OBJECTS.get(kind))
    if kind == "JobSet":
        yield from jobset_spec(mapping(tree.get("spec")), ("spec",), name=text(inside(tree, "metadata", "name")))
    elif kind.endswith("TrainingRuntime"):
        yield from jobset_spec(mapping(inside(tree, "spec", "template", "spec")), ("spec", "template", "spec"), name="")


def _broken(tree: Tree) -> Iterator[tuple[Row, PartPath, str]]:
    for subject in subjects(tree):
        for rule in RULES:
            if rule.concerns(subject):
                for hit in rule.find(subject):
                    yield rule.row, hit.path, hit.detail
