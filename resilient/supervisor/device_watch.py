# SPDX-License-Identifier: Apache-2.0
"""The devices as the supervisor sees them: a process that watches them, and may be held by the driver.

Run as a program it is that process. Where no device is visible or asked for, nothing
is started.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient import settings
from resilient.core.devices import DeviceEvent, Look
from resilient.devices.vendors import vendor_here
from resilient.devices.watcher import FROM_WATCHER, Ask, Blind, Happened, Seen, serve
from resilient.link.channel import Channel, Closed
from resilient.supervisor import programs

READY_S: Final = 10.0
"""How long the first workers wait for events to be registered: drivers that are asleep take seconds to wake."""
LOOK_S: Final = 10.0
"""How long a look may take: a driver that has just lost a board is slow, and then its word is worth waiting for."""
MOST_EVENTS: Final = 64
"""Of one attempt: a fault may report itself without end, and it is the first that tell of it."""

Then = Callable[[Look | None], None]


class DeviceWatch:
    """What the driver says, from before the first worker on."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
        journal: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self._after = after
        self._journal = journal
        self.events: list[DeviceEvent] = []
        """The first ones since the attempt began."""
        self.before: Look | None = None
        """As it was when the attempt began."""
        self._program: programs.Source[Seen | Happened | Blind] = programs.Source(
            "resilient.supervisor.device_watch",
            FROM_WATCHER,
            environ,
            heard=self._take,
            ended=self._ended,
            watch=watch,
            unwatch=unwatch,
        )
        self._asked = 0
        self._waiting: dict[int, Then] = {}
        self._begun = False
        self._wanted = vendor_here(environ) is not None
        """There may be something to learn, now or from a process to be started."""
        if self._wanted:
            self._start()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._program.pid

    def begin(self) -> None:
        """An attempt begins: wait, the first time, until its events cannot be missed."""
        self.events = []
        first, self._begun = not self._begun, True
        if first and self.before is not None:
            return  # it was ready before the machine was: that look is as good as another
        self.before = None
        if self._wanted and self._program.channel is None:  # it was killed meanwhile
            self._start()
        if 0 in self._waiting:
            self._until_ready()
        else:
            self.look("devices before", self._note_start)

    def look(self, name: str, then: Then) -> None:
        """Have ``then`` told what all devices say now; ``None`` where the driver does not answer in time."""
        if self._program.channel is None:
            then(None)
            return
        self._asked += 1
        number = self._asked
        self._waiting[number] = then
        self._after(name, LOOK_S, lambda: self._too_late(number))
        try:
            self._program.channel.send(Ask(id=number))
        except Closed as error:
            self._ended(str(error))

    def close(self) -> None:
        """End the process; one that the driver holds is left to it."""
        self._program.close()

    def _start(self) -> None:
        try:
            self._program.start()
        except OSError as error:  # the node has no room for it; it may have for the next attempt
            self._journal("no_device_evidence", {"why": f"the process that watches them cannot be started: {error}"})
            return
        self._waiting[0] = self._note_start

    def _until_ready(self) -> None:
        until = time.monotonic() + READY_S
        while self._program.channel is not None and 0 in self._waiting:
            if not select.select([self._program.channel], [], [], max(0.0, until - time.monotonic()))[0]:
                self._wanted = False  # the next attempt need not wait as long again
                self._lose(f"the driver did not answer within {READY_S:.0f} s")
                return
            self._program.read()

    def _take(self, message: Seen | Happened | Blind) -> None:
        match message:
            case Seen():
                if (then := self._waiting.pop(message.id, None)) is not None:
                    then(message.look)
            case Happened():
                if len(self.events) < MOST_EVENTS:
                    self.events.append(message.event)
                    self._journal("device_event", {"event": message.event})
            case Blind(wholly=True):
                self._wanted = False
                self._lose(message.why)
            case Blind():
                self._journal("no_device_evidence", {"why": message.why})

    def _note_start(self, look: Look | None) -> None:
        self.before = look
        if look is not None:
            self._journal("devices", {"when": "before", "look": look})

    def _too_late(self, number: int) -> None:
        if (then := self._waiting.pop(number, None)) is not None:
            self._journal("no_device_evidence", {"why": f"the driver did not answer within {LOOK_S:.0f} s"})
            then(None)

    def _ended(self, why: str) -> None:
        self._lose(f"the process that watches them ended: {why}")

    def _lose(self, why: str) -> None:
        """Nothing more can be learned; whoever waits is told so."""
        self._journal("no_device_evidence", {"why": why})
        self.close()
        waiting, self._waiting = self._waiting, {}
        for then in waiting.values():
            then(None)


def main(argv: Sequence[str]) -> int:
    """``python -m resilient.supervisor.device_watch FD``."""
    vendor = vendor_here(settings.environment())
    with socket.socket(fileno=int(argv[0])) as sock, contextlib.suppress(Closed):
        if vendor is not None:
            serve(Channel(sock, {"Ask": Ask}), vendor.open)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
