# SPDX-License-Identifier: Apache-2.0
"""Tests of what the host of the workers writes into the journal of their words."""

from types import SimpleNamespace
from typing import Any

from resilient.checkpoint.requests import Saved
from resilient.link.board import Board, Extent, SlotRecord
from resilient.link.messages import NotTaken
from resilient.supervisor.host import SAY_AGAIN_S, Host


def test_a_missed_snapshot_is_noted_once_for_each_reason() -> None:
    """A state that cannot be saved any more does not fill the journal, step by step."""
    told: list[Any] = []
    ports: Any = SimpleNamespace(
        orders=None,
        journal=lambda kind, fields: told.append(fields["text"]),
        now=lambda: 0.0,
        usage=None,
        emit=None,
        send=None,
        submit=None,
        settled=None,
    )
    board = Board.create(2)
    host = Host(board, ports)
    for rank, step, why in [(0, 1, "a"), (0, 2, "a"), (1, 2, "a"), (0, 3, "b"), (0, 4, "b")]:
        host.message(rank, NotTaken(step=step, slot=0, why=why), 0.0)
    assert told == [f"no snapshot of step {end}" for end in ("1: a", "2: a", "3: b")]
    host.launched(2, numbered=True)
    host.message(0, NotTaken(step=5, slot=0, why="b"), 0.0)
    assert told[3:] == ["no snapshot of step 5: b"]
    board.close()


def test_old_checkpoints_that_stay_are_complained_of_now_and_then() -> None:
    """A store that saves but does not delete fills up; each checkpoint's entry says so, and people are told."""
    said: list[str] = []
    entries: list[Any] = []
    asked: list[Any] = []
    clock = [0.0]
    ports: Any = SimpleNamespace(
        orders=None,
        journal=lambda kind, fields: entries.append(fields),
        say=said.append,
        now=lambda: clock[0],
        usage=None,
        send=None,
        emit=lambda event: None,
        submit=lambda make, then: asked.append((make(1), then)),
        settled=lambda step: None,
        last_saved=lambda step, saved: None,
    )
    board = Board.create(1)
    host = Host(board, ports)
    host.tiers.saving.may = True
    image = Extent(size=8, digest=f"xxh3_128:{0:032x}")
    denied = ("cannot delete 1-0: denied",)
    for step, at, why in [(1, 0, denied), (2, 1, denied), (3, 2, ()), (4, 3, denied), (5, 4 + SAY_AGAIN_S, denied)]:
        clock[0] = at
        board.publish(0, SlotRecord(slot=0, attempt=1, step=step, tensors=image, own=image))
        host.tiers.saving.settle(at)
        save, then = asked.pop()
        saved = Saved(id=1, name=f"1-{step}", attempt=1, step=save.step, size_bytes=16, seconds=0.0, not_pruned=why)
        then(saved)
        assert entries[-1]["not_pruned"] == list(why)
    assert said == ["old checkpoints go on taking up space: cannot delete 1-0: denied"] * 3
    board.close()
