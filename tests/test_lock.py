# SPDX-License-Identifier: Apache-2.0
"""One supervisor at a time, and free again after its death, on directories and on object stores."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_store import FaultyFileSystem

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import Holder, Locked, is_alive, machine, process
from resilient.checkpoint.lease import FREE_AFTER_S, RENEW_S
from resilient.checkpoint.lock import Lock, acquire
from resilient.checkpoint.store import open_store
from resilient.errors import StoreError

ELSEWHERE = Holder(
    host="node-7",
    pid=41,
    pod="train-0",
    journal="/journal",
    since_s=1.0,
    machine="other",
    supervisor="41:1",
    keeper="42:2",
)
HERE = Holder(
    host="here", pid=os.getpid(), pod="", journal="", since_s=1.0, machine=machine(), supervisor=process(os.getpid()),
    keeper=process(os.getpid()),
)  # fmt: skip
DEAD_PROCESS = "1:1"
"""Process 1 has another start time."""


class Clock:
    """Time that passes only when somebody waits; ``meanwhile`` happens then."""

    def __init__(self, meanwhile: Callable[[float], None] = lambda now: None) -> None:
        self.now_s = 1000.0
        self.meanwhile = meanwhile

    def now(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.meanwhile(self.now_s)

    def acquire(self, store: Store, holder: Holder, patience_s: float = 0.0) -> Lock:
        return acquire(store, holder, patience_s=patience_s, now=self.now, wait=self.wait)


@pytest.fixture
def bucket() -> Iterator[Store]:
    FaultyFileSystem.reset()
    yield open_store("faulty://run")
    FaultyFileSystem.reset()


def test_the_second_is_told_who_holds_a_directory(tmp_path: Path) -> None:
    """By name, and it may come in after the release."""
    store = open_store(str(tmp_path / "run"))
    lock = Clock().acquire(store, ELSEWHERE)
    with pytest.raises(Locked, match="process 41 on node-7 in pod train-0, journal /journal") as caught:
        Clock().acquire(open_store(str(tmp_path / "run")), HERE, patience_s=1.0)
    assert caught.value.holder == ELSEWHERE
    lock.check()
    lock.release()
    Clock().acquire(store, HERE).release()


def test_a_live_holder_is_not_waited_for(tmp_path: Path) -> None:
    """On one machine it is seen at once that the other supervisor lives."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = replace(HERE, pid=child.pid, supervisor=process(child.pid))
    store = open_store(str(tmp_path))
    lock = Clock().acquire(store, other)
    clock = Clock()
    with pytest.raises(Locked):
        clock.acquire(store, HERE, patience_s=1000.0)
    assert clock.now_s == 1000.0
    lock.release()
    child.communicate()


def test_a_dying_holder_is_waited_for(tmp_path: Path) -> None:
    """Its supervisor is dead and its saver still finishes: the next start goes on when it has."""
    store = open_store(str(tmp_path))
    lock = Clock().acquire(store, replace(HERE, supervisor=DEAD_PROCESS))
    clock = Clock(lambda now: lock.release() if now > 1010 else None)
    clock.acquire(store, HERE, patience_s=60.0).release()


HOLD = """
import sys, time
from resilient.checkpoint.lock import acquire
from resilient.checkpoint.store import open_store
from resilient.checkpoint.holder import UNKNOWN
lock = acquire(open_store(sys.argv[1]), UNKNOWN, patience_s=0, now=time.monotonic, wait=time.sleep)
print("held", flush=True)
input()
"""


def test_a_killed_holder_frees_a_directory(tmp_path: Path) -> None:
    """The kernel gives the lock back, whatever the sidecar says."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    store = open_store(str(tmp_path))
    with pytest.raises(Locked):
        Clock().acquire(store, HERE)
    child.kill()
    child.communicate()
    Clock().acquire(store, HERE).release()


def test_a_directory_that_is_another_by_now_is_not_held(tmp_path: Path) -> None:
    """Deleted, replaced or without its mount: what is written there would be lost, and is in nobody's way."""
    run = tmp_path / "run"
    lock = Clock().acquire(open_store(str(run)), HERE)
    lock.check()
    run.rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="not the directory that was opened"):
        lock.check()
    run.mkdir()
    (run / ".lock").touch()
    with pytest.raises(StoreError, match="not the directory that was opened"):
        lock.check()
    (run / ".lock").unlink()
    run.rmdir()
    (tmp_path / "moved").rename(run)
    lock.check()
    lock.release()


def test_a_lease_that_is_renewed_holds(bucket: Store) -> None:
    """An observer sees the counter rise, and need not wait for its patience to end."""
    clock = Clock()
    lease = clock.acquire(bucket, ELSEWHERE)
    renewed = [1000.0]

    def renew(now: float) -> None:
        if now - renewed[0] >= RENEW_S:
            renewed[0] = now
            lease.renew()

    observer = Clock(renew)
    with pytest.raises(Locked, match="node-7"):
        observer.acquire(bucket, HERE, patience_s=10_000.0)
    assert observer.now_s <= 1000 + 2 * RENEW_S
    lease.check()


