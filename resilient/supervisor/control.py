# SPDX-License-Identifier: Apache-2.0
"""How ``resilient save RUN`` and ``resilient stop RUN`` reach a supervisor from another shell.

The supervisor listens on ``<journal>/control.sock``; one connection is one request: a verb
and a line's end, answered by one text. Only its own user and root are heard.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import LIMIT, UNKNOWN, Holder, is_alive, machine, parse_holder
from resilient.checkpoint.lease import LeaseRecord
from resilient.checkpoint.lock import HOLDER
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Missing
from resilient.checkpoint.targets import why_not
from resilient.core import wire
from resilient.core.exit_codes import ExitCode
from resilient.core.redact import Redactor
from resilient.errors import ResilientError, SettingsError
from resilient.supervisor.journal import JOURNAL

SOCKET: Final = "control.sock"
VERBS: Final = ("save", "stop")
_REQUEST_LIMIT: Final = 32
_REPLY_LIMIT: Final = 4 << 10
_MOST_CLIENTS: Final = 16
_PEER: Final = struct.Struct("3i")
_AFTER_STOP: Final = """\
If Kubernetes started it, its pod is started again and the run goes on: the Job's policy ignores exit 195.
To end it for good, delete the Job: kubectl delete job NAME"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks of the supervisor."""

    verb: str
    reply: Callable[[str], None]
    """Answer once and hang up; never waits and never raises. A text that begins with "cannot" is a refusal."""


class Control:
    """The supervisor's end. ``fileno`` is readable when ``accept`` has something to do."""

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._clients: dict[int, socket.socket] = {}
        """All who are connected, whether they have asked yet or wait for an answer; the oldest first."""
        try:
            self._listener = _listen(self._directory)
        except OSError as error:
            os.close(self._directory)
            raise SettingsError(f"cannot listen in {directory}: {error}; give another --journal") from error
        except SettingsError:
            os.close(self._directory)
            raise
        self._inode = os.stat(SOCKET, dir_fd=self._directory).st_ino
        self._readable = select.epoll()
        self._readable.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        """One descriptor for the listener and all who are connected."""
        return self._readable.fileno()

    def accept(self) -> Request | None:
        """The next request that has come in whole; ``None`` where there is none now. Never waits."""
        while ready := self._readable.poll(0, 1):
            fd = ready[0][0]
            if fd == self._listener.fileno():
                self._welcome()
            elif (request := self._read(self._clients[fd])) is not None:
                return request
        return None

    def close(self) -> None:
        """Hang up on all and take the socket away, unless another supervisor has put its own there."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._readable.close()
        self._listener.close()
        with contextlib.suppress(OSError):
            if os.stat(SOCKET, dir_fd=self._directory, follow_symlinks=False).st_ino == self._inode:
                os.unlink(SOCKET, dir_fd=self._directory)
        os.close(self._directory)

    def _welcome(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # gone again before we looked
            return
        client.setblocking(False)
        _, uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in (0, os.geteuid()):
            client.close()
            return
        if len(self._clients) >= _MOST_CLIENTS:
            self._drop(next(iter(self._clients.values())))
        self._clients[client.fileno()] = client
        self._readable.register(client, select.EPOLLIN)

    def _read(self, client: socket.socket) -> Request | None:
        """The whole of a request is one small write, so what does not come in one piece is none."""
        try:
            line = client.recv(_REQUEST_LIMIT)
        except OSError:
            line = b""
        verb = line.decode("ascii", "replace")
        if verb.rstrip("\n") not in VERBS or not verb.endswith("\n"):
            self._drop(client)
            return None
        self._readable.unregister(client)
        return Request(verb=verb.rstrip("\n"), reply=lambda text: self._answer(client, text))

    def _answer(self, client: socket.socket, text: str) -> None:
        if client.fileno() in self._clients:
            with contextlib.suppress(OSError):  # it did not wait
                client.send(text.encode("utf-8", "replace")[:_REPLY_LIMIT])
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._clients.pop(client.fileno(), None)
        client.close()  # which takes it out of the epoll set, too


def _listen(directory: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _make_room(directory)
        os.fchmod(listener.fileno(), 0o600)  # before it has a name, so that nobody else ever gets in
        listener.bind(_address(directory))
        listener.listen(_MOST_CLIENTS)
    except BaseException:
        listener.close()
        raise
    return listener


def _make_room(directory: int) -> None:
    """Take away what a dead supervisor left; a live one keeps its own."""
    try:
        found = os.stat(SOCKET, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SettingsError(f"cannot listen: {SOCKET} in the journal directory is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        try:
            other.connect(_address(directory))
        except ConnectionRefusedError:
            os.unlink(SOCKET, dir_fd=directory)
            return
    raise SettingsError("cannot use this journal directory: another supervisor does; give another with --journal")


def _address(directory: int) -> str:
    """A socket's address has room for 107 bytes, a path may have 4095: a descriptor stands for the directory."""
    return f"/proc/self/fd/{directory}/{SOCKET}"


