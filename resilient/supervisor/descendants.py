# SPDX-License-Identifier: Apache-2.0
"""Which processes are ours, and how they are ended.

Ours are those that carry the token of this supervisor in the environment they were
started with (children inherit it, however they daemonise), and those that descend
from a worker or live in its session although their environment does not say so
(it was cleared, or overwritten by a process title). Everything else in the
container, re-parented to us or not, is somebody else's and is never signalled.

A token names the run and its supervisor, so that the next start of a run also finds
what a supervisor left behind that was killed together with its saver.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import select
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from resilient.supervisor.processes import open_pidfd, send_signal

TOKEN_VARIABLE: Final = "RESILIENT_INTERNAL_TOKEN"
_ENVIRON_LIMIT: Final = 16 << 20
LOOK_AGAIN_S: Final = 0.05
"""How often to look for processes that came up meanwhile, or whose end cannot be waited for."""
_EXECUTING_LOOKS: Final = 4
"""How often an orphan without an environment is looked at: one that is about to execute a program shows none until it
has, for less than a millisecond unless the program comes from a slow disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    pid: int
    parent: int
    session: int
    started: int
    """Clock tick of its start: with the pid, what tells it from a later holder of the number."""


def new_token(run: str) -> str:
    """A token for this process as a supervisor of ``run``, any text that a later start of the run has as well."""
    own = _look_at(os.getpid())
    return f"{_mark(run)}-{os.getpid()}-{own.started if own else 0}-{secrets.token_hex(16)}"


def end_leftovers(run: str, *, grace_s: float) -> int:
    """End what earlier supervisors of ``run`` left behind when they were killed; how many processes that were."""
    count = 0
    for token in {token for pid in _pids() if (token := _orphaned(pid, _mark(run))) is not None}:
        count += len(find(token))
        end(token, grace_s=grace_s)
    return count


def find(token: str, *, workers: Collection[int] = ()) -> list[int]:
    """Pids of the living processes that are ours, this one excepted.

    ``workers`` are pids that are still reserved for us (``Worker.close`` has not been called).
    """
    return [process.pid for process in _ours(_living(), token, workers)]


class Ending:
    """Ends our processes without ever waiting: SIGTERM once to each, SIGKILL to what outlives the grace.

    Call ``advance`` when one of ``pidfds`` is readable, and every ``LOOK_AGAIN_S``
    as well: newcomers, and the ends of processes without a pidfd, announce themselves nowhere.
    """

    def __init__(self, token: str, *, grace_s: float, now: float, workers: Collection[int] = ()) -> None:
        self._token = token
        self._workers = workers
        self.kill_at: Final = now + grace_s
        """Monotonic time from which SIGKILL is used."""
        self._told: dict[tuple[int, int], int | None] = {}
        self._looks: Counter[tuple[int, int]] = Counter()
        """How often an orphan was seen without an environment."""

    @property
    def pidfds(self) -> list[int]:
        """Of the processes that have been told to end; valid until the next ``advance``."""
        return [fd for fd in self._told.values() if fd is not None]

    def advance(self, now: float) -> list[int]:
        """Signal what needs it; returns the pids that are still there, none when it is done."""
        living = list(_living())
        found = {(process.pid, process.started): process for process in _ours(living, self._token, self._workers)}
        for key in self._told.keys() - found.keys():
            _close(self._told.pop(key))
        for key, process in found.items():
            if key not in self._told:
                self._told[key] = open_pidfd(process.pid)
                self._tell(process, signal.SIGTERM)
            if now >= self.kill_at:
                self._tell(process, signal.SIGKILL)
        unsure = {(process.pid, process.started) for process in living if _may_be_executing(process)}
        self._looks.update(unsure)
        unknown = [key[0] for key in unsure - found.keys() if self._looks[key] < _EXECUTING_LOOKS]
        return [process.pid for process in found.values()] + unknown

    def close(self) -> None:
        """Let go of the descriptors."""
        while self._told:
            _close(self._told.popitem()[1])

    def _tell(self, process: _Process, number: signal.Signals) -> None:
        # First the descriptor, then another look: if the number has gone to somebody else,
        # the look shows it; if it goes to somebody else now, the descriptor does not follow.
        seen = _look_at(process.pid)
        if seen is not None and seen.started == process.started:
            send_signal(process.pid, self._told[process.pid, process.started], number)


def end(token: str, *, grace_s: float, kill_wait_s: float = 10.0, workers: Collection[int] = ()) -> list[int]:
    """End our processes and wait for it; returns those that even SIGKILL did not end in ``kill_wait_s``."""
    ending = Ending(token, grace_s=grace_s, now=time.monotonic(), workers=workers)
    with contextlib.closing(ending):
        while left := ending.advance(now := time.monotonic()):
            if now >= ending.kill_at + kill_wait_s:
                return left
            poll = select.poll()
            for fd in ending.pidfds:
                poll.register(fd, select.POLLIN)
            poll.poll(1000 * min(LOOK_AGAIN_S, max(0.0, ending.kill_at - now) or LOOK_AGAIN_S))
    return []


def _ours(processes: Iterable[_Process], token: str, workers: Collection[int]) -> list[_Process]:
    if not token:
        raise ValueError("cannot tell which processes are ours: the token is empty; give every supervisor its own")
    living = {process.pid: process for process in processes}
    living.pop(os.getpid(), None)
    return [
        process
        for process in living.values()
        if _belongs_to_worker(process, living, workers) or _carries(process.pid, token)
    ]


def _belongs_to_worker(process: _Process, living: Mapping[int, _Process], workers: Collection[int]) -> bool:
    if process.session in workers:
        return True
    seen: set[int] = set()  # what was read at different moments may form a ring
    ancestor: _Process | None = process
    while ancestor is not None and ancestor.pid not in seen:
        if ancestor.pid in workers:
            return True
        seen.add(ancestor.pid)
        ancestor = living.get(ancestor.parent)
    return False


def _carries(pid: int, token: str) -> bool:
    return f"{TOKEN_VARIABLE}={token}".encode() in _environ(pid)


def _may_be_executing(process: _Process) -> bool:
    """An orphan, which has come to us, of which its environment does not say yet whose it is."""
    return process.parent == os.getpid() and _environ(process.pid) == [b""]


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read(_ENVIRON_LIMIT).split(b"\0")
    except OSError:  # gone, or of another user: not ours
        return []


def _mark(run: str) -> str:
    return hashlib.blake2b(run.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _orphaned(pid: int, mark: str) -> str | None:
    """The token of a process whose supervisor was one of this run and is dead."""
    prefix = f"{TOKEN_VARIABLE}={mark}-".encode()
    found = next((item for item in _environ(pid) if item.startswith(prefix)), b"")
    numbers = found[len(prefix) :].split(b"-")
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers[:2]):
        return None
    try:
        # Process numbers mean something within one namespace only, and a nested one shows in our /proc.
        if os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            return None
    except OSError:
        return None
    supervisor = _look_at(int(numbers[0]))
    if supervisor is not None and supervisor.started == int(numbers[1]):
        return None
    return found.partition(b"=")[2].decode("ascii", "replace")


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _living() -> Iterator[_Process]:
    for pid in _pids():
        process = _look_at(pid)
        if process is not None:
            yield process


def _look_at(pid: int) -> _Process | None:
    """The process, unless it has ended (a zombie can no longer be signalled, only reaped).

    One whose main thread has ended shows as a zombie too, for as long as its other threads run, or dump core.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is a name that may hold anything, brackets and blanks too.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1):
        return None
    return _Process(pid=pid, parent=int(fields[1]), session=int(fields[3]), started=int(fields[19]))


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
