# SPDX-License-Identifier: Apache-2.0
"""The journal: what happened, as JSON lines in a directory of this machine, each written at once.

    journal.jsonl           everything since the journal began; turned over at ``LIMIT``
    journal.old.jsonl       what was turned over last
    segments/<n>.jsonl      at most one: an immutable piece that is to be shipped
    segments/cut.json       how much of ``journal.jsonl`` was cut into pieces so far
    debits/<attempt>.json   exits on record, where there is no checkpoint store to keep them

Every text passes the redaction boundary here. A disk that fails never stops a training:
what could not be written is counted, and said once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import CHUNK
from resilient.checkpoint.store import open_store
from resilient.core import wire
from resilient.core.redact import Redactor
from resilient.errors import CheckpointError, SettingsError

JOURNAL: Final = "journal.jsonl"
OLD: Final = "journal.old.jsonl"
TEXT_LIMIT: Final = 16 << 10
"""Characters of one text."""
LINE_LIMIT: Final = 256 << 10
"""Bytes of one line."""
SEGMENT_LIMIT: Final = 4 << 20
LIMIT: Final = 64 << 20
_SHORTAGES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What this node lacks just now, and another would not: no setting is wrong."""
_SHORTEST_TEXT: Final = 64
_CUT_LIMIT: Final = 1 << 10
_CACHED_CHARS: Final = 128


def _print(text: str) -> None:
    print(f"resilient: {text}", file=sys.stderr)


