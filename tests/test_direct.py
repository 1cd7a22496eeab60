# SPDX-License-Identifier: Apache-2.0
"""Large local files: past the page cache where that can be, through it where not, with the same bytes either way."""

import ctypes
import errno
import mmap
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from supervised import LIMIT_S

from resilient.checkpoint import direct
from resilient.checkpoint.direct import BLOCK, PIECE
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Answered, Full
from resilient.checkpoint.throttle import Throttle

PATTERN = random.Random(1).randbytes(BLOCK + 1)  # its period is no multiple of a block: pieces cannot be confused


@pytest.fixture
def memory() -> memoryview:
    """As a slot of an arena: shared, and beginning on a page."""
    size = 5 * PIECE // 2 + 4321
    view = memoryview(mmap.mmap(-1, size))
    view[:] = (PATTERN * (size // len(PATTERN) + 1))[:size]
    return view


def direct_opens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The modes of all successful openings with O_DIRECT from now on."""
    modes: list[int] = []
    real = os.open

    def opened(path: Any, flags: int, *rest: Any) -> int:
        fd = real(path, flags, *rest)
        if flags & os.O_DIRECT:
            modes.append(flags & os.O_ACCMODE)
        return fd

    monkeypatch.setattr(os, "open", opened)
    return modes


def assert_read_back(folder: Path, expected: memoryview) -> None:
    store = open_store(str(folder))
    buffer = memoryview(mmap.mmap(-1, len(expected) or 1))[: len(expected)]
    store.read_into("c/large", buffer)
    assert buffer == expected
    other = bytearray(len(expected))  # nowhere near a page
    store.read_into("c/large", memoryview(other))
    assert other == expected


def can_be_direct(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_large_files_go_past_the_page_cache(
    tmp_path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk, both ways; the bytes are the same, the last ones that fill no block too."""
    if not can_be_direct(tmp_path):
        pytest.skip("the file system of temporary files has no O_DIRECT")
    modes = direct_opens(monkeypatch)
    open_store(str(tmp_path)).write_file("c/large", memory)
    assert modes == [os.O_WRONLY]
    assert (tmp_path / "c/large").read_bytes() == memory
    assert_read_back(tmp_path, memory)
    assert modes == [os.O_WRONLY, os.O_RDONLY]


def cached_pages(path: Path) -> int:
    """How many pages of a file lie in the page cache; to try to read one would have the kernel fetch it."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        found = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), found) == 0
        del first  # else it keeps the mapping open
        return sum(page & 1 for page in found)


def test_what_is_not_cached_is_read_from_the_disk(tmp_path: Path, memory: memoryview) -> None:
    """And what is written is not kept in memory, which the training needs."""
    open_store(str(tmp_path)).write_file("c/large", memory)
    assert not cached_pages(tmp_path / "c/large") or not can_be_direct(tmp_path)
    assert_read_back(tmp_path, memory)


@pytest.mark.parametrize("size", [0, 1, BLOCK, direct._LEAST - 1, direct._LEAST, PIECE, PIECE + 1, 2 * PIECE + BLOCK])
def test_files_of_every_length(tmp_path: Path, memory: memoryview, size: int) -> None:
    """At each border between the two ways."""
    open_store(str(tmp_path)).write_file("c/large", memory[:size])
    assert_read_back(tmp_path, memory[:size])


@pytest.mark.parametrize("first", [1, 512])
def test_memory_that_begins_nowhere_in_particular(tmp_path: Path, memory: memoryview, first: int) -> None:
    """Whatever the disk asks of addresses."""
    open_store(str(tmp_path)).write_file("c/large", memory[first:])
    assert_read_back(tmp_path, memory[first:])


@pytest.mark.parametrize("when", ["open", "pwrite"])
def test_a_file_system_that_refuses_direct_access(
    tmp_path: Path, memory: memoryview, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some say so at once, others at the first write or read."""
    real: Any = {name: getattr(os, name) for name in ("open", "pwrite", "preadv")}
    refused: set[int] = set()

    def opened(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT and when == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        fd = int(real["open"](path, flags, *rest))
        (refused.add if flags & os.O_DIRECT else refused.discard)(fd)
        return fd

    def checked(name: str) -> Any:
        def call(fd: int, *rest: Any) -> int:
            if fd in refused:
                raise OSError(errno.EINVAL, "Invalid argument")
            return int(real[name](fd, *rest))

        return call

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", checked("pwrite"))
    monkeypatch.setattr(os, "preadv", checked("preadv"))
    open_store(str(tmp_path)).write_file("c/large", memory)
    assert_read_back(tmp_path, memory)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, memory: memoryview) -> None:
    """It ends before its size said."""
    path = tmp_path / "short"
    path.write_bytes(memory[: PIECE + 5])
    with open(path, "rb") as file, pytest.raises(EOFError):
        direct.read_all(file.fileno(), memory)
    open_store(str(tmp_path)).write_file("c/large", memory[:PIECE])
    with pytest.raises(Answered, match="bytes where"):
        open_store(str(tmp_path)).read_into("c/large", memory)


LIMITED = """
import mmap, resource, sys
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Full
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
memory = memoryview(mmap.mmap(-1, 40 << 20))[int(sys.argv[3]):]
store = open_store(sys.argv[1])
try:
    store.write_file("c/large", memory)
except Full as error:
    print(error)
"""


@pytest.mark.parametrize("first", [0, 1])
def test_a_limit_of_the_system_is_told_and_leaves_nothing(tmp_path: Path, first: int) -> None:
    """Half-way through a piece, past the page cache and through it."""
    limit = str(PIECE + BLOCK + 7)
    command = [sys.executable, "-c", LIMITED, str(tmp_path), limit, str(first)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert told.stdout.startswith("cannot write"), told.stdout
    assert "free space" in told.stdout
    assert not (tmp_path / "c/large").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != int(limit)


def test_a_full_disk_is_noticed_before_a_byte_is_written(
    memory: memoryview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in memory is larger than memory can be; the file system itself says no."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        pytest.skip("there is no file system in memory here")
    written: list[int] = []
    monkeypatch.setattr(os, "pwrite", lambda *rest: written.append(1))
    name = shared / f"resilient-test-{os.getpid()}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.unlink(name)
        with pytest.raises(OSError, match="No space left"):
            direct._reserve(fd, 1 << 50)
        assert os.fstat(fd).st_blocks == 0
    finally:
        os.close(fd)
    monkeypatch.setattr(direct, "_reserve", lambda fd, size: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
    with pytest.raises(Full):
        open_store(str(tmp_path)).write_file("c/large", memory)
    assert written == []
    assert not (tmp_path / "c/large").exists()


@pytest.mark.parametrize("first", [0, 1])
def test_the_throttle_is_asked_before_each_piece(tmp_path: Path, memory: memoryview, first: int) -> None:
    """Past the page cache and through it; a tail of less than a block goes with the last one."""
    asked: list[int] = []

    class Counting(Throttle):
        def take(self, count: int) -> None:
            asked.append(count)

    open_store(str(tmp_path), throttle=Counting()).write_file("c/large", memory[first:])
    assert len(memory) - first - sum(asked) < BLOCK
    assert max(asked) <= PIECE
