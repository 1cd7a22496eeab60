# SPDX-License-Identifier: Apache-2.0
"""Stores: names that stay inside, one winner per name, nothing half-written, errors in our words."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from faulty_store import FaultyFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from resilient.checkpoint.direct import PIECE
from resilient.checkpoint.files import Store, check_name
from resilient.checkpoint.store import display_url, open_store
from resilient.checkpoint.store_errors import Answered, Denied, Exists, Full, Missing, Unreachable, explain
from resilient.checkpoint.throttle import Throttle
from resilient.errors import CheckpointError, SettingsError, StoreError


@pytest.fixture(params=["directory", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    FaultyFileSystem.reset()
    yield open_store(str(tmp_path / "run") if request.param == "directory" else "faulty://run")
    FaultyFileSystem.reset()


def test_what_is_written_can_be_read(store: Store) -> None:
    """Every way of writing and reading agrees."""
    store.create("a/b.json", b"small")
    store.write_file("c/large", memoryview(b"1234567"))
    store.replace("mark", b"one")
    store.replace("mark", b"two")
    buffer = bytearray(7)
    store.read_into("c/large", memoryview(buffer))
    assert (store.read("a/b.json", 5), store.read("mark", 3), bytes(buffer)) == (b"small", b"two", b"1234567")
    assert b"".join(store.chunks("c/large")) == b"1234567"
    listed = store.list(".")
    assert [(entry.name, entry.size) for entry in listed] == [("a/b.json", 5), ("c/large", 7), ("mark", 3)]
    assert store.list("c") == listed[1:2]
    store.delete("c/large")
    store.delete("c/large")
    assert not store.exists("c/large")
    assert store.exists("mark")
    assert store.list("c") == store.list("nothing/here") == ()


def test_creation_has_one_winner(store: Store) -> None:
    """The second one is told, and changes nothing."""
    store.create("a", b"first")
    with pytest.raises(Exists) as caught:
        store.create("a", b"second")
    assert caught.value.answered
    assert store.read("a", 10) == b"first"


def test_of_many_creators_at_once_one_wins(tmp_path: Path) -> None:
    """The winner's whole content is there, and nothing beside it."""
    store = open_store(str(tmp_path))

    def attempt(number: int) -> int | None:
        try:
            store.create("claims/1.json", b"%d" % number)
        except Exists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        won = [number for number in pool.map(attempt, range(32)) if number is not None]
    assert len(won) == 1
    assert store.read("claims/1.json", 10) == b"%d" % won[0]
    assert os.listdir(tmp_path / "claims") == ["1.json"]


def test_an_empty_file_is_a_file(store: Store) -> None:
    """Object stores have no range of an empty object."""
    store.create("empty", b"")
    assert store.read("empty", 0) == b""
    store.read_into("empty", memoryview(bytearray()))
    assert list(store.chunks("empty")) == []


def test_what_is_too_long_or_of_another_size_is_not_read(store: Store) -> None:
    """Limits hold before memory is spent."""
    store.create("a", b"12345")
    with pytest.raises(StoreError, match="5 bytes where at most 4"):
        store.read("a", 4)
    for size in (4, 6):
        with pytest.raises(StoreError, match="5 bytes where"):
            store.read_into("a", memoryview(bytearray(size)))
    with pytest.raises(Missing):
        store.read("b", 4)


class Broken(Throttle):
    """It lets some pieces pass."""

    passing = 2

    def take(self, count: int) -> None:
        self.passing -= 1
        if self.passing < 0:
            raise CheckpointError("the rest is gone")


@pytest.mark.parametrize("url", ["directory", "faulty://run"])
def test_a_write_that_is_broken_off_leaves_no_file(tmp_path: Path, url: str) -> None:
    """Half an image must not look like one."""
    FaultyFileSystem.reset()
    store = open_store(str(tmp_path / "run") if url == "directory" else url, throttle=Broken())
    with pytest.raises(CheckpointError, match="the rest is gone"):
        store.write_file("c/large", memoryview(bytearray(5 * PIECE)))
    assert store.list(".") == ()


