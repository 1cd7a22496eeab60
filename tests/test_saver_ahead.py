# SPDX-License-Identifier: Apache-2.0
"""What the saver writes before it is known to be a snapshot: committed on the word, and gone without it."""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import object_store  # noqa: F401  # registers objects://
import pytest
import tenacity
from faulty_store import Arenas, Client, FaultyFileSystem, Inline, SaverProcess

from resilient import retry
from resilient.checkpoint.digest import digest
from resilient.checkpoint.requests import Done, Failed, Fetch, Judge, Opened, Save, Saved
from resilient.checkpoint.saves import Saves
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import survey
from resilient.checkpoint.vault import Vault
from resilient.core.retention import Rules
from resilient.errors import StoreError
from resilient.link.channel import Closed

IMAGES = (b"first" * 1000, b"second" * 1000)


@pytest.fixture
def arenas() -> Iterator[Arenas]:
    arenas = Arenas(IMAGES)
    yield arenas
    arenas.close()


def begin(client: Client, arenas: Arenas, step: int, ahead: int, **fields: Any) -> int:
    """Ask for a save that is to be judged."""
    values: dict[str, Any] = {
        "attempt": 1,
        "world_size": 2,
        "began_from": None,
        "versions": {},
        "determinism": {},
        "patience_s": 0.0,
    }
    return client.send(
        Save, records=arenas.records, step=step, ahead=ahead, rules=Rules(keep=3), **{**values, **fields}
    )


def files(url: object) -> list[str]:
    return [entry.name for entry in open_store(str(url)).list("checkpoints")]


def usable(url: object) -> list[str]:
    """Names of the checkpoints that can be loaded, every byte verified."""
    vault = Vault(open_store(str(url)), clock=lambda: 1.0)
    found = survey(vault.store, vault.identify(make=False), "sub", 0)
    assert found.set_aside == ()
    for checkpoint in found.checkpoints:
        vault.verify(checkpoint.name)
    return [checkpoint.name for checkpoint in found.checkpoints]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the files of a save are there."""
    done = threading.Event()
    write_all = Vault._write_all

    def telling(*args: Any) -> None:
        write_all(*args)
        done.set()

    monkeypatch.setattr(Vault, "_write_all", telling)
    return done


def receive(client: Client, count: int) -> dict[int, Any]:
    """So many replies, by their numbers."""
    return {reply.id: reply for reply in (client.channel.receive() for _ in range(count))}


@pytest.mark.parametrize("scheme", ["", "objects://"], ids=["directory", "bucket"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "dropped"])
def test_files_wait_for_the_word(
    tmp_path: Path, arenas: Arenas, written: threading.Event, scheme: str, whole: bool
) -> None:
    """All of them are there, and no manifest; then it is a checkpoint, or nothing is left of it."""
    url = f"{scheme}{tmp_path}/run"
    with Inline(arenas) as client:
        client.open(url)
        save = begin(client, arenas, 5, ahead=1)
        assert written.wait(60)
        assert len(files(url)) == 4
        assert usable(url) == []
        judge = client.send(Judge, ahead=1, whole=whole)
        replies = receive(client, 2)
        assert replies[judge] == Done(id=judge)
        reply = replies[save]
        if whole:
            assert isinstance(reply, Saved)
            assert usable(url) == ["1-5"]
        else:
            assert isinstance(reply, Failed)
            assert (reply.kind, files(url)) == ("dropped", [])
        assert client.save(arenas.records, 1, 10).name == "1-10"


def test_the_wait_for_the_word_is_not_told_as_the_stores_time(arenas: Arenas) -> None:
    """An automatic cadence reckons with what saving takes; a wait for each try is taken off."""
    clock = iter([0.0, 3.0, 50.0, 53.0, 54.0, 58.0])
    saves = Saves(now=lambda: next(clock))
    save = Save(id=9, attempt=1, step=5, world_size=2, began_from=None, records=arenas.records, versions={},
                determinism={}, ahead=1, patience_s=60.0)  # fmt: skip
    tries = itertools.count(1)

    def commit(may_commit: Callable[[], None]) -> str:
        may_commit()
        if next(tries) == 1:
            raise StoreError("cannot write: no answer", answered=False)
        return "1-5"

    saves.expect(save)
    saves.judge(Judge(id=10, ahead=1, whole=True))
    assert saves.perform(save, commit, check=lambda: None) == ("1-5", 58.0 - 47.0 - 1.0)


def test_patience_is_for_the_store_alone() -> None:
    """After a step of an hour the store is asked again as after one of a second, and no longer than its patience."""
    policy = retry.store_save(60.0, threading.Event(), apart_s=lambda: 3600.0)
    state = tenacity.RetryCallState(policy, None, (), {})
    for seconds, is_over in ((3650.0, False), (3661.0, True)):
        state.outcome_timestamp = state.start_time + seconds
        assert policy.stop(state) is is_over


def test_a_word_may_come_before_its_save_is_begun(tmp_path: Path, arenas: Arenas) -> None:
    """Saves stand in a queue; each hears the word that is its own, and a word about none is answered."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        first = begin(client, arenas, 5, ahead=1)
        second = begin(client, arenas, 10, ahead=2)
        words = [client.send(Judge, ahead=ahead, whole=ahead != 2) for ahead in (7, 2, 1)]
        replies = receive(client, 5)
        assert [replies[word] for word in words] == [Done(id=word) for word in words]
        assert isinstance(replies[first], Saved)
        assert replies[second].kind == "dropped"
    assert usable(tmp_path) == ["1-5"]


