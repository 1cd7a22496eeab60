# SPDX-License-Identifier: Apache-2.0
"""Finding the journals of a run, and reading of them as much as is told.

A journal is a directory of this machine, one of its files, or what supervisors shipped to a checkpoint store. A
supervisor ships every 30 s: what it has not shipped yet is in its own directory, which the run's lock names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import Holder, is_alive, machine
from resilient.checkpoint.store import open_store
from resilient.checkpoint.targets import why_not
from resilient.errors import CheckpointError, SettingsError
from resilient.report.entries import Source, file_source, one_line, text, whole
from resilient.report.exits import end_by_records
from resilient.report.lives import Life, read_lives
from resilient.report.tables import time_text
from resilient.supervisor.control import ask_there, read_holder
from resilient.supervisor.journal import JOURNAL, OLD

MOST_EARLIER: Final = 20
"""Submissions that are listed before the one that is told."""
_MOST_SEGMENTS: Final = 4096
"""Of one submission: months of training, as supervisors join theirs. What is older is left out, but for the first."""
_FIRST, _LAST = 4, 12
"""So many pieces of an earlier submission say what its one line needs."""
_SLACK_S: Final = 60.0
"""A supervisor may have written nothing since it asked for the lock."""
_GIVE: Final = "give the directory of a journal, or the path or URL of the checkpoints of a run"


@dataclass(slots=True, kw_only=True)
class Found:
    """What was read for a story."""

    target: str
    """The run, or the directory or file of a journal."""
    submission: str
    """The one that was asked for; empty for the newest."""
    lives: list[Life] = field(default_factory=list)
    run: str = ""
    holder: str = ""
    unlisted: int = 0
    """Older submissions that were not read."""
    unread: int = 0
    problems: list[str] = field(default_factory=list)

    def read(self, source: Source, submission: str = "") -> list[Life]:
        """The supervisors that wrote a journal, its flaws being counted."""
        lives = read_lives(source.entries(), submission)
        self.unread += source.unread
        self.problems += source.problems
        return lives


def find_journals(target: str, submission: str = "") -> Found:
    """What is told of the run at a path or URL; an error says why there is nothing.

    ``RUN/journal/<submission>`` is that submission of that run, where it is no run itself.
    """
    path = Path(target)
    if "://" not in target:
        files = [path] if path.is_file() else _files(path)
        if files:
            found = Found(target=target, submission=submission)
            found.lives = found.read(file_source(path.name, files))
            return found
        if not path.is_dir():
            raise SettingsError(f"cannot explain {target}: {why_not(path, 'file or directory')}; {_GIVE}")
    store = open_store(target)
    found = _of_store(store, target, submission)
    run, name = ("", "") if found.lives or submission else _split(target)
    if name:
        found = _of_store(open_store(run), run, name)
    if not found.lives:
        more = "; ".join(filter(None, (found.holder, *found.problems)))
        raise SettingsError(f"cannot explain {store.url}: no journal is there{more and '; '}{more}; {_GIVE}")
    return found


def _split(target: str) -> tuple[str, str]:
    """The run and the submission in ``RUN/journal/<submission>``; nothing where it does not look like that."""
    full = target if "://" in target else str(Path(target).absolute())
    run, _, name = full.rstrip("/").rpartition("/journal/")
    return (run, name) if run and _is_component(name) else ("", "")


def _files(directory: Path) -> list[Path]:
    return [directory / name for name in (OLD, JOURNAL) if (directory / name).is_file()]


Piece = tuple[int, str, str]
"""Its number, its pod and its name in the store."""


def _of_store(store: Store, target: str, submission: str) -> Found:
    found = Found(target=target, submission=submission, run=_run(store))
    shipped = _pieces(store)
    newest_last = sorted(shipped, key=lambda name: shipped[name][-1])
    if submission in shipped:
        newest_last = [submission]
    else:
        found.unlisted = max(0, len(newest_last) - 1 - MOST_EARLIER)
        del newest_last[: found.unlisted]
    for name in newest_last:
        pieces = shipped[name]
        is_told = name == newest_last[-1]
        first, last = (1, _MOST_SEGMENTS - 1) if is_told else (_FIRST, _LAST)
        left_out = len(pieces) - first - last
        if left_out > 0:
            pieces = [*pieces[:first], *pieces[-last:]]
            if is_told:
                found.problems.append(f"{left_out} older pieces of the journal of {name} were not read")
        for pod in dict.fromkeys(pod for _, pod, _ in pieces):
            source = Source(name=f"{name}/{pod}", lines=())
            source.lines = _lines(source, store, [piece for _, its, piece in pieces if its == pod])
            found.lives += found.read(source, name)
    _follow_holder(found, store)
    end_by_records(found.lives, store, found.problems)
    return found


def _run(store: Store) -> str:
    try:
        record = layout.decode(store.read(layout.RUN, layout.RECORD_LIMIT), layout.RunRecord, layout.RUN)
    except CheckpointError:
        return ""  # what cannot be read has no name; that it cannot be read is said by `checkpoints list`
    return one_line(record.id, 80)


def _pieces(store: Store) -> Mapping[str, Sequence[Piece]]:
    """What each submission has shipped, in the order in which it did."""
    shipped: dict[str, list[Piece]] = {}
    for entry in store.list("journal"):
        parts = entry.name.split("/")
        stem = parts[-1].removesuffix(".jsonl")
        if len(parts) == 4 and stem.isdecimal() and len(stem) < 18 and _is_component(parts[1]):
            shipped.setdefault(parts[1], []).append((int(stem), parts[2], entry.name))
    return {name: sorted(pieces) for name, pieces in shipped.items()}


def _is_component(name: str) -> bool:
    try:
        return bool(layout.component(name, "submission"))
    except CheckpointError:
        return False


def _lines(source: Source, store: Store, names: Sequence[str]) -> Iterator[bytes]:
    for name in names:
        try:
            yield from store.read(name, layout.SEGMENT_LIMIT).splitlines()
        except CheckpointError as error:
            source.problems.append(str(error))


def _follow_holder(found: Found, store: Store) -> None:
    """Put what the run's supervisor has in its own directory in the place of what it has shipped."""
    try:
        holder = read_holder(store)
    except CheckpointError as error:
        found.problems.append(str(error))
        return
    if holder is None or not holder.journal:
        return
    local = _local_life(found, holder)
    if local is not None:
        found.lives = [life for life in found.lives if life.start != local.start or life.started_s != local.started_s]
        found.lives.append(local)
    theirs = next((life for life in found.lives[::-1] if _is_of(life, holder)), None)
    if theirs is None:
        found.holder = _of_holder(holder)
    else:
        theirs.alive = is_alive(holder, holder.supervisor)


