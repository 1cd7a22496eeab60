# SPDX-License-Identifier: Apache-2.0
"""Child processes: how a worker is started, watched, signalled and reaped.

A worker runs in its own session and dies with the thread that spawned it (Linux
counts threads, not processes: spawn from the main thread). Its pid stays reserved,
as a zombie if need be, until ``Worker.close``: no signal and no look into
``/proc`` can meet a stranger that got the same number.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient.errors import SettingsError
from resilient.supervisor import exec_worker

_STUB: Final = str(Path(exec_worker.__file__).resolve())
_UNBUFFERED: Final = "-u"
_PR_SET_CHILD_SUBREAPER: Final = 36
_DESCRIPTORS: Final = 320
"""Open files of a supervisor; most are for the descendants of workers while they are being ended."""
_DESCRIPTORS_OF_A_WORKER: Final = 8
"""Two pipes, a socket, a pidfd, three slots of memory, and what opens while it is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended; both ``None`` where somebody else reaped it and nobody knows."""

    code: int | None = None
    signal: int | None = None


class Worker:
    """One child process and our ends of its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], *, stdout: int | None, stderr: int) -> None:
        self._process = process
        self.pid: Final = process.pid
        self.pidfd: Final = open_pidfd(process.pid)
        """Readable once the process has ended; ``None`` where the system refuses it (then SIGCHLD tells)."""
        self.stdout: Final = stdout
        """Read end, non-blocking; ``None`` where the worker has our own stdout."""
        self.stderr: Final = stderr
        self._exit: Exit | None = None
        self._closed = False

    def poll(self) -> Exit | None:
        """How it ended, or ``None`` while it runs; never waits."""
        if self._exit is None and not self._closed:
            self._exit = _peek(self.pid)
        return self._exit

    def send(self, number: int) -> bool:
        """Signal this one process; False where it has ended already."""
        if self._closed or self.poll() is not None:
            return False
        return send_signal(self.pid, self.pidfd, number)

    def close(self) -> None:
        """Reap it and close our descriptors.

        One that still runs is let go: ``reap_orphans`` takes it once it has ended.
        """
        if self._closed:
            return
        self.poll()
        self._closed = True
        if self._exit is not None:
            _reap(self.pid)
        self._process.returncode = 0  # Popen must neither wait for it nor warn; nobody reads this number
        for fd in (self.pidfd, self.stdout, self.stderr):
            if fd is not None:
                os.close(fd)


def spawn(
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    fds: Sequence[int] = (),
    terminal: bool = False,
    cwd: str | os.PathLike[str] | None = None,
) -> Worker:
    """Start a worker with exactly this environment and, besides stdio, these descriptors.

    Its stdin is ``/dev/null``; with ``terminal`` stdin and stdout are our own, so that a
    debugger can be used. A command that cannot be executed comes back as an exit with 126
    or 127 and a line on stderr. ``OSError`` means that the system gave us no process
    (limits, memory, an argument list that is too long, a working directory that is not there).
    """
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for _ in range(1 if terminal else 2):
            read, write = os.pipe()
            ours.append(read)
            theirs.append(write)
            # The two ends do not share this flag: the worker's writes still wait for us.
            os.set_blocking(read, False)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _STUB, str(os.getpid()), *command],
            stdin=None if terminal else subprocess.DEVNULL,
            stdout=None if terminal else theirs[0],
            stderr=theirs[-1],
            env=environ,
            cwd=cwd,
            pass_fds=fds,
            start_new_session=True,
        )
    except BaseException:
        _close_all(ours)
        raise
    finally:
        _close_all(theirs)
    return Worker(process, stdout=None if terminal else ours[0], stderr=ours[-1])


def check_command(
    command: Sequence[str], environ: Mapping[str, str], cwd: str | os.PathLike[str] | None = None
) -> int | None:
    """126 or 127 where the command cannot be run, found out before anything is started; else ``None``."""
    name = command[0]
    folders = [""] if os.path.dirname(name) else os.get_exec_path(environ)
    found = [path for folder in folders if os.path.exists(path := os.path.join(cwd or "", folder, name))]
    if not name or not found:
        return exec_worker.NOT_FOUND
    if not any(os.path.isfile(path) and os.access(path, os.X_OK) for path in found):
        return exec_worker.CANNOT_EXECUTE
    return None


def missing_script(command: Sequence[str], cwd: str | os.PathLike[str] | None = None) -> str | None:
    """The script that an interpreter is to run, where there is none: it would say so itself, once for each start."""
    script = next((word for word in command[1:] if word != _UNBUFFERED), "-")
    if script.startswith("-") or "$" in script:  # a module, a program in the words, a name that is still to be made
        return None
    try:
        os.stat(os.path.join(cwd or "", script))
    except (FileNotFoundError, NotADirectoryError):
        return script
    except OSError:
        return None
    return None


def allow_descriptors(workers: int) -> None:
    """Have room for all that supervising takes; the workers get the higher limit as well."""
    needed = _DESCRIPTORS + workers * _DESCRIPTORS_OF_A_WORKER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SettingsError(
            f"cannot supervise {workers} workers with at most {hard} open files: {needed} are needed; raise the limit"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def become_subreaper() -> bool:
    """Have orphaned descendants re-parented to this process, as to an init; False where that is refused."""
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def reap_orphans(known: Collection[int]) -> list[int]:
    """Reap every ended child that nobody here waits for; ``known`` are the pids that somebody does wait for."""
    reaped = []
    while (pid := _ended_child()) is not None and pid not in known:
        _reap(pid)
        reaped.append(pid)
    if pid is None:
        return reaped
    # A known one is in front, and the kernel would show it again and again: look for the others by name.
    for other in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if other not in known and _is_own_zombie(other):
            _reap(other)
            reaped.append(other)
    return reaped


def open_pidfd(pid: int) -> int | None:
    """A pidfd, or ``None`` where the process is gone or the system (an old seccomp profile) refuses."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def send_signal(pid: int, pidfd: int | None, number: int) -> bool:
    """Signal one process, by its pidfd where there is one; False where it is gone or not ours to signal."""
    try:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _peek(pid: int) -> Exit | None:
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return Exit()
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return Exit(code=result.si_status)
    return Exit(signal=result.si_status)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _ended_child() -> int | None:
    try:
        result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if result is None else result.si_pid


def _is_own_zombie(pid: int) -> bool:
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return result is not None


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
