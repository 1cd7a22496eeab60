# SPDX-License-Identifier: Apache-2.0
"""Mounts for tests that may mount: a small file system in memory, and one that never answers."""

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


def _mount(kind: str, path: Path, options: str, flags: int = 0) -> None:
    path.mkdir(exist_ok=True)
    if _LIBC.mount(kind.encode(), os.fsencode(path), kind.encode(), flags, options.encode()):
        pytest.skip(f"cannot mount {kind} here: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def small(path: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of this size."""
    _mount("tmpfs", path, f"size={size_bytes}")
    try:
        yield path
    finally:
        _LIBC.umount2(os.fsencode(path), _MNT_DETACH)


@dataclass(frozen=True)
class Dead:
    """A mount that never answers."""

    path: Path
    taken: int
    """Readable once somebody waits for it."""


@contextlib.contextmanager
def dead(path: Path) -> Iterator[Dead]:
    """A file system whose server takes every request and answers none, as an NFS server that is gone.

    Who asks it anything waits in the kernel, SIGKILL or not, until the ``with`` block is left.
    """
    try:
        server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"cannot serve a file system here: {error}")
    try:
        _mount("fuse", path, f"fd={server},rootmode=40000,user_id=0,group_id=0")
        try:
            _say_hello(server)
            with _taking(server) as taken:
                yield Dead(path, taken)
        finally:
            _LIBC.umount2(os.fsencode(path), _MNT_DETACH)
    finally:
        os.close(server)  # aborts the connection: whoever waits comes back with an error


def _say_hello(server: int) -> None:
    """Answer FUSE_INIT (struct fuse_init_out of linux/fuse.h, version 7.31)."""
    number = struct.unpack_from("<IIQ", os.read(server, 1 << 17))[2]
    body = struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0, *[0] * 7)
    os.write(server, struct.pack("<IiQ", 16 + len(body), 0, number) + body)


@contextlib.contextmanager
def _taking(server: int) -> Iterator[int]:
    """Take requests: one that no server has taken yet could still be given up by a signal."""
    taken, note = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError):
            while os.read(server, 1 << 17):
                os.write(note, b"1")
        os._exit(0)
    os.close(note)
    try:
        yield taken
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(taken)
