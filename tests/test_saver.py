# SPDX-License-Identifier: Apache-2.0
"""The saver as a real process: asked over a socket, killed at every operation, outliving its supervisor."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import object_store  # noqa: F401  # registers objects://
import pytest
from faulty_store import Arenas, Client, FaultyFileSystem, Inline, SaverProcess

from resilient.checkpoint import requests
from resilient.checkpoint.layout import Debit, FinishedMark
from resilient.checkpoint.requests import Done, Failed, Finish, Opened, Record, Saved, Ship
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import survey
from resilient.checkpoint.vault import Vault
from resilient.link.channel import Closed

IMAGES = (b"first" * 1000, b"second" * 1000)
ALIKE = (b"shared" * 1000,) * 2
DEBIT = Debit(
    submission="sub", index=0, attempt=1, code=194, step=3, fingerprint="f", held_s=5.0, wall_s=9.0, why="ecc"
)


@pytest.fixture
def arenas(request: pytest.FixtureRequest) -> Iterator[Arenas]:
    """Snapshots of two ranks; their tensors differ, unless the test asks for others."""
    arenas = Arenas(getattr(request, "param", IMAGES))
    yield arenas
    arenas.close()


def usable(url: object) -> list[str]:
    """Names of the checkpoints that can be loaded, every byte verified."""
    vault = Vault(open_store(str(url)), clock=lambda: 1.0)
    found = survey(vault.store, vault.identify(make=False), "sub", 0)
    assert found.set_aside == ()  # no manifest without all its files, at any moment
    for checkpoint in found.checkpoints:
        vault.verify(checkpoint.name)
    return [checkpoint.name for checkpoint in found.checkpoints]


def test_a_run_from_its_opening_to_its_end(tmp_path: Path, arenas: Arenas) -> None:
    """Every request of a run, in a real process, and what the next one finds."""
    segment = tmp_path / "segment"
    segment.write_bytes(b"{}\n")
    url = tmp_path / "run"
    with SaverProcess(arenas) as saver:
        client = saver.client
        opened = client.open(url, keep=2)
        assert isinstance(opened, Opened)
        assert (opened.next_attempt, opened.checkpoints, opened.ever_committed) == (1, (), False)
        assert client.claim(1) == Done(id=2)
        saved = [client.save(arenas.records, 1, step) for step in (5, 10, 15)]
        assert [reply.name for reply in saved] == ["1-5", "1-10", "1-15"]
        assert [reply.pruned for reply in saved] == [(), (), ("1-5",)]
        assert saved[0].size_bytes == sum(record.tensors.size + record.own.size for record in arenas.records)
        assert isinstance(client.ask(Record, debit=DEBIT), Done)
        mark = FinishedMark(steps=15, reached=15, how="steps", submission="sub", attempt=1)
        assert isinstance(client.ask(Finish, mark=mark), Done)
        assert isinstance(client.ask(Ship, pod="pod-0", number=1, path=str(segment)), Done)
        assert saver.end() == 0
    with Inline(arenas) as client:
        again = client.open(url)
        assert (again.run_id, again.next_attempt, again.earlier) == (opened.run_id, 2, mark)
        assert [ref.name for ref in again.checkpoints] == usable(url) == ["1-15", "1-10"]
        assert (again.debits, again.usage.held_s, again.ever_committed) == ((DEBIT,), 5.0, True)


def files_of(url: Path, name: str) -> dict[str, bytes]:
    """The images of a checkpoint in a directory."""
    return {path.name: path.read_bytes() for path in (url / "checkpoints" / name).glob("*.safetensors")}


@pytest.mark.parametrize("arenas", [ALIKE], ids=["alike"], indirect=True)
def test_tensors_that_ranks_have_alike_are_saved_once(tmp_path: Path, arenas: Arenas) -> None:
    """Under the lowest rank that has them; as soon as they differ in one bit each rank has its own file."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        saved = client.save(arenas.records, 1, 1)
        assert saved.size_bytes == len(ALIKE[0]) + sum(record.own.size for record in arenas.records)
        assert files_of(tmp_path, "1-1") == {
            "tensors-0.safetensors": ALIKE[0],
            "rank-0.safetensors": b"rank 0",
            "rank-1.safetensors": b"rank 1",
        }
        other = ALIKE[0][:-1] + b"D"
        client.save(arenas.put((ALIKE[0], other), slot=1), 1, 2)
        assert files_of(tmp_path, "1-2")["tensors-1.safetensors"] == other
    assert usable(tmp_path) == ["1-2", "1-1"]


