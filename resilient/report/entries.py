# SPDX-License-Identifier: Apache-2.0
"""Reading journals, wherever they lie; nobody vouches for what is in them.

A journal is a directory of this machine, one of its files, or what supervisors shipped to
a checkpoint store. Torn lines, damaged entries and missing pieces are counted and left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import SEGMENT_LIMIT
from resilient.checkpoint.store import open_store
from resilient.checkpoint.untrusted import Json, object_of, parse_json
from resilient.core.redact import Redactor
from resilient.errors import CheckpointError, SettingsError
from resilient.supervisor.journal import JOURNAL, OLD

LINE_LIMIT: Final = 1 << 20
TEXT_CHARS: Final = 2000
_MOST_SEGMENTS: Final = 4096
"""Of one pod: some days of training. What is older is left out, but for the first."""
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
    return " ".join(_REDACTOR.clean(value, limit).split()) if isinstance(value, str) else ""


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


def open_sources(target: str) -> list[Source]:
    """The journals at a path or URL; an error says why there is none."""
    path = Path(target)
    if "://" not in target:
        if path.is_file():
            return [_local(path.name, [path])]
        files = [path / name for name in (OLD, JOURNAL) if (path / name).is_file()]
        if files:
            return [_local(path.name, files)]
        if not path.is_dir():
            raise SettingsError(
                f"cannot explain {target}: there is no such file or directory; "
                "give the directory of a journal, or the path or URL of the checkpoints"
            )
    store = open_store(target)
    sources = _shipped(store)
    if not sources:
        raise SettingsError(
            f"cannot explain {store.url}: no journal is there; "
            "give the directory of a journal, or the path or URL of the checkpoints of a run"
        )
    return sources


def _local(name: str, files: list[Path]) -> Source:
    source = Source(name=name, lines=())
    source.lines = _file_lines(source, files)
    return source


def _file_lines(source: Source, files: list[Path]) -> Iterator[bytes]:
    for path in files:
        try:
            with open(path, "rb") as file:
                yield from _bounded_lines(file)
        except OSError as error:
            source.problems.append(f"cannot read {path}: {error.strerror}")


def _bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a file that may have none: what is too long comes in pieces, which are no entries."""
    return iter(lambda: file.readline(LINE_LIMIT), b"")


def _shipped(store: Store) -> list[Source]:
    """One source for each pod of each submission."""
    pods: dict[str, list[tuple[int, str]]] = {}
    for entry in store.list("journal"):
        parts = entry.name.split("/")
        stem = parts[-1].removesuffix(".jsonl")
        if len(parts) == 4 and stem.isdecimal() and len(stem) < 18:
            pods.setdefault("/".join(parts[1:3]), []).append((int(stem), entry.name))
    return [_shipped_by(pod, store, sorted(pieces)) for pod, pieces in pods.items()]


def _shipped_by(pod: str, store: Store, pieces: list[tuple[int, str]]) -> Source:
    source = Source(name=pod, lines=())
    left_out = max(0, len(pieces) - _MOST_SEGMENTS)
    if left_out:
        source.problems.append(f"{left_out} older pieces of the journal of {pod} were not read")
        pieces = [*pieces[:1], *pieces[left_out + 1 :]]
    source.lines = _segment_lines(source, store, [name for _, name in pieces])
    return source


def _segment_lines(source: Source, store: Store, names: list[str]) -> Iterator[bytes]:
    for name in names:
        try:
            yield from store.read(name, SEGMENT_LIMIT).splitlines()
        except CheckpointError as error:
            source.problems.append(str(error))
