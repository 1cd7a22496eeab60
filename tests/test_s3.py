# SPDX-License-Identifier: Apache-2.0
"""A real s3fs against a server that speaks S3: conditional creation, uploads in parts, leases, refusals."""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faulty_store import Arenas, Inline, SaverProcess
from s3_server import Proxy, running

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import UNKNOWN, Locked
from resilient.checkpoint.lock import acquire
from resilient.checkpoint.requests import Done, Failed, Opened, Saved
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Exists, Missing
from resilient.checkpoint.survey import survey
from resilient.checkpoint.vault import Vault
from resilient.errors import StoreError

RUNS = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with running() as proxy:
        yield proxy


@pytest.fixture
def url(server: Proxy) -> str:
    return f"s3://bucket/run-{next(RUNS)}"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


def test_creation_is_exclusive(store: Store) -> None:
    """By a conditional put: of many at once one wins, and its bytes stay."""
    store.probe()
    assert store.list(".") == ()

    def attempt(number: int) -> int | None:
        try:
            store.create("attempts/1.json", b"%d" % number)
        except Exists:
            return None
        return number

    with ThreadPoolExecutor(4) as pool:
        won = [number for number in pool.map(attempt, range(12)) if number is not None]
    assert len(won) == 1
    assert store.read("attempts/1.json", 9) == b"%d" % won[0]


def test_what_is_written_can_be_read(store: Store) -> None:
    """Small objects, empty ones, and one that is uploaded in parts."""
    large = os.urandom(20 << 20)
    store.write_file("c/large", memoryview(large))
    store.create("c/empty", b"")
    store.replace("mark", b"one")
    store.replace("mark", b"two")
    buffer = bytearray(20 << 20)
    store.read_into("c/large", memoryview(buffer))
    assert bytes(buffer) == large
    assert (store.read("mark", 3), store.read("c/empty", 0)) == (b"two", b"")
    assert [(entry.name, entry.size) for entry in store.list(".")] == [
        ("c/empty", 0),
        ("c/large", 20 << 20),
        ("mark", 3),
    ]
    store.delete("mark")
    store.delete("mark")
    assert not store.exists("mark")
    with pytest.raises(Missing):
        store.read("mark", 3)


def test_a_bucket_that_is_not_there_is_an_answer(server: Proxy) -> None:
    """Not an empty run."""
    with pytest.raises(StoreError, match="check the URL") as caught:
        open_store("s3://no-such-bucket/run").probe()
    assert caught.value.answered


def test_a_server_that_is_not_there_is_silence(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worth another try, whatever botocore calls it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError) as caught:
        open_store("s3://bucket/run").read("run.json", 9)
    assert not caught.value.answered


def test_a_run_on_s3(url: str) -> None:
    """A real saver: open, claim, save, prune; refused to a second one; taken over after SIGKILL; restored in order."""
    images = (b"first" * 1000, b"second" * 1000)
    arenas = Arenas(images)
    try:
        with SaverProcess(arenas) as first, SaverProcess(arenas) as second:
            opened: Any = first.client.open(url, keep=2)
            assert isinstance(opened, Opened), opened
            assert isinstance(first.client.claim(1), Done)
            replies = [first.client.save(arenas.records, 1, step) for step in (1, 10, 9)]
            assert [type(reply) for reply in replies] == [Saved] * 3, replies
            refused = second.client.open(url)
            assert (type(refused), refused.kind) == (Failed, "locked")
            first.process.kill()
            first.process.wait()
            again = second.client.open(url, keep=2)
            assert [ref.name for ref in again.checkpoints] == ["1-10", "1-9"]
            assert isinstance(second.client.claim(2, began_from="1-10"), Done)
            assert second.client.save(arenas.records, 2, 3).name == "2-3"
            assert second.end() == 0
    finally:
        arenas.close()
    vault = Vault(open_store(url), clock=lambda: 1.0)
    found = survey(vault.store, vault.identify(make=False), "sub", 0)
    assert [checkpoint.name for checkpoint in found.checkpoints] == ["2-3", "1-10"]
    for checkpoint in found.checkpoints:
        vault.verify(checkpoint.name)


def test_a_save_asks_as_much_beside_many_checkpoints_as_beside_few(url: str, server: Proxy) -> None:
    """What pruning has read of a checkpoint is known the next time, unless somebody has written it anew."""
    arenas = Arenas((b"first", b"second"))
    calls = []
    try:
        with Inline(arenas) as client:
            client.open(url, keep=9)
            for step in range(1, 7):
                server.mend()
                assert isinstance(client.save(arenas.records, 1, step), Saved)
                calls.append(dict(server.calls))
            manifest, store = "checkpoints/1-2/manifest.json", open_store(url)
            store.replace(manifest, store.read(manifest, 1 << 20).replace(b'"step":2', b'"step":7'))
            pruned = client.save(arenas.records, 1, 7).pruned
    finally:
        arenas.close()
    assert calls[1:] == calls[1:2] * 5
    assert pruned == ("1-2",)


def test_a_lease_on_s3(store: Store) -> None:
    """It holds, is renewed, runs out by the observer's clock, and its old holder notices."""
    now_s = [0.0]

    def wait(seconds: float) -> None:
        now_s[0] += max(seconds, 20.0)

    def take(patience_s: float) -> Any:
        return acquire(store, UNKNOWN, patience_s=patience_s, now=lambda: now_s[0], wait=wait)

    first = take(0.0)
    with pytest.raises(Locked):
        take(0.0)
    first.renew()
    second = take(100.0)
    assert now_s[0] >= 60.0
    second.check()
    with pytest.raises(Locked):
        first.check()
