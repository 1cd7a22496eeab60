# SPDX-License-Identifier: Apache-2.0
"""Objects as YAML that a person reads: keys in the order of the field's habit, short things on one line, comments.

Comments are put into the text that is written already, where the parts that they speak of turn out to stand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from kubernetes import client

from resilient.kubernetes import documents
from resilient.kubernetes.documents import Document

Path: TypeAlias = tuple[str | int, ...]
"""The way to a part: keys, and for an item of a list its name, else its place."""
Comments: TypeAlias = Mapping[Path, str]
"""By the end of a path; the longest that fits speaks."""

WIDTH: Final = 120
_ORDER: Final = (
    "apiVersion", "kind", "metadata", "name", "namespace", "labels", "annotations", "suspend", "completionMode",
    "completions", "parallelism", "backoffLimitPerIndex", "maxFailedIndexes", "podReplacementPolicy",
    "ttlSecondsAfterFinished", "mlPolicy", "network", "failurePolicy", "replicas", "podFailurePolicy", "action",
    "maxRestarts", "restartStrategy", "onJobFailureReasons", "key", "containerName", "operator", "values", "effect",
    "type", "subdomain", "restartPolicy", "restartPolicyRules", "terminationGracePeriodSeconds", "serviceAccountName",
    "automountServiceAccountToken", "enableServiceLinks", "image", "command", "args", "env", "value", "valueFrom",
    "envFrom", "ports", "terminationMessagePolicy", "securityContext", "runAsNonRoot", "runAsUser", "runAsGroup",
    "fsGroup", "fsGroupChangePolicy", "seccompProfile", "tolerations", "affinity", "requests", "limits",
    "cpu", "memory", "podSelector", "policyTypes", "ingress", "matchConstraints", "apiGroups", "apiVersions",
    "resources", "verbs", "roleRef", "subjects", "spec", "template", "containers", "volumeMounts", "mountPath",
    "volumes",
)  # fmt: skip
_LISTS: Final = frozenset(
    {"env", "envFrom", "tolerations", "volumes", "volumeMounts", "ports", "onPodConditions", "subjects"}
)
"""Lists whose items stand on one line each, where there is room."""
_SHORT: Final = frozenset({
    "onExitCodes", "exitCodes", "valueFrom", "fieldRef", "secretKeyRef", "secretRef", "emptyDir", "seccompProfile",
    "persistentVolumeClaim", "capabilities", "torch", "matchLabels", "selector", "podSelector", "roleRef", "runtimeRef",
    "labelSelector",
})  # fmt: skip


def plain(thing: object) -> Any:
    """What the API would be sent: typed objects as mappings, lists and scalars, without what is not set."""
    return client.ApiClient().sanitize_for_serialization(thing)


def written(
    data: Mapping[str, Any], comments: Comments, head: Sequence[str] = (), *, silent: Collection[Path] = ()
) -> str:
    """One document; the paragraphs of ``head`` come first. Parts that are ``silent`` get no comment."""
    tree = styled(data, (), comments)
    heading = "".join(f"{line}\n" for paragraph in head for line in comment_lines(paragraph, WIDTH - 2))
    return heading + with_comments(documents.dump(tree), comments, silent=silent)


def styled(data: Any, path: Path, comments: Comments | None = None) -> Any:
    """A tree for ``documents.dump``; ``path`` tells what it is a part of."""
    tree = documents.fresh(_ordered(data))
    _put_on_one_line(tree, comments or {}, path)
    return tree


def with_comments(
    text: str, comments: Comments, *, at: Collection[Path] | None = None, silent: Collection[Path] = ()
) -> str:
    """The text of one document with each comment at its part: a phrase behind it, where there is room, else above.

    ``at`` are the only parts that may get one.
    """
    lines = text.splitlines()
    above: dict[int, list[str]] = {}
    (document,) = documents.read(text, "the manifest")
    for path, line in _beginnings(document):
        comment = comment_of(comments, path)
        if comment is None or path in silent or (at is not None and path not in at):
            continue
        behind = f"{lines[line]}  # {comment}"
        if len(behind) <= WIDTH and not comment.endswith(".") and "#" not in lines[line]:
            lines[line] = behind
        else:
            indent = len(lines[line]) - len(lines[line].lstrip(" "))
            sentence = f"{comment[:1].upper()}{comment[1:].removesuffix('.')}."
            above[line] = [" " * indent + words for words in comment_lines(sentence, WIDTH - indent - 2)]
    return "".join(f"{each}\n" for number, line in enumerate(lines) for each in (*above.get(number, ()), line))


def comment_lines(text: str, width: int) -> list[str]:
    """A paragraph as lines of comment; nothing in it can end the comment."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return [f"# {line}" for line in textwrap.wrap(printable, width, break_long_words=False, break_on_hyphens=False)]


