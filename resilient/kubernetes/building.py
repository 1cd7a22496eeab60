# SPDX-License-Identifier: Apache-2.0
"""From the events of the YAML parser to plain data with lines: one document, refused where it is ambiguous or a bomb.

Aliases share what they repeat, and count as if they did not; nothing can contain itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

from ruamel.yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from resilient.kubernetes import scalars

PartPath: TypeAlias = tuple[str | int, ...]
"""Where a part stands: keys and positions, from the outside in."""

MAX_DEPTH: Final = 64
MAX_PARTS: Final = 100_000
"""Keys, values and items of a document, with what aliases repeat counted each time."""
_MERGE: Final = "<<"
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"
_SHOWN: Final = 80


class Refused(Exception):
    """A part that is no data, and its line."""

    def __init__(self, line: int, why: str, do: str) -> None:
        super().__init__(why)
        self.line, self.why, self.do = line, why, do


@dataclass(slots=True, kw_only=True)
class _Anchored:
    """What an alias stands for, and what that costs."""

    value: Any
    parts: int
    height: int


@dataclass(slots=True, kw_only=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    value: dict[str, Any] | list[Any]
    path: PartPath
    anchor: str | None
    parts_before: int
    key: str | None = None
    """The key whose value comes next."""
    merging: bool = False
    """Whether what comes next is the value of a ``<<``."""
    merged: list[dict[str, Any]] = field(default_factory=list)
    height: int = 1

    @property
    def awaits_key(self) -> bool:
        return isinstance(self.value, dict) and self.key is None and not self.merging


class Builder:
    """Takes the events of one document in order; then it has its data, and the line of each part."""

    def __init__(self) -> None:
        self.data: Any = None
        self.lines: dict[PartPath, int] = {}
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchored] = {}
        self._parts = 0

    def take(self, event: Event) -> None:
        """Take the next event; ``Refused`` where the document must not be read."""
        line = event.start_mark.line + 1
        match event:
            case MappingStartEvent():
                self._begin({}, event.anchor, line)
            case SequenceStartEvent():
                self._begin([], event.anchor, line)
            case MappingEndEvent() | SequenceEndEvent():
                self._end(line)
            case AliasEvent():
                self._repeat(event.anchor, line)
            case ScalarEvent():
                self._scalar(event, line)

    def _begin(self, value: dict[str, Any] | list[Any], anchor: str | None, line: int) -> None:
        if self._open and self._open[-1].awaits_key:
            raise Refused(line, "a key is a list or mapping", "give a text as key")
        before = self._parts
        self._count(1, line)
        path = self._next_path(line)
        self._open.append(_Open(value=value, path=path, anchor=anchor, parts_before=before))
        self._check_depth(0, line)

    def _end(self, line: int) -> None:
        ended = self._open.pop()
        if isinstance(ended.value, dict):
            for merged in ended.merged:  # the earlier one wins, and what is written out wins over both
                for key, value in merged.items():
                    ended.value.setdefault(key, value)
        parts = self._parts - ended.parts_before
        self._place(ended.value, _Anchored(value=ended.value, parts=parts, height=ended.height), ended.anchor, line)

    def _repeat(self, anchor: str, line: int) -> None:
        known = self._anchors.get(anchor)
        if known is None:  # nobody has that name, or what has it contains this alias
            raise Refused(line, f"*{anchor[:_SHOWN]} stands for nothing that ends before it", "write out what it means")
        self._count(known.parts, line)
        self._check_depth(known.height, line)
        if self._open and self._open[-1].awaits_key:
            self._take_key(known.value, line)
            return
        self._next_path(line)
        self._place(known.value, known, None, line)

    def _scalar(self, event: ScalarEvent, line: int) -> None:
        self._count(1, line)
        parent = self._open[-1] if self._open else None
        if parent and parent.awaits_key and event.value == _MERGE and (event.implicit[0] or event.tag == _MERGE_TAG):
            parent.merging = True
            return
        value = _resolved(event, line)
        known = _Anchored(value=value, parts=1, height=0)
        if parent and parent.awaits_key:
            if event.anchor:
                self._anchors[event.anchor] = known
            self._take_key(value, line)
            return
        self._next_path(line)
        self._place(value, known, event.anchor, line)

    def _take_key(self, value: Any, line: int) -> None:
        parent = self._open[-1]
        try:
            key = scalars.key(value)
        except ValueError as error:
            raise Refused(line, str(error), "give a text as key") from error
        path = (*parent.path, key)
        if key in cast("dict[str, Any]", parent.value):
            first = self.lines[path]
            raise Refused(line, f"the key {key[:_SHOWN]!r} stands already in line {first}", "remove one of the two")
        parent.key = key
        self.lines[path] = line

    def _next_path(self, line: int) -> PartPath:
        """The path of the value that comes now, whose line is noted; a key has noted it already."""
        if not self._open:
            path: PartPath = ()
        elif isinstance(self._open[-1].value, list):
            path = (*self._open[-1].path, len(self._open[-1].value))
        else:
            path = (*self._open[-1].path, self._open[-1].key or _MERGE)
        self.lines.setdefault(path, line)
        return path

    def _place(self, value: Any, known: _Anchored, anchor: str | None, line: int) -> None:
        if anchor:
            self._anchors[anchor] = known
        if not self._open:
            self.data = value
            return
        parent = self._open[-1]
        parent.height = max(parent.height, known.height + 1)
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.merging:
            parent.merging = False
            parent.merged += _mergeable(value, line)
        else:
            parent.value[cast("str", parent.key)] = value
            parent.key = None

    def _count(self, parts: int, line: int) -> None:
        self._parts += parts
        if self._parts > MAX_PARTS:
            why = f"it has more than {MAX_PARTS} parts, with what its aliases repeat"
            raise Refused(line, why, "write less into one document")

    def _check_depth(self, height: int, line: int) -> None:
        if len(self._open) + height > MAX_DEPTH:
            raise Refused(line, f"it is nested more than {MAX_DEPTH} levels deep", "nest it less")


def _resolved(event: ScalarEvent, line: int) -> scalars.Scalar:
    if event.implicit[0]:
        return scalars.plain(event.value)
    if event.tag in (None, "!"):
        return _without_surrogates(event.value)
    try:
        return scalars.tagged(_without_surrogates(event.value), event.tag)
    except ValueError as error:
        raise Refused(line, str(error), "remove the mark") from error


def _without_surrogates(text: str) -> str:
    """JSON writes one character as two escapes, which YAML takes for two characters."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mergeable(value: Any, line: int) -> list[dict[str, Any]]:
    sources = value if isinstance(value, list) else [value]
    if not all(isinstance(source, dict) for source in sources):
        raise Refused(line, "<< merges something that is no mapping", "let it name mappings")
    return sources
