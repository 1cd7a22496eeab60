# SPDX-License-Identifier: Apache-2.0
"""The kernel's log, where this process may read it: most containers may not.

Only ``/dev/kmsg`` is read. It begins where we begin, never waits, and says who wrote a
line; files like ``/var/log/kern.log`` need a daemon and a privilege that are not found
in containers, and mix in what any process logs.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from resilient.core import kernel_log

MOST_LINES: Final = 200
"""Of one attempt; the first, since what follows a fault is its consequence."""
_RECORD_BYTES: Final = 8 << 10
"""As much as the kernel gives for one record."""
_MOST_READS: Final = 5000
"""At a time: a kernel that writes without end must not hold the supervisor."""
_KMSG: Final = os.makedev(1, 11)


class KernelLog:
    """What the kernel has logged since the attempt began."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        """Gives one record for each read, and never waits."""
        self.lines: list[str] = []

    def begin(self) -> None:
        """Nothing that was logged before counts."""
        self.listen()
        self.lines = []

    def listen(self) -> None:
        """Take what was logged since the last time: the kernel keeps little."""
        if self._fd is None:
            return
        for _ in range(_MOST_READS):
            try:
                record = os.read(self._fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were overwritten before we came; the next read goes on behind them
                continue
            except OSError:
                self.close()
                return
            line = kernel_log.message(record.decode(errors="replace"))
            if line is not None and len(self.lines) < MOST_LINES:
                self.lines.append(line)

    def close(self) -> None:
        """Read nothing any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def open_kernel_log(path: Path = Path("/dev/kmsg")) -> KernelLog:
    """From its present end on; where it may not be read, or is something else (some sandboxes), it stays empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return KernelLog(None)
    with contextlib.suppress(OSError):
        status = os.fstat(fd)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _KMSG:
            os.lseek(fd, 0, os.SEEK_END)
            return KernelLog(fd)
    os.close(fd)
    return KernelLog(None)
