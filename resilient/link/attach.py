# SPDX-License-Identifier: Apache-2.0
"""How a worker finds its host: the supervisor that started it, or a keeper that it starts itself.

Supervised, the worker inherits one end of a socket pair. Standalone, the first
local rank listens on a socket in the temporary directory and starts the keeper
with it; every local rank connects, says which one it is, and receives the same
descriptors as from a supervisor: the board and its slots of memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from resilient.errors import ResilientError, SettingsError
from resilient.facts import WorkerFacts
from resilient.link.board import DESCRIPTORS, SLOTS, Board
from resilient.link.channel import Channel, Closed, receive_descriptors
from resilient.link.messages import FROM_HOST, FromHost, Refused

KEEPER: Final = (sys.executable, "-m", "resilient.supervisor.standalone")
CONNECT_S: Final = 60.0
_FIRST_WAIT_S: Final = 0.01
_MOST_WAIT_S: Final = 0.25
_LONGEST_FOLDER: Final = 60
"""Bytes of a directory in which the socket's name still fits into an address (104 on macOS, 108 on Linux)."""


@dataclass(slots=True, kw_only=True)
class Attachment:
    """A worker's side of the link."""

    channel: Channel[FromHost]
    board: Board
    index: int
    """Its row of the board: the local rank."""
    rank: int
    """Among those of all pods."""
    slot_fds: Sequence[int]
    """Of the slots that are its own."""
    shared_fds: Sequence[int]
    """Of those that all workers have together."""
    supervised: bool
    keeper: subprocess.Popen[bytes] | None = None
    owner: int = field(default_factory=os.getpid)
    _sending: threading.Lock = field(default_factory=threading.Lock)
    """Snapshots are completed on a thread of their own."""
    _gone: bool = False

    @property
    def host(self) -> str:
        """What the other side is called in messages."""
        return "supervisor" if self.supervised else "keeper of the checkpoints"

    def send(self, message: object) -> None:
        """Tell the host; a host that is gone is no reason to stop training."""
        if os.getpid() != self.owner:
            raise ResilientError("cannot use the run: this process was forked from its worker; use it there")
        with self._sending:
            try:
                self.channel.send(message)
            except Closed:
                self._gone = True

    def host_is_gone(self) -> bool:
        """Whether the other end is closed; what it sent before can still be read."""
        if not self._gone:
            try:
                self._gone = self.channel.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self._gone = True
        return self._gone


def tell_refused(facts: WorkerFacts) -> None:
    """Say ``Refused`` to the supervisor, if there is one; the link stays as it is, for a script that tries again."""
    if facts.link_fd is not None:
        with contextlib.suppress(OSError, Closed), socket.socket(fileno=os.dup(facts.link_fd)) as sock:
            if sock.family == socket.AF_UNIX:
                Channel(sock, FROM_HOST).send(Refused())


def attach(facts: WorkerFacts) -> Attachment:
    """Connect to the host; one worker does this once."""
    if facts.link_fd is not None:
        sock = _inherited(facts.link_fd)
        return _attached(sock, facts, None)
    if facts.local_world_size != facts.world_size:
        nodes = -(-facts.world_size // max(1, facts.local_world_size))
        raise SettingsError(
            f"cannot checkpoint over {nodes} nodes: LOCAL_WORLD_SIZE is {facts.local_world_size} and WORLD_SIZE "
            f"{facts.world_size}; start them by resilient run --nnodes {nodes}, on each node"
        )
    path = _path(facts)
    keeper = _start_keeper(path, facts.world_size) if facts.local_rank == 0 else None
    sock = _connect(path)
    try:
        sock.sendall(b"%04d" % facts.local_rank)
        return _attached(sock, facts, keeper)
    except (OSError, ResilientError) as error:
        sock.close()
        if keeper:
            path.unlink(missing_ok=True)  # a keeper that never came up has left the name behind
        raise ResilientError(f"cannot use the keeper of the checkpoints: {error}") from error


def _attached(sock: socket.socket, facts: WorkerFacts, keeper: subprocess.Popen[bytes] | None) -> Attachment:
    try:
        board_fd, *slot_fds = receive_descriptors(sock)
    except (Closed, ValueError, OSError) as error:
        sock.close()
        raise ResilientError(f"cannot attach to the host: {error}; it ended, look at its last lines") from error
    if len(slot_fds) != DESCRIPTORS:
        sock.close()
        for fd in (board_fd, *slot_fds):
            os.close(fd)
        raise ResilientError("cannot attach to the host: another version of resilient wrote it; use one version")
    return Attachment(
        channel=Channel(sock, FROM_HOST),
        board=Board.attach(board_fd),
        index=facts.local_rank,
        rank=facts.rank,
        slot_fds=tuple(slot_fds[:SLOTS]),
        shared_fds=tuple(slot_fds[SLOTS:]),
        supervised=facts.link_fd is not None,
        keeper=keeper,
    )


def _inherited(fd: int) -> socket.socket:
    """The supervisor's socket, which no child of this process inherits from now on."""
    try:
        sock = socket.socket(fileno=fd)
        if sock.family != socket.AF_UNIX:
            sock.detach()  # it is somebody's, and stays open
            raise OSError("another socket")
    except OSError as error:
        raise ResilientError(
            f"cannot attach to the supervisor: descriptor {fd} is not its socket ({error}); "
            "build one Run, in the worker itself and not in a child of it"
        ) from error
    sock.set_inheritable(False)
    sock.setblocking(True)
    return sock


def _path(facts: WorkerFacts) -> Path:
    """A short name (a socket's may have about 100 bytes) that the workers of one launch find, and no others."""
    digest = hashlib.blake2b(facts.launch.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        folder = "/tmp"  # whoever listens there is checked to be of our own user
    return Path(folder) / f"resilient-{os.getuid()}-{digest}"


def _start_keeper(path: Path, ranks: int) -> subprocess.Popen[bytes]:
    """Listen, and start the keeper with the listening socket; it removes the name once all ranks are there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.unlink(missing_ok=True)  # of a launch that was killed while it connected
            listener.bind(str(path))
            path.chmod(0o600)  # nobody can connect before it listens
        except OSError as error:
            raise ResilientError(f"cannot listen at {path}: {error}; set TMPDIR to a writable directory") from error
        listener.listen(ranks)
        command = [*KEEPER, "--listen", str(listener.fileno()), "--ranks", str(ranks)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()], start_new_session=True)


def _connect(path: Path) -> socket.socket:
    """Connect as soon as the first local rank listens."""
    deadline, wait = time.monotonic() + CONNECT_S, _FIRST_WAIT_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            _check_peer(sock, path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            if time.monotonic() > deadline:
                raise ResilientError(
                    f"cannot reach the keeper of the checkpoints at {path}: {error}; did local rank 0 build its Run?"
                ) from error
        except BaseException:
            sock.close()
            raise
        # There is no event for a name that comes to be, short of watching the whole directory.
        time.sleep(wait)
        wait = min(2 * wait, _MOST_WAIT_S)


def _check_peer(sock: socket.socket, path: Path) -> None:
    """The temporary directory is everybody's: whoever listens must be of our own user."""
    if not hasattr(socket, "SO_PEERCRED"):
        with contextlib.suppress(FileNotFoundError):  # unlinked by now, since all have connected
            if path.stat().st_uid != os.getuid():
                raise ResilientError(f"cannot use {path}: it belongs to another user; remove it or set TMPDIR")
        return
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] != os.getuid():
        raise ResilientError(f"cannot use {path}: another user listens there; remove it or set TMPDIR")