# Every call that changes the file system counts as one operation, from the first save on.
KILL_IN_A_DIRECTORY = """
import itertools, os, signal
from resilient.checkpoint.vault import Vault
calls, armed = itertools.count(1), []
def counted(real):
    def call(*args, **kwargs):
        if armed and next(calls) == {nth}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("write", "pwrite", "fsync", "mkdir", "link", "unlink", "rmdir", "replace"):
    setattr(os, name, counted(getattr(os, name)))
save = Vault.save
def arming(*args):
    armed.append(True)
    return save(*args)
Vault.save = arming
"""
KILL_IN_A_BUCKET = """
sys.path.insert(0, "tests")
import object_store
object_store.kill_at({nth})
"""


@pytest.mark.parametrize(
    ("scheme", "script", "operations"),
    [("", KILL_IN_A_DIRECTORY, 20), ("objects://", KILL_IN_A_BUCKET, 8)],
    ids=["directory", "bucket"],
)
@pytest.mark.parametrize("arenas", [ALIKE], ids=["alike"], indirect=True)
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_operation_a_checkpoint_loads(
    tmp_path: Path, arenas: Arenas, scheme: str, script: str, operations: int, stride: int
) -> None:
    """For every n, or every third: the one before or the new one is whole, none is torn, the next saver clears up."""
    newest = []
    for nth in itertools.count(1, stride):
        url = f"{scheme}{tmp_path}/{nth}"
        with Inline(arenas) as client:
            client.open(url)
            assert client.save(arenas.records, 1, 1).name == "1-1"
        with SaverProcess(arenas, script.format(nth=nth)) as saver:
            assert isinstance(saver.client.open(url, keep=1), Opened)
            try:
                assert isinstance(saver.client.save(arenas.records, 2, 2), Saved)
            except Closed:
                assert saver.process.wait(60) == -signal.SIGKILL
            code = saver.end()
        assert code in (0, -signal.SIGKILL)  # to give the run back is an operation as well
        newest.append(usable(url)[0])
        with Inline(arenas) as client:
            assert client.open(url, keep=1, lock_patience_s=10.0).checkpoints[0].name == newest[-1]
            assert client.save(arenas.records, 3, 3).name == "3-3"
        assert usable(url) == ["3-3"]
        left = {entry.name.split("/")[1] for entry in open_store(url).list("checkpoints")}
        assert left == {"3-3"}
        if code == 0:
            break
    assert newest == sorted(newest)
    assert set(newest) == {"1-1", "2-2"}
    assert nth > operations


def test_a_saver_outlives_its_supervisor_and_signals(tmp_path: Path, arenas: Arenas) -> None:
    """What was asked before the end is saved, whoever is signalled; then the run is free."""
    with SaverProcess(arenas) as saver:
        saver.client.open(tmp_path)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            saver.process.send_signal(number)
        for step in (1, 2, 3):
            saver.client.send(
                requests.Save, attempt=1, step=step, world_size=2, began_from=None, records=arenas.records, versions={},
                determinism={},
            )  # fmt: skip
        assert saver.end() == 0
    assert usable(tmp_path) == ["1-3", "1-2", "1-1"]
    with Inline(arenas) as client:
        assert isinstance(client.open(tmp_path), Opened)


