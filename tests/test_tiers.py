# SPDX-License-Identifier: Apache-2.0
"""Tests of the tiers: which snapshots are kept, which one is saved, and under which attempt's name."""

from collections.abc import Callable, Iterator

import pytest

from resilient.checkpoint.requests import Failed, Reply, Request, Save, Saved
from resilient.core.cadence import Cadence, Every
from resilient.link.board import (
    ENTERED,
    NONE,
    SNAPSHOT_SLOT,
    SNAPSHOT_STEP,
    SPILL,
    STOP_STEP,
    Board,
    Extent,
    SlotRecord,
    row_base,
)
from resilient.link.messages import NotTaken, Taken
from resilient.supervisor.party import OneParty
from resilient.supervisor.saving import RETRY_S
from resilient.supervisor.tiers import Tiers

CADENCE = Cadence(durable=Every(steps=20), memory=Every(steps=5), has_store=True)


class Desk:
    """A board of one worker, and a store that answers when the test says so."""

    def __init__(self) -> None:
        self.board = Board.create(1)
        self.asked: list[tuple[Save, Callable[[Reply], None]]] = []
        self.told: list[tuple[str, dict[str, object]]] = []
        self.settled: list[int] = []
        self.tiers = Tiers(
            self.board,
            OneParty(self.board),
            ask=self._ask,
            told=lambda kind, fields: self.told.append((kind, fields)),
            committed=lambda step: None,
            settled=self.settled.append,
        )

    def _ask(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        request = make(len(self.asked))
        assert isinstance(request, Save)  # nothing is written ahead here: see test_saving.py
        self.asked.append((request, then))

    def launch(self, attempt: int, step: int) -> None:
        """Workers of a new attempt go on from a step."""
        self.tiers.start(attempt, None)
        self.tiers.saving.may = True
        self.tiers.train(CADENCE, step)

    def come_to(self, step: int, now: float = 0.0) -> int | None:
        """The worker comes to the boundary of a step; the slot that is ordered there."""
        self.board.words[row_base(0) + ENTERED] = step
        self.tiers.tick(now)
        return self.board.words[SNAPSHOT_SLOT] if self.board.words[SNAPSHOT_STEP] == step else None

    def pass_boundary(self, step: int, now: float = 0.0) -> bool:
        """Whether a snapshot is taken at the boundary of a step."""
        slot = self.come_to(step, now)
        if slot is None:
            return False
        self.take(step, slot, now)
        return True

    def take(self, step: int, slot: int, now: float = 0.0) -> None:
        """The worker has its snapshot."""
        tensors, own = (Extent(size=8, digest=f"xxh3_128:{step:031x}{kind}") for kind in (0, 1))
        self.board.void(0, slot)
        self.board.publish(0, SlotRecord(slot=slot, attempt=self.tiers.attempt, step=step, tensors=tensors, own=own))
        self.tiers.taken(0, Taken(step=step, slot=slot, stall_s=0.0), now)

    def answer(self, *, ok: bool) -> Save:
        """The store answers the oldest request."""
        save, then = self.asked.pop(0)
        if ok:
            name = f"{save.attempt}-{save.step}"
            then(Saved(id=save.id, name=name, attempt=save.attempt, step=save.step, size_bytes=8, seconds=0.0))
        else:
            then(Failed(id=save.id, why="away", answered=False, kind="unreachable"))
        return save


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.launch(1, 0)
    yield desk
    desk.board.close()


def test_a_save_that_outlives_its_attempt_keeps_its_attempts_name(desk: Desk) -> None:
    """Under a later one's name it would win over what is newer in memory."""
    assert desk.pass_boundary(20)
    assert desk.pass_boundary(25)
    desk.launch(2, 25)
    assert desk.answer(ok=True).attempt == 1
    assert dict(desk.told)["checkpoint"]["attempt"] == 1
    assert [(one.attempt, one.step) for one in desk.tiers.candidates()] == [(1, 25), (1, 20)]


def test_memory_goes_on_while_the_store_is_away_and_the_newest_is_saved_then(desk: Desk) -> None:
    """What failed to be saved holds no slot; the store is left alone for a while."""
    assert desk.pass_boundary(20)
    desk.answer(ok=False)
    assert all(desk.pass_boundary(step) for step in (25, 30, 35))
    assert desk.asked == []
    desk.pass_boundary(36, now=RETRY_S)
    assert desk.answer(ok=True).step == 35
    assert desk.tiers.saving.durable_step == 35


def test_what_is_being_saved_is_not_written_over(desk: Desk) -> None:
    """With the newest in the other slot, snapshots are skipped until the save has ended."""
    assert desk.pass_boundary(20)
    assert desk.pass_boundary(25)
    assert not desk.pass_boundary(30)
    assert desk.answer(ok=True).step == 20
    assert desk.pass_boundary(35)


def test_a_checkpoint_that_was_refused_does_not_count_as_durable(desk: Desk) -> None:
    """Workers went back behind it: what they leave must be saved although its step is lower."""
    desk.tiers.saving.durable_step = 60
    desk.launch(2, 40)
    assert desk.pass_boundary(45)
    desk.tiers.saving.settle(0.0)
    assert desk.settled == []
    assert desk.answer(ok=True).step == 45
    assert desk.settled == [45]


def test_what_is_saved_is_what_lies_in_the_slot(desk: Desk) -> None:
    """The saver is given both images of every rank, as the worker has sealed them."""
    assert desk.pass_boundary(20)
    save = desk.answer(ok=True)
    assert save.records == (desk.board.record(0, save.records[0].slot),)
    assert (save.world_size, save.attempt, save.step) == (1, 1, 20)


def test_a_snapshot_that_will_be_possible_soon_is_ordered_again(desk: Desk) -> None:
    """What had to become durable is not put off to the next time that it is due."""
    slot = desk.come_to(20)
    assert slot is not None
    desk.tiers.missed(0, NotTaken(step=20, slot=slot, why="memory is being made ready", soon=True), 0.0)
    assert desk.pass_boundary(21)
    assert desk.answer(ok=True).step == 21


def test_a_stop_that_comes_before_a_snapshot_was_taken_takes_its_place(desk: Desk) -> None:
    """The worker waits at the snapshot's boundary, and has published the next step already; it is told the stop."""
    assert desk.come_to(5) is not None
    desk.board.words[row_base(0) + ENTERED] = 6
    desk.tiers.stop(0)
    assert (desk.board.words[STOP_STEP], desk.board.words[SNAPSHOT_STEP]) == (6, 6)
    assert desk.board.words[SNAPSHOT_SLOT] in (0, 1)
    desk.take(6, desk.board.words[SNAPSHOT_SLOT])
    assert desk.answer(ok=True).step == 6


def test_a_snapshot_that_is_being_copied_ends_before_the_stop_has_a_slot(desk: Desk) -> None:
    """All have come to its boundary: it is whole soon, and the slot of the stop is another one."""
    slot = desk.come_to(5)
    assert slot is not None
    desk.board.words[row_base(0) + ENTERED] = 7
    desk.tiers.stop(0)
    assert desk.board.words[SNAPSHOT_SLOT] == NONE
    desk.take(5, slot)
    desk.tiers.tick(0.0)
    assert desk.board.words[SNAPSHOT_SLOT] == 1 - slot


def test_where_memory_is_full_only_what_is_saved_is_taken_through_the_disk(desk: Desk) -> None:
    """Each slot says so once; from then on no snapshot is taken for memory alone."""
    for step in (5, 10):
        slot = desk.come_to(step)
        assert slot in (0, 1)
        desk.tiers.missed(0, NotTaken(step=step, slot=slot, why="no room", full=True), 0.0)
    assert [desk.come_to(step) for step in (11, 15, 19)] == [None] * 3
    assert desk.come_to(20) == SPILL
    desk.take(20, SPILL)
    assert desk.come_to(40) is None  # it is still being saved
    assert desk.answer(ok=True).records[0].slot == SPILL
    assert desk.come_to(60) == SPILL


def test_new_workers_find_out_again_whether_memory_is_full(desk: Desk) -> None:
    """Whatever had taken it may have ended with the attempt before."""
    for step in (5, 10):
        slot = desk.come_to(step)
        desk.tiers.missed(0, NotTaken(step=step, slot=slot or 0, why="no room", full=True), 0.0)
    desk.launch(2, 10)
    assert desk.come_to(15) in (0, 1)


def test_a_checkpoint_is_read_into_what_holds_nothing_that_is_needed(desk: Desk) -> None:
    """Neither the newest snapshot nor the one that is being saved is written over."""
    assert desk.pass_boundary(20)
    busy = {desk.asked[0][0].records[0].slot}
    assert desk.tiers.slots.free() in {0, 1} - busy
    assert desk.pass_boundary(25)
    assert desk.tiers.slots.free() is None


def test_what_was_refused_is_no_snapshot(desk: Desk) -> None:
    """Its slot is free again, and it is not saved later."""
    assert desk.pass_boundary(15)
    (only,) = desk.tiers.candidates()
    assert only.slot is not None
    desk.tiers.slots.void(only.slot)
    assert desk.tiers.candidates() == []
    desk.tiers.saving.settle(0.0)
    assert (desk.asked, desk.settled) == ([], [0])


@pytest.mark.parametrize("durable", [40, 60])
def test_what_an_earlier_container_could_not_save_is_saved_first(desk: Desk, durable: int) -> None:
    """Under the name of its own attempt, once somebody trains on it; not where it is durable already."""
    desk.take(60, 1)
    whole = desk.tiers.slots.newest
    assert whole is not None
    desk.tiers.saving.adopt(whole, "3-40")
    desk.tiers.saving.durable_step = durable
    desk.tiers.tick(0.0)
    assert desk.asked == []
    desk.launch(5, 60)
    desk.tiers.tick(0.0)
    assert [(save.attempt, save.step, save.began_from) for save, _ in desk.asked] == [(1, 60, "3-40")] * (durable < 60)
    desk.launch(6, 60)
    desk.tiers.tick(0.0)
    assert len(desk.asked) == (durable < 60)
