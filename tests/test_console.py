# SPDX-License-Identifier: Apache-2.0
"""A slow, stopped or closed terminal costs no byte too much and never holds up the loop."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from resilient.supervisor.console import Console


@pytest.fixture
def console() -> Iterator[Console]:
    console = Console(bound=1000)
    yield console
    assert console.close(timeout_s=60)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A read and a write end; a test may close either."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == 9  # noqa: PT017  # the code of an error is asked, not whether it comes


def read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        assert select.select([fd], [], [], 60)[0]
        data += os.read(fd, 1 << 16)
    return data


def test_what_is_written_comes_out_in_order(console: Console, pipe: tuple[int, int]) -> None:
    """Every byte, in the order of writing."""
    read, write = pipe
    for number in range(100):
        console.write(write, b"%d\n" % number)
    assert console.flush(60)
    assert read_all(read, 290) == b"".join(b"%d\n" % number for number in range(100))


@pytest.mark.parametrize("blocking", [True, False])
def test_a_blocked_reader_fills_it_and_loses_nothing(console: Console, pipe: tuple[int, int], blocking: bool) -> None:
    """Writing never waits; ``full`` says to stop reading, a wake-up says to go on, and all of it arrives."""
    read, write = pipe
    os.set_blocking(write, blocking)
    data = os.urandom(1 << 20)
    for start in range(0, len(data), 1 << 14):
        console.write(write, data[start : start + (1 << 14)])
    assert console.full
    assert not console.flush(0)
    assert not select.select([console], [], [], 0)[0]
    assert read_all(read, len(data)) == data
    assert select.select([console], [], [], 60)[0]
    console.acknowledge()
    assert not select.select([console], [], [], 0)[0]
    assert console.flush(60)
    assert not console.full


def test_a_closed_terminal_is_forgotten_and_the_other_stream_goes_on(console: Console, pipe: tuple[int, int]) -> None:
    """What nobody can read is dropped, a full queue included; stderr does not suffer from stdout."""
    read, write = pipe
    os.close(read)
    other_read, other_write = os.pipe()
    for _ in range(100):
        console.write(write, b"x" * 1000)
    console.write(other_write, b"still here")
    assert read_all(other_read, 10) == b"still here"
    assert console.flush(60)
    assert not console.full
    console.write(write, b"x" * 10_000)
    assert not console.full
    os.close(other_read)
    os.close(other_write)


def test_close_does_not_wait_for_a_blocked_terminal(pipe: tuple[int, int]) -> None:
    """The supervisor's exit is not held up for ever; what can be written still is."""
    read, write = pipe
    console = Console()
    console.write(write, b"x" * (1 << 20))
    assert not console.close(timeout_s=0)
    assert len(read_all(read, 1 << 20)) == 1 << 20
    assert console.close(timeout_s=60)
