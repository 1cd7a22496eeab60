# SPDX-License-Identifier: Apache-2.0
"""The mailbox of one supervisor: a process that carries letters between the pods of a run, over torch's TCPStore.

The first pod's mailbox holds the store, in which each pod has a queue. Torch is loaded here, so that the supervisor
need not; and a call that hangs, or a store that is gone, is nothing but the end of this process. It ends with its
supervisor, for which it then posts what that has left as its last will.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NoReturn

from resilient.core import wire
from resilient.link.channel import Channel, Closed

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not listed, and documented

LETTER_LIMIT: Final = 6 << 20
"""Bytes; torch's store takes values of up to 8 MiB."""
CONNECT: Final = timedelta(seconds=5)
POLL: Final = timedelta(seconds=5)
AGAIN_S: Final = 0.5
LOOK_S: Final = 0.02
LAST_WORDS_S: Final = 3.0
"""How long the store outlives its supervisor, for letters that lie in it unread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """Put a letter into a queue."""

    to: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """The same once the supervisor is gone."""

    to: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """Letters are carried from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One that has come."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """No letter is carried any more: the process ends."""

    why: str


Asked = Post | Will
Told = Connected | Letter | Cut
ASKED: Final[Mapping[str, type[Asked]]] = {"Post": Post, "Will": Will}
TOLD: Final[Mapping[str, type[Told]]] = {"Connected": Connected, "Letter": Letter, "Cut": Cut}
LINE_LIMIT: Final = 2 * LETTER_LIMIT + (1 << 10)
"""A letter within a line is quoted once more, and not alone in it."""
_SURELY_FITS: Final = LINE_LIMIT // 16
"""Characters; no character takes more than twelve bytes where it is quoted."""


def main(argv: Sequence[str]) -> NoReturn:
    """``python -m resilient.supervisor.mailbox FD HOST PORT QUEUE holds|joins``."""
    number, host, port, queue, role = argv
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a platform that signals every process must not cut a pod off
    channel: Channel[Asked] = Channel(socket.socket(fileno=int(number)), ASKED, limit=LINE_LIMIT)
    try:
        _carry(channel, host, int(port), queue, holds=role == "holds")
    except Closed:
        pass
    except Exception as error:  # whatever torch raises is why no letters are carried
        with contextlib.suppress(Closed):
            channel.send(Cut(why=_line(error)))
    os._exit(0)  # a thread that waits in a call of torch's keeps nobody


class _Sender:
    """Two threads speak to the supervisor."""

    def __init__(self, channel: Channel[Asked]) -> None:
        self._channel = channel
        self._sending = threading.Lock()

    def say(self, what: Told) -> None:
        with self._sending, contextlib.suppress(Closed):
            self._channel.send(what)


class _Carrier:
    """Letters in both directions, over two connections: waiting at a queue keeps one from all else."""

    def __init__(self, channel: Channel[Asked], sender: _Sender, store: TCPStore, inbox: TCPStore) -> None:
        self._channel = channel
        self._sender = sender
        self._store = store
        self._inbox = inbox
        self._posted_to: set[str] = set()

    def listen(self, queue: str) -> None:
        """Pass on what comes, until the store is gone; a thread of its own."""
        self._inbox.set_timeout(POLL)
        while True:
            try:
                text = self._inbox.queue_pop(queue).decode()
            except Exception as error:  # torch has one kind for a time-out and for what is lost
                if not _answers(self._inbox):
                    self._sender.say(Cut(why=f"the store of pod 0 is gone: {_line(error)}"))
                    os._exit(0)
            else:
                letter = Letter(text=text)
                if len(text) <= _SURELY_FITS or len(wire.encode(letter)) <= LINE_LIMIT:
                    self._sender.say(letter)  # else it is no peer's, who writes letters of plain text

    def post(self) -> None:
        """Post what the supervisor says, until it is gone, and then its will."""
        will: Will | None = None
        with contextlib.suppress(Closed):
            while True:
                asked = self._channel.receive()
                if isinstance(asked, Will):
                    will = asked
                else:
                    self._post(asked)
        if will is not None:
            self._post(will)

    def _post(self, letter: Post | Will) -> None:
        self._posted_to.add(letter.to)
        self._store.queue_push(letter.to, letter.text)

    def wait_until_read(self) -> None:
        """The store goes with this process: leave those who are there the time to read."""
        until = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < until and any(self._store.queue_len(queue) for queue in self._posted_to):
            time.sleep(LOOK_S)


def _answers(store: TCPStore) -> bool:
    try:
        store.num_keys()
    except Exception:  # of whatever kind: it does not answer
        return False
    return True


def _connect(channel: Channel[Asked], host: str, port: int, *, holds: bool) -> TCPStore:
    """The store, once it is there: pod 0 may still be pulled, and its name not be known yet."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not listed, and documented

    wait_s = 0.0
    while True:
        if select.select([channel], [], [], wait_s)[0]:
            channel.receive()  # nothing is said before there is a store: this is the end
        try:
            return TCPStore(host, port, is_master=holds, timeout=CONNECT, wait_for_workers=False)
        except RuntimeError:
            if holds:
                raise
        wait_s = AGAIN_S


def _carry(channel: Channel[Asked], host: str, port: int, queue: str, *, holds: bool) -> None:
    where = "localhost" if holds else host
    store = _connect(channel, where, port, holds=holds)
    sender = _Sender(channel)
    carrier = _Carrier(channel, sender, store, _connect(channel, where, port, holds=False))
    sender.say(Connected())
    threading.Thread(target=carrier.listen, args=(queue,), name="inbox", daemon=True).start()
    carrier.post()
    if holds:
        carrier.wait_until_read()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    main(sys.argv[1:])