def control_command(verb: str, run: str) -> int:
    """Ask the supervisor of a run to save or to stop, print its answer, and give the exit code of this command."""
    holder, directory = _find(run)
    answer = Redactor().clean(_ask(verb, directory, holder, run), _REPLY_LIMIT)
    if answer.startswith("cannot"):
        raise ResilientError(answer)
    print(answer)
    if verb == "stop":
        print(_AFTER_STOP)
    return ExitCode.FINISHED


def _find(run: str) -> tuple[Holder | None, Path]:
    """The journal directory of a run's supervisor, and who that is where the run's lock says it."""
    directory = Path(run)
    if "://" not in run:
        if not directory.is_dir():
            why = why_not(directory)
            raise SettingsError(f"cannot find {run}: {why}; give the directory of the checkpoints or journal")
        if any(os.path.lexists(directory / name) for name in (SOCKET, JOURNAL)):
            return None, directory
    holder = read_holder(open_store(run))
    if holder is None:
        raise SettingsError(f"cannot reach a supervisor of {run}: nobody has ever held it; check the path or URL")
    return holder, Path(holder.journal)


def read_holder(store: Store) -> Holder | None:
    """Who holds a run, or held it last, by its lock."""
    if store.path is not None:
        try:
            return parse_holder(store.read(HOLDER, LIMIT))
        except Missing:
            return None
    stems = [entry.name.rpartition("/")[2].removesuffix(".json") for entry in store.list(".lock")]
    numbers = sorted(int(stem) for stem in stems if stem.isdecimal() and len(stem) < 18)
    if not numbers:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        data = json.loads(store.read(f".lock/{numbers[-1]}.json", LIMIT).decode())
        return wire.from_data(data, LeaseRecord).holder
    return None


def ask_there(verb: str, holder: Holder) -> str:
    """What to type where the supervisor is."""
    where = f"kubectl exec {holder.pod} -- " if holder.pod else f"on {holder.host}: "
    return f"ask there: {where}resilient {verb} {holder.journal}"


def _ask(verb: str, directory: Path, holder: Holder | None, run: str) -> str:
    if holder is not None:
        _check_reachable(verb, holder, run)
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ResilientError(
            f"cannot reach the supervisor of {run}: its journal directory {directory} cannot be opened: "
            f"{error.strerror}; ask from the shell of its own container"
        ) from error
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.connect(_address(folder))
            link.sendall(f"{verb}\n".encode())
            # No time limit: a save takes as long as it takes, and a supervisor that ends hangs up.
            answer = b"".join(iter(lambda: link.recv(_REPLY_LIMIT), b""))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise ResilientError(
            f"cannot reach the supervisor of {run}: nobody listens in {directory}; it has ended"
            f" or did not start yet: see resilient explain {run}"
        ) from error
    except OSError as error:
        raise ResilientError(
            f"cannot reach the supervisor of {run}: {error.strerror}; ask as the user that it runs as"
        ) from error
    finally:
        os.close(folder)
    if not answer:
        raise ResilientError(f"cannot tell whether the supervisor did it: it hung up; see resilient explain {run}")
    return answer.decode("utf-8", "replace")


def _check_reachable(verb: str, holder: Holder, run: str) -> None:
    if holder == UNKNOWN:
        raise ResilientError(f"cannot reach the supervisor of {run}: its lock is damaged; give its journal directory")
    if not holder.journal:
        raise ResilientError(
            f"cannot reach a supervisor of {run}: none has it, {holder} held it last, for a command such as prune; "
            f"see resilient explain {run}"
        )
    if holder.machine and holder.machine != machine():
        raise ResilientError(
            f"cannot reach the supervisor of {run} from here: it is {holder}; {ask_there(verb, holder)}"
        )
    if is_alive(holder, holder.supervisor) is False:
        raise ResilientError(
            f"cannot reach a supervisor of {run}: the last one, {holder}, has ended; see resilient explain {run}"
        )
