# SPDX-License-Identifier: Apache-2.0
"""Opening a store by its URL, and every store that is not a directory; sole owner of fsspec.

``file:`` URLs and plain paths go to :mod:`resilient.checkpoint.local_store`, which needs
``fsync`` and ``O_EXCL``; every other scheme goes through fsspec.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from resilient.checkpoint.files import CHUNK, Entry, Store, check_name
from resilient.checkpoint.local_store import open_directory
from resilient.checkpoint.store_errors import Answered, Missing, explain, scrub
from resilient.errors import CheckpointError, SettingsError, StoreError

_MOST_PARTS: Final = 9_000
"""Object stores allow 10 000 parts of one upload."""


def open_store(url: str) -> Store:
    """The store at a path or fsspec URL; nothing is read or written yet."""
    shown = display_url(url)
    if not url or any(ord(c) < 32 or ord(c) == 127 for c in url):
        raise SettingsError(f"cannot use {shown!r} for checkpoints: it is empty or has control characters")
    if "::" in url:
        raise SettingsError(
            f"cannot use {shown} for checkpoints: chained URLs cache or repack; give the store's own URL"
        )
    scheme, separator, rest = url.partition("://")
    if not separator:
        return open_directory(url, shown)
    if scheme in ("file", "local"):
        if not rest.startswith("/"):
            raise SettingsError(
                f"cannot use {shown} for checkpoints: a file URL has three slashes; use file:///directory"
            )
        return open_directory(rest, shown)
    try:
        fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise SettingsError(_cannot_open(scheme, shown, error)) from error
    except Exception as error:  # a back end's constructor may raise anything
        raise explain(error, f"open {shown}", *_secrets(url)) from error
    return _RemoteStore(fs, str(root).rstrip("/"), shown, _secrets(url))


def display_url(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    return scrub(url, *_secrets(url))


def _secrets(url: str) -> tuple[str, ...]:
    with contextlib.suppress(ValueError):
        user = urlsplit(url).netloc.rpartition("@")[0]
        return (user, *user.split(":")[1:]) if user else ()
    return ()


def _cannot_open(scheme: str, shown: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"cannot open {shown}: the package for {scheme}:// is not installed ({error}); install it in the image"
    known = "s3, gs, abfs, file" if "not known" in str(error) else "see the documentation of its fsspec package"
    return f"cannot open {shown}: {scrub(str(error), shown)}; use one of the schemes that fsspec knows: {known}"


class _RemoteStore(Store):
    """Any fsspec file system: object stores, and ``memory://`` for tests within one process."""

    def __init__(self, fs: AbstractFileSystem, root: str, url: str, secrets: tuple[str, ...] = ()) -> None:
        self.fs = fs
        self.url = url
        self._root = root
        self._secrets = secrets
        # The base class only looks whether the file exists and then writes it: no exclusion at all.
        self._emulated = type(fs).pipe_file is AbstractFileSystem.pipe_file

    def _full(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    @contextlib.contextmanager
    def _doing(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # fsspec's back ends raise anything; all of it is mapped here
            raise explain(error, f"{verb} {self.url}/{name}", *self._secrets) from error

    def create(self, name: str, data: bytes) -> None:
        full = self._full(name)
        with self._doing("create", name):
            if not self._emulated:
                self.fs.pipe_file(full, data, mode="create")
                return
            self._make_parent(full)
            with self.fs.open(full, "xb") as file:
                file.write(data)

    def replace(self, name: str, data: bytes) -> None:
        full = self._full(name)
        with self._doing("write", name):
            self._make_parent(full)
            self.fs.pipe_file(full, data)

    def write_file(self, name: str, chunks: Iterable[bytes], size: int) -> None:
        full = self._full(name)
        part = max(2 * CHUNK, -(-size // _MOST_PARTS))
        with self._doing("write", name):
            self._make_parent(full)
            file = self.fs.open(full, "wb", block_size=part)
            try:
                for chunk in chunks:
                    file.write(chunk)
                file.close()
            except BaseException:
                self._abandon(file, name)
                raise

    def _make_parent(self, full: str) -> None:
        """Object stores have no directories, and making one of them may mean to make a bucket."""
        if getattr(self.fs, "local_file", False) or not getattr(self.fs, "async_impl", False):
            self.fs.makedirs(full.rpartition("/")[0], exist_ok=True)

    def _abandon(self, file: Any, name: str) -> None:
        """Break an upload off; closing the file would publish what was sent so far."""
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # else its finaliser closes it
            with contextlib.suppress(StoreError), self._doing("break off the upload of", name):
                file.discard()
            return
        with contextlib.suppress(StoreError), self._doing("close", name):
            file.close()
        with contextlib.suppress(StoreError):  # it is there already; without a manifest it is nothing
            self.delete(name)

    def read(self, name: str, limit: int) -> bytes:
        full = self._full(name)
        with self._doing("read", name):
            size = self._size(full)
            if size > limit:
                raise Answered(f"cannot read {self.url}/{name}: it has {size} bytes where at most {limit} belong")
            return bytes(self.fs.cat_file(full)) if size else b""

    def read_into(self, name: str, buffer: memoryview) -> None:
        full = self._full(name)
        with self._doing("read", name):
            size = self._size(full)
            if size != len(buffer):
                raise Answered(f"cannot read {self.url}/{name}: it has {size} bytes where {len(buffer)} belong")
            offset = 0
            for chunk in self._ranges(full, size):
                buffer[offset : offset + len(chunk)] = chunk
                offset += len(chunk)

    def chunks(self, name: str) -> Iterator[bytes]:
        full = self._full(name)
        with self._doing("read", name):
            yield from self._ranges(full, self._size(full))

    def _ranges(self, full: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, 4 * CHUNK):
            end = min(size, start + 4 * CHUNK)
            chunk = bytes(self.fs.cat_file(full, start=start, end=end))
            if len(chunk) != end - start:
                raise Answered(f"cannot read {self.url}: {len(chunk)} bytes came where {end - start} belong")
            yield chunk

    def _size(self, full: str) -> int:
        self.fs.invalidate_cache()
        return int(self.fs.info(full)["size"])

    def list(self, prefix: str) -> tuple[Entry, ...]:
        full = self._root if prefix == "." else self._full(prefix)
        with self._doing("list", prefix):
            self.fs.invalidate_cache()
            return tuple(sorted(self._walk(full), key=lambda entry: entry.name))

    def _walk(self, full: str) -> Iterator[Entry]:
        try:
            rows = self.fs.ls(full, detail=True)
        except FileNotFoundError:
            return
        for row in rows:
            path = str(row["name"]).rstrip("/")
            if path == full or not path.startswith(f"{full}/"):  # the marker object of the directory itself
                continue
            if row["type"] == "directory":
                yield from self._walk(path)
                continue
            with contextlib.suppress(CheckpointError):  # a name that we never wrote is not ours to look at
                yield Entry(name=check_name(path[len(self._root) + 1 :]), size=int(row["size"] or 0))

    def delete(self, name: str) -> None:
        full = self._full(name)
        with contextlib.suppress(Missing), self._doing("delete", name):
            self.fs.rm_file(full)

    def exists(self, name: str) -> bool:
        full = self._full(name)
        with contextlib.suppress(Missing), self._doing("look for", name):
            self._size(full)
            return True
        return False
