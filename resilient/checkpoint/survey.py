# SPDX-License-Identifier: Apache-2.0
"""Reading a run's directory: what a start, a person or a pruning has to know of it.

A record or checkpoint that is damaged is set aside with a sentence and the rest is used.
A store that does not answer, or refuses, says nothing about a record: that error is raised.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import Entry, Store
from resilient.checkpoint.layout import (
    AttemptRecord,
    CheckpointName,
    CommittedMark,
    Debit,
    FinishedMark,
    Manifest,
    RunRecord,
    parse_checkpoint,
)
from resilient.checkpoint.store_errors import Answered, Missing
from resilient.core.aftermath import Trace
from resilient.core.retention import restore_order
from resilient.core.usage import NOTHING_USED, Usage
from resilient.errors import CheckpointError, StoreError

UNREADABLE: Final = "?"
"""No token: those are hexadecimal."""
Directories = Mapping[CheckpointName, Mapping[str, Entry]]
"""The files, by name, in each directory that has a checkpoint's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint."""

    name: str
    manifest: Manifest

    @property
    def attempt(self) -> int:
        """The attempt that saved it."""
        return self.manifest.attempt

    @property
    def step(self) -> int:
        """The step after which it was taken."""
        return self.manifest.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the store says of a run."""

    run: RunRecord
    next_attempt: int
    newest: AttemptRecord | None
    """The newest claim that can be read."""
    fresh_from: int
    """The attempt with which the present history began."""
    fresh_by: str | None
    """The submission that asked for a fresh history, if one did."""
    checkpoints: tuple[Checkpoint, ...]
    """Of the present history, in the order of restore; sizes agree, digests are not yet verified."""
    set_aside: tuple[str, ...]
    """One sentence for each that is committed and cannot be used, or record that cannot be read."""
    debits: tuple[Debit, ...]
    """Of one index of one submission, oldest first."""
    finished: FinishedMark | None
    ever_committed: bool
    """Some record says that a step was saved, whatever is still there."""

    def usage(self, submission: str, before: Trace | None, now_s: float) -> Usage:
        """What this submission has used of its budgets, by its newest record, and of its time also by the journal of
        the supervisor before: whoever was killed has recorded nothing at its end."""
        recorded, since_s = self._recorded(submission)
        if before is None:
            return recorded
        more_s = max(0.0, min(before.last_s, now_s) - max(before.started_s, since_s))
        return replace(recorded, held_s=recorded.held_s + more_s)

    def _recorded(self, submission: str) -> tuple[Usage, float]:
        """The same by the newest record, and when that was so."""
        claim = self.newest if self.newest is not None and self.newest.submission == submission else None
        debit = self.debits[-1] if self.debits else None
        if debit is not None and (claim is None or debit.attempt >= claim.attempt):
            return layout.usage_of(debit), debit.wall_s
        if claim is None:
            return NOTHING_USED, 0.0
        used = layout.usage_of(claim)
        committed = [saved.manifest.created_s for saved in self.checkpoints if saved.attempt == claim.attempt]
        return (used.and_committed(), max(committed)) if committed else (used, claim.claimed_s)


def survey(store: Store, run: RunRecord, submission: str, index: int) -> Survey:
    """Everything that a start has to know."""
    aside: list[str] = []
    claimed = _numbered(store.list(layout.ATTEMPTS))
    newest = _newest_claim(store, claimed, aside)
    fresh_from = newest.fresh_from if newest else 0
    checkpoints, committed = _checkpoints(store, run, fresh_from, aside)
    debited = _numbered(store.list(layout.debits_path(submission, index)))
    debits = sorted(_debits(store, debited, aside), key=lambda debit: debit.attempt)
    finished = finished_mark(store, aside)
    if finished is not None and finished.attempt < fresh_from:
        finished = None
    return Survey(
        run=run,
        # By name: a claim that cannot be read is a claim all the same.
        next_attempt=1 + max((*claimed, *debited), default=0),
        newest=newest,
        fresh_from=fresh_from,
        fresh_by=_fresh_by(store, fresh_from),
        checkpoints=checkpoints,
        set_aside=tuple(aside),
        debits=tuple(debits),
        finished=finished,
        # A loop that was broken off early, or a script without steps, may have finished with nothing saved.
        ever_committed=committed
        or bool(finished and finished.how == "steps")
        or bool(newest and newest.began_from)
        or (not checkpoints and _has_committed(store, fresh_from, aside)),
    )


def _has_committed(store: Store, fresh_from: int, aside: list[str]) -> bool:
    """Whether an attempt of this history has left word that it made a step durable."""
    try:
        data = store.read(layout.COMMITTED, layout.RECORD_LIMIT)
        return layout.decode(data, CommittedMark, layout.COMMITTED).attempt >= fresh_from
    except Missing:
        return False
    except CheckpointError as error:
        set_aside(error, aside)
        return True  # only whoever has committed writes it


def read_manifest(store: Store, name: str) -> Manifest:
    """The manifest of a checkpoint, checked against its name."""
    where = layout.checkpoint_path(name, layout.MANIFEST)
    manifest = layout.decode(store.read(where, layout.MANIFEST_LIMIT), Manifest, where)
    if layout.parse_checkpoint(name)[:2] != (manifest.attempt, manifest.step):
        raise CheckpointError(f"cannot use checkpoint {name}: its manifest is that of another one")
    return manifest


def directories(store: Store) -> dict[CheckpointName, dict[str, Entry]]:
    """The files in each directory that has a checkpoint's name; others are not ours."""
    found: dict[CheckpointName, dict[str, Entry]] = {}
    for entry in store.list(layout.CHECKPOINTS):
        parts = entry.name.split("/")
        if len(parts) == 3:
            with contextlib.suppress(CheckpointError):
                found.setdefault(parse_checkpoint(parts[1]), {})[parts[2]] = entry
    return found