HOSTILE = [
    "", ".", "..", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/", "a\\b", "a\0b", "a\nb", "a b", "s3://b/k",
    "file:///x", "~/x", "a:b", "é", "a" * 300, "/".join(["a" * 200] * 9), "...", "a/.../b", "%2e%2e/x", "*", "a?b=c",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(store: Store, name: str) -> None:
    """Nothing is opened, listed or deleted under a name that is not plain."""
    uses: list[Callable[[], Any]] = [
        lambda: check_name(name),
        lambda: store.create(name, b""),
        lambda: store.replace(name, b""),
        lambda: store.write_file(name, memoryview(b"")),
        lambda: store.read(name, 1),
        lambda: list(store.chunks(name)),
        lambda: store.delete(name),
        lambda: store.exists(name),
    ]
    for use in uses:
        with pytest.raises(CheckpointError, match="not a plain relative path"):
            use()


def test_links_in_a_directory_are_not_followed(tmp_path: Path) -> None:
    """A link that somebody put into the run's directory leads nowhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    run = tmp_path / "run"
    run.mkdir()
    (run / "folder").symlink_to(outside)
    (run / "file").symlink_to(outside / "secret")
    store = open_store(str(run))
    assert store.list(".") == ()
    for use in (lambda: store.read("folder/secret", 9), lambda: store.delete("folder/secret")):
        with pytest.raises(CheckpointError, match="leads out"):
            use()
    with pytest.raises(StoreError):
        store.read("file", 9)
    store.delete("file")
    assert (outside / "secret").exists()


def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="not a plain file"):
        open_store(str(tmp_path)).read("pipe", 9)


def test_a_store_that_creates_twice_is_refused(store: Store) -> None:
    """Two supervisors could both claim an attempt there."""
    store.probe()
    assert store.list(".") == ()


class Careless(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """It ignores the mode."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value)


def test_a_careless_store_is_refused() -> None:
    """A back end that ignores the mode is found out before anything is saved."""
    fsspec.register_implementation("careless", Careless, clobber=True)
    store = open_store("careless://careless-run")
    with pytest.raises(SettingsError, match="does not refuse to create a file twice"):
        store.probe()
    assert store.list(".") == ()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "empty"),
        ("a\nb", "control characters"),
        ("s3://", "names no bucket"),
        ("nosuch://bucket/x", "schemes that fsspec knows"),
        ("gs://bucket/x", "package for gs:// is not installed .*; pip install gcsfs$"),
        ("simplecache::s3://bucket/x", "chained"),
        ("file://host/x", "three slashes"),
    ],
)
def test_urls_that_cannot_work_are_refused(url: str, words: str) -> None:
    """Before anything starts, and saying what to do."""
    with pytest.raises(SettingsError, match=words):
        open_store(url)


def test_paths_and_file_urls_are_the_same(tmp_path: Path) -> None:
    """Both are a directory of this machine."""
    assert open_store(str(tmp_path)).path == open_store(f"file://{tmp_path}").path == str(tmp_path)


def test_a_url_is_shown_without_its_secrets() -> None:
    """User, password and query are nobody's business."""
    shown = display_url("sftp://me:hunter2@host/run?signature=abc")
    assert shown == "sftp://***@host/run?***"


def test_errors_do_not_repeat_secrets() -> None:
    """What a back end says may contain the URL, or only the password."""
    error = OSError(errno.EIO, "login me:hunter2 failed for https://h/x?X-Amz-Signature=abc")
    text = str(explain(error, "read x", "me:hunter2", "hunter2"))
    assert "hunter2" not in text
    assert "abc" not in text


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, status: int, code: str = "") -> None:
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int) -> None:
        self.code = code


def wrapped(cause: Exception) -> OSError:
    """As s3fs does with a code that it does not know."""
    error = OSError(errno.EIO, "something")
    error.__cause__ = cause
    return error


class ClientConnectionError(OSError):
    """As aiohttp raises it, whose kinds are told by this name."""


def not_found(cause: Exception) -> FileNotFoundError:
    """As fsspec's HTTP file system makes it of whatever it could not ask."""
    error = FileNotFoundError("https://gone/run.json")
    error.__cause__ = cause
    return error


class NoCredentialsError(Exception):
    """Told by its name."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, ""), Full),
        (OSError(errno.EDQUOT, ""), Full),
        (OSError(errno.EROFS, ""), Denied),
        (PermissionError(), Denied),
        (PermissionError(errno.EACCES, ""), Denied),
        (NoCredentialsError(), Denied),
        (wrapped(ClientError(403)), Denied),
        (wrapped(ClientError(400, "ExpiredToken")), Denied),
        (FileNotFoundError(), Missing),
        (wrapped(ClientError(404, "NoSuchBucket")), Missing),
        (FileExistsError(), Exists),
        (wrapped(ClientError(412)), Exists),
        (OSError(errno.EIO, ""), Unreachable),
        (OSError(errno.ESTALE, ""), Unreachable),
        (OSError(errno.ENOTCONN, ""), Unreachable),
        (OSError(errno.EBUSY, "SlowDown"), Unreachable),
        (wrapped(ClientError(503, "SlowDown")), Unreachable),
        (wrapped(ClientError(500)), Unreachable),
        (wrapped(ClientError(409)), Unreachable),
        (HttpError(429), Unreachable),
        (HttpError(507), Full),
        (TimeoutError(), Unreachable),
        (asyncio.TimeoutError(), Unreachable),
        (ConnectionResetError(), Unreachable),
        (not_found(ClientConnectionError("no such host")), Unreachable),
        (RuntimeError("what?"), Unreachable),
        (wrapped(ClientError(400)), Answered),
        (ValueError("bad bucket"), Answered),
    ],
    ids=repr,
)
def test_errors_of_back_ends_are_told_apart(error: Exception, kind: type[StoreError]) -> None:
    """A refusal is not tried again, silence is."""
    mapped = explain(error, "read x")
    assert type(mapped) is kind
    assert mapped.answered is (kind is not Unreachable)
    assert str(mapped).startswith("cannot read x: ")
    assert "https://gone" not in str(mapped), "the cause is what says why"


def test_a_directory_that_may_not_be_written_is_denied(tmp_path: Path) -> None:
    """A file where the directory should be is an answer, for root too."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError) as caught:
        open_store(str(tmp_path / "file" / "run")).probe()
    assert caught.value.answered
