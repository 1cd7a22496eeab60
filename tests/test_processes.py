# SPDX-License-Identifier: Apache-2.0
"""Real children: how they start, how they end, and what is left of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient.supervisor import exec_worker, processes
from resilient.supervisor.processes import Exit, Worker, check_command, missing_script, spawn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the supervisor is for Linux")

ENVIRON = {"PATH": os.environ.get("PATH", os.defpath), "COLOUR": "grün"}
REPOSITORY = Path(processes.__file__).parents[2]


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """What a test appends here is killed and reaped after it."""
    started: list[Worker] = []
    yield started
    for worker in started:
        if worker.send(signal.SIGKILL):
            ended(worker)
        worker.close()


def ended(worker: Worker) -> Exit:
    """Its exit, once its pidfd says so."""
    assert worker.pidfd is not None
    poll = select.poll()
    poll.register(worker.pidfd, select.POLLIN)
    assert poll.poll(60_000), "the worker does not end"
    result = worker.poll()
    assert result is not None
    return result


def everything(fd: int) -> bytes:
    """All that comes out of a non-blocking pipe until its end."""
    chunks: list[bytes] = []
    while True:
        select.select([fd], [], [], 60)
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def run_python(code: str, *, stdin: bytes = b"") -> bytes:
    """What a separate interpreter prints; process-wide settings stay with it."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT_S, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", Exit(code=0)),
        ("exit 193", Exit(code=193)),
        ("kill -TERM $$", Exit(signal=signal.SIGTERM)),
        ("kill -KILL $$", Exit(signal=signal.SIGKILL)),
    ],
)
def test_an_exit_is_told_as_code_or_signal(workers: list[Worker], script: str, expected: Exit) -> None:
    """A code and a signal are never mixed up, and asking again gives the same answer."""
    worker = spawn(["sh", "-c", script], environ=ENVIRON)
    workers.append(worker)
    assert ended(worker) == expected
    assert worker.poll() == expected


def test_a_running_worker_is_never_waited_for(workers: list[Worker]) -> None:
    """It has no exit, its pipes do not block us, and a signal reaches it."""
    worker = spawn(["sleep", "1000"], environ=ENVIRON)
    workers.append(worker)
    assert worker.poll() is None
    assert worker.stdout is not None
    assert not os.get_blocking(worker.stdout)
    assert not os.get_blocking(worker.stderr)
    assert worker.send(signal.SIGTERM)
    assert ended(worker) == Exit(signal=signal.SIGTERM)


def test_nothing_is_signalled_after_the_end(workers: list[Worker]) -> None:
    """Once a worker has ended, before and after it was reaped, send says so and signals nobody."""
    worker = spawn(["true"], environ=ENVIRON)
    workers.append(worker)
    ended(worker)
    assert not worker.send(signal.SIGTERM)
    assert Path(f"/proc/{worker.pid}").exists(), "the pid must stay reserved until close"
    worker.close()
    worker.close()
    assert not worker.send(signal.SIGTERM)
    assert worker.poll() == Exit(code=0)
    with pytest.raises(ChildProcessError):
        os.waitpid(worker.pid, os.WNOHANG)


def test_an_exit_that_somebody_else_took_is_unknown(workers: list[Worker]) -> None:
    """A status that was reaped elsewhere is not taken for success."""
    worker = spawn(["true"], environ=ENVIRON)
    workers.append(worker)
    os.waitpid(worker.pid, 0)
    assert worker.poll() == Exit(code=None, signal=None)


def test_the_worker_gets_what_it_was_given(workers: list[Worker], tmp_path: Path) -> None:
    """Environment, working directory, the descriptors named and no other, /dev/null as stdin, its own session."""
    given, withheld = os.pipe()
    os.set_inheritable(withheld, True)
    script = f"""
        test "$COLOUR" = grün && test -z "$HOME" && pwd && readlink /proc/self/fd/0
        readlink /proc/$$/fd/{given} >/dev/null && echo given
        readlink /proc/$$/fd/{withheld} >/dev/null || echo withheld
        cut -d' ' -f6 /proc/self/stat
    """
    worker = spawn(["sh", "-c", script], environ=ENVIRON, fds=[given], cwd=tmp_path)
    workers.append(worker)
    os.close(given)
    os.close(withheld)
    assert worker.stdout is not None
    lines = everything(worker.stdout).decode().split()
    assert lines == [str(tmp_path), "/dev/null", "given", "withheld", str(worker.pid)]


