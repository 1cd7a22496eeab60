# SPDX-License-Identifier: Apache-2.0
"""The supervisor as PID 1, under an init, and as a plain child: codes come through, orphans are reaped."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supervised import HEAD, Folder

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
# It is killed when unshare dies; unshare itself passes no signal on, so the test signals its only child.
WAYS = {"child": (), "tini": ("tini", "--"), "dumb-init": ("dumb-init", "--"), "pid1": UNSHARE}
WAIT = """
def until(true):
    import time
    for _ in range(9000):
        if true():
            return
        time.sleep(0.01)
    sys.exit(9)
"""
"""There is no event for what a stranger does with its children, so scripts look again and again, for 90 s at most."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# Another init of the same kind is one for the slow tests.
@pytest.fixture(params=[pytest.param(way, marks=[pytest.mark.slow] if way == "dumb-init" else []) for way in WAYS])
def init(request: pytest.FixtureRequest, installed: Callable[[str], str]) -> tuple[str, ...]:
    """How the supervisor is started."""
    command: tuple[str, ...] = WAYS[request.param]
    if command:
        installed(command[0])
    if command == UNSHARE and subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no PID namespaces")
    return command


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else's, in the session and the process group that the supervisor is started in."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_the_exit_code_comes_through(folder: Folder, init: tuple[str, ...]) -> None:
    """0 and a code of the contract reach whoever started it, and the reason is on stderr."""
    good = folder.start(folder.script("print('done')"), init=init)
    bad = folder.start(folder.script("raise TypeError('no such rate')", "bad.py"), init=init)
    with good, bad:
        assert (good.wait().code, bad.wait().code) == (0, 114)
    assert "no such rate" in bad.wait().stderr


def test_sigterm_reaches_the_workers_and_the_code_comes_back(folder: Folder, init: tuple[str, ...]) -> None:
    """A preemption looks the same whatever stands between the platform and us."""
    script = folder.script("import signal; print('here', flush=True); signal.pause()")
    with folder.start(script, init=init) as running:
        running.until("here")
        os.kill(supervisor_of(running.pid, init), signal.SIGTERM)
        ended = running.wait()
    assert ended.code == 196, ended.stderr
    assert ended.termination["code"] == 196


ORPHANS = (
    HEAD
    + WAIT
    + """
def orphan(command):
    "A daemon: its parent ends at once, in a session of its own."
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        os.execvp(command[0], command)
    os.wait()
    return int(os.read(read, 20))

def gone(pid):
    "Also not a zombie any more."
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False

if once("orphans"):
    for _ in range(3):
        ended = orphan(["true"])
        until(lambda: gone(ended))
    print("reaped", flush=True)
    (HERE / "left").write_text(str(orphan(["sleep", "1000"])))
    os.kill(os.getpid(), signal.SIGKILL)
left = int((HERE / "left").read_text())
assert gone(left), "what the first attempt had left was still there when the second began"
strangers = HERE / "stranger"
if strangers.exists():
    assert not gone(int(strangers.read_text())), "a process that is not ours was ended"
print("clean", flush=True)
"""
)


def test_orphans_are_reaped_and_ended_and_nobody_else(
    folder: Folder, init: tuple[str, ...], stranger: subprocess.Popen[bytes]
) -> None:
    """A daemon of a worker is reaped when it ends, ended when its worker's attempt ends; a stranger lives on."""
    script = folder.script(ORPHANS)
    if init == UNSHARE:  # there the stranger is a child of PID 1, of us
        command = shlex.join([sys.executable, "-m", "resilient", "run", str(script)])
        starting = f"sleep 1000 & echo $! > {shlex.quote(str(folder.path / 'stranger'))}; exec {command}"
        init = (*init, "sh", "-c", starting)
    with folder.start(script, init=init) as running:
        ended = running.wait()
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    assert "reaped" in ended.stdout
    assert "clean" in ended.stdout
    assert stranger.poll() is None


def supervisor_of(pid: int, init: tuple[str, ...]) -> int:
    """Whom the platform signals: PID 1 of the container, which is an init, or the supervisor behind unshare."""
    if init != UNSHARE:
        return pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])
