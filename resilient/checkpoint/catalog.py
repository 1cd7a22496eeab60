# SPDX-License-Identifier: Apache-2.0
"""What checkpoints a run has, for a person: each directory with its state, and each file that is damaged.

Nothing here changes the store, and nothing needs the run's lock: a checkpoint that is pruned while it is read is
reported as gone, not as damaged.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from resilient.checkpoint import layout
from resilient.checkpoint.digest import Digest
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import CheckpointName, FileRecord, Manifest, RunRecord
from resilient.checkpoint.store_errors import Answered, Denied, Missing
from resilient.checkpoint.survey import Directories, committed_in, directories, look, newest_claim, read_manifest
from resilient.errors import CheckpointError, StoreError


class State(enum.Enum):
    """What a restore would do with a checkpoint."""

    NEXT = "restored next"
    COMPLETE = "complete"
    SET_ASIDE = "set aside"
    EARLIER = "earlier history"
    """Saved before the run was begun anew with ``--fresh``."""
    UNCOMMITTED = "not committed"
    """It is being saved, or its save was broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One directory that has a checkpoint's name."""

    name: str
    attempt: int
    step: int
    state: State
    why: str = ""
    """Why it cannot be used."""
    size_bytes: int
    created_s: float | None = None
    ranks: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All of them, in the order in which a restore tries them."""

    run: RunRecord
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """Records that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """What is wrong with one file."""

    file: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What reading all of a checkpoint has shown."""

    name: str
    size_bytes: int = 0
    flaws: tuple[Flaw, ...] = ()
    gone: bool = False
    """It was deleted while it was read."""


def read_catalog(store: Store, run: RunRecord) -> Catalog:
    """The checkpoints of a run. Sizes are compared; digests are :func:`verify`'s."""
    notes: list[str] = []
    claim = newest_claim(store, notes)
    files = directories(store)
    fresh_from = claim.fresh_from if claim else 0
    rows = [_row(store, run, name, files, fresh_from=fresh_from) for name in sorted(files, reverse=True)]
    first = next((at for at, row in enumerate(rows) if row.state is State.COMPLETE), None)
    if first is not None:
        rows[first] = replace(rows[first], state=State.NEXT)
    return Catalog(run=run, rows=tuple(rows), notes=tuple(notes))


def find(store: Store, name: str) -> tuple[CheckpointName, Manifest]:
    """A committed checkpoint whose files have their sizes; an error says why it cannot be used."""
    parsed = layout.parse_checkpoint(name)
    files = directories(store)
    if not committed_in(files.get(parsed, {})):
        raise CheckpointError(
            f"cannot find checkpoint {parsed} in {store.url}: it is not there, or was never committed; "
            "see resilient checkpoints list"
        )
    seen = look(store, parsed, files)
    if isinstance(seen, str):
        raise CheckpointError(seen)
    return parsed, seen


def verify(store: Store, run: RunRecord, name: CheckpointName) -> Verdict:
    """Read all of a committed checkpoint and compare every digest."""
    try:
        manifest = read_manifest(store, str(name))
    except Missing:
        return Verdict(name=str(name), gone=True)
    except CheckpointError as error:
        if isinstance(error, StoreError) and type(error) is not Answered:
            raise
        return Verdict(name=str(name), flaws=(Flaw(file=layout.MANIFEST, why=str(error)),))
    found = [(file.file, _compare(store, name, file)) for file in manifest.files]
    flaws = [Flaw(file=file, why=why) for file, why in found if why]
    if manifest.run != run.id:
        flaws.insert(0, Flaw(file=layout.MANIFEST, why=f"it belongs to another run, {manifest.run[:80]!r}"))
    if flaws and not store.exists(layout.checkpoint_path(str(name), layout.MANIFEST)):
        return Verdict(name=str(name), gone=True)
    return Verdict(name=str(name), size_bytes=sum(file.size for file in manifest.files), flaws=tuple(flaws))


def _compare(store: Store, name: CheckpointName, file: FileRecord) -> str:
    """Why a file is not what was saved; empty where it is. A store that refuses to answer says nothing of it."""
    size, state = 0, Digest()
    try:
        for chunk in store.chunks(layout.checkpoint_path(str(name), file.file)):
            size += len(chunk)
            if size > file.size:
                return f"it is longer than {file.size} bytes"
            state.update(chunk)
    except Missing:
        return "it is missing"
    except Denied:
        raise
    except StoreError as error:
        if not error.answered:
            raise
        return str(error)
    if size != file.size:
        return f"it has {size} bytes where {file.size} belong"
    return "" if state.text() == file.digest else "its digest differs from that in the manifest"


def _row(store: Store, run: RunRecord, name: CheckpointName, files: Directories, *, fresh_from: int) -> Row:
    listed = sum(entry.size for entry in files[name].values())
    if not committed_in(files[name]):
        return Row(name=str(name), attempt=name.attempt, step=name.step, state=State.UNCOMMITTED, size_bytes=listed)
    seen = look(store, name, files)
    if isinstance(seen, str):
        return Row(
            name=str(name), attempt=name.attempt, step=name.step, state=State.SET_ASIDE, why=seen, size_bytes=listed
        )
    foreign = seen.run != run.id
    state = State.SET_ASIDE if foreign else State.EARLIER if name.attempt < fresh_from else State.COMPLETE
    return Row(
        name=str(name),
        attempt=name.attempt,
        step=name.step,
        state=state,
        why=f"it belongs to another run, {seen.run[:80]!r}" if foreign else "",
        size_bytes=sum(file.size for file in seen.files),
        created_s=seen.created_s,
        ranks=seen.world_size,
        metrics=seen.metrics,
    )