def _local_life(found: Found, holder: Holder) -> Life | None:
    """The holder by its own journal, where that is of this machine and can be read."""
    directory = Path(holder.journal)
    if not holder.machine or holder.machine != machine() or not directory.is_absolute():
        return None
    try:
        files = _files(directory)
    except OSError:  # of a user who may not look
        return None
    lives = found.read(file_source(directory.name, files)) if files else []
    return next((life for life in reversed(lives) if _is_of(life, holder)), None)


def _is_of(life: Life, holder: Holder) -> bool:
    """A directory may have served several supervisors, and several runs."""
    is_pod = holder.pod in ("", text(life.start, "pod"))
    is_then = life.started_s <= holder.since_s <= life.last_s + _SLACK_S
    return is_pod and is_then and whole(life.start, "pid") == holder.pid


def _of_holder(holder: Holder) -> str:
    """Who has the run, as far as that can be known from here."""
    alive = is_alive(holder, holder.supervisor)
    if alive is False:
        return ""
    is_there = "runs now" if alive else "has taken the run last, and may run now"
    who = one_line(str(holder))
    where = "its journal cannot be read by this user" if alive else one_line(ask_there("explain", holder))
    return f"a supervisor {is_there}: {who}, since {time_text(holder.since_s)}; {where}"
