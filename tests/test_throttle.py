# SPDX-License-Identifier: Apache-2.0
"""The bandwidth limit: one for all threads, nothing saved up, over at once for who leaves; and pieces of a file."""

import threading

import pytest

from resilient.checkpoint.pieces import each_piece
from resilient.checkpoint.throttle import Throttle
from resilient.errors import CheckpointError


class Waits(threading.Event):
    """Notes how long it was waited for, and lets a clock go on by that."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.waited_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_s.append(timeout or 0.0)
        self.now_s += timeout or 0.0
        return False


def test_bytes_pass_at_the_rate() -> None:
    """The first piece at once, each further one when those before it have passed."""
    waits = Waits()
    throttle = Throttle(bytes_per_s=100, lifted=waits, now=lambda: waits.now_s)
    for count in (50, 200, 10):
        throttle.take(count)
    assert waits.waited_s == [0.0, 0.5, 2.0]


def test_a_pause_is_not_saved_up() -> None:
    """After an hour without a save, the next one is as slow as ever."""
    waits = Waits()
    throttle = Throttle(bytes_per_s=100, lifted=waits, now=lambda: waits.now_s)
    throttle.take(100)
    waits.now_s = 3600.0
    throttle.take(100)
    throttle.take(100)
    assert waits.waited_s == [0.0, 0.0, 1.0]


def test_without_a_limit_nothing_waits() -> None:
    """And nothing is counted."""
    waits = Waits()
    Throttle(lifted=waits).take(1 << 60)
    assert waits.waited_s == []


def test_leaving_ends_every_wait() -> None:
    """A wait of days, and threads that are let go by an event."""
    throttle = Throttle(bytes_per_s=1)
    throttle.take(10**6)
    threads = [threading.Thread(target=throttle.take, args=(1,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    throttle.lifted.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("limit", [None, 1])
def test_a_file_that_nobody_wants_is_not_written(limit: int | None) -> None:
    """Whether there is a limit or not, each piece asks, after what it has waited for."""
    waits = Waits()
    asked_at_s: list[float] = []

    def wanted() -> None:
        asked_at_s.append(waits.now_s)
        if len(asked_at_s) == 3:
            raise CheckpointError

    throttle = Throttle(bytes_per_s=limit, lifted=waits, now=lambda: waits.now_s, wanted=wanted)
    throttle.take(5)
    throttle.take(5)
    with pytest.raises(CheckpointError):
        throttle.take(5)
    assert asked_at_s == ([0.0, 5.0, 10.0] if limit else [0.0] * 3)


def test_the_next_save_does_not_wait_for_what_was_not_written() -> None:
    """Pieces that nobody wants any more have taken no time of the store's."""
    waits = Waits()
    dropped = False

    def wanted() -> None:
        if dropped:
            raise CheckpointError

    throttle = Throttle(bytes_per_s=100, now=lambda: waits.now_s, wanted=wanted, wait=lambda seconds: waits.wait(0.0))
    throttle.take(100)
    dropped = True
    for _ in range(3):
        with pytest.raises(CheckpointError):
            throttle.take(1000)
    dropped = False
    throttle.wait = waits.wait
    throttle.take(1)
    assert waits.waited_s[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 95, 100])
@pytest.mark.parametrize("at_once", [1, 4])
def test_pieces_cover_a_file_once(size: int, at_once: int) -> None:
    """Each byte in one piece, no piece too long."""
    seen: list[tuple[int, int]] = []
    each_piece(size, 10, at_once, lambda start, end: seen.append((start, end)))
    assert sorted(seen) == [(start, min(size, start + 10)) for start in range(0, size, 10)]


def test_nothing_is_under_way_when_an_error_comes() -> None:
    """Pieces that were begun are waited for, and no other is begun."""
    both = threading.Barrier(2)
    ended: list[int] = []

    def work(start: int, end: int) -> None:
        both.wait(60)
        if start == 0:
            raise ValueError("the first one")
        ended.append(start)

    with pytest.raises(ValueError, match="the first one"):
        each_piece(2, 1, 2, work)
    assert ended == [1]


def test_no_piece_is_begun_after_an_error() -> None:
    """The other threads stop, although it is not theirs."""
    both = threading.Barrier(2)
    begun: list[int] = []

    def work(start: int, end: int) -> None:
        begun.append(start)
        if start < 2:
            both.wait(60)
        if start == 1:
            raise ValueError("the second one")
        threading.Event().wait(0.001)  # a piece of some length

    with pytest.raises(ValueError, match="the second one"):
        each_piece(3000, 1, 2, work)
    assert len(begun) < 3000
