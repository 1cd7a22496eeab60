# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of the store is brought into memory once, by the saver, and only what is whole and fits is there."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_store import Arenas, SaverProcess

from resilient.checkpoint.requests import Failed, Fetch, Fetched, Reply, Request
from resilient.checkpoint.whole import Whole
from resilient.errors import CheckpointError
from resilient.link.board import SPILL, WHOLE, WHOLE_ON_DISK, Board, Extent, SlotRecord
from resilient.supervisor.agreement import Candidate
from resilient.supervisor.fetching import MOST_DEATHS, Fetching, Outcome

RANKS = 2
OLD = Candidate(attempt=1, step=10, name="1-10")
NEW = Candidate(attempt=1, step=20, name="1-20")


def record_of(candidate: Candidate, slot: int) -> SlotRecord:
    extent = Extent(size=8, digest="xxh3_128:" + "0" * 32)
    return SlotRecord(slot=slot, attempt=candidate.attempt, step=candidate.step, tensors=extent, own=extent)


class Desk:
    """A board, and a saver that answers when the test says so."""

    def __init__(self) -> None:
        self.board = Board.create(RANKS)
        self.asked: list[tuple[Fetch, Callable[[Reply], None]]] = []
        self.free: int | None = 1
        self.told: list[Outcome] = []
        self.journal: list[tuple[str, Mapping[str, object]]] = []
        self.fetching = Fetching(
            self.board, self._submit, lambda: self.free, lambda kind, fields: self.journal.append((kind, fields))
        )

    def _submit(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        request = make(len(self.asked))
        assert isinstance(request, Fetch)
        self.asked.append((request, then))

    def want(self, candidate: Candidate) -> None:
        self.fetching.want(candidate, 5.0, self.told.append)

    def answer(self, candidate: Candidate) -> None:
        """The oldest request is done."""
        asked, then = self.asked.pop(0)
        assert asked.name == candidate.name
        records = tuple(record_of(candidate, asked.slot) for _ in range(RANKS))
        then(Fetched(id=asked.id, name=asked.name, records=records, seconds=0.1, size_bytes=1))

    def fail(self, kind: str, *, answered: bool = True) -> None:
        """The oldest request is not."""
        asked, then = self.asked.pop(0)
        then(Failed(id=asked.id, why=f"it is {kind}", answered=answered, kind=kind))


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.board.close()


def test_what_was_read_ahead_is_there_when_it_is_wanted(desk: Desk) -> None:
    """The saver reads while the workers start; every rank's record is on the board then."""
    desk.fetching.begin(NEW, 5.0)
    (asked, _) = desk.asked[0]
    assert (asked.name, asked.world_size, asked.slot, asked.patience_s) == ("1-20", RANKS, 1, 5.0)
    desk.answer(NEW)
    assert [desk.board.record(rank, 1) for rank in range(RANKS)] == [record_of(NEW, 1)] * RANKS
    desk.want(NEW)
    assert (desk.told, desk.asked) == ([Outcome(slot=1)], [])


def test_who_wants_it_while_it_is_read_is_told_at_its_end(desk: Desk) -> None:
    """It is read once."""
    desk.fetching.begin(NEW, 5.0)
    desk.want(NEW)
    assert (desk.told, len(desk.asked)) == ([], 1)
    desk.answer(NEW)
    assert desk.told == [Outcome(slot=1)]


def test_another_than_was_read_ahead_is_read_after_it(desk: Desk) -> None:
    """There is one saver, and one free slot; nothing is filled by two at a time."""
    desk.fetching.begin(NEW, 5.0)
    desk.want(OLD)
    assert [asked.name for asked, _ in desk.asked] == ["1-20"]
    desk.answer(NEW)
    assert [asked.name for asked, _ in desk.asked] == ["1-10"]
    assert desk.board.record(0, 1) is None  # the same slot is filled anew
    desk.answer(OLD)
    assert desk.told == [Outcome(slot=1)]
    assert desk.board.record(0, 1) == record_of(OLD, 1)


def test_what_cannot_be_read_is_said_and_read_again_when_it_is_wanted_again(desk: Desk) -> None:
    """A store that is silent says nothing about the checkpoint."""
    desk.want(NEW)
    desk.fail("corrupt")
    desk.want(NEW)
    desk.fail("unreachable", answered=False)
    assert desk.told == [
        Outcome(slot=None, why="it is corrupt"),
        Outcome(slot=None, why="it is unreachable", unreachable=True),
    ]
    assert desk.board.record(0, 1) is None


def test_where_memory_is_full_the_disk_is_used(desk: Desk) -> None:
    """And memory all the same where the disk is full as well; that is the end of it."""
    desk.want(NEW)
    careful = desk.asked[0][0].available_bytes
    desk.fail("full")
    assert desk.asked[0][0].slot == SPILL
    desk.fail("full")
    again, _ = desk.asked[0]
    assert again.slot == 1
    assert careful is not None
    assert again.available_bytes is not None
    assert careful < again.available_bytes / 2, "as much again, and more, is left to the training"
    desk.fail("full")
    assert desk.told == [Outcome(slot=None, why="it is full")]
    desk.free = None
    desk.want(NEW)
    assert desk.asked[0][0].slot == SPILL


@pytest.mark.parametrize("size", [8, 1 << 60], ids=["little", "more than there is"])
def test_what_the_training_may_need_more_is_given_back(desk: Desk, size: int) -> None:
    """Once all have loaded it; what was written over since is a snapshot, and stays."""
    desk.want(NEW)
    asked, then = desk.asked.pop(0)
    extent = Extent(size=size, digest="xxh3_128:" + "0" * 32)
    records = tuple(replace(record_of(NEW, asked.slot), tensors=extent) for _ in range(RANKS))
    then(Fetched(id=asked.id, name=asked.name, records=records, seconds=0.1, size_bytes=1))
    desk.board.publish(0, replace(records[0], step=21))
    assert desk.fetching.needless() == []
    desk.board.publish(0, records[0])
    assert desk.fetching.needless() == ([1] if size > 8 else [])
    assert (desk.board.record(0, 1) is None) == (size > 8)
    assert desk.fetching.needless() == []
    desk.want(NEW)
    assert bool(desk.asked) == (size > 8), "what is gone is read again"


def test_a_saver_that_was_killed_is_followed_by_the_next(desk: Desk) -> None:
    """Its end says nothing about store or checkpoint; on disk, in case it was killed for its memory."""
    desk.want(NEW)
    desk.fail("internal", answered=False)
    desk.answer(NEW)
    assert desk.told == [Outcome(slot=SPILL)]


def test_savers_that_are_killed_one_after_the_other_are_not_replaced_for_ever(desk: Desk) -> None:
    """Something about this machine kills them, so another container is to try."""
    desk.want(NEW)
    for _ in range(MOST_DEATHS + 1):
        desk.fail("internal", answered=False)
    assert desk.asked == []
    assert desk.told == [Outcome(slot=None, why="it is internal", unreachable=True)]


def test_what_was_written_over_since_is_read_again(desk: Desk) -> None:
    """The slots are for snapshots as soon as training goes on."""
    desk.want(NEW)
    desk.answer(NEW)
    desk.board.publish(1, record_of(OLD, 1))
    desk.want(NEW)
    assert len(desk.asked) == 1


def test_a_candidate_in_memory_is_known_by_its_own_name(desk: Desk) -> None:
    """And not a second time under that of a snapshot."""
    memory = Candidate(attempt=1, step=20, name="memory", slot=1)
    other = Candidate(attempt=1, step=15, name="memory", slot=0)
    assert desk.fetching.known([memory, other, NEW, OLD]) == [memory, other, NEW, OLD]
    desk.want(NEW)
    desk.answer(NEW)
    there = Candidate(attempt=1, step=20, name="1-20", slot=1)
    assert desk.fetching.known([memory, other, NEW, OLD]) == [there, other, OLD]
    desk.board.void(0, 1)
    assert desk.fetching.known([other, NEW, OLD]) == [other, NEW, OLD]


def test_what_others_saved_is_read_whole_and_forgotten_once_all_train(desk: Desk) -> None:
    """Into memory that all ranks share, where there is room, else on disk; the board has no record of it."""
    others = replace(NEW, ranks=RANKS + 1)
    desk.fetching.begin(others, 5.0)
    assert desk.asked[0][0].slot == WHOLE
    desk.fail("full")
    assert desk.asked[0][0].slot == WHOLE_ON_DISK
    assert not desk.fetching.needless(), "it is being written"
    asked, then = desk.asked.pop()
    contents = Extent(size=8, digest="xxh3_128:" + "0" * 32)
    then(Fetched(id=asked.id, name=asked.name, records=(), seconds=0.1, size_bytes=9, contents=contents))
    there = replace(others, slot=WHOLE_ON_DISK, contents=contents)
    assert desk.fetching.known([OLD, others]) == [there, OLD]
    desk.want(others)
    assert (desk.told, desk.asked) == ([Outcome(slot=WHOLE_ON_DISK, contents=contents)], [])
    assert desk.fetching.needless() == [WHOLE_ON_DISK]
    assert not desk.fetching.needless()
    assert desk.fetching.known([others]) == [others]
    desk.want(replace(OLD, ranks=RANKS))
    assert desk.asked[0][0].slot == 1, "as many ranks as there are now have each a slot of their own"


# With a real saver.

ALIKE = (b"shared" * 1000,) * 2


@pytest.fixture
def arenas(request: pytest.FixtureRequest) -> Iterator[Arenas]:
    arenas = Arenas(getattr(request, "param", ALIKE))
    yield arenas
    arenas.close()


@pytest.fixture
def saved(tmp_path: Path, arenas: Arenas) -> Iterator[Any]:
    """A client of a saver, and a checkpoint of two ranks; the slots are empty again."""
    with SaverProcess(arenas) as saver:
        saver.client.open(tmp_path)
        saver.client.claim(1)
        assert saver.client.save(arenas.records, 1, 10).name == "1-10"
        for fd in arenas.fds:
            os.pwrite(fd, bytes(min(1 << 14, os.fstat(fd).st_size)), 0)
        yield saver.client


def fetch(client: Any, slot: int = 1, **fields: Any) -> Any:
    values = {"name": "1-10", "world_size": RANKS, "slot": slot, "available_bytes": None, "patience_s": 0.0}
    return client.ask(Fetch, **{**values, **fields})


def in_slot(arenas: Arenas, rank: int, record: SlotRecord) -> tuple[bytes, bytes]:
    fd = arenas.slots[rank][record.slot]
    return os.pread(fd, record.tensors.size, 0), os.pread(fd, record.own.size, record.own_offset)


@pytest.mark.parametrize("slot", [1, SPILL])
@pytest.mark.parametrize("arenas", [ALIKE, (b"one" * 999, b"two" * 5000)], ids=["alike", "different"], indirect=True)
def test_every_rank_gets_what_it_had(arenas: Arenas, saved: Any, slot: int, request: pytest.FixtureRequest) -> None:
    """Both images, at the places that the records name; what ranks have alike is read once and copied."""
    images = request.node.callspec.params["arenas"]
    fetched = fetch(saved, slot)
    assert isinstance(fetched, Fetched), fetched
    assert [(record.slot, record.attempt, record.step) for record in fetched.records] == [(slot, 1, 10)] * RANKS
    for rank, record in enumerate(fetched.records):
        assert in_slot(arenas, rank, record) == (images[rank], f"rank {rank}".encode())


@pytest.mark.parametrize("name", ["tensors-0.safetensors", "rank-0.safetensors", "rank-1.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "missing"])
def test_a_damaged_file_is_refused(tmp_path: Path, saved: Any, name: str, damage: str) -> None:
    """By its digest or its size, whichever file it is; the name of the checkpoint is in the answer."""
    file = tmp_path / "checkpoints" / "1-10" / name
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "longer": data + b"\0"}[damage])
    refused = fetch(saved)
    assert isinstance(refused, Failed)
    assert refused.kind == {"flip": "corrupt", "missing": "missing"}.get(damage, "refused")
    assert (refused.answered, f"1-10/{name}" in refused.why or f"1-10: {name}" in refused.why) == (True, True)


@pytest.mark.parametrize("arenas", [ALIKE, (b"one" * 999, b"two" * 5000)], ids=["alike", "different"], indirect=True)
def test_another_number_of_ranks_gets_the_whole(arenas: Arenas, saved: Any, request: pytest.FixtureRequest) -> None:
    """Each file once, behind the manifest that says where, in the slot that all ranks share."""
    images = request.node.callspec.params["arenas"]
    assert fetch(saved, WHOLE, available_bytes=0).kind == "full"
    assert isinstance(fetch(saved, WHOLE_ON_DISK, available_bytes=0), Fetched)
    fetched = fetch(saved, WHOLE, world_size=1)
    assert (fetched.records, fetched.name) == ((), "1-10")
    with memoryview(bytearray(os.pread(arenas.slots[0][WHOLE], fetched.size_bytes, 0))) as view:
        whole = Whole.read(view, fetched.contents)
        for rank, files in enumerate(whole.manifest.ranks):
            assert bytes(whole.image(view, files.tensors)) == images[rank]
            assert bytes(whole.image(view, files.own)) == f"rank {rank}".encode()
        assert whole.size_bytes == len(view) < sum(map(len, images)) + 6 * 4096
        with pytest.raises(CheckpointError, match="longer than the memory"):
            Whole.read(view[:-1], fetched.contents)
        view[20] ^= 1
        with pytest.raises(CheckpointError, match="does not have its digest"):
            Whole.read(view, fetched.contents)


def test_a_damaged_file_is_refused_in_a_whole_as_well(tmp_path: Path, saved: Any) -> None:
    """Whichever rank may need it."""
    file = tmp_path / "checkpoints" / "1-10" / "rank-1.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert fetch(saved, WHOLE).kind == "corrupt"


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_read(arenas: Arenas, saved: Any) -> None:
    """By the memory that is free for all ranks together; the slot on disk takes none."""
    needed = sum(record.size for record in arenas.records)
    refused = fetch(saved, available_bytes=0)
    assert (refused.kind, refused.answered) == ("full", True)
    assert isinstance(fetch(saved, SPILL, available_bytes=0), Fetched)
    assert isinstance(fetch(saved, available_bytes=2 * needed), Fetched)


def test_what_is_not_there_is_said(saved: Any) -> None:
    """A checkpoint that was pruned meanwhile, a name that is none, a slot that is none."""
    assert [fetch(saved, name=name).answered for name in ("1-11", "../1-10")] == [True, True]
    assert "there is none" in fetch(saved, slot=7).why
    assert isinstance(fetch(saved), Fetched)