def test_a_second_saver_is_refused_until_the_first_is_killed(tmp_path: Path, arenas: Arenas) -> None:
    """It names who holds the run; SIGKILL frees it."""
    with SaverProcess(arenas) as first, SaverProcess(arenas) as second:
        assert isinstance(first.client.open(tmp_path, pod="pod-a", in_kubernetes=True), Opened)
        refused = second.client.open(tmp_path)
        assert (refused.kind, refused.answered) == ("locked", True)
        assert "pod-a" in refused.why
        first.process.kill()
        first.process.wait()
        assert isinstance(second.client.open(tmp_path), Opened)


def test_only_one_of_two_claims_is_done(tmp_path: Path, arenas: Arenas) -> None:
    """A saver whose attempt was claimed by another one hears of it."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        assert isinstance(client.claim(1), Done)
        refused = client.claim(1, token="another's")
        assert (type(refused), refused.kind, refused.conflict) == (Failed, "conflict", True)
    with Inline(arenas) as client:  # the saver that claimed it was killed before it could say so
        client.open(tmp_path)
        assert isinstance(client.claim(1), Done)


def test_an_exit_is_put_on_record_under_a_number_that_is_free(tmp_path: Path, arenas: Arenas) -> None:
    """Asked to leave while the run is opened a supervisor does not know its numbers yet; and it may change its mind."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        client.claim(1)
        assert isinstance(client.ask(Record, debit=DEBIT), Done)
        assert isinstance(client.ask(Record, debit=replace(DEBIT, code=195, wall_s=10.0)), Done)
    with Inline(arenas) as client:
        assert [(debit.attempt, debit.code) for debit in client.open(tmp_path).debits] == [(1, 195)]
        assert isinstance(client.ask(Record, debit=replace(DEBIT, code=196)), Done)
    with Inline(arenas) as client:
        assert [(debit.attempt, debit.code) for debit in client.open(tmp_path).debits] == [(1, 195), (2, 196)]


def test_small_requests_do_not_wait_for_a_save(arenas: Arenas) -> None:
    """A debit is on record while a save is stuck in the store."""
    stuck, go_on = threading.Event(), threading.Event()

    def fault(operation: str, path: str) -> None:
        if operation == "open":
            stuck.set()
            go_on.wait()

    FaultyFileSystem.reset()
    with Inline(arenas) as client:
        client.open("faulty://run")
        FaultyFileSystem.fault = staticmethod(fault)
        saving = client.send(
            requests.Save, attempt=1, step=1, world_size=2, began_from=None, records=arenas.records, versions={},
            determinism={},
        )  # fmt: skip
        stuck.wait()
        assert isinstance(client.ask(Record, debit=DEBIT), Done)
        go_on.set()
        saved = client.channel.receive()
        assert (type(saved), saved.id) == (Saved, saving)
    FaultyFileSystem.reset()


@pytest.mark.parametrize(
    ("error", "kind", "answered"),
    [
        (OSError(errno.ENOSPC, "no space"), "full", True),
        (OSError(errno.EBUSY, "SlowDown"), "unreachable", False),
        (PermissionError("denied"), "denied", True),
    ],
)
def test_each_request_says_why_it_failed(arenas: Arenas, error: OSError, kind: str, answered: bool) -> None:
    """In every state a store that is taken away is answered with a reason, and works again afterwards."""

    def fault(operation: str, path: str) -> None:
        if operation != "ls":
            raise error

    def asked(client: Client) -> list[Any]:
        return [
            client.claim(1, patience_s=0.0),
            client.save(arenas.records, 1, 1),
            client.ask(Record, debit=DEBIT, patience_s=0.0),
        ]

    FaultyFileSystem.reset(fault)
    with Inline(arenas) as client:
        replies = [client.open("faulty://run")]
        FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
        assert isinstance(client.open("faulty://run"), Opened)
        FaultyFileSystem.fault = staticmethod(fault)
        replies += asked(client)
        assert {(type(r), r.kind, r.answered) for r in replies} == {(Failed, kind, answered)}
        FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
        assert [type(reply) for reply in asked(client)] == [Done, Saved, Done]
    FaultyFileSystem.reset()


