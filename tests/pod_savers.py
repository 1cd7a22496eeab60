# SPDX-License-Identifier: Apache-2.0
"""Slots of the ranks of one pod, and what supervisors ask of the savers that make a checkpoint together, for tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from faulty_store import Arenas, Client, SaverProcess

from resilient.checkpoint.arena import create_arenas
from resilient.checkpoint.digest import digest
from resilient.checkpoint.requests import Done, Judge, Opened, Save
from resilient.core.retention import Rules
from resilient.link.board import Extent, SlotRecord

RANKS = 4
EACH = 2
"""Ranks of a pod."""
IMAGES = tuple(f"tensors of {rank}".encode() * 1000 for rank in range(RANKS))
ALIKE = (IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[0])
"""Of ranks in both pods, and of both in the second."""
NAME = "1-5.77"
BUCKET = "sys.path.insert(0, 'tests')\nimport object_store\n"


class Pod(Arenas):
    """The slots of a pod's ranks, by their numbers in the run, as a supervisor makes them."""

    def __init__(self, directory: Path, first: int = 0, count: int = EACH) -> None:
        self._made = create_arenas(count, directory)
        self.slots = {first + index: [slot.fd for slot in slots] for index, slots in self._made.items()}

    def put(self, images: Sequence[bytes], slot: int = 0, attempt: int = 1, step: int = 1) -> tuple[SlotRecord, ...]:
        """Fill one slot of each rank that is here; the records are those of all."""
        records = []
        for rank, image in enumerate(images):
            extents = [Extent(size=len(part), digest=digest(part)) for part in (image, own(rank))]
            record = SlotRecord(slot=slot, attempt=attempt, step=step, tensors=extents[0], own=extents[1])
            if rank in self.slots:
                os.pwrite(self.slots[rank][slot], image, 0)
                os.pwrite(self.slots[rank][slot], own(rank), record.own_offset)
            records.append(record)
        self.records = tuple(records)
        return self.records

    def read(self, rank: int, record: SlotRecord) -> tuple[bytes, bytes]:
        """Both images, from the slot."""
        fd = self.slots[rank][record.slot]
        return os.pread(fd, record.tensors.size, 0), os.pread(fd, record.own.size, record.own_offset)

    @property
    def fds(self) -> list[int]:
        return [*dict.fromkeys(super().fds)]  # all ranks share some


def own(rank: int) -> bytes:
    """What is a rank's own."""
    return f"rank {rank}".encode()


def begin(client: Client, pod: Pod, step: int, directory: str | None, **fields: Any) -> int:
    """Ask for a save that is to be judged by the number of its step; for a part, unless the pod has rank 0."""
    values: dict[str, Any] = {
        "attempt": 1,
        "world_size": RANKS,
        "began_from": None,
        "records": pod.records,
        "versions": {},
        "determinism": {},
        "rules": Rules(keep=3),
        "ahead": step,
        "part": 0 not in pod.slots,
        "patience_s": 0.0,
    }
    return client.send(Save, step=step, directory=directory, **{**values, **fields})


def judge(client: Client, step: int, *, whole: bool = True) -> int:
    """Say whether it holds."""
    return client.send(Judge, ahead=step, whole=whole)


def reply_to(client: Client, number: int) -> Any:
    """The next reply to a request; those to others are passed over."""
    while (reply := client.channel.receive()).id != number:
        pass
    return reply


class Savers(ExitStack):
    """A real saver for each of two pods on one run: that of the first holds it."""

    def __init__(self, pods: tuple[Pod, Pod], url: object, scripts: tuple[str, str] = ("", ""), **guest: Any) -> None:
        super().__init__()
        import_bucket = BUCKET if str(url).startswith("objects://") else ""
        made = [
            self.enter_context(SaverProcess(pod, import_bucket + script, tell=bool(script)))
            for pod, script in zip(pods, scripts, strict=True)
        ]
        self.processes = made
        self.holder, self.guest = (saver.client for saver in made)
        assert isinstance(self.holder.open(url, lock_patience_s=10.0), Opened)
        assert isinstance(self.guest.open(url, guest=True, pod="pod-1", **guest), Opened)

    def wait_for_files_of_holder(self) -> None:
        """Until it has written its part, where its script tells."""
        told = self.processes[0].process.stdout
        assert told is not None
        assert told.readline() == b"written\n"


def save(savers: Savers, pods: tuple[Pod, Pod], step: int, name: str) -> Any:
    """As two supervisors do it that agree; what the first saver says."""
    saving = begin(savers.holder, pods[0], step, name)
    assert isinstance(reply_to(savers.guest, begin(savers.guest, pods[1], step, name)), Done)
    judge(savers.holder, step)
    return reply_to(savers.holder, saving)