class Journal:
    """Appends entries; of one supervisor, used by one thread."""

    def __init__(
        self,
        directory: Path,
        redactor: Redactor,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        say: Callable[[str], None] = _print,
    ) -> None:
        self.directory = directory
        self.failed = 0
        """Entries and segments that could not be written."""
        self._redactor = redactor
        # Class names, phases and the like come again and again.
        self._clean_short = functools.lru_cache(maxsize=1024)(lambda text: redactor.clean(text, _CACHED_CHARS))
        self._wall = wall
        self._monotonic = monotonic
        self._say = say
        self._segments = directory / "segments"
        self._store = open_store(f"file://{directory.absolute()}")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._segments.mkdir(mode=0o700, exist_ok=True)
            self._fd = self._open()
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            raise SettingsError(
                f"cannot keep a journal in {directory}: {error.strerror}; give another directory with --journal"
            ) from error
        self._torn = self._size > 0
        """The last line may have no end: a supervisor before us was killed while it wrote, or the disk was full."""
        self._cut = min(_read_cut(self._segments), self._size)
        self._waiting = _numbers(self._segments)
        """Segments that a supervisor before us could not ship any more, and the one that is offered."""
        self._last_number = max(self._waiting, default=0)

    def write(self, kind: str, **fields: object) -> None:
        """Append one entry."""
        entry = {"t": self._wall(), "m": self._monotonic(), "kind": kind}
        data = {**entry, **wire.to_data(fields)}
        limit = TEXT_LIMIT
        line = self._line(data, limit)
        while len(line) > LINE_LIMIT and limit > _SHORTEST_TEXT:
            limit //= 4
            line = self._line(data, limit)
        if len(line) > LINE_LIMIT:
            line = self._line({**entry, "left_out": f"{len(line)} bytes"}, TEXT_LIMIT)
        self._append(line)

    def segment(self) -> tuple[int, Path] | None:
        """The oldest piece that was not shipped yet, cut now if there is none; ``None``: all is shipped.

        Until ``shipped`` it is the same piece, however often it is asked for, so that a store that
        is away for a day costs no more space than the journal itself and one piece.
        """
        with self._counting("cut a segment"):
            if not self._waiting:
                self._cut_segment()
        return (self._waiting[0], self._path(self._waiting[0])) if self._waiting else None

    def shipped(self, number: int) -> None:
        """Forget a segment that is kept elsewhere now."""
        if number in self._waiting:
            self._waiting.remove(number)
            with self._counting("delete a segment"):
                self._path(number).unlink(missing_ok=True)

    def record_local(self, name: str, data: bytes) -> None:
        """Put a debit on record, durably, under a name that nobody has used; an ``OSError`` says why not."""
        try:
            self._store.create(f"debits/{name}.json", data)
        except CheckpointError as error:
            raise OSError(str(error)) from error

    def local_debits(self) -> tuple[layout.Debit, ...]:
        """The exits on record here, by attempt; a damaged record is said and left out."""
        debits = []
        for entry in self._store.list("debits"):
            try:
                data = self._store.read(entry.name, layout.RECORD_LIMIT)
                debits.append(layout.decode(data, layout.Debit, entry.name))
            except CheckpointError as error:
                self._say(str(error))
        return tuple(sorted(debits, key=lambda debit: debit.attempt))

    def close(self) -> None:
        """Write nothing any more."""
        os.close(self._fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.directory / JOURNAL, flags, 0o600)

    def _line(self, data: dict[str, Any], limit: int) -> bytes:
        cleaned = self._cleaned(data, limit)
        return json.dumps(cleaned, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    def _cleaned(self, data: Any, limit: int) -> Any:
        if isinstance(data, str):
            return self._clean_short(data) if len(data) <= _CACHED_CHARS // 2 else self._redactor.clean(data, limit)
        if isinstance(data, dict):
            return {self._cleaned(key, limit): self._cleaned(item, limit) for key, item in data.items()}
        if isinstance(data, list):
            return [self._cleaned(item, limit) for item in data]
        if isinstance(data, float) and not math.isfinite(data):
            return None  # JSON has no word for it
        return data

    def _append(self, line: bytes) -> None:
        with self._counting("write the journal"):
            if self._size + len(line) > LIMIT:
                self._turn_over()
            if self._torn:
                line = b"\n" + line
            written = os.write(self._fd, line)
            self._size += written
            self._torn = written < len(line)
            if self._torn:
                raise OSError(f"only {written} of {len(line)} bytes were written")

    def _turn_over(self) -> None:
        """Begin a new file, so that a training of months does not fill the disk."""
        os.replace(self.directory / JOURNAL, self.directory / OLD)
        fresh = self._open()
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)
        self._size, self._torn = 0, False
        self._note_cut(0)

    def _cut_segment(self) -> None:
        data = os.pread(self._fd, min(SEGMENT_LIMIT, self._size - self._cut), self._cut)
        whole = data.rfind(b"\n") + 1
        if whole or len(data) < SEGMENT_LIMIT:  # else it is no line of ours: passed on as it is
            data = data[:whole]
        if not data.strip():
            return
        # A number of its own even if the directory before us is lost: a pod's container may start again without it.
        number = max(self._last_number + 1, int(self._wall() * 1000))
        staged = self._segments / "staged"
        _write_file(staged, data)
        os.replace(staged, self._path(number))
        self._last_number = number
        self._waiting.append(number)
        self._note_cut(self._cut + len(data))

    def _note_cut(self, cut: int) -> None:
        """Remember what is cut; a crash before it is cut once more, and whoever reads drops lines that come twice."""
        self._cut = cut
        staged = self._segments / "staged"
        _write_file(staged, json.dumps(cut).encode())
        os.replace(staged, self._segments / "cut.json")

    def _path(self, number: int) -> Path:
        return self._segments / f"{number}.jsonl"

    @contextlib.contextmanager
    def _counting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                why = error.strerror or str(error)
                self._say(f"cannot {doing} in {self.directory}: {why}; training goes on, free space there")


def _write_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[:CHUNK]) :]
    finally:
        os.close(fd)


def _read_cut(segments: Path) -> int:
    """What the supervisor before us had cut; what cannot be read is cut again."""
    try:
        with open(segments / "cut.json", "rb") as file:
            cut = json.loads(file.read(_CUT_LIMIT))
    except (OSError, ValueError, RecursionError):
        return 0
    return cut if type(cut) is int and cut >= 0 else 0


def _numbers(segments: Path) -> list[int]:
    stems = (path.name.removesuffix(".jsonl") for path in segments.iterdir() if path.name.endswith(".jsonl"))
    return sorted(int(stem) for stem in stems if stem.isdecimal() and len(stem) < 18)
