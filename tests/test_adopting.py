# SPDX-License-Identifier: Apache-2.0
"""Tests of what a supervisor makes of what it finds in memory, and of what it leaves there."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from resilient.checkpoint.arena import Slot, create_arenas
from resilient.checkpoint.requests import CheckpointRef, Opened
from resilient.checkpoint.volume import RECORD, Volume
from resilient.core.adoption import Origin
from resilient.core.usage import NOTHING_USED
from resilient.link.board import Board, Extent, SlotRecord
from resilient.supervisor.adopting import Adopting, Newest
from resilient.supervisor.slots import Whole
from resilient.supervisor.store_link import Identity

RANKS, SLOT, SIZE = 2, 1, 8192
IDENTITY = Identity(submission="job-1", index=0, pod="train-0", journal="", in_kubernetes=True)
ORIGIN = Origin(token="a1", began_from="3-40", skipped=())
TAKEN = Newest(whole=Whole(attempt=4, step=60, slot=SLOT), origin=ORIGIN)
SAVED = CheckpointRef(name="4-50", attempt=4, step=50, world_size=RANKS, began_from="3-40")
OPENED = Opened(
    id=1,
    run_id="run-1",
    next_attempt=4,
    checkpoints=(SAVED,),
    set_aside=(),
    debits=(),
    usage=NOTHING_USED,
    earlier=None,
    ever_committed=True,
    claim="a1",
)
RESTART, LEFT = 193, 195


def record_of(rank: int) -> SlotRecord:
    """A snapshot of one rank."""
    tensors, own = (Extent(size=size, digest=f"xxh3_128:{rank:032x}") for size in (4096, 100))
    return SlotRecord(slot=SLOT, attempt=4, step=60, tensors=tensors, own=own)


class Container:
    """A supervisor's memory, from its start to its exit."""

    def __init__(self, volume: Path, *, ranks: int = RANKS, pod: str = "pod-1") -> None:
        self.told: list[tuple[str, object]] = []
        self.adopted: list[Newest] = []
        self.board = Board.create(ranks)
        self.volume = Volume(volume)
        self.adopting = Adopting(
            self.volume, self.board, IDENTITY, pod=pod,
            journal=lambda kind, fields: self.told.append((kind, fields["why"])), say=lambda text: None,
        )  # fmt: skip
        assert self.adopting.in_memory is not None
        self.slots: dict[int, list[Slot]] = create_arenas(ranks, volume.parent, self.adopting.in_memory)

    def take(self) -> None:
        """All ranks take a snapshot."""
        for rank, slots in self.slots.items():
            slots[SLOT].reserve(SIZE)
            self.board.publish(rank, record_of(rank))

    def judge(self, opened: Opened) -> Opened:
        return self.adopting.judge(opened, self.adopted.append)

    def exit(self, code: int, newest: Newest | None, run: str | None = "run-1") -> list[str]:
        """What is there then."""
        self.adopting.leave(code, newest, run)
        self.volume.keep()
        for slot in (slot for slots in self.slots.values() for slot in slots):
            slot.close()
        self.volume.close()
        self.board.close()
        folder = self.volume.directory / "slots"
        return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """Where a container has left a snapshot."""
    path = tmp_path / "volume"
    container = Container(path)
    container.take()
    assert container.exit(RESTART, TAKEN) == ["0-1", "1-1", RECORD]
    assert container.told == [("kept", None)]
    yield path
    assert not list(path.glob("slots/*"))


def test_it_is_a_snapshot_like_any_other(volume: Path) -> None:
    """On the board for all ranks, of an attempt before the next; its memory is known to be charged elsewhere."""
    container = Container(volume)
    assert container.adopting.attempt == 4
    assert container.board.inherited_bytes == RANKS * SIZE
    assert container.judge(OPENED).next_attempt == 5
    assert (container.adopted, container.told) == ([TAKEN], [("adopted", None)])
    assert [container.board.record(rank, SLOT) for rank in range(RANKS)] == [record_of(rank) for rank in range(RANKS)]
    assert container.exit(LEFT, TAKEN) == []


def test_it_may_be_left_once_more(volume: Path) -> None:
    """By whoever has adopted it, and has taken no newer one."""
    container = Container(volume)
    container.judge(OPENED)
    assert container.exit(RESTART, TAKEN) == ["0-1", "1-1", RECORD]
    again = Container(volume)
    again.judge(replace(OPENED, next_attempt=9))
    assert again.adopted == [TAKEN]
    assert again.exit(LEFT, TAKEN) == []


def test_it_waits_for_a_store_that_is_away(volume: Path) -> None:
    """Nobody could say whose it is: the next container may."""
    assert Container(volume).exit(RESTART, None, run=None) == ["0-1", "1-1", RECORD]
    container = Container(volume)
    container.judge(OPENED)
    assert container.adopted == [TAKEN]
    assert container.exit(LEFT, TAKEN) == []


def test_without_a_store_nothing_is_left(volume: Path) -> None:
    """A snapshot of a run without an identity could be anybody's."""
    container = Container(volume)
    container.take()
    assert container.exit(RESTART, TAKEN, run=None) == []


@pytest.mark.parametrize(
    ("opened", "given"),
    [
        (OPENED, {"ranks": 1}),
        (OPENED, {"ranks": 3}),
        (OPENED, {"pod": "pod-2"}),
        (replace(OPENED, run_id="run-2"), {}),
        (replace(OPENED, claim="b2"), {}),
        (replace(OPENED, fresh_from=5), {}),
        (replace(OPENED, checkpoints=(replace(SAVED, attempt=5), SAVED)), {}),
    ],
)
def test_what_is_not_ours_is_dropped(volume: Path, opened: Opened, given: dict[str, object]) -> None:
    """Its memory is free again at once, and the reason is in the journal."""
    container = Container(volume, **given)  # type: ignore[arg-type]  # one of several types
    assert container.judge(opened) == opened
    assert container.adopted == []
    ((kind, why),) = container.told
    assert (kind, bool(why)) == ("adopted", True)
    assert container.board.inherited_bytes == 0
    assert all(slots[SLOT].held_bytes == 0 for slots in container.slots.values())
    assert all(container.board.record(rank, SLOT) is None for rank in container.slots)
    assert container.exit(RESTART, None) == []
