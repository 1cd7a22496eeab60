# SPDX-License-Identifier: Apache-2.0
"""Python stacks of the workers, taken before anything is killed.

Theory of operation. A worker registers :mod:`faulthandler` for ``SIGNAL`` with a file of
its own in a directory of the supervisor. Its handler is C code that needs neither the
GIL nor memory, so that it answers from inside a collective as well. The dump has no
end mark; it is complete when the file has grown and the kernel no longer blocks the
signal in the thread that handled it, which it does exactly while the handler runs.
Only a worker whose file is there is ever signalled: elsewhere the signal would kill.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import re
import signal
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient.supervisor.processes import Worker

SIGNAL: Final = signal.SIGRTMAX - 4 if hasattr(signal, "SIGRTMAX") else int(signal.SIGUSR2)
"""A real-time signal: SIGUSR1 and SIGUSR2 are taken (Slurm's warnings, c10's own stack traces, users),
the first real-time ones by C libraries."""

TEXT_LIMIT: Final = 256 << 10

_THREAD: Final = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-f]+)[^\n]*:\n((?:[ \t]+[^\n]*\n?)*)", re.MULTILINE)
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_MASK: Final = re.compile(r"^(SigPnd|ShdPnd|SigBlk):\s*([0-9a-f]+)$", re.MULTILINE)
_MAIN: Final = re.compile(r"^main thread 0x([0-9a-f]+)$", re.MULTILINE)
_LIBRARY: Final = re.compile(r"/(site|dist)-packages/")
_EXCHANGE: Final = re.compile(r"-packages/torch/(distributed|autograd|nn/parallel)/")
_OWN_FOLDER: Final = str(Path(__file__).resolve().parent.parent) + os.sep
_STDLIB_FOLDER: Final = str(Path(os.__file__).resolve().parent) + os.sep
_STDLIB: Final = re.compile(r"^<frozen |/lib(64)?/python3\.\d+t?/")


def stack_path(directory: str | os.PathLike[str], rank: int) -> Path:
    """The file of one rank."""
    return Path(directory) / f"rank-{rank}.txt"


def register(directory: str | os.PathLike[str], rank: int) -> None:
    """In a worker: answer ``SIGNAL`` with the stacks of all threads, in this rank's file; OSError leaves no file."""
    if threading.current_thread() is threading.main_thread():
        # What faulthandler puts back when the interpreter ends: a request that comes then must not kill.
        signal.signal(SIGNAL, signal.SIG_IGN)
    path = stack_path(directory, rank)
    try:
        _register(path)
    except OSError:
        # One that an earlier worker left, or of half a header, would have this one signalled.
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _register(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
    # Unbuffered, and kept open by faulthandler for as long as it is registered.
    file = open(os.open(path, flags, 0o600), "wb", buffering=0)  # noqa: SIM115  # stays open
    faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)
    # Last, for its presence says that the signal may be sent; and a dump does not say which thread is the main one.
    header = b"main thread 0x%016x\n" % (threading.main_thread().ident or 0)
    if file.write(header) != len(header):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """A dump that has been asked for."""

    pid: int
    path: Path
    begin: int
    """Size of the file before: what earlier dumps and the header take."""
    deaf: frozenset[str]
    """Threads that blocked the signal before: they do not handle it."""

    def complete(self) -> bool:
        """Whether all of it is there; ask again shortly where it is not, up to a deadline of your own."""
        if _size(self.path) <= self.begin:
            return False
        pending, blocking = _pending_or_blocked(self.pid)
        return not pending and blocking <= self.deaf

    def text(self) -> str:
        """What is there of it, the end where it is longer than the limit (the main thread stands last)."""
        return read(self.path, self.begin)


def request(worker: Worker, path: Path) -> Dump | None:
    """Ask a worker for its stacks; ``None`` where it never registered, or has ended."""
    begin = _size(path)
    if begin == 0:
        return None
    _, deaf = _pending_or_blocked(worker.pid)
    return Dump(pid=worker.pid, path=path, begin=begin, deaf=deaf) if worker.send(SIGNAL) else None


def read(path: Path, begin: int = 0) -> str:
    """The text from ``begin`` on, bounded, after the line that names the main thread; empty where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return ""
    with open(fd, "rb") as file:
        header = file.readline(64)
        begin = max(begin, len(header), os.fstat(fd).st_size - TEXT_LIMIT)
        file.seek(begin)
        return (header + file.read(TEXT_LIMIT)).decode(errors="replace")


def innermost(text: str) -> str | None:
    """Where the main thread stands, ``train.py:41 in loss``: its innermost frame of the user's own code.

    Where there is none it is that of an installed package, then any.
    """
    body = _main_thread(text)
    frames = _FRAME.findall(body) if body is not None else []
    if not frames:
        return None
    path, line, function = min(frames, key=lambda frame: _distance(frame[0]))
    return f"{os.path.basename(path)}:{line} in {function}"


def waits_for_peers(text: str) -> bool:
    """Whether the main thread stands in a collective, or in the backward pass that DDP exchanges gradients in."""
    body = _main_thread(text)
    frame = _FRAME.search(body) if body is not None else None
    return frame is not None and _EXCHANGE.search(frame.group(1)) is not None


def _main_thread(text: str) -> str | None:
    """The last dump of the main thread; without its name the last thread, the oldest, is taken."""
    threads = _THREAD.findall(text)
    named = _MAIN.search(text)
    if named:
        threads = [thread for thread in threads if int(thread[0], 16) == int(named.group(1), 16)]
    return threads[-1][1] if threads else None


def _distance(path: str) -> int:
    """How far from the user's own code: 0 it is, 1 an installed package, 2 torch, the standard library or ours."""
    if path.startswith((_OWN_FOLDER, _STDLIB_FOLDER)) and not _LIBRARY.search(path):
        return 2
    if _LIBRARY.search(path):
        return 2 if re.search(r"-packages/(torch|resilient)/", path) else 1
    return 2 if _STDLIB.search(path) else 0


def _size(path: Path) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _pending_or_blocked(pid: int) -> tuple[bool, frozenset[str]]:
    """Whether ``SIGNAL`` is pending for a process, and the threads that block it, as far as ``/proc`` tells.

    A thread blocks it while it handles it. That is mostly the main one; another may be, where that one was stopped.
    """
    pending, blocking = False, set()
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # it has ended
            for name, mask in _MASK.findall(path.read_text()):
                if int(mask, 16) >> (SIGNAL - 1) & 1:
                    pending |= name != "SigBlk"
                    blocking |= {path.parent.name} if name == "SigBlk" else set()
    return pending, frozenset(blocking)
