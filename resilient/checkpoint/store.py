# SPDX-License-Identifier: Apache-2.0
"""Opening a store by its URL, and every store that is not a directory; sole owner of fsspec.

``file:`` URLs and plain paths go to :mod:`resilient.checkpoint.local_store`, which needs
``fsync`` and ``O_EXCL``; every other scheme goes through fsspec, which is loaded for these alone: to load it
takes as long as a third of what a supervisor loads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from resilient import retry
from resilient.checkpoint import multipart
from resilient.checkpoint.files import CHUNK, Entry, Store, check_name
from resilient.checkpoint.local_store import open_directory
from resilient.checkpoint.pieces import Ready, each_piece, there_already
from resilient.checkpoint.store_errors import Answered, Missing, explain, scrub
from resilient.checkpoint.throttle import Throttle
from resilient.errors import CheckpointError, SettingsError, StoreError

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

_STAMPS: Final = ("ETag", "etag", "generation", "md5Hash")
"""What changes with an object, as s3fs, adlfs and gcsfs say it."""
_WRITTEN: Final = ("LastModified", "last_modified", "updated", "mtime", "created")
"""As s3fs, adlfs, gcsfs, file systems and ``memory:`` say it."""
_MOST_PARTS: Final = 9_000
"""Object stores allow 10 000 parts of one upload."""
_RANGE: Final = 8 << 20
_S3_CLIENT: Final[Mapping[str, Any]] = {
    "connect_timeout": 5,
    "read_timeout": 15,
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    "max_pool_connections": multipart.AT_ONCE + 8,
}
"""Of botocore. It would try 5 times, and s3fs 5 times that, before our own policies see an error: minutes of a server
that does not answer. One try each, and the policies of :mod:`resilient.retry` decide. (aiohttp alone sends a request
again, once, if the connection that it had kept from earlier turns out to be closed.) The rest of the connections is for
small objects beside a large upload."""
_S3_DEADLINE_S: Final = 60.0
"""For a whole request, as the timeouts above begin anew with every byte that comes, and none of them holds while a
part is being sent. The slowest line for a save then has 2 MB/s."""
_S3_LISTING_S: Final = 300.0
"""A thousand names come with each answer, and a long run's journal has a hundred thousand."""
_S3_COMPLETION_S: Final = 600.0
"""For putting the parts together, which S3 says may take minutes; it sends a blank now and then meanwhile."""


def open_store(url: str, *, throttle: Throttle | None = None) -> Store:
    """The store at a path or fsspec URL; nothing is read or written yet. ``throttle``: how fast large files may be
    written."""
    throttle = throttle or Throttle()
    shown = display_url(url)
    if not url or any(ord(c) < 32 or ord(c) == 127 for c in url):
        raise SettingsError(f"cannot use {shown!r} for checkpoints: it is empty or has control characters")
    if "::" in url:
        raise SettingsError(
            f"cannot use {shown} for checkpoints: chained URLs cache or repack; give the store's own URL"
        )
    scheme, separator, rest = url.partition("://")
    if not separator:
        return open_directory(url, shown, throttle)
    if scheme in ("file", "local"):
        if not rest.startswith("/"):
            raise SettingsError(
                f"cannot use {shown} for checkpoints: a file URL has three slashes; use file:///directory"
            )
        return open_directory(rest, shown, throttle)
    import fsspec.core

    try:
        fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise SettingsError(_cannot_open(scheme, shown, error)) from error
    except Exception as error:  # a back end's constructor may raise anything
        raise explain(error, f"open {shown}", *_secrets(url)) from error
    if not str(root).strip("/"):
        raise SettingsError(f"cannot use {shown} for checkpoints: it names no bucket; write {scheme}://bucket/run")
    kind = _S3Store if hasattr(fs, "call_s3") else _RemoteStore
    return kind(fs, str(root).rstrip("/"), shown, _secrets(url), throttle)


