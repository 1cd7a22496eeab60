# SPDX-License-Identifier: Apache-2.0
"""Slots keep what a dead worker wrote, only grow, and are gone with their last holder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mounts
import pytest

from resilient.checkpoint.arena import NoRoom, Slot, create_arena, create_arenas
from resilient.errors import CheckpointError
from resilient.link.board import DESCRIPTORS, SLOTS, SPILL, WHOLE, WHOLE_ON_DISK

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
    with pytest.raises(NoRoom, match=r"^cannot hold a snapshot of 4\.0 MiB in memory: .* 2\.0 MiB .*; do ") as refused:
        slot.check(4 << 20, 2 << 20)
    assert refused.value.kind == "full"
    assert os.fstat(slot.fd).st_size == 0
    slot.check(4 << 20, 4 << 20)
    slot.check(4 << 20, None)
    slot.reserve(4 << 20)
    slot.view(4 << 20)[:] = bytes(4 << 20)
    slot.check(4 << 20, 0)
    slot.check(4 << 20, -5)
    with pytest.raises(NoRoom, match=r"takes 1\.0 MiB more and 0\.0 MiB are free"):
        slot.check(5 << 20, -5)
    slot.close()


def test_reserved_room_that_was_never_touched_is_counted() -> None:
    """A file of the right size takes no memory yet, and the copy into it would."""
    slot = Slot.create("test")
    os.ftruncate(slot.fd, 4 << 20)
    with pytest.raises(NoRoom, match=r"takes 4\.0 MiB more"):
        slot.check(4 << 20, 1 << 20)
    slot.close()


def test_what_is_reserved_is_there() -> None:
    """A page that had no room when it is written to would end the process."""
    slot = Slot.create("test")
    slot.reserve(4 << 20)
    assert os.fstat(slot.fd).st_blocks * 512 >= 4 << 20
    slot.check(4 << 20, 0)
    slot.view(4 << 20)[:4] = b"kept"
    slot.reserve(8 << 20, touch=True)
    assert bytes(slot.view(8 << 20)[:8]) == b"kept\0\0\0\0"
    assert not any(slot.view(8 << 20)[4 << 20 :])
    slot.close()


def test_what_is_filled_part_by_part_is_whole_at_its_end() -> None:
    """In any order, beside what was there before; until then nobody takes it for reserved."""
    slot = Slot.create("test")
    slot.reserve(4096)
    slot.view(4096)[:4] = b"kept"
    view = slot.begin(3 << 20)
    assert slot.room == 0
    with pytest.raises(CheckpointError, match="not reserved"):
        slot.view(4096)
    for start in (2 << 20, 0, 1 << 20):
        slot.make_ready(start, start + (1 << 20))
        view[start + 4 : start + 8] = b"part"
    assert slot.room == slot.held_bytes == 3 << 20
    assert bytes(slot.view(3 << 20)[:8]) == b"keptpart"
    slot.close()


BEGIN_AND_DIE = """
import os, signal, sys
from resilient.checkpoint.arena import Slot
slot = Slot.from_fd(int(sys.argv[1]))
slot.begin(4 << 20)
slot.make_ready(1 << 20, 2 << 20)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("again", ["less", "more", "reserved"])
def test_what_was_begun_by_somebody_who_was_killed_is_begun_anew(again: str) -> None:
    """Of whatever size: a page that is missing would end whoever writes to it."""
    slot = Slot.create("test")
    subprocess.run(
        [sys.executable, "-c", BEGIN_AND_DIE, str(slot.fd)], pass_fds=[slot.fd], env={"PYTHONPATH": ROOT}, check=False
    )
    assert (slot.room, slot.held_bytes) == (0, 1 << 20)
    size = {"less": 2 << 20, "more": 8 << 20, "reserved": 3 << 20}[again]
    if again == "reserved":
        slot.reserve(size)
    else:
        slot.begin(size)
        slot.make_ready(0, size)
    assert slot.held_bytes >= slot.room >= size
    assert len(slot.view(size)) == size
    slot.close()


def test_a_part_that_memory_has_no_room_for_is_refused(tmp_path: Path) -> None:
    """Instead of ending the process at the first write to it; and the slot is no room then."""
    with mounts.small(tmp_path / "small", 2 << 20) as directory:
        slot = Slot.from_fd(os.open(directory / "slot", os.O_RDWR | os.O_CREAT))
        slot.begin(4 << 20)
        slot.make_ready(0, 1 << 20)
        with pytest.raises(NoRoom, match="No space left on device"):
            slot.make_ready(1 << 20, 4 << 20)
        assert slot.room == 0
        slot.close()


FULL = """
import resource, sys
from resilient.checkpoint.arena import NoRoom, Slot
slot = Slot.create_on_disk(sys.argv[1])
slot.reserve(4096)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    slot.reserve(2 << 20)
except NoRoom as error:
    print(error, slot.room)
"""


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    """Before anything is mapped, by name, and what was there stays."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env={"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("cannot hold a snapshot of 2.0 MiB on disk: ")
    assert done.stdout.endswith("a larger volume 4096\n")


def test_an_arena_has_one_slot_on_disk(tmp_path: Path) -> None:
    """It takes no memory, has no name in its directory, and lies there and not in memory."""
    arena = create_arena(3, tmp_path)
    assert len(arena) == SLOTS
    assert list(tmp_path.iterdir()) == []
    devices = [os.fstat(slot.fd).st_dev for slot in arena]
    assert [device == tmp_path.stat().st_dev for device in devices] == [number == SPILL for number in range(SLOTS)]
    arena[SPILL].check(1 << 40, 0)
    with pytest.raises(NoRoom):
        arena[0].check(1 << 40, 0)
    assert [os.get_inheritable(slot.fd) for slot in arena] == [False] * SLOTS
    arena[SPILL].reserve(10)
    arena[SPILL].view(10)[:] = b"0123456789"
    other = Slot.from_fd(os.dup(arena[SPILL].fd), on_disk=True)
    assert bytes(other.view(10)) == b"0123456789"
    other.close()
    for slot in arena:
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


def test_some_slots_are_one_for_all_ranks(tmp_path: Path) -> None:
    """One in memory and one on disk; what they take is given back, and they can be filled again."""
    arenas = create_arenas(2, tmp_path)
    assert [len(arena) for arena in arenas.values()] == [DESCRIPTORS] * 2
    assert [one is other for one, other in zip(*arenas.values(), strict=True)] == [False] * SLOTS + [True] * 2
    whole, on_disk = arenas[1][WHOLE], arenas[1][WHOLE_ON_DISK]
    assert [os.fstat(slot.fd).st_dev == tmp_path.stat().st_dev for slot in (whole, on_disk)] == [False, True]
    on_disk.check(1 << 40, 0)
    reader = Slot.from_fd(os.dup(whole.fd))
    for filling in (b"one", b"two"):
        whole.reserve(1 << 20)
        whole.view(3)[:] = filling
        assert bytes(reader.view(3)) == filling
        whole.give_back()
        assert os.fstat(reader.fd).st_blocks == 0
    reader.close()
    for slot in (slot for arena in arenas.values() for slot in arena):
        slot.close()
