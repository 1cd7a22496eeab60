# SPDX-License-Identifier: Apache-2.0
"""A store in a directory of this machine or of a shared file system (NFS, Lustre, a bound volume).

Every write is followed by an ``fsync`` of the file and of each directory that changed:
a manifest that survives a power cut must not name a file that did not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import Final

from resilient.checkpoint import direct
from resilient.checkpoint.files import CHUNK, Entry, Store, check_name
from resilient.checkpoint.pieces import Ready, there_already
from resilient.checkpoint.store_errors import Answered, Missing, explain
from resilient.checkpoint.throttle import Throttle
from resilient.errors import CheckpointError

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Not through a link, and not waiting for the other end of a fifo that lies there."""
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""File systems without hard links; there ``O_EXCL`` alone decides."""
_TRIES: Final = 10
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def open_directory(path: str, url: str, throttle: Throttle | None = None) -> Store:
    """The store in the directory ``path``, which is made on the first write, not before."""
    return _Directory(path, url, throttle or Throttle())


class _Directory(Store):
    def __init__(self, path: str, url: str, throttle: Throttle) -> None:
        self._throttle = throttle
        self.path = os.path.abspath(os.path.expanduser(path))
        self.url = url
        self._root = self.path

    @contextlib.contextmanager
    def _doing(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain(error, f"{verb} {self.url}/{name}") from error

    def _full(self, name: str) -> str:
        """The path of ``name``; a link in the store must not lead out of it."""
        full = os.path.join(self._root, check_name(name))
        root = os.path.realpath(self._root)
        if os.path.commonpath((root, os.path.realpath(os.path.dirname(full)))) != root:
            raise CheckpointError(f"cannot use {self.url}/{name}: a link there leads out of the store; remove it")
        return full

    def create(self, name: str, data: bytes) -> None:
        """Written under another name and linked: a crash half-way leaves no half record under this name for ever."""
        with self._doing("create", name):
            full = self._full(name)
            fresh = f"{full}.{secrets.token_hex(4)}"
            self._write(fresh, lambda fd: _write_small(fd, data))
            try:
                os.link(fresh, full)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._write(full, lambda fd: _write_small(fd, data))
            finally:
                os.unlink(fresh)
            _sync_directory(os.path.dirname(full))

    def replace(self, name: str, data: bytes) -> None:
        with self._doing("write", name):
            full = self._full(name)
            fresh = f"{full}.{secrets.token_hex(4)}"
            self._write(fresh, lambda fd: _write_small(fd, data))
            try:
                os.replace(fresh, full)
            except OSError:
                os.unlink(fresh)
                raise
            _sync_directory(os.path.dirname(full))

    def write_file(self, name: str, data: memoryview) -> None:
        def fill(fd: int) -> None:
            direct.write_all(fd, data, self._throttle)
            os.fsync(fd)
            direct.drop_cached(fd)

        with self._doing("write", name):
            self._write(self._full(name), fill)

    def _write(self, full: str, fill: Callable[[int], None]) -> None:
        """A new file, whose bytes are durable when ``fill`` has returned."""
        fd = _open_new(full)
        try:
            fill(fd)
        except BaseException:
            # Half a file must not stand where `create` would take it for somebody else's whole one.
            with contextlib.suppress(OSError):
                os.unlink(full)
            raise
        finally:
            os.close(fd)
        _sync_directory(os.path.dirname(full))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[tuple[int, int]]:
        """Descriptor and size of a plain file."""
        with self._doing("read", name):
            fd = os.open(self._full(name), _READ)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise Answered(f"cannot read {self.url}/{name}: it is not a plain file; remove it")
                yield fd, status.st_size
            finally:
                os.close(fd)

    def read(self, name: str, limit: int) -> bytes:
        with self._reading(name) as (fd, size):
            if size > limit:
                raise Answered(f"cannot read {self.url}/{name}: it has {size} bytes where at most {limit} belong")
            return b"".join(iter(lambda: os.read(fd, CHUNK), b""))[:limit]

    def read_into(self, name: str, buffer: memoryview, ready: Ready = there_already) -> None:
        with self._reading(name) as (fd, size):
            if size != len(buffer):
                raise Answered(f"cannot read {self.url}/{name}: it has {size} bytes where {len(buffer)} belong")
            try:
                direct.read_all(fd, buffer, ready)
            except EOFError:
                raise Answered(f"cannot read {self.url}/{name}: it was cut while it was being read") from None

    def chunks(self, name: str) -> Iterator[bytes]:
        with self._reading(name) as (fd, _):
            yield from iter(lambda: os.read(fd, CHUNK), b"")

    def list(self, prefix: str) -> tuple[Entry, ...]:
        with self._doing("list", prefix):
            start = self._root if prefix == "." else self._full(prefix)
            return tuple(sorted(self._walk(start), key=lambda entry: entry.name))

    def _walk(self, directory: str) -> Iterator[Entry]:
        """Plain files only; links are neither followed nor shown."""
        try:
            found = list(os.scandir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return
        for item in found:
            if item.is_dir(follow_symlinks=False):
                yield from self._walk(item.path)
            elif item.is_file(follow_symlinks=False):
                with contextlib.suppress(CheckpointError, FileNotFoundError):  # not a name of ours; gone by now
                    name = check_name(os.path.relpath(item.path, self._root))
                    status = item.stat(follow_symlinks=False)
                    stamp = f"{status.st_ino}-{status.st_ctime_ns}"  # nobody can set the time of a change
                    yield Entry(name=name, size=status.st_size, stamp=stamp)

    def delete(self, name: str) -> None:
        with self._doing("delete", name):
            full = self._full(name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(full)
            parent = os.path.dirname(full)
            if parent != self._root:
                with contextlib.suppress(OSError):  # not empty: other files are still there
                    os.rmdir(parent)

    def written_at(self, name: str) -> float:
        with self._reading(name) as (fd, _):
            return os.fstat(fd).st_mtime

    def exists(self, name: str) -> bool:
        try:
            with self._reading(name):
                return True
        except Missing:
            return False


def _write_small(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)


def _open_new(full: str) -> int:
    """Another saver that deletes its own files may take the directory for empty until this one is in it."""
    for _ in range(_TRIES):
        _make_directory(os.path.dirname(full))
        with contextlib.suppress(FileNotFoundError):
            return os.open(full, _CREATE, 0o666)
    return os.open(full, _CREATE, 0o666)


def _make_directory(path: str) -> None:
    """Make ``path`` and what is missing above it, each entry durable in its own parent."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_directory(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    _sync_directory(parent)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:  # FUSE and some network file systems have no such thing
            raise
    finally:
        os.close(fd)
