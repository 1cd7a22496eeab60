# SPDX-License-Identifier: Apache-2.0
"""Slots keep what a dead worker wrote, only grow, and are gone with their last holder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resilient.checkpoint.arena import Slot
from resilient.errors import CheckpointError

ROOT = str(Path(__file__).parents[1])
FILL_AND_DIE = """
import os, signal, sys
from resilient.checkpoint.arena import Slot
slot = Slot.from_fd(int(sys.argv[1]))
slot.reserve(20000)
slot.view(20000)[:] = b"x" * 20000
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_wrote_is_there() -> None:
    """The worker grows and fills the slot and is killed; the supervisor reads all of it."""
    slot = Slot.create("test")
    worker = subprocess.run(
        [sys.executable, "-c", FILL_AND_DIE, str(slot.fd)], pass_fds=[slot.fd], env={"PYTHONPATH": ROOT}, check=False
    )
    assert worker.returncode == -signal.SIGKILL
    assert bytes(slot.view(20000)) == b"x" * 20000
    slot.close()


def test_a_slot_is_not_inherited_by_accident() -> None:
    """Only the processes that it is passed to hold it, so that it does not outlive them."""
    slot = Slot.create("test")
    assert not os.get_inheritable(slot.fd)
    slot.close()


def test_a_slot_has_no_name() -> None:
    """There is nothing to clean up: no directory has an entry of it."""
    slot = Slot.create("test")
    assert os.fstat(slot.fd).st_nlink == 0
    slot.close()


def test_it_is_gone_with_its_last_holder() -> None:
    """Closing gives the descriptor back, also while a view is in use, and a second time does nothing."""
    slot = Slot.create("test")
    slot.reserve(10)
    view = slot.view(10)
    fd = slot.fd
    slot.close()
    slot.close()
    assert slot.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    view[:] = b"0123456789"
    assert bytes(view) == b"0123456789"


def test_it_grows_and_never_shrinks() -> None:
    """What a reader has mapped stays valid whatever the writer asks for."""
    slot = Slot.create("test")
    slot.reserve(5000)
    view = slot.view(5000)
    view[:] = b"a" * 5000
    slot.reserve(100)
    assert os.fstat(slot.fd).st_size == 5000
    slot.reserve(100_000)
    assert bytes(slot.view(100_000)[:5001]) == b"a" * 5000 + b"\0"
    view[:1] = b"b"
    assert slot.view(100_000)[0] == ord("b")
    slot.close()


def test_views_share_the_memory_and_the_mapping() -> None:
    """A second view, or one of another holder, sees what the first wrote; pages are faulted once."""
    slot = Slot.create("test")
    other = Slot.from_fd(os.dup(slot.fd))
    slot.reserve(8192)
    first, second = slot.view(8192), slot.view(4096)
    first[4095] = 7
    assert second[4095] == other.view(8192)[4095] == 7
    assert first.obj is second.obj
    assert (len(first), len(second), second.readonly) == (8192, 4096, False)
    slot.close()
    other.close()


def test_more_than_is_available_is_refused() -> None:
    """Pages that the slot has already are not counted a second time."""
    slot = Slot.create("test")
    with pytest.raises(CheckpointError, match=r"^cannot hold a snapshot of 4\.0 MiB in memory: .* 2\.0 MiB .*; do "):
        slot.reserve(4 << 20, available_bytes=2 << 20)
    assert os.fstat(slot.fd).st_size == 0
    slot.reserve(4 << 20, available_bytes=4 << 20)
    slot.view(4 << 20)[:] = bytes(4 << 20)
    slot.reserve(4 << 20, available_bytes=0)
    slot.reserve(4 << 20, available_bytes=-5)
    with pytest.raises(CheckpointError, match=r"takes 1\.0 MiB more and 0\.0 MiB are free"):
        slot.reserve(5 << 20, available_bytes=-5)
    slot.close()


def test_reserved_room_that_was_never_touched_is_counted() -> None:
    """A file of the right size takes no memory yet, and the copy into it would."""
    slot = Slot.create("test")
    slot.reserve(4 << 20)
    with pytest.raises(CheckpointError, match=r"takes 4\.0 MiB more"):
        slot.reserve(4 << 20, available_bytes=1 << 20)
    slot.close()


def test_a_view_beyond_what_is_reserved_is_refused() -> None:
    """Touching it would kill the process with SIGBUS."""
    slot = Slot.create("test")
    slot.reserve(10)
    for size in (11, 0, -1):
        with pytest.raises(CheckpointError, match="do reserve them"):
            slot.view(size)
    slot.close()


def test_a_wrong_descriptor_is_refused() -> None:
    """A number that is not open, or is open on something else, says so before anything is mapped."""
    reading, writing = os.pipe()
    with pytest.raises(CheckpointError, match="is not a file"):
        Slot.from_fd(reading)
    os.close(reading)
    os.close(writing)
    with pytest.raises(CheckpointError, match="Bad file descriptor"):
        Slot.from_fd(reading)
