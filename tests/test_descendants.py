# SPDX-License-Identifier: Apache-2.0
"""Our processes are found and ended however they hide; other people's are never touched."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient.supervisor.descendants import TOKEN_VARIABLE, Ending, end, end_leftovers, find, new_token
from resilient.supervisor.processes import Exit, Worker, spawn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the supervisor is for Linux")

REPOSITORY = Path(__file__).parents[1]
DAEMONISE = """if True:
    import os, signal, sys
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    signal.pause()
"""
Start = Callable[..., Worker]


@pytest.fixture
def token() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def start(token: str) -> Iterator[Start]:
    """Starts workers that carry the token; whatever comes of them is ended after the test."""
    started: list[Worker] = []

    def start(*command: str) -> Worker:
        worker = spawn(command, environ={"PATH": os.environ["PATH"], TOKEN_VARIABLE: token})
        started.append(worker)
        return worker

    yield start
    assert end(token, grace_s=0, workers=[worker.pid for worker in started]) == []
    for worker in started:
        worker.close()


@pytest.fixture
def foreign() -> Iterator[int]:
    """Somebody else's process beside us, our child even, without the token."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        assert process.poll() is None, "a foreign process was ended"
        process.kill()


def words(worker: Worker, count: int) -> list[str]:
    """The next words that a worker, or what it started, prints."""
    assert worker.stdout is not None
    text = b""
    while len(text.split()) < count or not text.endswith(b"\n"):
        assert select.select([worker.stdout], [], [], 60)[0], f"only {text!r} was printed"
        chunk = os.read(worker.stdout, 4096)
        assert chunk, f"only {text!r} was printed"
        text += chunk
    return text.decode().split()


def gone(pidfd: int) -> bool:
    """Whether a process ends."""
    return bool(select.select([pidfd], [], [], 60)[0])


def reap(pid: int) -> None:
    """Take the status of an orphan where pytest has become its parent."""
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_workers_and_their_children_are_found(start: Start, token: str, foreign: int) -> None:
    """The token is inherited; this process, and one without it, are not ours."""
    # The child speaks for itself: one that is just being executed has no environment.
    worker = start("sh", "-c", "sh -c 'echo $$; kill -STOP $$' & wait")
    child = int(words(worker, 1)[0])
    assert sorted(find(token)) == sorted([worker.pid, child])
    assert find(secrets.token_hex(16)) == []


def test_a_token_must_match_whole(start: Start, token: str) -> None:
    """Neither a part of a token nor the token in another variable marks a process."""
    marks = [f"OTHER={TOKEN_VARIABLE}={token}", f"{TOKEN_VARIABLE}={token}more"]
    worker = start("env", *marks, "sh", "-c", "echo ready; exec sleep 1000")
    words(worker, 1)
    assert worker.pid not in find(token)
    assert find(token[:-1]) == []
    assert find(token, workers=[worker.pid]) == [worker.pid]


def test_an_empty_token_is_refused() -> None:
    """It would name every process whose variable is empty."""
    with pytest.raises(ValueError, match="empty"):
        find("")


def test_daemons_are_ended(start: Start, token: str, foreign: int) -> None:
    """Forked twice, in a session of its own, its parent gone, deaf to SIGTERM: ended all the same."""
    worker = start(sys.executable, "-c", DAEMONISE)
    daemon = int(words(worker, 1)[0])
    pidfd = os.pidfd_open(daemon)
    assert daemon in find(token)
    assert end(token, grace_s=0.05) == []
    assert gone(pidfd)
    os.close(pidfd)
    reap(daemon)


def test_children_without_an_environment_are_ended(start: Start, token: str) -> None:
    """A cleared environment hides nobody: neither a live worker's child nor what is left in a dead worker's session."""
    script = "sh -c 'echo $$; exec sleep 1000' & wait"
    living, dead = start("sh", "-c", f"env -i setsid {script}"), start("sh", "-c", f"env -i {script}")
    child, orphan = int(words(living, 1)[0]), int(words(dead, 1)[0])
    dead.send(signal.SIGKILL)
    assert dead.pidfd is not None
    assert gone(dead.pidfd)
    pidfds = [os.pidfd_open(pid) for pid in (child, orphan)]
    workers = [living.pid, dead.pid]
    assert sorted(find(token, workers=workers)) == sorted([living.pid, child, orphan])
    assert end(token, grace_s=30, workers=workers) == []
    for pidfd in pidfds:
        assert gone(pidfd)
        os.close(pidfd)
    reap(orphan)
    reap(child)


