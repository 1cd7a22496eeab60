# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: copying memory, writing and reading its disk, making digests.

``checkpoint.py`` runs it as a process of its own, several times, since machines are not the same for long. Rates are
in GB/s (1e9 bytes).
"""

import argparse
import ctypes
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import xxhash

LIBC = ctypes.CDLL(None, use_errno=True)
CHUNK = 16 << 20
DROP_TRIES = 5
STILL_COLD = 0.01
"""Share of a file that may be in memory all the same."""
THREADS = 4
WRITES = ("direct write", f"direct write, {THREADS} threads")
READS = ("cold read", f"cold direct read, {THREADS} threads")
MEMCPY, DIGEST = "memcpy", "digest (xxh3_128)"
FRESH = "memcpy to fresh memory, a thread for each core"


def files_below(path: Path) -> Iterator[Path]:
    return (found for found in path.rglob("*") if found.is_file()) if path.is_dir() else iter([path])


def drop_caches(path: Path) -> None:
    """Have files below ``path`` read from disk next time; what the kernel keeps all the same ends the benchmark."""
    for found in files_below(path):
        descriptor = os.open(found, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            for _ in range(DROP_TRIES):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                kept = _cached_share(descriptor)
                if kept <= STILL_COLD:
                    break
            else:
                raise SystemExit(
                    f"cannot measure a cold read: {kept:.0%} of {found} stays in memory; do use another --dir"
                )
        finally:
            os.close(descriptor)


def _cached_share(descriptor: int) -> float:
    """Share of a file's pages that are in the page cache; mincore(2)."""
    size = os.fstat(descriptor).st_size
    if not size:
        return 0.0
    pages = -(-size // mmap.PAGESIZE)
    there = (ctypes.c_ubyte * pages)()
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        if LIBC.mincore(ctypes.c_void_p(_address(mapped)), ctypes.c_size_t(size), there):
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in there) / pages


def read_all(path: Path) -> None:
    """Have files below ``path`` in the page cache."""
    piece = bytearray(CHUNK)
    for found in files_below(path):
        with open(found, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass


class Limits:
    """Two buffers of the state's size, and a file."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size = -(-size_bytes // CHUNK) * CHUNK
        self.first, self.second = mmap.mmap(-1, self.size), mmap.mmap(-1, self.size)
        noise = os.urandom(CHUNK)  # some disks are quicker with zeros
        for buffer in (self.first, self.second):
            for offset in range(0, self.size, CHUNK):
                buffer[offset : offset + CHUNK] = noise
        self.rates: dict[str, list[float]] = {}

    def rate(self, name: str, act: Callable[[], object]) -> None:
        begun = time.monotonic()
        act()
        self.rates.setdefault(name, []).append(self.size / (time.monotonic() - begun) / 1e9)

    def copy(self, target: mmap.mmap) -> None:
        ctypes.memmove(_address(target), _address(self.first), self.size)

    def copy_fresh(self, threads: int) -> None:
        """As into the tensors that a restore has to make: nobody has touched that memory before."""
        fresh = mmap.mmap(-1, self.size)
        target, source = _address(fresh), _address(self.first)

        def copy(at: int) -> int:
            ctypes.memmove(target + at, source + at, CHUNK)
            return CHUNK

        self._in_chunks(copy, threads)

    def write(self, flags: int, threads: int) -> None:
        """All of it, durable."""
        self.path.unlink(missing_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
        view = memoryview(self.first)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            self._in_chunks(lambda at: os.pwrite(descriptor, view[at : at + CHUNK], at), threads)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, flags: int, threads: int) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | flags)
        view = memoryview(self.second)
        try:
            self._in_chunks(lambda at: os.preadv(descriptor, [view[at : at + CHUNK]], at), threads)
        finally:
            os.close(descriptor)

    def _in_chunks(self, act: Callable[[int], int], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for done in pool.map(act, range(0, self.size, CHUNK)):
                if done != CHUNK:
                    raise OSError(f"only {done} of {CHUNK} bytes were copied, read or written")

    def measure(self) -> None:
        """Each of them once."""
        self.rate(MEMCPY, lambda: self.copy(self.second))
        self.rate("memcpy to fresh memory", lambda: self.copy_fresh(1))
        self.rate(FRESH, lambda: self.copy_fresh(len(os.sched_getaffinity(0))))
        self.rate(DIGEST, lambda: xxhash.xxh3_128(self.first).digest())
        self.rate("buffered write", lambda: self.write(0, 1))
        for name, threads in zip(WRITES, (1, THREADS), strict=True):
            self.rate(name, partial(self.write, os.O_DIRECT, threads))
        for name, flags, threads in zip(READS, (0, os.O_DIRECT), (1, THREADS), strict=True):
            drop_caches(self.path)
            self.rate(name, partial(self.read, flags, threads))
        self.path.unlink()


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--size", type=float, required=True, help="GiB")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    limits = Limits(options.directory / "limit", int(options.size * 2**30))
    for _ in range(options.runs):
        limits.measure()
    (options.directory / "result.json").write_text(json.dumps(limits.rates))


if __name__ == "__main__":
    main()
