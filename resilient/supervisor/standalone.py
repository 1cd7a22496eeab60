# SPDX-License-Identifier: Apache-2.0
"""The keeper of a script that runs without a supervisor: plain ``python train.py``, or plain torchrun on one node.

A process of its own that outlives the workers for as long as a save takes. It
names boundaries, has snapshots saved and answers the workers; it judges nothing
and restarts nobody. It ends when its workers have.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import selectors
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient import settings as settings_
from resilient.checkpoint.arena import create_arenas
from resilient.checkpoint.requests import Opened
from resilient.core import events as ev
from resilient.core.edges_opening import nothing_to_resume_from
from resilient.core.exit_codes import ExitCode
from resilient.core.redact import Redactor, secrets_of
from resilient.core.usage import NOTHING_USED
from resilient.errors import SettingsError
from resilient.link.board import TERM, Board, row_base
from resilient.link.channel import Channel, Closed, send_descriptors
from resilient.link.messages import FROM_WORKER, FromWorker, Hello, Leaving, Refuse, SaveEnded
from resilient.supervisor.host import Host, Ports
from resilient.supervisor.opening import MOST_ASIDE
from resilient.supervisor.store_link import Identity, StoreLink
from resilient.supervisor.timers import Timers

TICK_S: Final = 0.05


class Keeper:
    """Hosts the workers of one launch."""

    def __init__(self, listener: socket.socket, ranks: int, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._ranks = ranks
        self._redactor = Redactor(secrets_of(environ))
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._board = Board.create(ranks)
        self._arenas = create_arenas(ranks, tempfile.gettempdir())
        self._channels: dict[int, Channel[FromWorker]] = {}
        self._store = StoreLink(
            Identity(
                submission=f"local-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
                index=0,
                pod=socket.gethostname().replace("_", "-")[:200] or "pod",
                journal="",
                in_kubernetes=False,
            ),
            {rank: [slot.fd for slot in slots] for rank, slots in self._arenas.items()},
            token=secrets.token_hex(16),
            environ=environ,
            watch=lambda fd, action: self._watch(fd, action),
            unwatch=lambda fd: self._unwatch(fd),
            after=self._timers.after,
            note=self._say,
        )
        self._host = Host(self._board, self._ports())
        self._patience_s = 0.0
        self._stopping: int | None = None
        self._left: set[int] = set()
        self._settled = False
        for _ in range(ranks):
            self._welcome(listener)

    def run(self) -> None:
        """Serve until every worker is gone and what they left is saved."""
        self._host.launched(0, numbered=False)
        while self._channels:
            for key, _ in self._selector.select(self._timers.wait_s(TICK_S)):
                if key.fd in self._selector.get_map():
                    key.data()
            self._timers.run()
            self._host.tick(time.monotonic())
            self._obey_sigterm()
        self._host.tiers.saving.settle(time.monotonic())
        while not self._settled:
            for key, _ in self._selector.select(TICK_S):
                key.data()
            self._timers.run()
        self._store.close(timeout_s=20.0)

    def _welcome(self, listener: socket.socket) -> None:
        """One worker connects and says which local rank it is."""
        sock, _ = listener.accept()
        rank = int(sock.recv(4, socket.MSG_WAITALL))
        if rank in self._channels or not 0 <= rank < self._ranks:
            raise ValueError(f"a second worker says that it is local rank {rank}")
        send_descriptors(sock, [self._board.fd, *(slot.fd for slot in self._arenas[rank])])
        channel = Channel(sock, FROM_WORKER)
        self._channels[rank] = channel
        self._watch(sock.fileno(), lambda: self._on_messages(rank))

    def _on_messages(self, rank: int) -> None:
        channel = self._channels[rank]
        try:
            messages = channel.drain()
        except (Closed, ValueError):
            self._unwatch(channel.fileno())
            channel.close()
            del self._channels[rank]
            return
        for message in messages:
            if isinstance(message, Leaving):
                self._left.add(rank)
            self._host.message(rank, message, time.monotonic())
            if isinstance(message, Hello) and not self._host.wants_store and self._host.effective is not None:
                self._host.number(1)
        if self._stopping is not None and len(self._left) == self._ranks:
            self._left.clear()
            self._host.tiers.saving.settle(time.monotonic())

    def _obey_sigterm(self) -> None:
        """A worker was signalled: all leave together, as far as they train already."""
        if (
            self._stopping is None
            and not self._host.loop_end.begun
            and any(self._board.words[row_base(i) + TERM] for i in range(self._ranks))
        ):
            if self._host.stop():
                self._stopping = self._host.tiers.stopping
            elif self._host.effective is None:
                self._host.tiers.end()

    def _ports(self) -> Ports:
        return Ports(
            send=self._send,
            submit=self._store.submit,
            emit=self._on_event,
            journal=lambda kind, fields: None,
            resolve=lambda run: settings_.load(run=run, environ=self._environ),
            now=time.monotonic,
            usage=lambda: NOTHING_USED,
            say=self._say,
            give_back=self._give_back,
            settled=self._on_settled,
            last_saved=self._on_saved,
        )

    def _give_back(self, number: int) -> None:
        for slots in self._arenas.values():
            slots[number].give_back()

    def _on_event(self, event: ev.Event) -> None:
        if isinstance(event, ev.Announced):
            self._open()
        elif isinstance(event, ev.Unusable):
            self._refuse(ExitCode.CONFIG_FAULT, event.why)
        elif isinstance(event, ev.OpenFailed):
            self._refuse_store(event)
        elif isinstance(event, ev.Broken):
            self._refuse(ExitCode.INTERNAL, event.why)

    def _open(self) -> None:
        effective = self._host.effective
        if effective is None or effective.settings.checkpoints is None:
            return
        settings = effective.settings
        self._patience_s = settings.store_patience
        until = time.monotonic() + settings.store_patience
        self._store.open(
            settings,
            fresh=settings.fresh,
            until=until,
            then=self._on_open,
        )

    def _on_open(self, answer: Opened | ev.OpenFailed) -> None:
        if isinstance(answer, ev.OpenFailed):
            self._refuse_store(answer)
        elif answer.ever_committed and not answer.checkpoints:
            why, do = nothing_to_resume_from(answer.set_aside)
            self._refuse(ExitCode.CONFIG_FAULT, f"cannot resume: {why}; {do}")
        else:
            for note in answer.set_aside[:MOST_ASIDE]:
                self._say(note)
            self._host.opened(answer, self._patience_s)
            self._host.number(answer.next_attempt)

    def _refuse_store(self, failed: ev.OpenFailed) -> None:
        said = f"{failed.why}; {failed.do}" if failed.do else failed.why
        self._refuse(ExitCode.CONFIG_FAULT if failed.wrong else ExitCode.RESTART, said)

    def _refuse(self, code: ExitCode, why: str) -> None:
        for rank in range(self._ranks):
            self._send(rank, Refuse(code=int(code), why=self._redactor.clean(why, 4096)))

    def _on_saved(self, step: int, ok: bool) -> None:
        for rank in range(self._ranks):
            self._send(rank, SaveEnded(step=step, ok=ok))

    def _on_settled(self, durable_step: int) -> None:
        if self._channels and self._stopping is not None:
            self._on_saved(self._stopping, durable_step >= self._stopping)
        self._settled = not self._channels

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(2, f"resilient: {self._redactor.clean(text, 4096)}\n".encode())

    def _send(self, rank: int, message: object) -> None:
        channel = self._channels.get(rank)
        if channel is not None:
            with contextlib.suppress(Closed):  # its end is noticed by its reader
                channel.send(message)

    # The selector.

    def _watch(self, fd: int, action: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, action)

    def _unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)


def main(argv: Sequence[str]) -> int:
    """``python -m resilient.supervisor.standalone --listen FD --ranks N``."""
    parser = argparse.ArgumentParser(prog="resilient.supervisor.standalone")
    parser.add_argument("--listen", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--ranks", type=int, required=True, help="how many workers will connect")
    asked = parser.parse_args(argv)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # it ends after its workers, whoever is signalled
    with socket.socket(fileno=asked.listen) as listener:
        path = listener.getsockname()
        listener.settimeout(60.0)
        try:
            keeper = Keeper(listener, asked.ranks, settings_.environment())
        except (OSError, ValueError, SettingsError) as error:
            sys.stderr.write(f"resilient: cannot keep checkpoints: {error}\n")
            return int(ExitCode.INTERNAL)
        finally:
            os.unlink(path)
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
