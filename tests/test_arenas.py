# SPDX-License-Identifier: Apache-2.0
"""Tests of the memory for snapshots: bounded, said before it is taken, and made ready while the training goes on."""

import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from supervised import LIMIT_S

from resilient.checkpoint.arena import NoRoom, Slot, create_arena
from resilient.link.board import SPILL
from resilient.training.arenas import SMALL_BYTES, Arenas, Preparing

LARGE = SMALL_BYTES + (8 << 20)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[list[Slot]]:
    slots = create_arena(0, tmp_path)
    yield slots
    for slot in slots:
        slot.close()


def arenas_of(slots: list[Slot], said: list[str], *, ranks: int = 1, free: int | None = 1 << 40) -> Arenas:
    return Arenas([slot.fd for slot in slots], ranks=ranks, say=said.append, free_bytes=lambda: free)


def ready(arenas: Arenas, slot: int, size_bytes: int) -> int:
    """Ask until it is there; how often it was being made ready. The thread that does it is what is waited for."""
    for count in range(3):
        with suppress(Preparing):
            arenas.make_room(slot, size_bytes, at_once=False)
            return count
        assert arenas._preparing is not None
        arenas._preparing.join()
    raise AssertionError("it is made ready for ever")


def test_little_memory_is_had_at_once(slots: list[Slot]) -> None:
    """With room to grow a little."""
    arenas = arenas_of(slots, [])
    arenas.make_room(0, 1 << 20, at_once=False)
    assert 1 << 20 < slots[0].room < 2 << 20
    assert slots[1].room == 0


def test_much_memory_is_said_and_made_ready_behind_the_training(slots: list[Slot]) -> None:
    """Both slots at once, so that the second snapshot waits for nothing."""
    said: list[str] = []
    arenas = arenas_of(slots, said)
    assert (ready(arenas, 0, LARGE), ready(arenas, 1, LARGE)) == (1, 0)
    assert [slot.room > LARGE for slot in slots] == [True, True, False]
    (words,) = said
    assert words.startswith("snapshots take 2 x 75 MiB of memory on this rank; free for it: ")


def test_the_last_snapshot_waits_for_its_memory(slots: list[Slot]) -> None:
    """There is no later boundary that could find it."""
    arenas = arenas_of(slots, [])
    arenas.make_room(0, LARGE, at_once=True)
    assert slots[0].room > LARGE


@pytest.mark.parametrize("ranks", [1, 8])
def test_what_does_not_fit_is_refused_before_it_is_taken(slots: list[Slot], ranks: int) -> None:
    """All ranks share what is free; the slot on disk takes none of it."""
    arenas = arenas_of(slots, [], ranks=ranks, free=ranks * (LARGE >> 2))
    for at_once in (False, True):
        with pytest.raises(NoRoom, match="do raise the memory limit"):
            arenas.make_room(0, LARGE, at_once=at_once)
    assert slots[0].room == 0
    arenas.make_room(SPILL, LARGE, at_once=False)
    assert slots[SPILL].room >= LARGE


def _refused_by_the_kernel(slots: list[Slot], found: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    arenas = arenas_of(slots, [])
    for slot in (0, 1):
        try:
            ready(arenas, slot, LARGE)
        except NoRoom as error:
            found.send(f"{slot} {error}")


def test_memory_that_the_kernel_refuses_is_not_asked_for_for_ever(slots: list[Slot]) -> None:
    """Although enough was said to be free: each slot is found full, and the host turns to the disk."""
    ours, theirs = FORK.Pipe()
    worker = FORK.Process(target=_refused_by_the_kernel, args=(slots, theirs))
    worker.start()
    worker.join(LIMIT_S)
    assert worker.exitcode == 0
    for slot in (0, 1):
        assert ours.recv().startswith(f"{slot} cannot hold a snapshot of")
    ours.close()
    theirs.close()
