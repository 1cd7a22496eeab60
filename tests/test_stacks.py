# SPDX-License-Identifier: Apache-2.0
"""Where the workers stand, told by the workers themselves although they are stuck."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host import Host
from supervised import LIMIT_S

import resilient
from resilient.link.messages import Note
from resilient.supervisor import stacks
from resilient.supervisor.processes import Worker, spawn

linux = pytest.mark.skipif(sys.platform != "linux", reason="the supervisor is for Linux")
REPOSITORY = Path(stacks.__file__).parents[2]

STUCK = f"""\
import os, signal, sys, threading
sys.path.insert(0, {str(REPOSITORY)!r})
from resilient.supervisor import stacks

def beside():
    threading.Event().wait()

def loss():
    os.read(hold, print("ready", flush=True) or 1)

hold, _ = os.pipe()
for _ in range(int(sys.argv[3])):
    threading.Thread(target=beside, daemon=True).start()
if sys.argv[2] != "none":
    stacks.register(sys.argv[1], int(sys.argv[2]))
loss()
"""
Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers that hang in ``loss``, and waits until they do."""
    (tmp_path / "train.py").write_text(STUCK)
    started: list[Worker] = []

    def start(rank: str = "0", threads: int = 1) -> Worker:
        command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path), rank, str(threads)]
        worker = spawn(command, environ={"PATH": os.environ["PATH"]})
        started.append(worker)
        assert worker.stdout is not None
        assert select.select([worker.stdout], [], [], 60)[0]
        assert os.read(worker.stdout, 100) == b"ready\n"
        return worker

    yield start
    for worker in started:
        assert worker.pidfd is not None
        if worker.send(signal.SIGKILL):
            select.select([worker.pidfd], [], [], 60)
        worker.close()


def dumped(worker: Worker, path: Path) -> stacks.Dump:
    """A complete dump; gives up after a generous number of looks."""
    dump = stacks.request(worker, path)
    assert dump is not None
    assert worker.pidfd is not None
    for _ in range(6000):
        if dump.complete():
            return dump
        assert not select.select([worker.pidfd], [], [], 0.01)[0], "asking for stacks ended the worker"
    raise AssertionError("the dump does not become complete")


@linux
@pytest.mark.parametrize("threads", [0, 1, 90])
def test_a_stuck_worker_tells_where_it_stands(start: Start, tmp_path: Path, threads: int) -> None:
    """All threads are in the dump, the main one is told from the others, and the worker lives on."""
    worker = start("3", threads)
    path = stacks.stack_path(tmp_path, 3)
    text = dumped(worker, path).text()
    line = STUCK[: STUCK.index("os.read(hold")].count("\n") + 1
    assert stacks.innermost(text) == f"train.py:{line} in loss"
    assert text.count(" in beside") == threads
    assert text.endswith(" in <module>\n")
    assert worker.poll() is None


@linux
def test_asking_twice_tells_only_what_is_new(start: Start, tmp_path: Path) -> None:
    """The second dump does not count the first as its own."""
    worker = start("0", 0)
    path = stacks.stack_path(tmp_path, 0)
    first, second = dumped(worker, path).text(), dumped(worker, path).text()
    assert first == second
    assert first.count("most recent call first") == 1


@linux
def test_a_worker_that_never_registered_is_not_signalled(start: Start, tmp_path: Path) -> None:
    """Without its file there is no handler, and the signal would kill."""
    worker = start("none")
    assert stacks.request(worker, stacks.stack_path(tmp_path, 0)) is None
    assert worker.poll() is None


def trains_without_stacks(folder: Path, refused: str) -> None:
    def full(descriptor: int, *_: object, **__: object) -> object:
        if refused == "open":
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)

    os.environ["RESILIENT_INTERNAL_STACKS"] = str(folder)
    stacks.open = full  # type: ignore[attr-defined]  # a name of the module that hides the builtin
    resilient.Run(state={"numbers": [1]})
    signal.raise_signal(stacks.SIGNAL)


