# SPDX-License-Identifier: Apache-2.0
"""Programs of ours beside the supervisor: each is started with a socket to it, and given up if the kernel holds it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from resilient.link.channel import LINE_LIMIT, Channel, Closed

KILL_WAIT_S: Final = 0.5
T = TypeVar("T")


def start(
    module: str, arguments: Sequence[str], environ: Mapping[str, str], *, fds: Sequence[int] = ()
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run a module, which gets the number of its end of the socket as its first argument; give the other end.

    ``OSError`` means that the node has no room for it.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as unless_started, theirs:
        unless_started.callback(ours.close)
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), *fds],
            env=dict(environ),
            start_new_session=True,
        )
        unless_started.pop_all()
    return process, ours


def kill(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    """End a child at once; False where even SIGKILL has no effect in time, as with a dead mount: it is left behind."""
    process.kill()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.returncode = 0  # Popen must neither wait for it nor warn; `reap_orphans` takes it if it ever ends
        return False
    return True


class Source(Generic[T]):
    """A program that tells us of something from time to time, or none while there is no need or room for it."""

    def __init__(
        self,
        module: str,
        kinds: Mapping[str, type[T]],
        environ: Mapping[str, str],
        *,
        heard: Callable[[T], None],
        ended: Callable[[str], None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        limit: int = LINE_LIMIT,
    ) -> None:
        """``kinds`` are the messages that it may send, of up to ``limit`` bytes each; ``ended`` is told why there will
        be no more, and closes it."""
        self._module = module
        self._kinds = kinds
        self._environ = environ
        self._heard = heard
        self._ended = ended
        self._watch = watch
        self._unwatch = unwatch
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        self.channel: Channel[T] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    def start(self, *arguments: str) -> None:
        """Start it; ``OSError`` means that the node has no room for it now."""
        self._process, ours = start(self._module, arguments, self._environ)
        self.channel = Channel(ours, self._kinds, limit=self._limit)
        self._watch(ours.fileno(), self.read)

    def read(self) -> None:
        """Take the messages that are there."""
        if self.channel is None:
            return
        try:
            messages = self.channel.drain()
        except (Closed, ValueError) as error:
            self._ended(str(error))
            return
        for message in messages:
            self._heard(message)

    def leave(self, patience_s: float) -> None:
        """Let it end by itself, now that nobody hears it any more; in that time."""
        self._disconnect()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        self.close()

    def _disconnect(self) -> None:
        if self.channel is not None:
            self._unwatch(self.channel.fileno())
            self.channel.close()
            self.channel = None

    def close(self) -> None:
        """End it; one that the kernel holds is left to it."""
        self._disconnect()
        if self._process is not None:
            kill(self._process, KILL_WAIT_S)
            self._process = None
