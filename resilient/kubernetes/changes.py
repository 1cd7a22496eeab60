# SPDX-License-Identifier: Apache-2.0
"""What was changed in a manifest that somebody has, in one sentence for each change: what, where, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.redact import Redactor
from resilient.kubernetes.writing import Comments, Path, comment_of, step_of

_VALUE_CHARS: Final = 60
_WHY: Final[Comments] = {
    ("spec", "completions"): "as many as pods that train at a time",
    ("spec", "parallelism"): "all pods of a training run at a time",
    ("backoffLimitPerIndex",): "a backstop, never the budget, as it does not refill; its comment has the formula",
    ("failurePolicy", "maxRestarts"): "a backstop, never the budget",
    ("podFailurePolicy",): "its rules act on the exit codes of resilient run",
    ("env",): "what the supervisor has to know of its pod and its budgets",
    ("volumeMounts",): "the journal, and shared memory beyond 64 MiB",
    ("volumes",): "the journal, and shared memory beyond 64 MiB",
    ("metadata",): "a classic sidecar keeps the pod running, and no rule is ever evaluated",
    ("labels",): "a classic sidecar keeps the pod running, and no rule is ever evaluated",
    ("annotations",): "a classic sidecar keeps the pod running, and no rule is ever evaluated",
    ("containers", "restartPolicy"): "restart rules need a policy of the container's own beside them",
    ("failurePolicy",): "a Job that was stopped for a fault of the code must not be started again with the set",
    ("failurePolicy", "rules"): "a Job that was stopped for a fault of the code must not be started again with the set",
}
"""Where no comment in the manifest itself says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One part that is new, or another than before; of a list all new items together."""

    path: Path
    added: tuple[str, ...] = ()
    """Names of the items that a list has got."""
    before: Any = None
    after: Any = None
    is_new: bool = False


def changes(old: Any, new: Any, path: Path = ()) -> Iterator[Change]:
    """The outermost parts that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key, value in new.items():
            if key in old and old[key] is not None:
                yield from () if old[key] == value else changes(old[key], value, (*path, key))
            elif value and _is_named(value):
                yield Change(path=(*path, key), added=tuple(_name(at, item) for at, item in enumerate(value)))
            else:
                yield Change(path=(*path, key), is_new=True, after=value)
    elif _is_named(old) and _is_named(new):
        known = {step_of(at, item): item for at, item in enumerate(old)}
        steps = {step_of(at, item): item for at, item in enumerate(new)}
        fresh = tuple(_name(step, item) for step, item in steps.items() if step not in known)
        if fresh:
            yield Change(path=path, added=fresh)
        for step, item in steps.items():
            if step in known and known[step] != item:
                yield from changes(known[step], item, (*path, step))
    elif old != new:
        yield Change(path=path, before=old, after=new)


def sentences(document: str, old: Any, new: Any, comments: Comments) -> list[str]:
    """Each change in words; values are redacted."""
    table = {**comments, **_WHY}
    return [f"{document}: {_said(change)}: {_why(change, table)}" for change in changes(old, new)]


def _said(change: Change) -> str:
    where = _shown(change.path)
    if change.added:
        return f"added {', '.join(change.added)} to {where}"
    if change.is_new:
        return f"added {where}" + ("" if isinstance(change.after, dict | list) else f" {_value(change.after)}")
    if isinstance(change.after, dict | list):
        return f"changed {where}"
    return f"changed {where} from {_value(change.before)} to {_value(change.after)}"


def _why(change: Change, table: Comments) -> str:
    found = comment_of(table, change.path)
    if found is None and change.added:
        found = comment_of(table, (*change.path, change.added[0]))
    return (found or "the contract asks for it").removesuffix(".").replace("\n", " ")


def _value(value: object) -> str:
    return Redactor().clean(json.dumps(value, ensure_ascii=False, default=str), _VALUE_CHARS)


def _shown(path: Path) -> str:
    """``spec.template.spec.containers[main].env``: an item by its name, where it has one."""
    words: list[str] = []
    for at, step in enumerate(path):
        is_item = isinstance(step, int) or (at > 0 and path[at - 1] in _LISTS)
        words.append(f"[{step}]" if is_item else f".{step}")
    return "".join(words).lstrip(".")


_LISTS: Final = frozenset(("containers", "env", "initContainers", "replicatedJobs", "rules", "volumeMounts", "volumes"))


def _name(step: str | int, item: Mapping[str, Any]) -> str:
    """How people know an item of a list; a toleration has a key."""
    return str(item.get("name") or item.get("key") or step)


def _is_named(value: Any) -> bool:
    """A list of objects: of words the order says something, and it is told as a whole."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, Mapping) for one in value)
