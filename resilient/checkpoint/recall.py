# SPDX-License-Identifier: Apache-2.0
"""What the supervisor of an index before us wrote last, by the pieces of its journal that it shipped.

Only what says how it ended is read: the last pieces of a pod's journal, and the first, which says whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import Store
from resilient.checkpoint.untrusted import Json, object_of, parse_json
from resilient.core.aftermath import Trace, read_trace
from resilient.errors import CheckpointError

_LAST: Final = 2
"""Pieces: an entry may be as young as the last of them."""
_MOST_PODS: Final = 16
"""Whose journals are looked into for one of the index; the newest first."""
_PIECE_LIMIT: Final = 8 << 20
_TELLING: Final = tuple(f'"kind":"{kind}"'.encode() for kind in ("start", "sample", "event", "exit"))
_LINE_LIMIT: Final = 256 << 10


def recall(store: Store, submission: str, index: int, notes: list[str]) -> Trace | None:
    """The newest supervisor of this index; ``None`` where none has shipped anything. What is unreadable is noted."""
    try:
        return _newest(store, submission, index)
    except CheckpointError as error:  # how the pod before ended is of interest, and nothing depends on it
        notes.append(f"how the supervisor before ended is not known: {error}")
        return None


def _newest(store: Store, submission: str, index: int) -> Trace | None:
    pods = _pieces(store, submission)
    for pod in sorted(pods, key=lambda pod: pods[pod][-1], reverse=True)[:_MOST_PODS]:
        numbers = pods[pod]
        last = read_trace(_entries(store, submission, pod, numbers[-_LAST:]))
        first = read_trace(_entries(store, submission, pod, numbers[:1]))
        if last is None or first is None:
            continue
        # A life that began before these pieces has said who it is in the first of all.
        whole = last if last.pod else replace(first, **{name: getattr(last, name) for name in _LATE})
        if whole.index in (index, None):
            return whole
    return None


_LATE: Final = ("last_s", "asked_by", "oom_kills", "sample", "exited")


def _pieces(store: Store, submission: str) -> dict[str, list[int]]:
    """The numbers of what each pod has shipped, in order."""
    found: dict[str, list[int]] = {}
    for entry in store.list(f"journal/{layout.component(submission, 'submission')}"):
        parts = entry.name.split("/")
        stem = parts[-1].removesuffix(".jsonl")
        if len(parts) == 4 and stem.isdecimal() and len(stem) < 18:
            found.setdefault(parts[2], []).append(int(stem))
    return {pod: sorted(numbers) for pod, numbers in found.items()}


def _entries(store: Store, submission: str, pod: str, numbers: Sequence[int]) -> Iterator[dict[str, Json]]:
    for number in numbers:
        data = store.read(layout.segment_path(submission, pod, number), _PIECE_LIMIT)
        for line in data.splitlines():
            if len(line) <= _LINE_LIMIT and any(kind in line for kind in _TELLING):
                try:
                    yield object_of(parse_json(line.decode("utf-8", "replace")))
                except ValueError:  # a torn or foreign line
                    continue
