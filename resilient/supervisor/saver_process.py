# SPDX-License-Identifier: Apache-2.0
"""The saver as the supervisor sees it: requests out, answers in, and it may die.

Run as a program it is the saver itself. It outlives a supervisor that is killed:
then it ends what is left of the workers as well, which nobody else can do any more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient.checkpoint import saver
from resilient.checkpoint.requests import REPLIES, Failed, Reply, Request
from resilient.core.policy import Terms
from resilient.link.channel import Channel, Closed
from resilient.supervisor import descendants, programs

Then = Callable[[Reply], None]
LEFTOVER_GRACE_S: Final = Terms().stop_grace_s
"""For whoever clears up after a killed worker, on a disk that is busy: as long as if we had stopped it."""
REPLY_LIMIT: Final = 8 << 20
"""A store tells of all exits of a submission, of the deny list and of what is left out, in one answer."""


class SaverProcess:
    """A saver and the requests that it has not answered yet."""

    def __init__(self, slots: Mapping[int, Sequence[int]], token: str, environ: Mapping[str, str]) -> None:
        arenas = json.dumps({str(rank): list(pair) for rank, pair in slots.items()})
        self._process, ours = programs.start(
            "resilient.supervisor.saver_process",
            [arenas, token],
            environ,
            fds=[fd for pair in slots.values() for fd in pair],
        )
        self._channel: Channel[Reply] = Channel(ours, REPLIES, limit=REPLY_LIMIT)
        self._waiting: dict[int, Then] = {}
        self._next = 0
        self.alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._channel.fileno()

    def submit(self, make: Callable[[int], Request], then: Then) -> None:
        """Ask; ``then`` is called with the answer, at the latest when the saver dies."""
        self._next += 1
        self._waiting[self._next] = then
        try:
            self._channel.send(make(self._next))
        except Closed as error:
            self._died(str(error))

    def read(self) -> None:
        """Take the answers that are there."""
        try:
            replies = self._channel.drain()
        except (Closed, ValueError) as error:
            self._died(str(error))
            return
        for reply in replies:
            then = self._waiting.pop(reply.id, None)
            if then is not None:
                then(reply)

    def close(self, timeout_s: float) -> None:
        """Have it finish what it was asked and end; one that a store holds for longer is killed."""
        self._channel.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            programs.kill(
                self._process, programs.KILL_WAIT_S
            )  # it would keep the run's lock; without a manifest nothing counts

    def _died(self, why: str) -> None:
        self.alive = False
        waiting, self._waiting = self._waiting, {}
        for number, then in waiting.items():
            then(Failed(id=number, why=f"the saver ended: {why}", answered=False, kind="internal"))


def main(argv: Sequence[str]) -> int:
    """``python -m resilient.supervisor.saver_process FD SLOTS TOKEN``."""
    *arguments, token = argv
    code = saver.main(arguments)
    descendants.end(token, grace_s=LEFTOVER_GRACE_S)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
