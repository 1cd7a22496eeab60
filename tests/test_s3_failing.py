# SPDX-License-Identifier: Apache-2.0
"""A real s3fs and an S3 that fails: what is tried again, what is told as it is, and that nothing is left behind."""

import copy
import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3_server import Proxy, running

from resilient.checkpoint import multipart
from resilient.checkpoint import store as stores
from resilient.checkpoint.files import Store
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Denied, Exists, Missing, Unreachable
from resilient.checkpoint.throttle import Throttle
from resilient.errors import StoreError

RUNS = itertools.count(1)
PART = 5 << 20
"""The least that S3 takes."""
LARGE = memoryview(bytearray(random.Random(1).randbytes(1 << 20) * 6 + b"tail"))
PARTS = 2
HICCUPS = ("500", "503", "late", "cut", "lost", "slow")
BROKEN = ("cut", "lost", "half")
"""Words for which aiohttp itself asks a second time where the connection had been kept from an earlier request."""


def some(operations: Iterable[str], words: Iterable[str], *often: str) -> list[Any]:
    """Every pair; those of the operations that are not named only when slow tests are run, but for one word each."""
    words = list(words)
    pairs = []
    for number, operation in enumerate(operations):
        for place, word in enumerate(words):
            if operation == "HeadObject" and word in ("late", "expired"):
                continue  # an answer to HEAD has no body that could name its code
            seldom = operation not in often and (place - number) % len(words) > 1
            pairs.append(pytest.param(operation, word, marks=[pytest.mark.slow] if seldom else []))
    return pairs


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with running() as proxy:
        yield proxy


