# SPDX-License-Identifier: Apache-2.0
"""Tests of the tiers: which snapshots are kept, which one is saved, and under which attempt's name."""

from collections.abc import Callable, Iterator

import pytest

from resilient.checkpoint.requests import Failed, Reply, Save, Saved
from resilient.core.cadence import Cadence, Every
from resilient.link.board import ENTERED, SNAPSHOT_SLOT, SNAPSHOT_STEP, Board, SlotRecord, row_base
from resilient.supervisor.tiers import RETRY_S, Tiers

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
            ask=lambda make, then: self.asked.append((make(len(self.asked)), then)),
            told=lambda kind, fields: self.told.append((kind, fields)),
            committed=lambda step: None,
            settled=self.settled.append,
        )

    def launch(self, attempt: int, step: int) -> None:
        """Workers of a new attempt go on from a step."""
        self.tiers.start(attempt, None)
        self.tiers.can_save = True
        self.tiers.train(CADENCE, step)

    def pass_boundary(self, step: int, now: float = 0.0) -> bool:
        """The worker comes to the boundary of a step; whether a snapshot is taken there."""
        self.board.words[row_base(0) + ENTERED] = step
        self.tiers.tick(now)
        if self.board.words[SNAPSHOT_STEP] != step:
            return False
        slot = self.board.words[SNAPSHOT_SLOT]
        record = SlotRecord(slot=slot, attempt=self.tiers.attempt, step=step, size=8, digest=f"xxh3_128:{step:032x}")
        self.board.void(0, slot)
        self.board.publish(0, record)
        self.tiers.taken(0, step, slot, 0.0, now)
        return True

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
    assert desk.tiers.durable_step == 35


def test_what_is_being_saved_is_not_written_over(desk: Desk) -> None:
    """With the newest in the other slot, snapshots are skipped until the save has ended."""
    assert desk.pass_boundary(20)
    assert desk.pass_boundary(25)
    assert not desk.pass_boundary(30)
    assert desk.answer(ok=True).step == 20
    assert desk.pass_boundary(35)


def test_a_checkpoint_that_was_refused_does_not_count_as_durable(desk: Desk) -> None:
    """Workers went back behind it: what they leave must be saved although its step is lower."""
    desk.tiers.durable_step = 60
    desk.launch(2, 40)
    assert desk.pass_boundary(45)
    desk.tiers.settle(0.0)
    assert desk.settled == []
    assert desk.answer(ok=True).step == 45
    assert desk.settled == [45]
