# SPDX-License-Identifier: Apache-2.0
"""The process that asks the driver, so that a driver that hangs stops nobody else.

It registers for events, says so, passes on each event, and looks at all devices when
it is asked. Whoever started it waits for no answer longer than it likes: a process
that the driver holds cannot even be killed, only left behind.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from resilient.core.devices import DeviceEvent, Look
from resilient.devices.protocol import Devices, Unavailable
from resilient.link.channel import Channel, Closed

WAIT_S: Final = 0.2
"""A question waits at most so long for an answer, since both come on one thread."""
_EVENTS_FIRST: Final = 64
"""A fault that reports itself without end must not keep a question waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Look at all devices now."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look has found; the first, with id 0, comes unasked and says that events are registered."""

    id: int
    look: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """The driver reported something."""

    event: DeviceEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Blind:
    """From now on there are no events; ``wholly``: no looks either, and the process ends."""

    why: str
    wholly: bool


FROM_WATCHER: Final[dict[str, type[Seen | Happened | Blind]]] = {
    "Seen": Seen,
    "Happened": Happened,
    "Blind": Blind,
}


def serve(channel: Channel[Ask], open_devices: Callable[[], Devices]) -> None:
    """Watch until the other end is gone."""
    try:
        devices = open_devices()
    except Unavailable as error:
        channel.send(Blind(why=str(error), wholly=True))
        return
    watcher = _Watcher(channel, devices)
    try:
        channel.send(Seen(id=0, look=devices.look()))
        while True:
            watcher.turn()
    except Closed:
        devices.close()


class _Watcher:
    def __init__(self, channel: Channel[Ask], devices: Devices) -> None:
        self._channel = channel
        self._devices = devices
        self._blind = False

    def turn(self) -> None:
        """Wait a little for an event, and answer who has asked meanwhile."""
        self._pass_on(WAIT_S)
        select.select([self._channel], [], [], None if self._blind else 0.0)
        for ask in self._channel.drain():
            for _ in range(_EVENTS_FIRST):  # what has happened before the question belongs to its answer
                if not self._pass_on(0.0):
                    break
            self._channel.send(Seen(id=ask.id, look=self._devices.look()))

    def _pass_on(self, timeout_s: float) -> bool:
        """Report the next event, if there is one."""
        if self._blind:
            return False
        try:
            event = self._devices.wait(timeout_s)
        except Unavailable as error:
            self._blind = True
            self._channel.send(Blind(why=str(error), wholly=False))
            return False
        if event is not None:
            self._channel.send(Happened(event=event))
        return event is not None