@contextlib.contextmanager
def without_environment(then: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child of ours that shows no environment until it is told to execute a program with another one."""
    code = (
        f"print(flush=True); input(); import os; os.execve('/bin/sh', ['sh', '-c', 'echo; exec sleep 1000'], {then!r})"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], env={}, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process
        process.kill()


def test_an_orphan_that_is_about_to_execute_a_program_is_waited_for(token: str) -> None:
    """Until its environment shows whose it is; it is not signalled before."""
    ending = Ending(token, grace_s=60, now=0.0)
    with without_environment({"PATH": os.environ["PATH"], TOKEN_VARIABLE: token}) as process:
        assert ending.advance(0.0) == [process.pid]
        assert process.poll() is None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n"
        assert ending.advance(0.0) == [process.pid]
        assert process.wait(60) == -signal.SIGTERM
        assert ending.advance(0.0) == []


def test_a_child_that_never_has_an_environment_is_foreign(token: str) -> None:
    """It is waited for a few times, and left alone."""
    ending = Ending(token, grace_s=0, now=0.0)
    with without_environment({}) as process:
        looks = [ending.advance(1.0) for _ in range(6)]
        assert looks == [[process.pid]] * 3 + [[]] * 3
        assert process.poll() is None


def test_a_process_without_its_main_thread_is_ended(start: Start, token: str) -> None:
    """To /proc it is a zombie, but its other threads run, and hold what they hold: a GPU, or the dump of its core."""
    code = "import ctypes, threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    worker = start(sys.executable, "-c", code + "print('up', flush=True)\nctypes.CDLL(None).pthread_exit(None)")
    words(worker, 1)
    stat = Path(f"/proc/{worker.pid}/stat")
    while b") Z " not in stat.read_bytes():  # there is no event for the end of one thread of another process
        os.sched_yield()
    assert worker.poll() is None
    assert end(token, grace_s=60, workers=[worker.pid]) == []
    assert worker.poll() == Exit(signal=signal.SIGTERM)


def test_the_grace_is_given_and_then_ends(start: Start, token: str) -> None:
    """One that obeys SIGTERM ends its own way, one that does not gets SIGKILL, not before its time, and once each."""
    polite = start("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait $!; done")
    deaf = start("sh", "-c", "trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait $!; done")
    words(polite, 1)
    words(deaf, 1)
    ending = Ending(token, grace_s=5, now=100, workers=[polite.pid, deaf.pid])
    assert polite.pid in ending.advance(100)
    assert polite.pidfd is not None
    assert gone(polite.pidfd)
    assert words(deaf, 1) == ["asked"]
    assert ending.pidfds
    assert deaf.pid in ending.advance(104.9)
    assert deaf.poll() is None
    while ending.advance(105):
        select.select(ending.pidfds, [], [], 0.05)
    ending.close()
    exits = [worker.poll() for worker in (polite, deaf)]
    assert [(e.code, e.signal) for e in exits if e] == [(7, None), (None, signal.SIGKILL)]


def test_one_that_cannot_be_ended_is_named(start: Start, token: str) -> None:
    """When the time for SIGKILL is up, what is left is told, and there is no waiting for ever."""
    worker = start("sleep", "1000")
    assert end(token, grace_s=0, kill_wait_s=0) == [worker.pid]


def test_as_pid_1_nothing_of_ours_is_left_and_the_rest_lives() -> None:
    """In a PID namespace of its own: orphans come to us, ours are ended, a foreign one is not, no zombie stays."""
    unshare = [shutil.which("unshare") or "unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot make a PID namespace")
    code = f"""if True:
        import os, select, subprocess, sys
        from resilient.supervisor.descendants import end, find
        from resilient.supervisor.processes import reap_orphans, spawn
        assert os.getpid() == 1
        # Like ``kubectl exec``: re-parented to us, and not ours.
        foreign = int(subprocess.check_output(["sh", "-c", "sleep 1000 >&- & echo $!"]))
        worker = spawn([sys.executable, "-c", {DAEMONISE!r}], environ={{"{TOKEN_VARIABLE}": "secret"}})
        select.select([worker.stdout], [], [], 60)
        daemon = int(os.read(worker.stdout, 100))
        assert daemon in find("secret") and foreign not in find("secret", workers=[worker.pid])
        pidfd = os.pidfd_open(daemon)
        assert end("secret", grace_s=0, workers=[worker.pid]) == []
        select.select([pidfd], [], [], 60)
        worker.poll()
        worker.close()
        reap_orphans([])
        print([int(name) for name in os.listdir("/proc") if name.isdecimal()] == [1, foreign])
    """
    command = [*unshare, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, cwd=REPOSITORY, check=False)
    assert (done.stdout, done.stderr) == (b"True\n", b"")


TOKEN_OF_RUN = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from resilient.supervisor.descendants import new_token
print(new_token("run"), end="")
"""


def test_what_a_dead_supervisor_of_the_run_left_is_ended(foreign: int) -> None:
    """What one of another run left, and what a living one has, stays as it is."""
    dead = subprocess.run([sys.executable, "-c", TOKEN_OF_RUN], capture_output=True, text=True, check=True).stdout
    tokens = {"dead": dead, "alive": new_token("run"), "garbled": dead.rpartition("-")[0], "foreign": "run"}
    with contextlib.ExitStack() as stack:
        started = {}
        for name, token in tokens.items():
            environ = {"PATH": os.environ["PATH"], TOKEN_VARIABLE: token}
            command, pipe = ["sh", "-c", "echo up; read end"], subprocess.PIPE
            process = stack.enter_context(subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n", "before that it may have no environment"
            started[name] = process
        assert end_leftovers("another run", grace_s=0) == 0
        assert end_leftovers("run", grace_s=60) == 1
        assert started["dead"].wait(60) == -signal.SIGTERM
        assert [name for name, process in started.items() if process.poll() is None] == ["alive", "garbled", "foreign"]
