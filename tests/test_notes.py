# SPDX-License-Identifier: Apache-2.0
"""Tests of what the host of the workers writes into the journal of their words."""

from types import SimpleNamespace
from typing import Any

from resilient.link.board import Board
from resilient.link.messages import NotTaken
from resilient.supervisor.host import Host


def test_a_missed_snapshot_is_noted_once_for_each_reason() -> None:
    """A state that cannot be saved any more does not fill the journal, step by step."""
    told: list[Any] = []
    ports: Any = SimpleNamespace(
        journal=lambda kind, fields: told.append(fields["text"]),
        now=lambda: 0.0,
        held_s=lambda: 0.0,
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
