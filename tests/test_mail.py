# SPDX-License-Identifier: Apache-2.0
"""The mailbox as its supervisor has it, with a real one, and whatever it does the supervisor goes on."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from chaos_run import free_port

from resilient import settings
from resilient.supervisor.mail import Address, Mail
from resilient.supervisor.mailbox import LETTER_LIMIT
from resilient.supervisor.pod_words import LEADER, TO_LEADER, Left, Said, ToLeader


class Watched:
    """A mail, and what a loop would do for it."""

    def __init__(self) -> None:
        self.heard: list[ToLeader] = []
        self.connected = 0
        self.cuts: list[str] = []
        self._reads: dict[int, Callable[[], None]] = {}
        self.mail: Mail[ToLeader] = Mail(
            TO_LEADER, settings.environment(), heard=self.heard.append, connected=self._connect, cut=self.cuts.append,
            watch=self._reads.__setitem__, unwatch=lambda fd: self._reads.pop(fd, None) and None,
        )  # fmt: skip
        self.mail.open(Address(host="localhost", port=free_port(), queue=LEADER, holds=True))

    def _connect(self) -> None:
        self.connected += 1

    def until(self, wanted: Callable[[], bool]) -> None:
        """Read what comes."""
        while not wanted():
            for fd in select.select([*self._reads], [], [])[0]:
                self._reads[fd]()


def word(text: str) -> Said:
    return Said(pod=1, address="pod-1", rank=1, text=text)


def test_a_mailbox_that_takes_no_letter_is_given_up() -> None:
    """It may wait for a network that is gone: the supervisor goes on, is told, and has another one."""
    watched = Watched()
    watched.until(lambda: watched.connected == 1)
    mail = watched.mail
    assert mail.send(LEADER, word("first"))
    watched.until(lambda: watched.heard == [word("first")])
    stuck = mail.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)
    while mail.send(LEADER, word("x" * (LETTER_LIMIT // 2))):
        pass
    assert not mail.send(LEADER, word("more"))
    watched.until(lambda: len(watched.cuts) == 1)
    assert mail.pid != stuck
    mail.open(Address(host="localhost", port=free_port(), queue=LEADER, holds=True))
    watched.until(lambda: watched.connected == 2)
    mail.leave(LEADER, Left(pod=1, address="pod-1", why="gone"))
    mail.close(5.0)
