# SPDX-License-Identifier: Apache-2.0
"""The notices of the cloud as the supervisor hears them: a process that waits for them, if that was asked for.

Run as a program it is that process.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient.cloud.clouds import WATCHES, cloud_here
from resilient.cloud.metadata import Metadata
from resilient.cloud.watcher import FROM_WATCHER, Announced, Unheard, serve
from resilient.core.cloud import Cloud
from resilient.link.channel import Channel, Closed
from resilient.supervisor import programs

AGAIN_S: Final = 30.0
"""How long after its end the process is started again."""


class NoticeWatch:
    """What the cloud announces, from the beginning on; nothing is started where nobody asked for it."""

    def __init__(
        self,
        asked: Cloud | None,
        environ: Mapping[str, str],
        *,
        heard: Callable[[Announced], None],
        unheard: Callable[[str], None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
    ) -> None:
        self._heard = heard
        self._unheard = unheard
        self._after = after
        self._program: programs.Source[Announced | Unheard] = programs.Source(
            "resilient.supervisor.notice_watch",
            FROM_WATCHER,
            environ,
            heard=self._take,
            ended=self._ended,
            watch=watch,
            unwatch=unwatch,
        )
        self._cloud = None if asked is None else cloud_here(asked)
        if self._cloud is not None:
            self._start()
        elif asked is not None:
            unheard("the firmware does not say which cloud this is; name it")

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._program.pid

    def close(self) -> None:
        """End the process."""
        self._program.close()

    def _start(self) -> None:
        assert self._cloud is not None, "nobody is listened to"
        try:
            self._program.start(self._cloud.value)
        except OSError as error:  # the node has no room for it now
            self._unheard(f"the process that waits for them cannot be started: {error}")
            self._after("notices", AGAIN_S, self._start)

    def _ended(self, why: str) -> None:
        self._unheard(f"the process that waits for them ended: {why}")
        self.close()
        self._after("notices", AGAIN_S, self._start)

    def _take(self, message: Announced | Unheard) -> None:
        match message:
            case Announced():
                self._heard(message)
            case Unheard():
                self._unheard(message.why)


def main(argv: Sequence[str]) -> int:
    """``python -m resilient.supervisor.notice_watch FD CLOUD``."""
    with socket.socket(fileno=int(argv[0])) as sock, contextlib.suppress(Closed):
        serve(Channel(sock, {}), WATCHES[Cloud(argv[1])](Metadata()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