def test_the_worker_starts_with_the_signals_of_a_fresh_process() -> None:
    """What the supervisor ignores or blocks (nohup, its own caller) does not reach the command."""
    code = f"""if True:
        import os, select, signal
        from resilient.supervisor.processes import spawn
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
        worker = spawn(["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"], environ={ENVIRON!r})
        select.select([worker.pidfd], [], [], 60)
        print(os.read(worker.stdout, 4096).decode())
        worker.close()
    """
    _, blocked, _, ignored = run_python(code).split()
    # 32 and 33 are the C library's own: nobody can reset them, and who started us may have left them changed.
    ours = ~(1 << 31 | 1 << 32)
    assert int(blocked, 16) & ours == 0
    assert int(ignored, 16) & ours == 0


@pytest.fixture
def unusable(tmp_path: Path) -> dict[str, str]:
    """Commands that cannot be run, by what is wrong with them."""
    (tmp_path / "plain").write_text("text")
    (tmp_path / "no_interpreter_line").write_bytes(b"\0\1\2")
    (tmp_path / "no_interpreter_line").chmod(0o755)
    (tmp_path / "no_interpreter").write_text("#!/nowhere/python\n")
    (tmp_path / "no_interpreter").chmod(0o755)
    return {
        "missing": "no-such-command-anywhere",
        "missing path": str(tmp_path / "missing"),
        "below a file": str(tmp_path / "plain" / "x"),
        "not executable": str(tmp_path / "plain"),
        "folder": str(tmp_path),
        "format": str(tmp_path / "no_interpreter_line"),
        "interpreter": str(tmp_path / "no_interpreter"),
        "empty": "",
    }


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("missing", 127),
        ("missing path", 127),
        ("below a file", 127),
        ("interpreter", 127),
        ("empty", 127),
        ("not executable", 126),
        ("folder", 126),
        ("format", 126),
    ],
)
def test_a_command_that_cannot_run_exits_as_in_a_shell(
    workers: list[Worker], unusable: dict[str, str], wrong: str, code: int
) -> None:
    """127 where it is not there, 126 where it cannot be executed, and one line that says why."""
    worker = spawn([unusable[wrong], "--lr", "1"], environ=ENVIRON)
    workers.append(worker)
    assert ended(worker) == Exit(code=code)
    (line,) = everything(worker.stderr).decode().splitlines()
    assert line.startswith(f"resilient: cannot run {unusable[wrong]!r}: ")
    if wrong not in ("format", "interpreter"):  # these only the kernel can tell
        assert check_command([unusable[wrong]], ENVIRON) == code


def test_commands_that_can_run_are_not_refused(tmp_path: Path) -> None:
    """Found on the worker's PATH, by an absolute path, and relative to the worker's directory."""
    script = tmp_path / "bin" / "train"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert check_command(["train"], {"PATH": f"/nowhere:{script.parent}"}) is None
    assert check_command([str(script)], {}) is None
    assert check_command(["bin/train"], {}, cwd=tmp_path) is None
    assert check_command(["bin/train"], {}, cwd=tmp_path / "bin") == 127
    assert check_command(["train"], ENVIRON) == 127


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("python -u nope.py --lr 1", "nope.py"),
        ("python nope/train.py", "nope/train.py"),
        ("python -u train.py/x", "train.py/x"),
        ("python -u train.py", None),
        ("python -u .", None),
        ("python -u -m nope", None),
        ("python -c pass", None),
        ("python -W error nope.py", None),
        ("python -u train-${local_rank}.py", None),
        ("python", None),
        ("python -", None),
    ],
)
def test_a_script_that_is_not_there_is_found_out(tmp_path: Path, words: str, missing: str | None) -> None:
    """Where it is plain which word is the script; a directory may be a program too."""
    (tmp_path / "train.py").touch()
    assert missing_script(words.split(), cwd=tmp_path) == missing


def pipes() -> set[str]:
    """Those that this process holds; its other descriptors may be those of another thread."""
    links = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            links.add(os.readlink(fd))
    return {link for link in links if link.startswith("pipe:")}


