# SPDX-License-Identifier: Apache-2.0
"""The own pod as Kubernetes has it: a process that asks and tells the API server, if that was asked for.

Run as a program it is that process. Whoever waits for it waits for a moment only, and not at all while the API server
has left unanswered what it was asked last.
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
from resilient.core.pod_report import Report
from resilient.core.pod_status import (
    Health,
    PodAccess,
    PodDevice,
    PodStatus,
    disruption_words,
    healths,
    newly_unwell,
    since,
)
from resilient.facts import Platform
from resilient.kubernetes.pod_watcher import (
    FROM_WATCHER,
    TO_WATCHER,
    FromWatcher,
    Leaving,
    Look,
    NotSeen,
    Seen,
    Tell,
    Told,
    Unanswered,
    serve,
)
from resilient.link.channel import Channel, Closed
from resilient.supervisor import programs

LOOK_S: Final = 2.0
"""How long the evidence waits for a look: it takes milliseconds, where the API server is well."""
LAST_S: Final = 2.0
"""How long the exit waits for the last report to be written."""
AGAIN_S: Final = 30.0
"""How long after its end the process is started again."""
_MOST_SAID: Final = 8

Then = Callable[[tuple[PodDevice, ...]], None]


class PodWatch:
    """What is read of the own pod and written about it, from the beginning on; nothing, where nobody asked for it."""

    def __init__(
        self,
        asked: PodAccess | None,
        platform: Platform,
        environ: Mapping[str, str],
        *,
        unwell: Callable[[str], None],
        disrupted: Callable[[str], None],
        silent: Callable[[str], None],
        journal: Callable[[str, Mapping[str, object]], None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
    ) -> None:
        """``unwell`` is told of each device that is unhealthy by now, ``disrupted`` once why the pod is to go, and
        ``silent`` each thing once that cannot be done, and why."""
        self._writes = asked is PodAccess.WRITE
        self._unwell = unwell
        self._disrupted = disrupted
        self._silent = silent
        self._journal = journal
        self._after = after
        self._program: programs.Source[FromWatcher] = programs.Source(
            "resilient.supervisor.pod_watch",
            FROM_WATCHER,
            environ,
            heard=self._take,
            ended=self._ended,
            watch=watch,
            unwatch=unwatch,
        )
        self._asked = 0
        self._waiting: dict[int, Callable[[], None]] = {}
        self._untold: set[int] = set()
        self._prompt: bool | None = None
        """It has answered what it was asked last; ``None`` while it has been asked nothing for long enough."""
        self._status = PodStatus()
        self._judged: dict[str, Health] = {}
        """How the devices were when they were asked for the last time before an attempt ended."""
        self._said: set[str] = set()
        self._is_leaving = False
        if asked is not None:
            self._begin(platform)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._program.pid

    def judge(self, then: Then) -> None:
        """Have ``then`` told how the devices are now that an attempt has failed, and how they were before."""

        def judged() -> None:
            devices = since(self._status, self._judged)
            self._judged |= healths(self._status)
            then(devices)

        self._asked += 1
        number = self._asked
        prompt = self._prompt is True  # who is silent is asked as well: should it answer later, the next verdict knows
        if not self._send(Look(id=number)) or not prompt:
            judged()
            return
        self._waiting[number] = judged
        self._after("pod look", LOOK_S, lambda: self._too_late(number))

    @property
    def disruption(self) -> str | None:
        """Why the pod is to go, where that is known."""
        return None if self._status.disruption is None else disruption_words(self._status.disruption)

    def leaving(self) -> None:
        """Find out why the pod is to go, if it is Kubernetes that asks."""
        if not self._is_leaving:
            self._is_leaving = self._send(Leaving())

    def tell(self, report: Report) -> None:
        """Have it written about the pod."""
        if self._writes:
            self._asked += 1
            if self._send(Tell(id=self._asked, report=report)):
                self._untold.add(self._asked)

    def close(self, timeout_s: float) -> None:
        """End the process, once it has written what it was told, if it is going to soon."""
        until = time.monotonic() + min(LAST_S, timeout_s)
        while self._prompt is not False and self._untold and self._program.channel is not None:
            if not select.select([self._program.channel], [], [], max(0.0, until - time.monotonic()))[0]:
                break
            self._program.read()
        self._program.close()

    def _begin(self, platform: Platform) -> None:
        missing = platform.unnamed_pod
        if missing:
            self._say(missing)
        else:
            self._start()

    def _start(self) -> None:
        try:
            self._program.start()
        except OSError as error:  # the node has no room for it now
            self._say(f"the process that asks the API server cannot be started: {error}")
            self._after("pod api", AGAIN_S, self._start)

    def _send(self, message: Look | Leaving | Tell) -> bool:
        if self._program.channel is None:
            return False
        try:
            self._program.channel.send(message)
        except Closed as error:
            self._ended(str(error))
            return False
        return True

    def _take(self, message: FromWatcher) -> None:
        match message:
            case Seen():
                self._prompt = True
                self._learn(message.status)
                self._answered(message.id)
            case Unanswered():
                self._prompt = False
                self._answered(message.id)
            case NotSeen():
                self._prompt = message.final
                self._say(message.why)
                self._answered(message.id)
            case Told():
                self._prompt = message.prompt
                self._untold.discard(message.id)
                for problem in message.problems:
                    self._say(problem)

    def _learn(self, status: PodStatus) -> None:
        if status == self._status:
            return
        first = not self._status.uid
        if status.devices != self._status.devices or status.disruption or first:
            self._journal("pod", {"status": status})
        if first:
            self._judged = healths(status)
        for device in newly_unwell(status, self._status):
            self._unwell(f"the kubelet finds a device unhealthy: {device}")
        before, self._status = self.disruption, status
        if self.disruption is not None and self.disruption != before:
            self._disrupted(self.disruption)

    def _answered(self, number: int) -> None:
        if (then := self._waiting.pop(number, None)) is not None:
            then()

    def _too_late(self, number: int) -> None:
        if number in self._waiting:
            self._prompt = False
            self._say(f"the API server did not answer within {LOOK_S:.0f} s")
            self._answered(number)

    def _ended(self, why: str) -> None:
        self._prompt = False
        self._say(f"the process that asks the API server ended: {why}")
        self._program.close()
        self._untold.clear()
        for number in list(self._waiting):
            self._answered(number)
        self._after("pod api", AGAIN_S, self._start)

    def _say(self, why: str) -> None:
        """Each thing once: what cannot be done now cannot be done at every failure."""
        if why not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(why)
            self._silent(why)


def main(argv: Sequence[str]) -> int:
    """``python -m resilient.supervisor.pod_watch FD``."""
    from resilient.kubernetes import own_pod  # the client costs memory and time that only this process is to spend

    environ = settings.environment()

    def open_api() -> own_pod.OwnPod:
        return own_pod.OwnPod(settings.platform(environ), lambda: own_pod.configuration(environ))

    with socket.socket(fileno=int(argv[0])) as sock, contextlib.suppress(Closed):
        serve(Channel(sock, TO_WATCHER), open_api)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
