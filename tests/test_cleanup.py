# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed, and in whatever order: no process, no shared memory and no temporary file is left."""

import os
import re
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from supervised import HEAD, LIMIT_S, Folder, Running, training

from resilient.core.policy import Terms

END_S = LIMIT_S

DETACHED = (
    HEAD
    + """
def detach():
    "A grandchild in a session of its own, that ignores every polite request."
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, str(os.getpid()).encode())
        while True:
            signal.pause()
    os.wait()
    return int(os.read(read, 20))

"""
)
FIRST_STAYS = (
    DETACHED
    + """
if once("first"):
    print("pids", os.getpid(), detach(), flush=True)
    signal.pause()
print("second", flush=True)
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A folder whose TMPDIR has to be empty in the end: the journal lies elsewhere."""
    folder = Folder(tmp_path)
    yield folder
    assert list((tmp_path / "tmp").iterdir()) == []


def pids_said(running: Running, count: int = 1) -> list[int]:
    """What the first worker printed after "pids"."""
    running.until("pids")
    running.until("\n")
    found = re.findall(r"^pids ([\d ]+)$", running.said(), re.MULTILINE)
    return [int(word) for word in found[0].split()]


def saver_of(running: Running) -> int:
    """The saver, among the supervisor's children."""
    for listing in Path(f"/proc/{running.pid}/task").glob("*/children"):
        for pid in listing.read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                if b"saver_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    raise AssertionError("there is no saver")


def wait_for_the_end(pidfds: Sequence[int]) -> None:
    """Of all these processes."""
    for pidfd in pidfds:
        ended, _, _ = select.select([pidfd], [], [], END_S)
        os.close(pidfd)
        assert ended, "a process is still there"


def test_a_killed_supervisor_takes_everything_with_it(folder: Folder) -> None:
    """Workers die with it, and the saver ends what had detached itself from them."""
    script = folder.script(FIRST_STAYS)
    with folder.start("--checkpoints", folder.checkpoints, script) as running:
        watched = [os.pidfd_open(pid) for pid in (*pids_said(running), saver_of(running))]
        running.signal(signal.SIGKILL)
        wait_for_the_end(watched)


def test_the_next_start_ends_what_nobody_was_left_to_end(folder: Folder) -> None:
    """Supervisor and saver killed together: the run's next start finds the rest, and leaves other runs alone."""
    script = folder.script(FIRST_STAYS)
    stays_too = folder.script(FIRST_STAYS.replace("first", "1st"), "other.py")
    other = folder.start("--checkpoints", folder.path / "other", stays_too)
    with folder.start("--checkpoints", folder.checkpoints, script) as running, other:
        worker, detached = pids_said(running)
        spared = [os.pidfd_open(pid) for pid in pids_said(other)]
        watched = [os.pidfd_open(worker), os.pidfd_open(detached)]
        saver = saver_of(running)
        running.signal(signal.SIGSTOP)  # so that it cannot put another saver in the place of the first
        os.kill(saver, signal.SIGKILL)
        running.signal(signal.SIGKILL)
        wait_for_the_end(watched[:1])
        again = folder.run("--checkpoints", folder.checkpoints, script)
        assert "second" in again.stdout
        wait_for_the_end(watched[1:])
        assert select.select(spared, [], [], 0)[0] == []
        for pidfd in spared:
            os.close(pidfd)


def test_without_checkpoints_the_journal_names_the_run(folder: Folder) -> None:
    """No saver survives a supervisor that has none, so the next start with the same journal cleans up."""
    script = folder.script(FIRST_STAYS)
    journal = str(folder.path / "journal-of-both")
    with folder.start(script, RESILIENT_JOURNAL=journal) as running:
        watched = [os.pidfd_open(pid) for pid in pids_said(running)]
        running.signal(signal.SIGKILL)
        again = folder.run(script, RESILIENT_JOURNAL=journal)
        assert "second" in again.stdout
        assert "whose supervisor had been killed" in again.stderr
        wait_for_the_end(watched)


def test_a_worker_takes_its_grandchildren_with_it(folder: Folder) -> None:
    """SIGKILL of a worker: what it had started is gone before the next attempt begins."""
    script = folder.script(
        DETACHED
        + """
if once("first"):
    (HERE / "detached").write_text(str(detach()))
    os.kill(os.getpid(), signal.SIGKILL)
try:
    os.kill(int((HERE / "detached").read_text()), 0)
except ProcessLookupError:
    print("it is gone")
"""
    )
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    assert "it is gone" in ended.stdout


KILLS_SAVER = """
STEPS = 6
def saver():
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = pathlib.Path("/proc", pid, "cmdline").read_bytes()
            parent = pathlib.Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"saver_process" in words and int(parent) == os.getppid():
            return int(pid)

def fault(step):
    if step == 3:
        os.kill(saver(), signal.SIGKILL)
"""


def test_a_killed_saver_is_replaced(folder: Folder) -> None:
    """Training goes on undisturbed, and what comes after is saved by another saver."""
    script = folder.script(training(KILLS_SAVER, arguments="every=1"))
    ended = folder.run("--checkpoints", folder.checkpoints, script)
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert "another one is started" in ended.stderr
    assert max(entry["step"] for entry in ended.entries("checkpoint")) == 6


LOADING = """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.ones(1)

loader = torch.utils.data.DataLoader(Data(), num_workers=2)

def fault(step):
    if step == 2 and once("killed"):
        children = pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        print("pids", os.getpid(), children, flush=True)
        HOW
"""


def loading(how: str) -> str:
    """A training with DataLoader workers."""
    return training(LOADING.replace("HOW", how)).replace("[torch.ones(1)] * 4", "loader")


def test_dataloader_workers_end_with_their_killed_worker(folder: Folder) -> None:
    """They do not hold up the restart either: the group is gone long before its grace is over."""
    ended = folder.run("--checkpoints", folder.checkpoints, folder.script(loading("os.kill(os.getpid(), 9)")))
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    times = {entry["event"]["type"]: entry["m"] for entry in reversed(ended.entries("event"))}
    waited_s = times["GroupEnded"] - times["WorkerEnded"]
    assert waited_s < Terms().stop_grace_s, "they were waited for until they were killed"


def test_dataloader_workers_end_with_a_killed_supervisor(folder: Folder) -> None:
    """The saver and their own watch over their parent see to it."""
    script = folder.script(loading("signal.pause()"))
    with folder.start("--checkpoints", folder.checkpoints, script) as running:
        watched = [os.pidfd_open(pid) for pid in (*pids_said(running), saver_of(running))]
        assert len(watched) == 4
        running.signal(signal.SIGKILL)
        wait_for_the_end(watched)
