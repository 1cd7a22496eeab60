# SPDX-License-Identifier: Apache-2.0
"""The mailbox as its supervisor has it: letters out, letters in, and a new process whenever the one before was cut."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from resilient.core import wire
from resilient.link.channel import Closed
from resilient.supervisor.mailbox import LETTER_LIMIT, LINE_LIMIT, TOLD, Connected, Cut, Letter, Post, Told, Will
from resilient.supervisor.programs import Source

CLOSE_S: Final = 5.0
STUCK_S: Final = 1.0
"""How long a mailbox may take no letter: the network to pod 0 may be gone, and its supervisor has to go on."""
QUIET: Final = {"TORCH_CPP_LOG_LEVEL": "FATAL"}
"""That the others are not there yet is no news."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the letters of a pod meet."""

    host: str
    port: int
    """Of the store that pod 0 holds."""
    queue: str
    """Our own."""
    holds: bool
    """The store is ours."""


class Mail(Generic[T]):
    """Of one pod."""

    def __init__(
        self,
        kinds: Mapping[str, type[T]],
        environ: Mapping[str, str],
        *,
        heard: Callable[[T], None],
        connected: Callable[[], None],
        cut: Callable[[str], None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        """``kinds`` are the words that may come; ``cut`` is told why none will any more, until it is opened again."""
        self._kinds = kinds
        self._heard = heard
        self._opened = connected
        self._told_cut = cut
        self.connected = False
        self._source: Source[Told] = Source(
            "resilient.supervisor.mailbox",
            TOLD,
            {**environ, **QUIET},
            heard=self._on_told,
            ended=self._on_cut,
            watch=watch,
            unwatch=unwatch,
            limit=LINE_LIMIT,
        )

    @property
    def pid(self) -> int | None:
        return self._source.pid

    def open(self, address: Address) -> None:
        """Start it; ``OSError`` means that the node has no room for it now."""
        role = "holds" if address.holds else "joins"
        self._source.start(address.host, str(address.port), address.queue, role)
        if self._source.channel is not None:
            self._source.channel.sock.settimeout(STUCK_S)

    def send(self, to: str, word: object) -> bool:
        """Post a word; False where it cannot be, as it is too long or nobody carries it."""
        text = wire.encode(word).decode()
        return len(text) <= LETTER_LIMIT and self._send(Post(to=to, text=text))

    def leave(self, to: str, word: object) -> None:
        """What is to be posted when we are gone without having closed it."""
        self._send(Will(to=to, text=wire.encode(word).decode()))

    def _send(self, asked: Post | Will) -> bool:
        channel = self._source.channel
        if channel is None or not self.connected:
            return False
        try:
            channel.send(asked)
        except Closed:
            self.connected = False
            with contextlib.suppress(OSError):  # which is heard of when it is read, also of one that is only stuck
                channel.sock.shutdown(socket.SHUT_RDWR)
            return False
        return True

    def _on_told(self, told: Told) -> None:
        match told:
            case Connected():
                self.connected = True
                self._opened()
            case Letter():
                self._on_letter(told.text)
            case Cut():
                self._on_cut(told.why)

    def _on_letter(self, text: str) -> None:
        try:
            word = wire.decode(text, self._kinds)
        except ValueError:
            return  # what is no word of a peer's is nobody's
        self._heard(word)

    def cut(self, why: str) -> None:
        """Give it up, because of what is known from elsewhere."""
        self._on_cut(why)

    def _on_cut(self, why: str) -> None:
        self.connected = False
        self._source.close()
        self._told_cut(why)

    def close(self, patience_s: float) -> None:
        """End it once its letters are read, or nobody reads them; where it has carried none, at once."""
        if self.connected:
            self.connected = False
            self._source.leave(min(CLOSE_S, patience_s))
        self._source.close()