def step_of(place: int, item: object) -> str | int:
    """How a path names an item of a list."""
    name = item.get("name") if isinstance(item, Mapping) else None
    return name if isinstance(name, str) else place


def children(node: object) -> list[tuple[str | int, Any]]:
    """The steps from a part to those in it."""
    if isinstance(node, Mapping):
        return list(node.items())
    return [(step_of(place, item), item) for place, item in enumerate(node)] if isinstance(node, list) else []


def new_parts(old: object, new: object, path: Path = ()) -> Iterator[Path]:
    """The paths of all parts that were not there, or not so."""
    if type(old) is not type(new) and not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        yield path
        old = None
    elif old != new and not any(isinstance(child, Mapping | list) for _, child in children(new)):
        yield path
    known = dict(children(old))
    for step, child in children(new):
        yield from new_parts(known.get(step), child, (*path, step))


def _beginnings(document: Document) -> Iterator[tuple[Path, int]]:
    """Every line at which a part begins, counted from 0, and the outermost such part."""
    seen: set[int] = set()
    level: list[tuple[Path, Path, Any]] = [((), (), document.data)]
    while level:
        following = []
        for path, place, node in level:
            line = document.line(place) - 1  # what an alias stands for has none of its own
            if path and line not in seen:
                seen.add(line)
                yield path, line
            keys: Sequence[str | int] = list(node) if isinstance(node, Mapping) else range(len(children(node)))
            following += [
                ((*path, step), (*place, key), child) for key, (step, child) in zip(keys, children(node), strict=True)
            ]
        level = following


def comment_of(comments: Comments, path: Path) -> str | None:
    """What is said of the part at a path, by the longest end of it that something is said of."""
    return next((comments[path[begin:]] for begin in range(len(path)) if path[begin:] in comments), None)


def _ordered(node: Any) -> Any:
    if isinstance(node, Mapping):
        known = sorted(node, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
        return {key: _ordered(node[key]) for key in known}
    return [_ordered(item) for item in node] if isinstance(node, list) else node


def _put_on_one_line(node: Any, comments: Comments, path: Path) -> None:
    """Mark what is short enough, and has no comment inside, as ruamel.yaml's flow style."""
    if not isinstance(node, Mapping | list):
        return
    is_item = len(path) > 1 and path[-2] in _LISTS
    is_short = bool(path) and path[-1] in _SHORT
    is_words = isinstance(node, list) and not any(isinstance(item, Mapping | list) for item in node)
    fits = _width(node) + 2 * len(path) < WIDTH and not _is_spoken_of(node, comments, path)
    if not node or ((is_item or is_short or is_words) and fits):
        node.fa.set_flow_style()  # type: ignore[union-attr]  # a tree of documents.fresh, whose types are ruamel's
    for step, child in children(node):
        _put_on_one_line(child, comments, (*path, step))


def _width(node: object) -> int:
    if isinstance(node, Mapping):
        return 2 + sum(len(key) + 4 + _width(value) for key, value in node.items())
    if isinstance(node, list):
        return 2 + sum(2 + _width(item) for item in node)
    return len(str(node)) + 2 * isinstance(node, str)


def _is_spoken_of(node: object, comments: Comments, path: Path) -> bool:
    """Whether something inside has a comment, for which one line would have no room."""
    return any(
        comment_of(comments, (*path, step)) is not None or _is_spoken_of(child, comments, (*path, step))
        for step, child in children(node)
    )