def test_a_lease_is_free_after_its_holders_death(bucket: Store) -> None:
    """After a minute of silence by the observer's own clock, however wrong the holder's was."""
    dead = Clock()
    dead.now_s = 1e12
    lost = dead.acquire(bucket, replace(ELSEWHERE, since_s=1e12))
    observer = Clock()
    taken = observer.acquire(bucket, HERE, patience_s=FREE_AFTER_S + 15)
    assert observer.now_s - 1000 >= FREE_AFTER_S
    dead.now_s += 2 * FREE_AFTER_S  # it was only asleep
    with pytest.raises(Locked, match="here"):
        lost.check()
    lost.release()
    taken.renew()
    taken.check()


def test_a_lease_is_not_taken_before_its_time(bucket: Store) -> None:
    """Patience that is shorter than the lease ends in a refusal."""
    Clock().acquire(bucket, ELSEWHERE)
    with pytest.raises(Locked):
        Clock().acquire(bucket, HERE, patience_s=FREE_AFTER_S / 2)


def test_slow_answers_are_not_silence(bucket: Store) -> None:
    """Time that the store takes to answer says nothing of the holder."""
    Clock().acquire(bucket, ELSEWHERE)
    observer = Clock()

    def slow(operation: str, path: str) -> None:
        if operation == "cat":
            observer.now_s += 50

    FaultyFileSystem.fault = staticmethod(slow)
    waits: list[float] = []
    observer.meanwhile = waits.append
    observer.acquire(bucket, HERE, patience_s=1000)
    assert len(waits) >= 3


def test_a_released_lease_is_free_at_once(bucket: Store) -> None:
    """Nobody waits for a holder that said good-bye."""
    Clock().acquire(bucket, ELSEWHERE).release()
    clock = Clock()
    clock.acquire(bucket, HERE)
    assert clock.now_s == 1000.0


def test_a_dead_process_of_this_machine_holds_nothing(bucket: Store) -> None:
    """A supervisor that restarts its saver does not wait for a minute."""
    Clock().acquire(bucket, replace(HERE, keeper=DEAD_PROCESS))
    Clock().acquire(bucket, HERE)


def test_the_same_host_name_is_not_the_same_machine(bucket: Store) -> None:
    """A pod that replaces another may have its name and its process numbers."""
    Clock().acquire(bucket, replace(HERE, machine="another boot", keeper=DEAD_PROCESS))
    with pytest.raises(Locked):
        Clock().acquire(bucket, HERE)


def test_of_two_observers_one_takes_over(bucket: Store) -> None:
    """Both see the same silence; creation decides."""
    Clock().acquire(bucket, ELSEWHERE)
    rival = replace(ELSEWHERE, host="node-8")
    won: list[Lock] = []

    def snatch(operation: str, path: str) -> None:
        if operation == "create" and not won:
            won.append(None)  # type: ignore[arg-type]  # marks the call that comes from within
            FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
            won[:] = [Clock().acquire(bucket, rival, patience_s=100)]

    FaultyFileSystem.fault = staticmethod(snatch)
    with pytest.raises(Locked, match="node-8"):
        Clock().acquire(bucket, replace(HERE, machine="elsewhere"), patience_s=FREE_AFTER_S + 15)
    won[0].check()


def test_a_holder_that_cannot_renew_looks_before_it_goes_on(bucket: Store) -> None:
    """Silence of the store is an error then, not a licence."""
    clock = Clock()
    lease = clock.acquire(bucket, HERE)

    def silent(operation: str, path: str) -> None:
        raise TimeoutError

    FaultyFileSystem.fault = staticmethod(silent)
    lease.check()
    clock.now_s += 2 * RENEW_S
    with pytest.raises(StoreError) as caught:
        lease.check()
    assert not caught.value.answered


def test_a_damaged_lease_still_holds_for_its_time(bucket: Store) -> None:
    """Nonsense under the name of a lease is somebody, until it has been silent."""
    bucket.create(".lock/3.json", b"{nonsense")
    with pytest.raises(Locked, match="unknown"):
        Clock().acquire(bucket, HERE)
    Clock().acquire(bucket, HERE, patience_s=FREE_AFTER_S + 15).check()
    assert [entry.name for entry in bucket.list(".lock")] == [".lock/4.json"]


def test_processes_are_told_apart() -> None:
    """A number alone may have been given to another process."""
    assert is_alive(HERE, process(os.getpid()))
    assert is_alive(HERE, f"{os.getpid()}:1") is False
    assert is_alive(ELSEWHERE, process(os.getpid())) is None
    assert is_alive(HERE, "") is None