@pytest.fixture
def proxy(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(multipart, "PART", PART)
    server.mend()
    yield server
    server.mend()


@pytest.fixture(scope="module")
def client(server: Proxy) -> Any:
    """A store whose connections others share: to make a client of S3 takes longer than most of these tests."""
    return open_store("s3://bucket/failing")


@pytest.fixture
def store(client: Any, proxy: Proxy) -> Any:
    fresh = copy.copy(client)
    fresh._root, fresh.throttle = f"bucket/failing-{next(RUNS)}", Throttle()
    return fresh


@pytest.fixture
def hasty(store: Store) -> Store:
    """A store of somebody who is leaving: nothing is tried again."""
    store.throttle.lifted.set()  # type: ignore[attr-defined]  # the throttle of this test's store
    return store


def unfinished(store: Any) -> list[Any]:
    """Uploads of a store that were neither completed nor aborted: their parts would be paid for."""
    bucket, prefix = store._root.split("/", 1)
    return list(store.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads", []))


def assert_whole(store: Store) -> None:
    buffer = bytearray(len(LARGE))
    store.read_into("c/large", memoryview(buffer))
    assert buffer == LARGE.obj
    assert not unfinished(store)


UPLOAD = ("CreateMultipartUpload", "CompleteMultipartUpload", "UploadPart")


@pytest.mark.parametrize(("operation", "word"), some(UPLOAD, HICCUPS, "UploadPart", "CompleteMultipartUpload"))
def test_a_hiccup_costs_one_part_and_not_the_upload(store: Store, proxy: Proxy, operation: str, word: str) -> None:
    """Only the request that failed is made again; an upload whose beginning got lost is the bucket's to clear."""
    proxy.fail(operation, word)
    store.write_file("c/large", LARGE)
    again = 0 if word == "slow" else 1
    assert proxy.calls[operation] == (PARTS if operation == "UploadPart" else 1) + again
    assert sum(proxy.calls.values()) <= 2 + PARTS + again + 1  # one look whether a lost completion was done
    proxy.mend()
    if (operation, word) == ("CreateMultipartUpload", "lost"):
        assert len(unfinished(store)) == 1
        return
    assert_whole(store)


def test_an_upload_that_is_gone_was_completed_or_was_not(store: Store, proxy: Proxy) -> None:
    """Some servers forget an upload with its completion; if that answer was lost, the object itself tells."""
    proxy.fail("CompleteMultipartUpload", "no upload")
    with pytest.raises(Missing):
        store.write_file("c/large", LARGE)
    assert store.list(".") == ()
    proxy.fail("CompleteMultipartUpload", "lost", "no upload")
    store.write_file("c/large", LARGE)
    assert_whole(store)


REFUSED = {"denied": Denied, "expired": Denied, "skewed": Denied, "gone": Missing}


@pytest.mark.parametrize(("operation", "word"), some(UPLOAD, REFUSED, "UploadPart"))
def test_a_refusal_ends_an_upload_at_once(store: Store, proxy: Proxy, operation: str, word: str) -> None:
    """It is told in our words, nothing is seen of the file, and no part is kept."""
    proxy.fail_always(operation, word)
    with pytest.raises(StoreError) as caught:
        store.write_file("c/large", LARGE)
    assert (type(caught.value), caught.value.answered) == (REFUSED[word], True)
    assert proxy.calls[operation] <= (PARTS if operation == "UploadPart" else 1)
    proxy.mend()
    assert store.list(".") == ()
    assert not unfinished(store)


@pytest.mark.parametrize("word", ["500", "503", "cut"])
def test_a_server_that_goes_on_failing_is_given_up(hasty: Store, proxy: Proxy, word: str) -> None:
    """The whole save is tried again then; until it is, nothing is left of this try."""
    proxy.fail_always("UploadPart", word)
    with pytest.raises(Unreachable):
        hasty.write_file("c/large", LARGE)
    assert proxy.calls["UploadPart"] <= PARTS * (1 + (word in BROKEN))
    proxy.mend()
    assert hasty.list(".") == ()
    assert not unfinished(hasty)


def test_a_part_is_tried_five_times(store: Store, proxy: Proxy) -> None:
    """And all its failures cost is its own time."""
    proxy.fail("UploadPart", *["503"] * 4)
    store.write_file("c/large", LARGE)
    assert proxy.calls["UploadPart"] == PARTS + 4
    assert_whole(store)


def test_an_upload_that_cannot_be_broken_off_says_why_it_failed(hasty: Store, proxy: Proxy) -> None:
    """The first error is the one that a person needs."""
    proxy.fail("UploadPart", "denied", "denied")
    proxy.fail("AbortMultipartUpload", "503")
    with pytest.raises(Denied):
        hasty.write_file("c/large", LARGE)


@pytest.mark.parametrize("word", [*HICCUPS, "half"])
def test_reading_goes_on_behind_a_hiccup(
    store: Store, proxy: Proxy, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that broke off is asked for again, and nothing else."""
    monkeypatch.setattr(stores, "_RANGE", 1 << 20)
    store.write_file("c/large", LARGE)
    proxy.fail("GetObject", word)
    assert_whole(store)
    assert proxy.calls["GetObject"] == 7 + (word != "slow")


SMALL: dict[str, Callable[[Store], Any]] = {
    "PutObject": lambda store: store.create("a", b"1"),
    "GetObject": lambda store: store.read("there", 9),
    "HeadObject": lambda store: store.exists("there"),
    "ListObjects": lambda store: store.list("."),
    "DeleteObject": lambda store: store.delete("there"),
}
KINDS = {
    "500": Unreachable, "503": Unreachable, "late": Unreachable, "cut": Unreachable, "lost": Unreachable,
    "denied": Denied, "expired": Denied, "skewed": Denied,
}  # fmt: skip


@pytest.mark.parametrize(("operation", "word"), some(SMALL, KINDS, "PutObject"))
def test_a_small_operation_is_asked_once(store: Store, proxy: Proxy, operation: str, word: str) -> None:
    """Neither botocore nor s3fs tries again beneath our own policies, and each failure has its kind."""
    store.create("there", b"1")
    proxy.mend()
    proxy.fail_always(operation, word)
    with pytest.raises(StoreError) as caught:
        SMALL[operation](store)
    again = word in BROKEN
    assert isinstance(
        caught.value, (Exists, Unreachable) if (operation, word) == ("PutObject", "lost") else KINDS[word]
    )
    assert 1 <= proxy.calls[operation] <= 1 + again


@pytest.mark.parametrize(
    ("word", "advice"), [("skewed", "clock"), ("expired", "credentials"), ("denied", "to list, read")]
)
def test_a_refusal_says_what_to_do(store: Store, proxy: Proxy, word: str, advice: str) -> None:
    """Permissions are not the cure of a wrong clock."""
    proxy.fail_always("PutObject", word)
    with pytest.raises(Denied, match=advice):
        store.create("a", b"1")


def test_a_lost_creation_is_seen_when_it_is_tried_again(store: Store, proxy: Proxy) -> None:
    """It was done: the vault then compares whose it is."""
    proxy.fail("PutObject", "lost")
    with pytest.raises((Unreachable, Exists)):
        store.create("a", b"1")
    with pytest.raises(Exists):
        store.create("a", b"1")
    assert store.read("a", 9) == b"1"


def test_a_server_that_hangs_holds_nobody(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call has a deadline, and is made once; side by side, as each takes the whole of it."""
    monkeypatch.setattr(stores, "_S3_CLIENT", {**stores._S3_CLIENT, "read_timeout": 4})
    store = open_store(f"s3://bucket/failing-{next(RUNS)}")
    store.replace("there", b"1")
    proxy.mend()
    asked = sorted(SMALL.keys() - {"HeadObject"})  # as a read asks for the size first, and is to be answered

    def unreachable(operation: str) -> None:
        with pytest.raises(Unreachable):
            SMALL[operation](store)

    for operation in asked:
        proxy.fail_always(operation, "hang")
    with ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(unreachable, asked))
    assert [proxy.calls[operation] for operation in asked] == [1] * len(asked)
    proxy.mend()
    proxy.fail_always("HeadObject", "hang")
    unreachable("HeadObject")
    assert proxy.calls["HeadObject"] == 1


def test_a_server_that_stops_reading_holds_nobody(hasty: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of the client holds while it sends; the deadline of the whole request does."""
    monkeypatch.setattr(stores, "_S3_DEADLINE_S", 4.0)
    proxy.fail_always("UploadPart", "deaf")
    with pytest.raises(Unreachable):
        hasty.write_file("c/large", LARGE)
    proxy.mend()
    assert not unfinished(hasty)


def test_no_more_parts_are_in_memory_than_was_said(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files at once share one bound."""
    monkeypatch.setattr(multipart, "AT_ONCE", 2)
    store: Any = open_store(f"s3://bucket/failing-{next(RUNS)}")
    call, lock = store.fs.call_s3, threading.Lock()
    under_way = most = 0

    def counted(method: str, **parameters: Any) -> Any:
        nonlocal under_way, most
        if method != "upload_part":
            return call(method, **parameters)
        with lock:
            under_way += 1
            most = max(most, under_way)
        try:
            return call(method, **parameters)
        finally:
            with lock:
                under_way -= 1

    store.fs.call_s3 = counted
    writers = [threading.Thread(target=store.write_file, args=(f"c/{n}", LARGE)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert most == 2
    assert [entry.size for entry in store.list("c")] == [len(LARGE)] * 3


def test_the_throttle_sees_every_byte_once(store: Any, proxy: Proxy) -> None:
    """Before a part is sent, whatever becomes of it."""
    asked: list[int] = []

    class Counting(Throttle):
        def take(self, count: int) -> None:
            asked.append(count)

    store.throttle = Counting()
    proxy.fail("UploadPart", "503")
    store.write_file("c/large", LARGE)
    store.write_file("c/small", LARGE[:9])
    assert sum(asked) == len(LARGE) + 9
