# SPDX-License-Identifier: Apache-2.0
"""The process that waits for notices, so that a service that hangs stops nobody else.

A thread for each watch; what they find goes to whoever started it, each notice once. That nothing can be learned is
said once too, until something is learned again.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from resilient.cloud.clouds import Watch
from resilient.cloud.metadata import NoAnswer
from resilient.core.notices import Notice
from resilient.link.channel import Channel, Closed

RETRY_S: Final = 5.0
"""After a question that had no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The cloud has announced something."""

    notice: Notice
    within_s: float | None
    """How long from now on, as far as is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unheard:
    """Nothing can be learned now; it is tried again."""

    why: str


FROM_WATCHER: Final[dict[str, type[Announced | Unheard]]] = {"Announced": Announced, "Unheard": Unheard}


def serve(channel: Channel[object], watches: Sequence[Watch], *, retry_s: float = RETRY_S) -> None:
    """Watch until the other end is gone."""
    teller = _Teller(channel)
    for watch in watches:
        threading.Thread(target=_ask_for_ever, args=(watch, teller, retry_s), daemon=True).start()
    with contextlib.suppress(Closed):
        select.select([channel], [], [])
        channel.drain()  # nobody says anything to us: it is the end


class _Teller:
    """Tells each thing once, whichever thread found it."""

    def __init__(self, channel: Channel[object]) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._told: set[Notice] = set()

    def announce(self, notice: Notice) -> None:
        with self._lock:
            if notice not in self._told:
                self._told.add(notice)
                self._channel.send(Announced(notice=notice, within_s=notice.within_s(time.time())))

    def unheard(self, why: str) -> None:
        with self._lock:
            self._channel.send(Unheard(why=why))


def _ask_for_ever(watch: Watch, teller: _Teller, retry_s: float) -> None:
    heard = True
    with contextlib.suppress(Closed):  # the main thread sees the same, and ends the process
        while True:
            pause_s = watch.pause_s
            try:
                for notice in watch.look():
                    teller.announce(notice)
                heard = True
            except NoAnswer as error:
                if heard:
                    teller.unheard(str(error))
                heard, pause_s = False, retry_s
            time.sleep(pause_s)
