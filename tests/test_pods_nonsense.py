# SPDX-License-Identifier: Apache-2.0
"""Words of a peer that are well formed and make no sense: nothing is done, and nobody falls over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from resilient.link.board import PENDING, Board
from resilient.supervisor.hand import Hand
from resilient.supervisor.pod_words import LEADER, Entered, GiveBack, OfWorkers, Rows, Said, Void
from resilient.supervisor.world import World

HUGE = 10**40
FROM: dict[str, Any] = {"pod": 1, "address": "pod-1-x"}


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(1)
    yield board
    board.close()


def refuse(*arguments: object) -> Any:
    raise AssertionError(f"nothing is to be done about it: {arguments}")


@pytest.mark.parametrize("slot", [-1, 5, HUGE])
def test_a_slot_that_there_is_not_is_not_given_back(board: Board, slot: int) -> None:
    """It would be looked up."""
    given: list[int] = []
    hand = Hand(
        board, 1, tell=refuse, submit=refuse, give_back=given.append, use=refuse, durable=refuse, wake=refuse,
        say=lambda kind, **fields: True,
    )  # fmt: skip
    hand.do(GiveBack(pod=0, address=LEADER, slot=slot))
    hand.do(Void(pod=0, address=LEADER, number=1, rank=1, slot=slot))
    assert given == []
    hand.do(GiveBack(pod=0, address=LEADER, slot=1))
    assert given == [1]


WORDS: Mapping[str, OfWorkers] = {
    "a step that no board holds": Entered(**FROM, gate=1, step=HUGE),
    "a step before all": Entered(**FROM, gate=1, step=-1),
    "rows of another size": Rows(**FROM, words=(1, 2), acted=0),
    "another pod's rank": Said(**FROM, rank=0, text="{}"),
    "no word of a worker's": Said(**FROM, rank=1, text="["),
}


@pytest.mark.parametrize("what", WORDS)
def test_a_pod_that_says_what_cannot_be_is_not_listened_to(board: Board, what: str) -> None:
    """The first pod is told so, and no boundary is named for it."""
    world = World(board, 2, say=lambda pod, word: None, pods=lambda: [1], submit=refuse, heard=refuse)
    world.orders.snapshot(refuse, 0, refuse)
    assert not world.hear(1, range(1, 2), WORDS[what])
    assert board.words[PENDING] == 1
    world.close()