def test_the_first_word_counts(tmp_path: Path, arenas: Arenas) -> None:
    """Whoever dropped it uses its slot again."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        save = begin(client, arenas, 5, ahead=1)
        for whole in (False, True):
            client.send(Judge, ahead=1, whole=whole)
        replies = receive(client, 3)
        assert replies[save].kind == "dropped"
    assert usable(tmp_path) == []


def test_what_is_dropped_is_not_written_to_its_end(arenas: Arenas) -> None:
    """A store that is slow, or is asked again and again, does not keep the slot for minutes."""
    stuck, go_on = threading.Event(), threading.Event()
    asked = itertools.count()

    def fault(operation: str, path: str) -> None:
        if operation == "open":
            next(asked)
            stuck.set()
            go_on.wait()
            raise TimeoutError

    FaultyFileSystem.reset()
    with Inline(arenas) as client:
        client.open("faulty://run")
        FaultyFileSystem.fault = staticmethod(fault)
        save = begin(client, arenas, 5, ahead=1, patience_s=1e6)
        stuck.wait()
        assert isinstance(client.ask(Judge, ahead=1, whole=False), Done)
        go_on.set()
        reply = client.channel.receive()
        assert (reply.id, getattr(reply, "kind", "")) == (save, "dropped")
    assert next(asked) <= 4  # files, each of them once at most
    FaultyFileSystem.reset()


def test_what_is_dropped_does_not_wait_for_its_bandwidth(
    tmp_path: Path, arenas: Arenas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit by which a file would take hours does not keep the slot for these."""
    waits = threading.Event()
    wait = Saves.wait

    def telling(saves: Saves, seconds: float) -> None:
        if seconds > 0:
            waits.set()
        wait(saves, seconds)

    monkeypatch.setattr(Saves, "wait", telling)
    with Inline(arenas) as client:
        client.open(tmp_path, save_bandwidth=1)
        save = begin(client, arenas, 5, ahead=1)
        assert waits.wait(60), "no file has waited for another"
        client.send(Judge, ahead=1, whole=False)
        assert receive(client, 2)[save].kind == "dropped"
    assert files(tmp_path) == []


def test_an_image_that_changes_while_it_waits_is_not_committed(
    tmp_path: Path, arenas: Arenas, written: threading.Event
) -> None:
    """What is written is what has the digest, though the slot should be written to meanwhile: a reader would see it."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        begin(client, arenas, 5, ahead=1)
        assert written.wait(60)
        arenas.put((b"other" * 1000, b"others" * 1000), slot=0)
        client.send(Judge, ahead=1, whole=True)
        assert sum(isinstance(client.channel.receive(), Saved) for _ in range(2)) == 1
    assert usable(tmp_path) == ["1-5"]
    assert (tmp_path / "checkpoints/1-5/tensors-0.safetensors").read_bytes() == IMAGES[0]
    assert digest(memoryview(IMAGES[0])) in (tmp_path / "checkpoints/1-5/manifest.json").read_text()


WAITING = """
import resilient.checkpoint.vault as vault, sys
write_all = vault.Vault._write_all
def telling(*args):
    write_all(*args)
    sys.stdout.write("written\\n")
    sys.stdout.flush()
vault.Vault._write_all = telling
"""


@pytest.mark.parametrize("how", ["supervisor", "saver"])
def test_killed_before_the_word_it_is_no_checkpoint(tmp_path: Path, arenas: Arenas, how: str) -> None:
    """A supervisor that is gone says nothing any more, and a saver that is killed leaves files without a manifest."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        client.save(arenas.records, 1, 1)
    with SaverProcess(arenas, WAITING, tell=True) as saver:
        assert isinstance(saver.client.open(tmp_path), Opened)
        begin(saver.client, arenas, 5, ahead=1)
        assert saver.process.stdout is not None
        assert saver.process.stdout.readline() == b"written\n"
        if how == "saver":
            saver.process.kill()
            with pytest.raises(Closed):
                saver.client.channel.receive()
        assert saver.end() == (-signal.SIGKILL if how == "saver" else 0)
    assert usable(tmp_path) == ["1-1"]
    with Inline(arenas) as client:
        assert [ref.name for ref in client.open(tmp_path, lock_patience_s=10.0).checkpoints] == ["1-1"]
        client.save(arenas.records, 2, 7)
    assert {name.split("/")[1] for name in files(tmp_path)} == {"1-1", "2-7"}


def test_what_was_judged_is_committed_though_the_supervisor_is_gone(tmp_path: Path, arenas: Arenas) -> None:
    """As any save that was asked for before."""
    with SaverProcess(arenas) as saver:
        saver.client.open(tmp_path)
        begin(saver.client, arenas, 5, ahead=1)
        saver.client.send(Judge, ahead=1, whole=True)
        begin(saver.client, arenas, 10, ahead=2)
        assert saver.end() == 0
    assert usable(tmp_path) == ["1-5"]


def test_a_fetch_waits_for_no_word_longer_than_its_save(tmp_path: Path, arenas: Arenas) -> None:
    """It stands behind a save ahead in the queue, and is answered once that is judged."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        client.save(arenas.records, 1, 1)
        save = begin(client, arenas, 5, ahead=1)
        fetch = client.send(Fetch, name="1-1", world_size=2, slot=1, available_bytes=None)
        client.send(Judge, ahead=1, whole=False)
        order = [number for number in receive(client, 3) if number in (save, fetch)]
        assert order == [save, fetch]
