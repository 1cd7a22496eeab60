# SPDX-License-Identifier: Apache-2.0
"""A stream socket that carries one JSON line per message, and descriptors with the first.

Both ends are processes of the same user, but what a worker sends is data that
may be garbage: lines are bounded, types are checked, and a line that does not
parse raises ``ValueError`` and ends that channel only.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

from resilient.core import wire

LINE_LIMIT: Final = 1 << 20
"""Of what workers and other small helpers say."""
T = TypeVar("T")


class Closed(Exception):
    """The other end is gone."""


class Channel(Generic[T]):
    """One end. ``kinds`` are the messages that this end accepts, up to ``limit`` bytes each."""

    def __init__(self, sock: socket.socket, kinds: Mapping[str, type[T]], *, limit: int = LINE_LIMIT) -> None:
        self.sock = sock
        self._limit = limit
        self._kinds = kinds
        self._buffer = bytearray()
        self._ready: deque[T] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, message: object) -> None:
        """Send one message, whole; ``Closed`` when nobody is there to take it."""
        data = memoryview(wire.encode(message))
        while data:
            try:
                data = data[self.sock.send(data, socket.MSG_NOSIGNAL if hasattr(socket, "MSG_NOSIGNAL") else 0) :]
            except BlockingIOError:
                select.select([], [self.sock], [])
            except OSError as error:
                raise Closed(str(error)) from error

    def receive(self) -> T:
        """The next message, waiting for it."""
        while not self._ready:
            with contextlib.suppress(InterruptedError):
                select.select([self.sock], [], [])
                self._fill()
        return self._ready.popleft()

    def drain(self) -> list[T]:
        """The messages that are there now, without waiting; ``Closed`` once nothing is left and the end has come."""
        try:
            while select.select([self.sock], [], [], 0)[0]:
                self._fill()
        except Closed:
            if not self._ready:
                raise
        messages = list(self._ready)
        self._ready.clear()
        return messages

    def _fill(self) -> None:
        try:
            chunk = self.sock.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise Closed(str(error)) from error
        if not chunk:
            raise Closed("end of stream")
        self._buffer += chunk
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > self._limit:
            raise ValueError(f"a message is longer than {self._limit >> 20} MiB")
        self._ready.extend(wire.decode(bytes(line), self._kinds) for line in lines)


def send_descriptors(sock: socket.socket, fds: Sequence[int]) -> None:
    """Give the other end copies of ``fds``."""
    socket.send_fds(sock, [b"%03d" % len(fds)], list(fds))


def receive_descriptors(sock: socket.socket) -> list[int]:
    """The descriptors that ``send_descriptors`` gave, close-on-exec."""
    data, fds, _, _ = socket.recv_fds(sock, 3, 128)
    if len(data) != 3 or len(fds) != int(data):
        raise Closed("no descriptors came")
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)
