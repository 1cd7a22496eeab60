# SPDX-License-Identifier: Apache-2.0
"""The copy of a journal in the store: few files, and every line in its place, wherever the work breaks off."""

import itertools
from collections.abc import Iterator

import pytest
from faulty_store import FaultyFileSystem

from resilient.checkpoint import layout, shipped
from resilient.checkpoint.files import Store
from resilient.checkpoint.shipped import AT_ONCE, TOGETHER, ShippedJournal
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Exists
from resilient.errors import CheckpointError

PIECES = 4
"""Until they are joined, in tests of their own."""


@pytest.fixture
def store() -> Iterator[Store]:
    FaultyFileSystem.reset()
    yield open_store("faulty://run")
    FaultyFileSystem.reset()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "TOGETHER", PIECES)
    monkeypatch.setattr(shipped, "AT_ONCE", 2)


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def numbers(store: Store) -> list[int]:
    """Of the files that are there."""
    return sorted(int(entry.name.split("/")[-1].removesuffix(".jsonl")) for entry in store.list("journal/sub/pod"))


def read(store: Store) -> list[bytes]:
    """All lines as one who tells the story gets them, each once."""
    pieces = [store.read(layout.segment_path("sub", "pod", number), 1 << 20) for number in numbers(store)]
    return list(dict.fromkeys(b"".join(pieces).splitlines(keepends=True)))


def test_a_month_is_some_hundred_files(store: Store) -> None:
    """At one piece each 30 s; they hold all lines."""
    journal = ShippedJournal(store, "sub")
    count = TOGETHER * 20
    for number in range(1, count + 1):
        journal.keep("pod", number, line(number))
    assert len(numbers(store)) == 20 + TOGETHER - 1 - AT_ONCE
    assert read(store) == [line(number) for number in range(1, count + 1)]


def test_a_piece_is_kept_once(store: Store, few: None) -> None:
    """The same may come again, as its answer was lost, also when it is joined already; no other may take its place."""
    journal = ShippedJournal(store, "sub")
    expected = []
    for number in range(1, 5 * PIECES):
        expected.append(line(number))
        for _ in range(1 + number % 3):
            journal.keep("pod", number, line(number))
        ShippedJournal(store, "sub").keep("pod", number, line(number))
        assert read(store) == expected
    with pytest.raises(Exists):
        journal.keep("pod", 1, b"{}")
    assert len(numbers(store)) < 5 * PIECES - 1


def test_large_pieces_are_joined_to_no_more_than_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be too long together stays apart."""
    monkeypatch.setattr(shipped, "JOINED_LIMIT", 5 * len(line(1)))
    journal = ShippedJournal(store, "sub")
    for number in range(1, 10):
        journal.keep("pod", number, line(number))
    journal.keep("pod", 10, line(10) * 9)
    journal.keep("pod", 11, line(11))
    assert numbers(store) == [5, 9, 10, 11]
    assert read(store) == [line(number) for number in range(1, 12)]


class Died(BaseException):
    """What a process does that nobody can catch."""


def test_every_line_is_in_its_place_wherever_it_breaks_off(store: Store, few: None) -> None:
    """Killed, or refused once, at the n-th operation of the store, for every n; and so it stays."""
    last = 3 * PIECES + 1
    for failing, dies in ((number, dies) for number in itertools.count(1) for dies in (False, True)):
        FaultyFileSystem.reset()
        calls = itertools.count(1)
        journal = ShippedJournal(store, "sub")

        error: BaseException = Died() if dies else OSError(5, "it breaks off here")

        def fault(*of: str, error: BaseException = error, at: int = failing, calls: Iterator[int] = calls) -> None:
            if next(calls) == at:
                raise error

        for number in range(1, last):
            FaultyFileSystem.fault = staticmethod(fault)
            try:
                journal.keep("pod", number, line(number))
            except CheckpointError:
                journal.keep("pod", number, line(number))
            except Died:
                journal = ShippedJournal(store, "sub")  # has it to ship, and knows nothing of the others
                journal.keep("pod", number, line(number))
            FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
            assert read(store) == [line(one) for one in range(1, number + 1)]
        if next(calls) <= failing:
            break
    assert numbers(store) == [PIECES, 2 * PIECES, 2 * PIECES + 1, 3 * PIECES]
    assert failing > last + PIECES
