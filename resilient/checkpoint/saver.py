# SPDX-License-Identifier: Apache-2.0
"""The saver: a process of the supervisor's that does all input and output with the store.

A mount that hangs or a slow bucket then blocks neither the supervisor nor a worker, and
what a worker put into its arena is saved although the worker is dead. It ends when its
socket is closed, after what it was asked before and need not hear more of; signals do not end it, because a platform
that signals every process of the container must not break a save off.

One thread reads requests and hears judgements, one saves, one does everything small, one renews the lease.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from resilient.checkpoint import requests
from resilient.checkpoint.keeping import Keeping
from resilient.checkpoint.requests import Failed, Fetch, Judge, Reply, Request, Save
from resilient.checkpoint.store_errors import kind_of
from resilient.errors import ResilientError, StoreError
from resilient.link.channel import Channel, Closed

NICENESS: Final = 10
"""The kernel derives a low priority for disk access from it as well."""

Slots = Mapping[int, Sequence[int]]
"""Descriptors of the arenas, by rank and slot."""


def serve(sock: socket.socket, slots: Slots) -> None:
    """Answer requests until the other end is closed; then finish, and give the run back."""
    channel = Channel(sock, requests.REQUESTS)
    desk = _Desk(channel, Keeping(slots))
    desk.start()
    try:
        while True:
            desk.take(channel.receive())
    except (Closed, ValueError):  # a line that does not parse ends the channel, as its end does
        pass
    finally:
        desk.finish()
        channel.close()


class _Desk:
    """The threads, and the one socket on which they answer."""

    def __init__(self, channel: Channel[Request], keeping: Keeping) -> None:
        self._channel = channel
        self._keeping = keeping
        self._sending = threading.Lock()
        self._small: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._saves: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self._work, args=(inbox,), name=name)
            for inbox, name in ((self._small, "small"), (self._saves, "saves"))
        ]
        self._renewer = threading.Thread(target=keeping.renew_until_closed, name="renewals", daemon=True)

    def start(self) -> None:
        for thread in (*self._workers, self._renewer):
            thread.start()

    def take(self, request: Request) -> None:
        if isinstance(request, Judge):
            self._send(self._answer(request))
            return
        if isinstance(request, Save):
            self._keeping.saves.expect(request)
        (self._saves if isinstance(request, (Save, Fetch)) else self._small).put(request)

    def finish(self) -> None:
        """Do what was asked and needs no more words, not waiting for a store that does not answer; end all threads."""
        self._keeping.leave()
        self._small.put(None)
        self._saves.put(None)
        for thread in self._workers:
            thread.join()
        self._keeping.close()
        self._renewer.join()

    def _work(self, inbox: queue.SimpleQueue[Request | None]) -> None:
        while (request := inbox.get()) is not None:
            self._send(self._answer(request))

    def _send(self, reply: Reply) -> None:
        with self._sending, contextlib.suppress(Closed):  # nobody waits for it any more
            self._channel.send(reply)

    def _answer(self, request: Request) -> Reply:
        try:
            return self._keeping.perform(request)
        except ResilientError as error:
            answered = error.answered if isinstance(error, StoreError) else True
            return Failed(id=request.id, why=str(error), answered=answered, kind=kind_of(error))
        except Exception as error:  # the top of a thread: a bug of ours must not look like silence
            what = type(request).__name__.lower()
            why = f"cannot {what}: {type(error).__name__}: {error}; this is a bug of resilient, please report it"
            return Failed(id=request.id, why=why, answered=True, kind="internal")


def main(argv: Sequence[str]) -> int:
    """``python -m resilient.checkpoint.saver FD '{"0": [5, 6]}'``."""
    number, arenas = argv
    gc.freeze()  # what was imported stays, and the run is free once this process has ended
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    slots = {int(rank): [int(fd) for fd in fds] for rank, fds in json.loads(arenas).items()}
    with socket.socket(fileno=int(number)) as sock:
        serve(sock, slots)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
