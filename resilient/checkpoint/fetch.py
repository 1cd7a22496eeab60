# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint into the memory of the ranks: each rank's own state into its slot, or all of it into one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resilient.checkpoint.arena import Slot
from resilient.checkpoint.digest import digest
from resilient.checkpoint.direct import AT_ONCE, PIECE
from resilient.checkpoint.layout import Manifest
from resilient.checkpoint.pieces import Ready, each_piece
from resilient.checkpoint.requests import Fetch, Fetched
from resilient.checkpoint.survey import read_manifest
from resilient.checkpoint.vault import Vault
from resilient.checkpoint.whole import Whole
from resilient.errors import CheckpointError
from resilient.link.board import SLOTS, Extent, SlotRecord


def fetch(
    vault: Vault,
    asked: Fetch,
    ranks: Sequence[int],
    slot_of: Callable[[int, int], Slot],
    patient: Callable[..., Any],
) -> Fetched:
    """Do it, every byte verified. ``ranks`` are those that have slots here, in their order, ``slot_of`` gives a slot by
    rank and number, ``patient`` calls again what fails."""
    if not ranks:
        raise CheckpointError(f"cannot restore {asked.name}: no rank has slots here; ask the saver of its pod")
    begun_s = time.monotonic()
    manifest: Manifest = patient(read_manifest, vault.store, asked.name)
    if asked.slot >= SLOTS:
        whole = _into_one(vault, asked, manifest, slot_of(ranks[0], asked.slot), patient)
        contents = Extent(size=len(whole.head), digest=digest(whole.head))
        records: tuple[SlotRecord, ...] = ()
        size_bytes = whole.size_bytes
    else:
        slots = {rank: slot_of(rank, asked.slot) for rank in ranks}
        contents = None
        records = _into_each(vault, asked, manifest, slots, patient)
        size_bytes = sum(record.size for record in records)
    seconds = time.monotonic() - begun_s
    return Fetched(
        id=asked.id,
        name=asked.name,
        records=records,
        seconds=seconds,
        size_bytes=size_bytes,
        contents=contents,
        first=ranks[0],
    )


def _into_one(vault: Vault, asked: Fetch, manifest: Manifest, slot: Slot, patient: Callable[..., Any]) -> Whole:
    """All files, once, into the slot that all ranks share: each of them takes what it needs."""
    whole = Whole.of(manifest)
    slot.check(whole.size_bytes, asked.available_bytes)
    view = slot.begin(whole.size_bytes)
    slot.make_ready(0, len(whole.head))
    view[: len(whole.head)] = whole.head
    for file in manifest.files:
        ready = _from(slot, whole.offsets[file.file])
        patient(vault.read_image, asked.name, file, whole.image(view, file.file), ready)
    return whole


def _into_each(
    vault: Vault, asked: Fetch, manifest: Manifest, slots: Mapping[int, Slot], patient: Callable[..., Any]
) -> tuple[SlotRecord, ...]:
    """What ranks have alike is read once, and copied."""
    if manifest.world_size != asked.world_size or max(slots) >= asked.world_size:
        raise CheckpointError(
            f"cannot restore {asked.name} for {asked.world_size} ranks, each its own: {manifest.world_size} have saved "
            "it; this is a bug of resilient, please report it"
        )
    records = {rank: _record(manifest, rank, asked.slot) for rank in slots}
    available = None if asked.available_bytes is None else asked.available_bytes // len(records)
    for rank, slot in slots.items():
        slot.check(records[rank].size, available)
    first: dict[str, Slot] = {}
    for rank, slot in slots.items():
        record, files = records[rank], manifest.ranks[rank]
        view = slot.begin(record.size)
        tensors, own = view[: record.tensors.size], view[record.own_offset :]
        if files.tensors in first:
            _copy(first[files.tensors].fd, tensors, slot)
        else:
            first[files.tensors] = slot
            patient(vault.read_image, asked.name, manifest.file(files.tensors), tensors, slot.make_ready)
        patient(vault.read_image, asked.name, manifest.file(files.own), own, _from(slot, record.own_offset))
    return tuple(records.values())


def _from(slot: Slot, offset: int) -> Ready:
    """For an image that begins there."""
    return lambda start, end: slot.make_ready(offset + start, offset + end)


def _record(manifest: Manifest, rank: int, slot: int) -> SlotRecord:
    """Where the state of a rank will lie in its slot."""
    files = manifest.ranks[rank]
    tensors, own = (manifest.file(name) for name in (files.tensors, files.own))
    return SlotRecord(
        slot=slot,
        attempt=manifest.attempt,
        step=manifest.step,
        tensors=Extent(size=tensors.size, digest=tensors.digest),
        own=Extent(size=own.size, digest=own.digest),
    )


def _copy(fd: int, target: memoryview, slot: Slot) -> None:
    """Fill the beginning of a slot from that of a file in memory; a short file leaves what digests refuse."""

    def copy(start: int, end: int) -> None:
        slot.make_ready(start, end)
        while start < end and (count := os.preadv(fd, [target[start:end]], start)):
            start += count

    each_piece(len(target), PIECE, AT_ONCE, copy)
