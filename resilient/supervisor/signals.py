# SPDX-License-Identifier: Apache-2.0
"""Signals to the supervisor, as something a selector can wait for. It notes them and does nothing else."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections import deque
from collections.abc import Collection
from types import FrameType
from typing import Final

WANTED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
"""As PID 1 a signal without a handler is ignored, so everything that may mean "leave" needs one."""
_MAY_STAY_IGNORED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Ignored on purpose by whoever started us: ``nohup``, or a shell for a job in the background."""


class Signals:
    """Notes the wanted signals from now until ``close``; the main thread's, like all of Python's handlers."""

    def __init__(self, wanted: Collection[signal.Signals] = WANTED) -> None:
        self._noted: deque[int] = deque()
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._before = {number: signal.getsignal(number) for number in wanted}
        # The socket only wakes the selector, so it may be full without loss: what came is in ``_noted``.
        self._wakeup_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number, before in self._before.items():
            if before is not signal.SIG_IGN or number not in _MAY_STAY_IGNORED:
                signal.signal(number, self._note)
        self._mask_before = signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)

    def fileno(self) -> int:
        """Readable when there is something for ``read``."""
        return self._read.fileno()

    def read(self) -> list[int]:
        """The signals that came since the last call, in order, repetitions included."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass
        numbers = []
        while self._noted:
            numbers.append(self._noted.popleft())
        return numbers

    def close(self) -> None:
        """Put back the handlers, the mask and the wake-up descriptor that were there before."""
        for number, before in self._before.items():
            # None: installed by C code, which cannot be asked to install it again.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)
        signal.set_wakeup_fd(self._wakeup_before)
        self._read.close()
        self._write.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append(number)
