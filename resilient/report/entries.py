# SPDX-License-Identifier: Apache-2.0
"""Reading the entries of journals; nobody vouches for what is in them.

Torn lines, damaged entries and missing pieces are counted and left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from resilient.checkpoint.untrusted import Json, object_of, parse_json
from resilient.core.redact import Redactor

LINE_LIMIT: Final = 1 << 20
FILE_LIMIT: Final = 1 << 30
"""A journal is turned over long before; who reads a foreign file must come to an end as well."""
TEXT_CHARS: Final = 2000
_RECENT_LINES: Final = 100_000
_REDACTOR: Final = Redactor()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a journal."""

    wall_s: float
    monotonic_s: float
    kind: str
    data: Mapping[str, Json]

    def whole(self, name: str) -> int | None:
        return whole(self.data, name)

    def number(self, name: str) -> float | None:
        return number(self.data, name)

    def text(self, name: str) -> str:
        return text(self.data, name)

    def object(self, name: str) -> Mapping[str, Json]:
        return mapping(self.data.get(name))


def whole(data: Mapping[str, Json], name: str) -> int | None:
    """A field as a count, if it is one."""
    value = data.get(name)
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def number(data: Mapping[str, Json], name: str) -> float | None:
    """A field as seconds, bytes or a fraction, if it is one."""
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) >= 1 << 53:
        return None
    return float(value)


def text(data: Mapping[str, Json], name: str, limit: int = TEXT_CHARS) -> str:
    """A field as one line that can be shown; empty where it is none."""
    value = data.get(name)
    return one_line(value, limit) if isinstance(value, str) else ""


def one_line(words: str, limit: int = TEXT_CHARS) -> str:
    """What somebody else has written, so that it can be shown: without secrets and control sequences."""
    return " ".join(_REDACTOR.clean(words, limit).split())


def mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def items(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


@dataclass(slots=True, kw_only=True)
class Source:
    """One journal, read once; ``unread`` counts what was left out."""

    name: str
    lines: Iterable[bytes]
    unread: int = 0
    problems: list[str] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """The entries in the order in which they were written, each once."""
        recent: deque[bytes] = deque(maxlen=_RECENT_LINES)
        known: set[bytes] = set()
        for line in self.lines:
            if not line.strip() or line in known:  # a piece may have been shipped twice
                continue
            if len(recent) == _RECENT_LINES:
                known.discard(recent[0])
            recent.append(line)
            known.add(line)
            try:
                yield parse_entry(line)
            except ValueError:
                self.unread += 1


def parse_entry(line: bytes) -> Entry:
    """One line; ``ValueError`` where it is none of ours."""
    data = object_of(parse_json(line.decode("utf-8", "replace")))
    wall_s, monotonic_s = number(data, "t"), number(data, "m")
    if wall_s is None or monotonic_s is None or not isinstance(data.get("kind"), str):
        raise ValueError("it has no time or no kind")
    return Entry(wall_s=wall_s, monotonic_s=monotonic_s, kind=text(data, "kind"), data=data)


def file_source(name: str, files: Sequence[Path]) -> Source:
    """A journal in files of this machine, the oldest first."""
    source = Source(name=name, lines=())
    source.lines = _file_lines(source, files)
    return source


def _file_lines(source: Source, files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            with open(path, "rb") as file:
                yield from _bounded_lines(file)
                if file.read(1):
                    source.problems.append(f"only the first {FILE_LIMIT >> 20} MiB of {path} were read")
        except OSError as error:
            source.problems.append(f"cannot read {path}: {error.strerror}")


def _bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file that may have none: what is too long comes in pieces, which are no entries."""
    left = FILE_LIMIT
    while left > 0 and (line := file.readline(LINE_LIMIT)):
        left -= len(line)
        yield line
