# SPDX-License-Identifier: Apache-2.0
"""Which files a checkpoint has, by the records of all ranks, and which of them a saver writes; pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from resilient.checkpoint import layout
from resilient.checkpoint.arena import Slot
from resilient.checkpoint.layout import FileRecord, Manifest, RankFiles
from resilient.checkpoint.requests import Save
from resilient.link.board import Extent, SlotRecord


def manifest_of(asked: Save, *, run: str, submission: str, created_s: float) -> Manifest:
    """The manifest of what is to be saved."""
    ranks, files = _name_files(asked.records)
    return Manifest(
        run=run,
        submission=submission,
        attempt=asked.attempt,
        step=asked.step,
        began_from=asked.began_from,
        world_size=asked.world_size,
        ranks=ranks,
        files=files,
        created_s=created_s,
        versions=asked.versions,
        determinism=asked.determinism,
        metrics=asked.metrics,
    )


def images_of(
    manifest: Manifest, records: Sequence[SlotRecord], own: Collection[int], slot_of: Callable[[int, int], Slot]
) -> dict[str, memoryview]:
    """The files that the saver of the ranks ``own`` writes: those that are named by one of these."""
    images: dict[str, memoryview] = {}
    for rank, (record, files) in enumerate(zip(records, manifest.ranks, strict=True)):
        if rank in own:
            view = slot_of(rank, record.slot).view(record.size)
            images[files.own] = view[record.own_offset :]
            if files.tensors == layout.tensors_file(rank):
                images[files.tensors] = view[: record.tensors.size]
    return images


def _name_files(records: Sequence[SlotRecord]) -> tuple[tuple[RankFiles, ...], tuple[FileRecord, ...]]:
    """The files of every rank, and each file once: ranks with equal tensors share those of the lowest of them."""
    ranks: list[RankFiles] = []
    files: dict[str, FileRecord] = {}
    names: dict[Extent, str] = {}
    for rank, record in enumerate(records):
        tensors = names.setdefault(record.tensors, layout.tensors_file(rank))
        ranks.append(RankFiles(tensors=tensors, own=layout.rank_file(rank)))
        for name, extent in ((tensors, record.tensors), (ranks[-1].own, record.own)):
            files[name] = FileRecord(file=name, size=extent.size, digest=extent.digest)
    return tuple(ranks), tuple(files.values())
