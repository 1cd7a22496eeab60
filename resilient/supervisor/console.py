# SPDX-License-Identifier: Apache-2.0
"""Our stdout and stderr, written by a thread of their own, so that a stopped terminal never stops supervising.

Nothing is dropped: when the queue is over its bound ``full`` is True, the loop stops
reading the workers' pipes, and the workers wait, as they would without us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from collections import deque
from typing import Final

BOUND: Final = 1 << 20
_CHUNK: Final = 1 << 16


class Console:
    """A queue of bytes for descriptors that may block."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._queue: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._gone: set[int] = set()
        self._closing = False
        self._changed = threading.Condition()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name="resilient-console", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the loop is to stop reading what would be written here."""
        with self._changed:
            return self._size > self._bound

    def fileno(self) -> int:
        """Readable when the queue is no longer full; then call ``acknowledge``."""
        return self._wake_read

    def acknowledge(self) -> None:
        """Take note of the wake-up."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def write(self, fd: int, data: bytes) -> None:
        """Queue ``data`` for ``fd``; never waits and never refuses."""
        with self._changed:
            if data and fd not in self._gone and not self._closing:
                self._queue.append((fd, data))
                self._size += len(data)
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written, or the time is up; whether it is written."""
        with self._changed:
            return self._changed.wait_for(lambda: self._size == 0, timeout_s)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Flush and end the thread; False where a blocked descriptor holds it (it does not hold our exit)."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False  # it may still use the pipe: left to the exit of the process
        os.close(self._wake_read)
        os.close(self._wake_write)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                fd, data = self._queue.popleft()
            alive = _write_all(fd, data)
            with self._changed:
                was_full = self._size > self._bound
                self._size -= len(data)
                if not alive:
                    self._drop(fd)
                self._changed.notify_all()
                if was_full and self._size <= self._bound:
                    with contextlib.suppress(BlockingIOError):  # full of wake-ups that wake as well
                        os.write(self._wake_write, b".")

    def _drop(self, fd: int) -> None:
        """Nobody reads ``fd`` any more: forget what is queued for it."""
        self._gone.add(fd)
        self._queue = deque(item for item in self._queue if item[0] != fd)
        self._size = sum(len(data) for _, data in self._queue)


def _write_all(fd: int, data: bytes) -> bool:
    """Write everything, however long it takes; False where ``fd`` is closed, at either end, or failing."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view[:_CHUNK]) :]
        except BlockingIOError:  # whoever gave it to us made it non-blocking
            select.select([], [fd], [])
        except OSError as error:
            # A full disk loses these bytes and may have room for the next ones; anything else is for good.
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return True
