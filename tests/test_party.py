# SPDX-License-Identifier: Apache-2.0
"""One boundary for all ranks: named while they run, never behind one of them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

import pytest

from resilient.link import board as words
from resilient.link.board import ATTENTION, END, NONE, NOTHING, PENDING, SNAPSHOT_SLOT, SNAPSHOT_STEP, STOP_STEP, Board
from resilient.supervisor.party import NO_SNAPSHOT, Party

RANKS = 3
ROUNDS = 20
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(RANKS)
    yield board
    board.close()


def enter(board: Board, *steps: int) -> None:
    """The worker of each rank publishes the step that it enters."""
    for rank, step in enumerate(steps):
        board.words[words.row_base(rank) + words.ENTERED] = step


def test_a_stop_is_at_the_highest_step_that_anybody_entered(board: Board) -> None:
    """All can finish that one; an earlier one is behind somebody."""
    enter(board, 4, 6, 5)
    assert Party(board).stop(0, 1) == 6
    seen = [board.words[word] for word in (STOP_STEP, SNAPSHOT_STEP, SNAPSHOT_SLOT, ATTENTION, PENDING)]
    assert seen == [6, 6, 1, 6, 0]


def test_a_stop_is_not_before_what_all_have_restored(board: Board) -> None:
    """Workers that have not entered a step yet stop where they resume."""
    assert Party(board).stop(17, NONE) == 17


def test_a_stop_replaces_an_order_that_is_outstanding(board: Board) -> None:
    """The snapshot of step 100 will not be reached."""
    enter(board, 1, 1, 1)
    party = Party(board)
    assert party.snapshot(lambda entered: 100, 0) == 100
    assert party.stop(0, NONE) == 1
    assert (board.words[ATTENTION], board.words[SNAPSHOT_STEP], board.words[SNAPSHOT_SLOT]) == (1, 1, NONE)
    party.give_slot(NO_SNAPSHOT)
    assert board.words[SNAPSHOT_SLOT] == NO_SNAPSHOT


def test_an_order_that_is_not_due_leaves_everybody_running(board: Board) -> None:
    """The workers waited for a moment, and for nothing more."""
    assert Party(board).snapshot(lambda entered: None, 0) is None
    seen = [board.words[word] for word in (ATTENTION, PENDING, SNAPSHOT_STEP, STOP_STEP)]
    assert seen == [NOTHING, 0, NONE, NONE]


def test_workers_wait_while_a_boundary_is_being_named(board: Board) -> None:
    """What they have entered is read only once they can see that they have to wait."""
    looks: list[tuple[int, int]] = []

    def settle() -> None:
        looks.append((board.words[PENDING], board.words[ATTENTION]))
        enter(board, 9, 9, 9)  # they publish before they look

    assert Party(board, settle).stop(0, NONE) == 9
    assert looks == [(1, 0)]


def test_clearing_and_ending(board: Board) -> None:
    """After an order nothing is to be acted on; END is for good."""
    party = Party(board)
    party.stop(3, 0)
    party.clear()
    party.end()
    assert [board.words[word] for word in (ATTENTION, SNAPSHOT_STEP, SNAPSHOT_SLOT, END)] == [NOTHING, NONE, NONE, 1]


def test_what_is_cleared_lets_nobody_past_who_is_blocked(board: Board) -> None:
    """Another pod is still being asked how far it is when the order before is done: all go on looking."""
    party = Party(board)
    party.snapshot(lambda entered: 5, 0)
    enter(board, 6, 6, 6)
    assert party.block() == 6
    party.clear()
    assert [board.words[word] for word in (ATTENTION, PENDING, SNAPSHOT_STEP)] == [0, 1, NONE]
    party.name(6, 1, stop=True)
    assert [board.words[word] for word in (ATTENTION, PENDING, STOP_STEP)] == [6, 0, 6]


def test_real_processes_all_act_at_the_boundaries_that_were_named(board: Board) -> None:
    """They step as fast as they can; whatever is named, each of them acts there, and stops at the one stop."""
    seen = FORK.Array("q", RANKS * (ROUNDS + 1), lock=False)
    counts = FORK.Array("q", RANKS, lock=False)
    workers = [FORK.Process(target=run_ahead, args=(board, rank, seen, counts)) for rank in range(RANKS)]
    for worker in workers:
        worker.start()
    party = Party(board)
    named: list[int] = []
    while len(named) < ROUNDS:
        step = party.snapshot(lambda entered: entered if entered else None, 0)
        if step is None:
            continue
        named.append(step)
        while any(counts[rank] < len(named) for rank in range(RANKS)):
            assert all(worker.is_alive() for worker in workers)
            time.sleep(0)
        party.clear()
    named.append(party.stop(0, 0))
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
        worker.close()
    for rank in range(RANKS):
        assert list(seen[rank * (ROUNDS + 1) : (rank + 1) * (ROUNDS + 1)]) == named


def run_ahead(board: Board, rank: int, seen: list[int], counts: list[int]) -> None:
    """A worker of nothing but boundaries, by the protocol of the board."""
    memory, base, step, acted = board.words, words.row_base(rank), 0, -1
    while True:
        memory[base + words.ENTERED] = step + 1
        if memory[ATTENTION] <= step:
            while memory[PENDING]:
                time.sleep(0.0002)
            if step in (memory[SNAPSHOT_STEP], memory[STOP_STEP]) and step != acted:
                acted = step
                seen[rank * (ROUNDS + 1) + counts[rank]] = step
                counts[rank] += 1
            if memory[STOP_STEP] == step:
                return
        step += 1
