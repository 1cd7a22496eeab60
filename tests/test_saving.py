# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are written before they are judged: what is committed, what is dropped, and what becomes of slots."""

from collections.abc import Callable, Iterator

import pytest

from resilient.checkpoint.requests import Failed, Judge, Reply, Request, Save, Saved
from resilient.core.cadence import Cadence, Every
from resilient.link.board import ENTERED, SNAPSHOT_SLOT, SNAPSHOT_STEP, Board, Extent, SlotRecord, row_base
from resilient.link.messages import Copied, NotTaken, Taken
from resilient.supervisor.party import OneParty
from resilient.supervisor.saving import RETRY_S
from resilient.supervisor.tiers import Tiers

RANKS = (0, 1)
CADENCE = Cadence(durable=Every(steps=20), memory=Every(steps=5), has_store=True)


class Pair:
    """Two workers, and a store that answers when the test says so."""

    def __init__(self) -> None:
        self.board = Board.create(len(RANKS))
        self.saves: list[tuple[Save, Callable[[Reply], None]]] = []
        self.judged: list[tuple[int, bool]] = []
        self.told: list[str] = []
        self.settled: list[int] = []
        self.tiers = Tiers(
            self.board,
            OneParty(self.board),
            ask=self._ask,
            told=lambda kind, fields: self.told.append(kind),
            committed=lambda step: None,
            settled=self.settled.append,
        )
        self.launch(1, 0)

    def _ask(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        request = make(len(self.saves))
        if isinstance(request, Judge):
            self.judged.append((request.ahead, request.whole))
        else:
            assert isinstance(request, Save)
            self.saves.append((request, then))

    def launch(self, attempt: int, step: int) -> None:
        """Workers of a new attempt go on from a step."""
        self.tiers.start(attempt, None)
        self.tiers.saving.may = True
        self.tiers.train(CADENCE, step)

    def come_to(self, step: int, now: float = 0.0) -> int | None:
        """Both come to the boundary of a step; the slot that is ordered there."""
        for rank in RANKS:
            self.board.words[row_base(rank) + ENTERED] = step
        self.tiers.tick(now)
        return self.board.words[SNAPSHOT_SLOT] if self.board.words[SNAPSHOT_STEP] == step else None

    def copy(self, step: int, slot: int, *ranks: int, now: float = 0.0, salt: int = 0) -> None:
        """Ranks, or all, have copied."""
        for rank in ranks or RANKS:
            self.board.void(rank, slot)
            self.board.publish(rank, record(rank, self.tiers.attempt, step, slot, salt), judged=False)
            self.tiers.copied(rank, Copied(step=step, slot=slot, metrics={"loss": float(rank)}), now)

    def publish(self, step: int, slot: int, *ranks: int, salt: int = 0) -> None:
        """Ranks have found their part unchanged, and nobody has heard of it yet."""
        for rank in ranks or RANKS:
            self.board.publish(rank, record(rank, self.tiers.attempt, step, slot, salt))

    def take(self, step: int, slot: int, *ranks: int, now: float = 0.0) -> None:
        for rank in ranks or RANKS:
            self.publish(step, slot, rank)
            self.tiers.taken(rank, Taken(step=step, slot=slot, stall_s=0.0), now)

    def drop(self, step: int, slot: int, rank: int) -> None:
        self.tiers.missed(rank, NotTaken(step=step, slot=slot, why="changed", soon=True), 0.0)

    def copied_at(self, step: int) -> int:
        """Both have copied at a boundary; the slot."""
        slot = self.come_to(step)
        assert slot is not None
        self.copy(step, slot)
        return slot

    def answer(self, kind: str = "") -> Save:
        """The store answers the oldest save."""
        save, then = self.saves.pop(0)
        if kind:
            then(Failed(id=save.id, why="why", answered=kind != "unreachable", kind=kind))
        else:
            name = f"{save.attempt}-{save.step}"
            then(Saved(id=save.id, name=name, attempt=save.attempt, step=save.step, size_bytes=8, seconds=0.0))
        return save

    @property
    def in_memory(self) -> list[tuple[int, int]]:
        return [(one.attempt, one.step) for one in self.tiers.candidates()]


def record(rank: int, attempt: int, step: int, slot: int, salt: int) -> SlotRecord:
    tensors, own = (Extent(size=8, digest=f"xxh3_128:{salt:x}{rank}{step:029x}{kind}") for kind in (0, 1))
    return SlotRecord(slot=slot, attempt=attempt, step=step, tensors=tensors, own=own)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.board.close()


def test_what_all_have_copied_is_written_and_committed_when_all_have_judged(pair: Pair) -> None:
    """With the metrics of rank 0; and it is asked of the store once."""
    slot = pair.come_to(20)
    assert slot is not None
    pair.copy(20, slot, 0)
    assert not pair.saves
    pair.copy(20, slot, 1)
    ((save, _),) = pair.saves
    assert (save.ahead, save.step, save.metrics) == (1, 20, {"loss": 0.0})
    assert pair.in_memory == []  # nobody may load it yet
    pair.take(20, slot, 1)
    assert pair.judged == []
    pair.take(20, slot, 0)
    assert pair.judged == [(1, True)]
    assert save.records == tuple(pair.board.record(rank, slot) for rank in RANKS)
    pair.answer()
    pair.come_to(21)
    assert (pair.saves, pair.tiers.saving.durable_step) == ([], 20)
    assert pair.told == ["snapshot", "checkpoint"]


def test_what_is_for_memory_alone_is_not_written(pair: Pair) -> None:
    """Only every fourth snapshot is to be durable here."""
    slot = pair.copied_at(5)
    pair.take(5, slot)
    assert (pair.saves, pair.judged, pair.in_memory) == ([], [], [(1, 5)])


def test_the_first_rank_that_drops_its_part_has_it_dropped_at_once(pair: Pair) -> None:
    """No failure is told; what had to be saved is taken again at the next boundary, into a slot that nobody reads."""
    slot = pair.copied_at(20)
    pair.drop(20, slot, 1)
    assert pair.judged == [(1, False)]
    pair.take(20, slot, 0)
    assert (pair.judged, pair.in_memory) == ([(1, False)], [])
    again = pair.come_to(21)
    assert again not in (None, slot)
    pair.answer("dropped")
    assert again is not None
    pair.copy(21, again)
    pair.take(21, again)
    assert pair.judged == [(1, False), (2, True)]
    assert pair.answer().step == 21
    assert pair.told == ["snapshot", "checkpoint"]


@pytest.mark.parametrize("kind", ["unreachable", "internal"])
def test_a_store_that_fails_for_what_was_dropped_is_not_asked_again(pair: Pair, kind: str) -> None:
    """Nor is something else saved in its place: what is durable is not saved once more."""
    pair.tiers.train(Cadence(durable=Every(steps=5), has_store=True), 0)
    pair.take(5, pair.copied_at(5))
    pair.answer()
    slot = pair.copied_at(10)
    pair.drop(10, slot, 0)
    pair.drop(10, slot, 1)
    pair.answer(kind)
    for now in (0.0, RETRY_S, 2 * RETRY_S):
        pair.tiers.tick(now)
    assert pair.saves == []


def test_a_store_that_fails_is_left_alone_from_its_answer_on(pair: Pair) -> None:
    """However long ago it was asked: the wait for the judgement may be long."""
    slot = pair.copied_at(20)
    pair.take(20, slot)
    pair.tiers.tick(100.0)
    pair.answer("unreachable")
    pair.tiers.tick(100.0 + RETRY_S - 1)
    assert pair.saves == []
    pair.tiers.tick(100.0 + RETRY_S)
    assert [save.step for save, _ in pair.saves] == [20]


def test_a_part_that_is_dropped_before_the_others_are_copied_is_not_written(pair: Pair) -> None:
    """It will be no snapshot any more."""
    slot = pair.come_to(20)
    assert slot is not None
    pair.copy(20, slot, 0)
    pair.drop(20, slot, 0)
    pair.copy(20, slot, 1)
    assert pair.saves == []


def test_a_part_that_is_not_what_was_copied_is_not_committed_under_its_digest(pair: Pair) -> None:
    """A worker has no reason to publish another record than before; one that does so gets no checkpoint of it."""
    slot = pair.copied_at(20)
    pair.publish(20, slot, 0, salt=1)
    pair.tiers.taken(0, Taken(step=20, slot=slot, stall_s=0.0), 0.0)
    pair.take(20, slot, 1)
    assert pair.judged == [(1, False)]
    pair.answer("dropped")
    pair.tiers.tick(0.0)
    assert [(save.ahead, save.records[0].tensors.digest[9]) for save, _ in pair.saves] == [(None, "1")]


@pytest.mark.parametrize("published", [(), (0,), (0, 1)], ids=["by none", "by one", "by all"])
def test_the_board_says_what_killed_workers_have_left(pair: Pair, published: tuple[int, ...]) -> None:
    """Whole is what all ranks had published, though none of them could say so; new workers may begin from it."""
    slot = pair.come_to(15)
    assert slot is not None
    pair.copy(15, slot)
    pair.take(15, slot)
    slot = pair.copied_at(20)
    if published:
        pair.publish(20, slot, *published)
    pair.launch(2, 15)
    is_whole = published == RANKS
    assert pair.judged == [(1, is_whole)]
    assert pair.in_memory == [(1, 20)] * is_whole + [(1, 15)]


def test_what_is_settled_is_what_is_whole(pair: Pair) -> None:
    """At the end what nobody will judge is dropped first: the store is needed for the one before."""
    slot = pair.come_to(15)
    assert slot is not None
    pair.copy(15, slot)
    pair.take(15, slot)
    pair.copied_at(20)
    pair.tiers.saving.settle(0.0)
    assert (pair.judged, pair.settled) == ([(1, False)], [])
    pair.answer("dropped")
    save = pair.answer()
    assert (save.step, save.ahead, pair.settled) == (15, None, [15])


def test_what_is_settled_may_be_on_its_way(pair: Pair) -> None:
    """The last words of the workers were not heard, and it is saved once all the same."""
    slot = pair.copied_at(20)
    pair.publish(20, slot)
    pair.tiers.saving.settle(0.0)
    assert (pair.judged, pair.settled) == ([(1, True)], [])
    pair.answer()
    assert (pair.saves, pair.settled) == ([], [20])


@pytest.mark.parametrize("kind", ["unreachable", "full", "internal", "corrupt"])
def test_a_store_that_fails_before_the_judgement_is_asked_again_later(pair: Pair, kind: str) -> None:
    """For what has become whole; and nobody judges what is not being written."""
    slot = pair.copied_at(20)
    pair.answer(kind)
    pair.take(20, slot)
    assert (pair.judged, pair.in_memory) == ([], [(1, 20)])
    pair.come_to(21, now=RETRY_S)
    ((save, _),) = pair.saves
    assert (save.step, save.ahead) == (20, None)
    assert pair.told == ["save_failed", "snapshot"]


def test_a_store_that_is_busy_or_away_is_asked_for_what_is_whole_only(pair: Pair) -> None:
    """One save at a time; and none while it is being found out whether the attempt is ours."""
    pair.tiers.train(Cadence(durable=Every(steps=5), has_store=True), 0)
    pair.take(5, pair.copied_at(5))
    pair.take(10, pair.copied_at(10))
    assert [save.step for save, _ in pair.saves] == [5]
    pair.answer()
    pair.come_to(11)
    assert [(save.step, save.ahead) for save, _ in pair.saves] == [(10, None)]
    pair.answer()
    pair.tiers.saving.may = None
    slot = pair.copied_at(15)
    assert pair.saves == []
    pair.tiers.saving.may = True
    pair.take(15, slot)
    assert [(save.step, save.ahead) for save, _ in pair.saves] == [(15, None)]


def test_a_word_about_another_order_begins_nothing(pair: Pair) -> None:
    """What a worker says is data: a step or slot that nobody ordered is left alone."""
    slot = pair.come_to(20)
    assert slot is not None
    for step, other in ((19, slot), (20, 1 - slot), (-1, 99)):
        for rank in RANKS:
            pair.tiers.copied(rank, Copied(step=step, slot=other), 0.0)
    assert pair.saves == []


@pytest.mark.parametrize("left", [None, (1, 19), (2, 20)], ids=["no record", "another step", "another attempt"])
def test_said_without_its_record_it_begins_nothing(pair: Pair, left: tuple[int, int] | None) -> None:
    """There is nothing on the board that could be written under its name."""
    slot = pair.come_to(20)
    assert slot is not None
    for rank in RANKS:
        if left is not None:
            pair.board.publish(rank, record(rank, *left, slot, 0), judged=False)
        pair.tiers.copied(rank, Copied(step=20, slot=slot), 0.0)
    assert (pair.saves, pair.judged) == ([], [])
