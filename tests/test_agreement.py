# SPDX-License-Identifier: Apache-2.0
"""All workers resume from one state: the newest that every one of them can load."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.link.messages import AlreadyFinished, Begin, Go, Hello, Steps, Tried, Try
from resilient.supervisor.agreement import Agreement, Candidate, in_order

MEMORY = Candidate(attempt=2, step=9, name="memory", slot=1)
DURABLE = Candidate(attempt=2, step=6, name="2-6")
OLDER = Candidate(attempt=1, step=8, name="1-8")


class Room:
    """An agreement and what each rank was told."""

    def __init__(self, ranks: int = 2) -> None:
        self.told: dict[int, list[Any]] = {rank: [] for rank in range(ranks)}
        self.fetching: list[Candidate] = []
        self.refused: list[Candidate] = []
        self.exhausted = 0
        self.agreement = Agreement(
            ranks=ranks,
            send=lambda rank, message: self.told[rank].append(message),
            fetch=self.fetching.append,
            exhausted=self._exhausted,
            refuse=self.refused.append,
        )

    def _exhausted(self) -> None:
        self.exhausted += 1

    def answer(self, name: str, *refusals: str) -> None:
        """All ranks answer; those with a text refuse."""
        for rank, why in enumerate(refusals):
            self.agreement.tried(rank, Tried(name=name, ok=not why, why=why))

    def last(self) -> list[Any]:
        return [messages[-1] for messages in self.told.values()]


def hello(rank: int, **fields: Any) -> Hello:
    values: dict[str, Any] = {
        "rank": rank, "world_size": 2, "local_rank": rank, "pid": 1, "settings": {}, "started_ns": 0,
        "versions": {}, "determinism": {},
    }  # fmt: skip
    return Hello(**{**values, **fields})


def test_a_later_attempt_wins_over_a_later_step() -> None:
    """A zombie's step 8 is behind step 6 of the attempt that followed it; of one state memory comes first."""
    twin = Candidate(attempt=2, step=9, name="2-9")
    assert in_order([OLDER, twin, DURABLE, MEMORY]) == [MEMORY, twin, DURABLE, OLDER]


def test_the_first_that_all_accept_is_loaded() -> None:
    """Nobody is told to load before everybody has said yes."""
    room = Room()
    room.agreement.begin(3, "/ck", [DURABLE, MEMORY])
    begun = Begin(attempt=3, checkpoints="/ck")
    order = Try(name="memory", step=9, slot=1)
    assert room.told == {0: [begun, order], 1: [begun, order]}
    room.agreement.tried(0, Tried(name="memory", ok=True, why=""))
    assert not room.agreement.agreed
    room.agreement.tried(1, Tried(name="memory", ok=True, why=""))
    assert room.last() == [Go(name="memory", step=9)] * 2
    assert (room.agreement.chosen, room.agreement.step) == (MEMORY, 9)
    assert not room.agreement.complete
    assert not room.agreement.note_restored(1)
    assert room.agreement.note_restored(0)


def test_what_one_rank_refuses_is_set_aside_for_all() -> None:
    """And named, with the rank and its reason; the next one is brought into memory before anybody tries it."""
    room = Room()
    room.agreement.begin(3, None, [MEMORY, DURABLE, OLDER])
    room.answer("memory", "", "torn")
    assert (room.refused, room.fetching) == ([MEMORY], [DURABLE])
    assert room.last() == [Try(name="memory", step=9, slot=1)] * 2
    room.agreement.fetched("2-6", 0)
    assert room.last() == [Try(name="2-6", step=6, slot=0)] * 2
    room.answer("2-6", "", "")
    assert [(aside.name, aside.why) for aside in room.agreement.refused] == [("memory", "rank 1: torn")]
    assert room.last() == [Go(name="2-6", step=6)] * 2
    assert room.agreement.chosen == Candidate(attempt=2, step=6, name="2-6", slot=0)


def test_what_cannot_be_read_is_set_aside_without_asking_a_rank() -> None:
    """The store says why, and the next older one is fetched."""
    room = Room()
    room.agreement.begin(3, None, [DURABLE, OLDER])
    room.agreement.fetched("2-6", None, "digest differs")
    assert room.fetching == [DURABLE, OLDER]
    room.agreement.fetched("2-6", 1)  # of a fetch that nobody waits for any more
    room.agreement.fetched("1-8", 1)
    room.agreement.fetched("1-8", None, "twice")
    assert room.last() == [Try(name="1-8", step=8, slot=1)] * 2
    assert [(aside.name, aside.why) for aside in room.agreement.refused] == [("2-6", "digest differs")]
    room.answer("1-8", "bad", "bad")
    assert (room.refused, room.exhausted) == ([Candidate(attempt=1, step=8, name="1-8", slot=1)], 1)


def test_when_nothing_is_left_the_owner_decides() -> None:
    """It may start over; or every saved state was refused, and it must not."""
    room = Room()
    room.agreement.begin(3, None, [MEMORY])
    room.answer("memory", "bad", "")
    assert (room.agreement.agreed, room.exhausted) == (False, 1)
    room.agreement.start_over()
    assert room.last() == [Go(name="", step=0)] * 2
    empty = Room()
    empty.agreement.begin(1, None, [])
    assert empty.exhausted == 1


def test_a_late_answer_is_not_taken_for_another_candidate() -> None:
    """Only what is being tried counts."""
    room = Room()
    room.agreement.begin(3, None, [MEMORY, DURABLE])
    room.answer("memory", "bad", "bad")
    room.agreement.fetched("2-6", 0)
    room.agreement.tried(0, Tried(name="memory", ok=True, why=""))
    room.agreement.tried(1, Tried(name="2-6", ok=True, why=""))
    assert not room.agreement.agreed


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"world_size": 3}, "WORLD_SIZE is [2, 3]"), ({"settings": {"every": "5"}}, "rank 1 was given {'every': '5'}")],
)
def test_workers_that_contradict_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    """By what they say, before anything is loaded."""
    room = Room()
    assert not room.agreement.hello(0, hello(0))
    assert room.agreement.hello(1, hello(1, **fields))
    wrong = room.agreement.contradiction()
    assert wrong is not None
    assert words in wrong


def test_more_steps_than_were_finished_go_on() -> None:
    """The finished mark ends a start that asks for no more than it."""
    room = Room()
    room.agreement.start_over()
    assert room.agreement.steps(0, Steps(total=100), finished=100)
    assert not room.agreement.steps(1, Steps(total=101), finished=100)
    assert room.last() == [AlreadyFinished(steps=100), Go(name="", step=0)]


@given(
    answers=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6),
    order=st.permutations(range(3)),
)
def test_all_ranks_are_told_the_same_and_load_only_what_all_took(answers: list[list[bool]], order: list[int]) -> None:
    """Whatever they answer, and in whatever order."""
    candidates = [Candidate(attempt=1, step=step, name=f"1-{step}", slot=1) for step in range(len(answers))]
    room = Room(3)
    room.agreement.begin(1, None, candidates)
    for candidate, oks in zip(in_order(candidates), answers, strict=True):
        for rank in order:
            room.agreement.tried(rank, Tried(name=candidate.name, ok=oks[rank], why="" if oks[rank] else "bad"))
    assert room.told[0] == room.told[1] == room.told[2]
    first = next((index for index, oks in enumerate(answers) if all(oks)), len(answers))
    assert room.agreement.chosen == (in_order(candidates)[first] if first < len(answers) else None)
    assert room.refused == in_order(candidates)[:first]
    assert len(room.agreement.refused) == sum(oks.count(False) for oks in answers[:first])
