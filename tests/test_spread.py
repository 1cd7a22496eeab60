# SPDX-License-Identifier: Apache-2.0
"""Saving over several pods, one of which is not there: at the end of a run it is not tried for ever."""

from __future__ import annotations

from collections.abc import Callable

from resilient.checkpoint.requests import Reply, Request
from resilient.link.board import Board, Extent, SlotRecord
from resilient.supervisor.saving import Saving
from resilient.supervisor.slots import Slots
from resilient.supervisor.spread import Spread


def refuse(make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
    raise AssertionError(f"the own saver has nothing to do: {make(0)}")


def test_what_a_pod_is_missing_for_is_settled_unsaved() -> None:
    """It comes to an end, and says what is durable; while the run goes on it is wanted again later."""
    board = Board.create(2)
    extents = [Extent(size=8, digest=f"xxh3_128:{number:032x}") for number in (1, 2)]
    record = SlotRecord(slot=0, attempt=1, step=5, tensors=extents[0], own=extents[1])
    for rank in range(2):
        board.publish(rank, record)
    told: list[str] = []
    settled: list[int] = []
    spread = Spread(2, say=lambda pod, word: None, pods=list, submit=refuse)
    saving = Saving(
        board, Slots(board), ask=spread.submit, told=lambda kind, fields: told.append(kind), saved=refuse_reply,
        settled=settled.append,
    )  # fmt: skip
    saving.may = True
    saving.settle(0.0)
    assert settled == [0]
    assert told == ["save_failed"]
    board.close()


def refuse_reply(reply: Reply) -> None:
    raise AssertionError(f"nothing is saved: {reply}")