@linux
@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_full_disk_costs_the_stacks_and_not_the_worker(tmp_path: Path, refused: str) -> None:
    """It says so and goes on; no file, of an earlier worker either, has the supervisor signal it."""
    path = stacks.stack_path(tmp_path, 0)
    path.write_text("main thread 0x1\n")
    with Host() as host:
        host.launch(trains_without_stacks, tmp_path, refused)
        host.begin()
        assert host.wait() == [0]
        notes = [message.text for _, message in host.heard if isinstance(message, Note)]
    assert len(notes) == 1
    assert notes[0].startswith("goes on without stacks: [Errno 28] No space left on device")
    assert not path.exists()


@linux
def test_a_stopped_worker_has_no_complete_dump(start: Start, tmp_path: Path) -> None:
    """One that cannot answer is told from one that has, until it does answer."""
    worker = start("0")
    worker.send(signal.SIGSTOP)
    assert os.waitid(os.P_PID, worker.pid, os.WSTOPPED) is not None
    dump = stacks.request(worker, stacks.stack_path(tmp_path, 0))
    assert dump is not None
    assert not dump.complete()
    assert stacks.innermost(dump.text()) is None
    with dump.path.open("ab") as file:
        file.write(b"the beginning of a dump\n")
    assert not dump.complete(), "as long as the signal is pending or handled there is more to come"
    worker.send(signal.SIGCONT)
    for _ in range(6000):
        if dump.complete():
            break
        select.select([], [], [], 0.01)
    assert "in loss" in dump.text()


BLOCKING = """
import signal, sys, threading
sys.path.insert(0, sys.argv[2])
from resilient.supervisor import stacks

def listen(asked, told):
    asked.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, {stacks.SIGNAL})
    told.set()
    threading.Event().wait()

first, second, told = threading.Event(), threading.Event(), [threading.Event(), threading.Event()]
for asked, answer in zip((first, second), told):
    threading.Thread(target=listen, args=(asked, answer), daemon=True).start()
stacks.register(sys.argv[1], 0)
first.set()
told[0].wait()
print("ready", flush=True)
input()
second.set()
told[1].wait()
print("ready", flush=True)
input()
"""