def test_silence_is_asked_again(arenas: Arenas) -> None:
    """A store that comes back within the patience of a request costs nothing but time."""
    failures = itertools.count(1)

    def fault(operation: str, path: str) -> None:
        if operation == "create" and next(failures) <= 2:
            raise TimeoutError

    FaultyFileSystem.reset()
    with Inline(arenas) as client:
        client.open("faulty://run")
        FaultyFileSystem.fault = staticmethod(fault)
        assert isinstance(client.claim(1), Done)
    FaultyFileSystem.reset()


def test_a_lost_answer_is_not_a_lost_claim(arenas: Arenas) -> None:
    """The object was created and the answer did not come: the next try finds its own."""

    def fault(operation: str, path: str) -> None:
        if operation == "create" and "attempts" in path:
            FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
            value = held["value"]
            FaultyFileSystem("faulty").pipe_file(path, value)
            raise TimeoutError

    held: dict[str, bytes] = {}
    create = FaultyFileSystem.pipe_file

    def remembering(self: Any, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        held["value"] = value
        create(self, path, value, mode=mode, **kwargs)

    FaultyFileSystem.reset()
    with Inline(arenas) as client:
        client.open("faulty://run")
        FaultyFileSystem.fault = staticmethod(fault)
        FaultyFileSystem.pipe_file = remembering  # type: ignore[method-assign]  # an answer is lost on purpose
        try:
            assert isinstance(client.claim(1), Done)
        finally:
            FaultyFileSystem.pipe_file = create  # type: ignore[method-assign]  # and put back
    FaultyFileSystem.reset()


def test_an_image_that_is_not_what_its_worker_digested_is_not_saved(tmp_path: Path, arenas: Arenas) -> None:
    """Nor one whose slot does not exist."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        os.pwrite(arenas.slots[1][0], b"X", 17)
        assert client.save(arenas.records, 1, 1).kind == "corrupt"
        missing = tuple(replace(record, slot=7) for record in arenas.records)
        assert client.save(missing, 1, 1).kind == "damaged"
        other = arenas.put(IMAGES, slot=1)
        assert client.save(other, 1, 1).name == "1-1"
    assert usable(tmp_path) == ["1-1"]


def test_fresh_begins_once_for_each_submission(tmp_path: Path, arenas: Arenas) -> None:
    """A container that is started again with the same command goes on with the history that it began."""

    def start(submission: str, fresh: bool = True) -> Any:
        with Inline(arenas) as client:
            opened = client.open(tmp_path, submission=submission, fresh=fresh)
            attempt = opened.next_attempt
            client.claim(attempt)
            client.save(arenas.records, attempt, 5)
            return [ref.name for ref in opened.checkpoints]

    assert start("one", fresh=False) == []
    assert start("two") == []
    assert start("two") == ["2-5"]
    assert start("three", fresh=False) == ["3-5", "2-5"]
    assert start("four") == []


def test_before_a_run_is_open_nothing_can_be_asked(arenas: Arenas) -> None:
    """And a wrong URL is a wrong setting."""
    with Inline(arenas) as client:
        assert client.ask(Record, debit=DEBIT).kind == "damaged"
        assert client.open("nosuch://x/y").kind == "settings"
        assert client.open("/proc/nothing/here").answered


def test_garbage_ends_the_channel_and_frees_the_run(tmp_path: Path, arenas: Arenas) -> None:
    """A line that is no request is answered by the end."""
    with Inline(arenas) as client:
        client.open(tmp_path)
        client.channel.sock.sendall(b"{nonsense\n")
        with pytest.raises(Closed):
            client.channel.receive()
    with Inline(arenas) as client:
        assert isinstance(client.open(tmp_path), Opened)


def test_importing_the_saver_loads_neither_torch_nor_kubernetes() -> None:
    """It starts in the time that a preempted pod has."""
    code = "import sys, resilient.checkpoint.saver; print({'torch', 'kubernetes', 's3fs'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "set()\n"
