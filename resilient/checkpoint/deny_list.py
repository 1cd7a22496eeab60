# SPDX-License-Identifier: Apache-2.0
"""The deny list in a run's directory: one small object for each node or device. Nobody vouches for what is read.

An entry that is damaged, or lies under another one's name, is set aside with a sentence: it denies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import DenialRecord
from resilient.core.denied import LASTS_S, Denial, Suspect
from resilient.errors import CheckpointError, StoreError

ENTRY_LIMIT: Final = 4 << 10
_MOST_ENTRIES: Final = 256
"""That are read; only the newest few of a list count, and a run of ours never writes so many in a day."""


def record_of(suspect: Suspect, *, submission: str, pod: str, wall_s: float) -> DenialRecord:
    """The entry that a verdict makes at this time."""
    return DenialRecord(
        kind=suspect.kind,
        name=suspect.name,
        rule=suspect.rule[:200],
        evidence=suspect.evidence[:1000],
        written_s=wall_s,
        expires_s=wall_s + LASTS_S,
        submission=submission,
        pod=pod,
    )


def denial_of(record: DenialRecord) -> Denial:
    """An entry in the core's words."""
    suspect = Suspect(kind=record.kind, name=record.name, rule=record.rule, evidence=record.evidence)
    return Denial(suspect=suspect, written_s=record.written_s, expires_s=record.expires_s)


def write(store: Store, record: DenialRecord) -> None:
    """Put an entry on the list; a newer one of the same name takes the place of an older one."""
    store.replace(layout.deny_path(record.name), layout.encode(record))


def read(store: Store, aside: list[str]) -> tuple[DenialRecord, ...]:
    """Every entry, whether it is in force or not; what cannot be used is said in ``aside``."""
    return tuple(_entries(store, aside))


def erase(store: Store, name: str) -> None:
    """Take an entry off the list."""
    store.delete(layout.deny_path(name))


def _entries(store: Store, aside: list[str]) -> Iterator[DenialRecord]:
    listed = [entry for entry in store.list(layout.DENY) if entry.name.endswith(".json")]
    if len(listed) > _MOST_ENTRIES:
        aside.append(f"only the first {_MOST_ENTRIES} of {len(listed)} entries of the deny list were read")
    for entry in listed[:_MOST_ENTRIES]:
        try:
            record = layout.decode(store.read(entry.name, ENTRY_LIMIT), DenialRecord, entry.name)
        except CheckpointError as error:
            if isinstance(error, StoreError) and not error.answered:
                raise
            aside.append(str(error))  # one that is refused is of another user, and hides no other
            continue
        if layout.deny_path(record.name) == entry.name:
            yield record
        else:
            aside.append(f"cannot use {entry.name}: it is the entry of {record.name}")