def display_url(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    return scrub(url, *_secrets(url))


def _secrets(url: str) -> tuple[str, ...]:
    with contextlib.suppress(ValueError):
        user = urlsplit(url).netloc.rpartition("@")[0]
        return (user, *user.split(":")[1:]) if user else ()
    return ()


_PACKAGES: Final = {
    **dict.fromkeys(("s3", "s3a"), "resilient-training[s3]"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
}
"""What to install for a scheme of fsspec's that is not installed with us."""


def _cannot_open(scheme: str, shown: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        package = _PACKAGES.get(scheme, "what it names")
        return f"cannot open {shown}: the package for {scheme}:// is not installed ({error}); pip install {package}"
    known = "s3, gs, abfs, file" if "not known" in str(error) else "see the documentation of its fsspec package"
    return f"cannot open {shown}: {scrub(str(error), shown)}; use one of the schemes that fsspec knows: {known}"


def _wall_s(found: Mapping[str, Any]) -> float | None:
    """The time at which an object was written, by whatever name and type a back end gives it."""
    value = next((found[name] for name in _WRITTEN if found.get(name)), None)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # Python 3.10 does not read a Z
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    return float(value) if isinstance(value, (int, float)) else None


class _RemoteStore(Store):
    """Any fsspec file system: object stores, and ``memory://`` for tests within one process."""

    at_once = 1
    """Ranges of a file that are read at the same time; not every back end may be used by several threads."""
    deadline: Mapping[str, float] = {}
    """The argument that bounds each call of the back end."""

    def __init__(
        self, fs: AbstractFileSystem, root: str, url: str, secrets: tuple[str, ...], throttle: Throttle
    ) -> None:
        from fsspec.spec import AbstractFileSystem

        self.fs = fs
        self.throttle = throttle
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
                self.fs.pipe_file(full, data, mode="create", **self.deadline)
                return
            self._make_parent(full)
            with self.fs.open(full, "xb") as file:
                file.write(data)

    def replace(self, name: str, data: bytes) -> None:
        full = self._full(name)
        with self._doing("write", name):
            self._make_parent(full)
            self.fs.pipe_file(full, data, **self.deadline)

    def write_file(self, name: str, data: memoryview) -> None:
        full = self._full(name)
        part = max(2 * CHUNK, -(-len(data) // _MOST_PARTS))
        with self._doing("write", name):
            self._make_parent(full)
            file = self.fs.open(full, "wb", block_size=part)
            try:
                for start in range(0, len(data), part):
                    piece = bytes(data[start : start + part])
                    self.throttle.take(len(piece))
                    file.write(piece)
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
        from fsspec.spec import AbstractBufferedFile

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
            return bytes(self.fs.cat_file(full, **self.deadline)) if size else b""

    def read_into(self, name: str, buffer: memoryview, ready: Ready = there_already) -> None:
        full = self._full(name)
        with self._doing("read", name):
            size = self._size(full)
            if size != len(buffer):
                raise Answered(f"cannot read {self.url}/{name}: it has {size} bytes where {len(buffer)} belong")

            def fill(start: int, end: int) -> None:
                ready(start, end)
                buffer[start:end] = self._range(full, start, end)

            each_piece(size, _RANGE, self.at_once, fill)

    def chunks(self, name: str) -> Iterator[bytes]:
        full = self._full(name)
        with self._doing("read", name):
            size = self._size(full)
            for start in range(0, size, _RANGE):
                yield self._range(full, start, min(size, start + _RANGE))

    def _range(self, full: str, start: int, end: int) -> bytes:
        data = bytes(self.fs.cat_file(full, start=start, end=end, **self.deadline))
        if len(data) != end - start:
            raise Answered(f"cannot read {self.url}: {len(data)} bytes came where {end - start} belong")
        return data

    def _size(self, full: str) -> int:
        self.fs.invalidate_cache()
        return int(self.fs.info(full, **self.deadline)["size"])

    def list(self, prefix: str) -> tuple[Entry, ...]:
        full = self._root if prefix == "." else self._full(prefix)
        with self._doing("list", prefix):
            self.fs.invalidate_cache()
            return tuple(sorted(self._walk(full), key=lambda entry: entry.name))

    def _walk(self, full: str) -> Iterator[Entry]:
        try:
            rows = self.fs.ls(full, detail=True, **self.deadline)
        except FileNotFoundError:
            return
        for row in rows:
            if (path := self._below(full, row)) and row["type"] == "directory":
                yield from self._walk(path)
            elif path:
                yield from self._entry(path, row)

    def _below(self, full: str, row: Mapping[str, Any]) -> str:
        """The path of a row; empty for the marker object of the directory itself."""
        path = str(row["name"]).rstrip("/")
        return path if path.startswith(f"{full}/") else ""

    def _entry(self, path: str, row: Mapping[str, Any]) -> Iterator[Entry]:
        with contextlib.suppress(CheckpointError):  # a name that we never wrote is not ours to look at
            name = check_name(path[len(self._root) + 1 :])
            stamp = next((str(row[key]) for key in _STAMPS if row.get(key)), "")
            yield Entry(name=name, size=int(row["size"] or 0), stamp=stamp)

    def delete(self, name: str) -> None:
        full = self._full(name)
        with contextlib.suppress(Missing), self._doing("delete", name):
            self.fs.rm_file(full, **self.deadline)

    def written_at(self, name: str) -> float | None:
        full = self._full(name)
        with self._doing("look for", name):
            self.fs.invalidate_cache()
            return _wall_s(self.fs.info(full, **self.deadline))

    def exists(self, name: str) -> bool:
        full = self._full(name)
        with contextlib.suppress(Missing), self._doing("look for", name):
            self._size(full)
            return True
        return False


class _S3Store(_RemoteStore):
    """S3 by s3fs: parts and ranges side by side, each tried again by itself, and a deadline for every call."""

    at_once = multipart.AT_ONCE
    deadline: Mapping[str, float] = {"timeout": _S3_DEADLINE_S}

    def __init__(self, fs: Any, *place: Any) -> None:
        super().__init__(fs, *place)
        fs.config_kwargs = {**_S3_CLIENT, **fs.config_kwargs}  # read at the first call; what fsspec was told goes first
        fs.retries = 1
        self._room = threading.BoundedSemaphore(multipart.AT_ONCE)

    def create(self, name: str, data: bytes) -> None:
        full = self._full(name)
        with self._doing("create", name):  # a conditional put: open(mode="x") would have no deadline
            self.fs.pipe_file(full, data, mode="create", **self.deadline)

    def _walk(self, full: str) -> Iterator[Entry]:
        """All levels by one question: a request for each directory would make each save of many checkpoints slower."""
        try:
            rows = self.fs.find(full, detail=True, timeout=_S3_LISTING_S)
        except FileNotFoundError:
            return
        for row in rows.values():
            if (path := self._below(full, row)) and not str(row["name"]).endswith("/"):
                yield from self._entry(path, row)

    def write_file(self, name: str, data: memoryview) -> None:
        full = self._full(name)
        if len(data) <= multipart.PART:
            self.throttle.take(len(data))
            with self._room:
                self._patiently("write", name, lambda: self.fs.pipe_file(full, bytes(data), **self.deadline))
            return
        slower = multipart.part_size(len(data)) / multipart.PART

        def call(method: str, **parameters: Any) -> Any:
            seconds = _S3_COMPLETION_S if method == "complete_multipart_upload" else slower * _S3_DEADLINE_S
            return self._patiently("write", name, lambda: self.fs.call_s3(method, timeout=seconds, **parameters))

        bucket, key, _ = self.fs.split_path(full)
        target = multipart.Target(
            bucket=bucket,
            key=key,
            call=call,
            size=lambda: int(self._patiently("write", name, lambda: self._size(full))),
            throttle=self.throttle,
            room=self._room,
        )
        multipart.upload(target, data)

    def _range(self, full: str, start: int, end: int) -> bytes:
        name = full[len(self._root) + 1 :]
        with self._room:
            return bytes(self._patiently("read", name, lambda: super(_S3Store, self)._range(full, start, end)))

    def _patiently(self, verb: str, name: str, ask: Callable[[], Any]) -> Any:
        def once() -> Any:
            with self._doing(verb, name):
                return ask()

        return retry.store_part(self.throttle.lifted)(once)