@linux
def test_a_dump_is_not_complete_while_a_thread_other_than_the_main_one_handles_the_signal(tmp_path: Path) -> None:
    """It blocks the signal then; one that had blocked it before is waited for by nobody."""
    command = [sys.executable, "-c", BLOCKING, str(tmp_path), str(REPOSITORY)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        path = stacks.stack_path(tmp_path, 0)
        _, deaf = stacks._pending_or_blocked(process.pid)
        dump = stacks.Dump(pid=process.pid, path=path, begin=1, deaf=deaf)
        assert (len(deaf), dump.complete()) == (1, True)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        assert not dump.complete()
        process.kill()


@linux
def test_a_worker_that_ended_instead_of_answering_has_no_dump(start: Start, tmp_path: Path) -> None:
    """Its end is no answer."""
    worker = start("0")
    worker.send(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
    dump = stacks.request(worker, stacks.stack_path(tmp_path, 0))
    assert dump is not None
    worker.send(signal.SIGKILL)
    assert worker.pidfd is not None
    assert select.select([worker.pidfd], [], [], 60)[0]
    worker.poll()
    worker.close()
    assert not dump.complete()


@linux
def test_a_worker_that_has_ended_is_not_asked(start: Start, tmp_path: Path) -> None:
    """There is nothing to signal."""
    worker = start("0")
    worker.send(signal.SIGKILL)
    assert worker.pidfd is not None
    assert select.select([worker.pidfd], [], [], 60)[0]
    assert stacks.request(worker, stacks.stack_path(tmp_path, 0)) is None


@linux
def test_a_request_that_comes_while_the_interpreter_ends_does_not_kill(tmp_path: Path) -> None:
    """faulthandler takes its handler away then, and what was there before must not be the default: death."""
    end = f"""\
import faulthandler, os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from resilient.supervisor import stacks
stacks.register(sys.argv[1], 0)
faulthandler.unregister(stacks.SIGNAL)  # as the interpreter's end does
os.kill(os.getpid(), stacks.SIGNAL)
"""
    assert subprocess.run([sys.executable, "-c", end, str(tmp_path)], check=False, timeout=LIMIT_S).returncode == 0


def dump_of(*paths: str) -> str:
    frames = "".join(f'  File "{path}", line {number} in f{number}\n' for number, path in enumerate(paths))
    return f"Current thread 0x0000000000000001 (most recent call first):\n{frames}"


SITE = "/opt/venv/lib/python3.12/site-packages"


@pytest.mark.parametrize(
    ("paths", "frame"),
    [
        ([f"{SITE}/torch/nn/functional.py", "/app/model.py", "/app/train.py"], "model.py:1 in f1"),
        (["/usr/lib/python3.12/queue.py", f"{SITE}/acme/data.py", f"{SITE}/torch/x.py"], "data.py:1 in f1"),
        ([str(Path(stacks.__file__)), "/app/train.py"], "train.py:1 in f1"),
        ([os.__file__, "<frozen runpy>", "/app/my file.py"], "my file.py:2 in f2"),
        ([f"{SITE}/torch/a.py", "/usr/lib/python3.12/runpy.py"], "a.py:0 in f0"),
        (["<string>"], "<string>:0 in f0"),
        ([], None),
    ],
)
def test_the_innermost_frame_is_the_users(paths: list[str], frame: str | None) -> None:
    """Of the user's code where there is any, else of an installed package, else of anything."""
    assert stacks.innermost(dump_of(*paths)) == frame


@pytest.mark.parametrize(
    ("path", "waits"),
    [
        (f"{SITE}/torch/distributed/distributed_c10d.py", True),
        (f"{SITE}/torch/autograd/graph.py", True),
        (f"{SITE}/torch/nn/parallel/distributed.py", True),
        (f"{SITE}/torch/nn/functional.py", False),
        ("/app/torch/distributed/own.py", False),
    ],
)
def test_who_waits_for_its_peers_is_told_by_the_innermost_frame(path: str, waits: bool) -> None:
    """A collective, or the backward pass in which gradients are exchanged."""
    assert stacks.waits_for_peers(dump_of(path, "/app/train.py")) is waits
    assert not stacks.waits_for_peers(dump_of("/app/train.py", path))


def test_the_main_thread_is_found_by_its_name() -> None:
    """Not the thread that happened to take the signal, and not the last in a dump that was cut short."""
    other = 'Current thread 0x00000000000000ab [worker] (most recent call first):\n  File "/b.py", line 2 in b\n\n'
    main = 'Thread 0x00000000000000cd [python] (most recent call first):\n  File "/a.py", line 1 in a\n\n'
    assert stacks.innermost("main thread 0x00000000000000cd\n" + main + other) == "a.py:1 in a"
    assert stacks.innermost(other + main) == "a.py:1 in a"
    assert stacks.innermost("main thread 0x00000000000000cd\n" + other + "...\n") is None


@pytest.mark.parametrize("text", ["", "\x00\xff", "Current thread 0x1:\n  <no Python frame>\n", 'File "x", line y'])
def test_what_is_no_dump_names_no_frame(text: str) -> None:
    """Whatever a worker writes there is only text."""
    assert stacks.innermost(text) is None


def test_reading_is_bounded_and_follows_nothing(tmp_path: Path) -> None:
    """A huge file gives its end; a link, a FIFO, a folder and nothing at all give nothing, without waiting."""
    path = stacks.stack_path(tmp_path, 0)
    path.write_bytes(b"main thread 0x1\n" + b"x" * (2 * stacks.TEXT_LIMIT) + b"end")
    assert stacks.read(path).endswith("end")
    assert len(stacks.read(path)) < stacks.TEXT_LIMIT + 100
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "missing", "."):
        assert stacks.read(tmp_path / name) == ""