def look(
    store: Store, name: CheckpointName, files: Directories, read: Callable[[Store, str], Manifest] = read_manifest
) -> Manifest | str:
    """The manifest of a committed checkpoint, or why it cannot be used. Digests are not looked at."""
    try:
        manifest = read(store, str(name))
    except CheckpointError as error:
        reasons: list[str] = []
        set_aside(error, reasons)
        return reasons[0]
    for file in manifest.files:
        entry = files[name].get(file.file)
        if entry is None or entry.size != file.size:
            there = "is missing" if entry is None else f"has {entry.size} bytes where {file.size} belong"
            return f"cannot use checkpoint {name}: {file.file} {there}"
    return manifest


def _checkpoints(
    store: Store, run: RunRecord, fresh_from: int, aside: list[str]
) -> tuple[tuple[Checkpoint, ...], bool]:
    """Those of the present history that look whole, and whether any was ever committed."""
    files = directories(store)
    committed = [name for name in files if name.attempt >= fresh_from and committed_in(files[name])]
    usable = []
    for name in committed:
        seen = look(store, name, files)
        if isinstance(seen, str):
            aside.append(seen)
        elif seen.run != run.id:
            aside.append(f"cannot use checkpoint {name}: it belongs to another run ({seen.run})")
        else:
            usable.append(Checkpoint(name=str(name), manifest=seen))
    return tuple(restore_order(usable)), bool(committed)


def claim_of(store: Store, attempt: int) -> str | None:
    """The token under which an attempt is claimed, ``UNREADABLE`` where that is damaged; ``None``: nobody has."""
    path = layout.attempt_path(attempt)
    try:
        return layout.decode(store.read(path, layout.CLAIM_LIMIT), AttemptRecord, path).token
    except Missing:
        return None
    except CheckpointError as error:
        set_aside(error, [])
        return UNREADABLE


def newest_claim(store: Store, aside: list[str]) -> AttemptRecord | None:
    """The newest claim that can be read; what cannot be goes to ``aside``."""
    return _newest_claim(store, _numbered(store.list(layout.ATTEMPTS)), aside)


def _newest_claim(store: Store, claimed: Mapping[int, str], aside: list[str]) -> AttemptRecord | None:
    for attempt in sorted(claimed, reverse=True):
        try:
            record = layout.decode(store.read(claimed[attempt], layout.CLAIM_LIMIT), AttemptRecord, claimed[attempt])
            if record.attempt == attempt:
                return record
            aside.append(f"cannot use {claimed[attempt]}: it is the claim of attempt {record.attempt}")
        except CheckpointError as error:
            set_aside(error, aside)
    return None


def _fresh_by(store: Store, fresh_from: int) -> str | None:
    if not fresh_from:
        return None
    path = layout.attempt_path(fresh_from)
    try:
        return layout.decode(store.read(path, layout.CLAIM_LIMIT), AttemptRecord, path).submission
    except CheckpointError as error:
        set_aside(error, [])
        return None


def _debits(store: Store, debited: Mapping[int, str], aside: list[str]) -> Iterator[Debit]:
    for name in debited.values():
        try:
            yield layout.decode(store.read(name, layout.RECORD_LIMIT), Debit, name)
        except CheckpointError as error:
            set_aside(error, aside)


def finished_mark(store: Store, aside: list[str]) -> FinishedMark | None:
    """The finished mark, if there is one that can be read."""
    try:
        return layout.decode(store.read(layout.FINISHED, layout.RECORD_LIMIT), FinishedMark, layout.FINISHED)
    except Missing:
        return None
    except CheckpointError as error:
        set_aside(error, aside)
        return None


def committed_in(files: Collection[str]) -> bool:
    """Whether a directory with these files is a checkpoint."""
    return layout.MANIFEST in files


def _numbered(listed: Iterable[Entry]) -> dict[int, str]:
    """Names by the number that each carries; what a crash or somebody else left there is not among them."""
    matches = ((re.fullmatch(r"[1-9][0-9]{0,17}", _stem(entry)), entry.name) for entry in listed)
    return {int(match[0]): name for match, name in matches if match}


def _stem(entry: Entry) -> str:
    return entry.name.rpartition("/")[2].removesuffix(".json")


def set_aside(error: CheckpointError, aside: list[str]) -> None:
    """Note a record that cannot be used. No answer, or no permission, says nothing about the record."""
    if isinstance(error, StoreError) and type(error) not in (Missing, Answered):
        raise error
    aside.append(str(error))