def test_a_failed_spawn_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """Where the system gives no process, an OSError comes and the pipes are gone."""
    before = pipes()
    with pytest.raises(OSError, match="nowhere"):
        spawn(["true"], environ=ENVIRON, cwd=tmp_path / "nowhere")
    assert pipes() == before


def test_all_of_a_huge_output_comes_through(workers: list[Worker]) -> None:
    """Output far beyond a pipe's size arrives whole, and its end follows the worker's."""
    worker = spawn(["head", "-c", "20000000", "/dev/zero"], environ=ENVIRON)
    workers.append(worker)
    assert worker.stdout is not None
    assert len(everything(worker.stdout)) == 20_000_000
    assert ended(worker) == Exit(code=0)


def test_a_worker_on_a_terminal_has_our_stdin_and_stdout() -> None:
    """A debugger can be used: what we get is typed to the worker, and what it prints is not piped."""
    code = f"""if True:
        import select
        from resilient.supervisor.processes import spawn
        worker = spawn(["sh", "-c", "cat; echo problem >&2"], environ={ENVIRON!r}, terminal=True)
        assert worker.stdout is None
        select.select([worker.pidfd], [], [], 60)
        import os
        assert os.read(worker.stderr, 100) == b"problem\\n"
        worker.close()
    """
    assert run_python(code, stdin=b"next\n") == b"next\n"


def test_a_worker_dies_with_its_supervisor() -> None:
    """SIGKILL of the process that spawned it, which can then clean up nothing, ends the worker too."""
    code = f"""if True:
        import select
        from resilient.supervisor.processes import spawn
        worker = spawn(["sh", "-c", "trap '' TERM HUP; echo ready; exec sleep 1000"],
                       environ={ENVIRON!r})
        select.select([worker.stdout], [], [], 60)
        print(worker.pid, flush=True)
        select.select([], [], [])
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        pidfd = os.pidfd_open(worker)
        try:
            assert not select.select([pidfd], [], [], 0)[0], "the worker must be alive before"
            parent.kill()
            assert select.select([pidfd], [], [], 60)[0], "the worker outlived its supervisor"
        finally:
            os.close(pidfd)
            with suppress(ChildProcessError):  # ours only where pytest is made a subreaper
                os.waitpid(worker, 0)


def test_a_worker_whose_supervisor_is_gone_already_does_not_start() -> None:
    """Between fork and prctl the parent may have died: then nothing is run."""
    command = [sys.executable, "-I", "-S", exec_worker.__file__, str(os.getppid()), "echo", "ran"]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (137, b"")


def test_orphans_are_reaped_and_known_children_are_not() -> None:
    """A subreaper leaves no zombie, however many known ones stand in front, and takes no status from anybody."""
    code = f"""if True:
        import os, select
        from resilient.supervisor.processes import Exit, become_subreaper, reap_orphans, spawn
        assert become_subreaper()
        hold, release = os.pipe()
        # The orphans end only after their parent has.
        script = f"for n in 1 2 3; do (read x <&{{hold}}; exit 3) & echo $!; done; exit 5"
        worker = spawn(["sh", "-c", script], environ={ENVIRON!r}, fds=[hold])
        os.close(hold)
        select.select([worker.pidfd], [], [], 60)
        orphans = [int(pid) for pid in os.read(worker.stdout, 4096).split()]
        assert reap_orphans([worker.pid]) == []
        pidfds = [os.pidfd_open(pid) for pid in orphans]
        os.close(release)
        for pidfd in pidfds:
            select.select([pidfd], [], [], 60)
        assert sorted(reap_orphans([worker.pid])) == sorted(orphans)
        assert worker.poll() == Exit(code=5)
        worker.close()
        assert reap_orphans([]) == []
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("none left")
    """
    assert run_python(code) == b"none left\n"


def test_a_worker_closed_while_it_runs_is_reaped_as_an_orphan(workers: list[Worker]) -> None:
    """Close never waits; what it lets go is not forgotten."""
    worker = spawn(["sleep", "1000"], environ=ENVIRON)
    pidfd = os.pidfd_open(worker.pid)
    worker.close()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)
    assert worker.pid in processes.reap_orphans([])
