# SPDX-License-Identifier: Apache-2.0
"""Files that workers leave behind, read without trusting that they are files, or small."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_whole(path: Path, limit: int) -> bytes | None:
    """All of a regular file; ``None`` where there is none, or it is empty or larger than ``limit``."""
    data = _read(path, limit + 1, tail=False)
    return data if data and len(data) <= limit else None


def read_tail(path: Path, limit: int) -> bytes:
    """The last bytes of a regular file, from the beginning of a line on; nothing where there is none."""
    data = _read(path, limit + 1, tail=True) or b""
    return data if len(data) <= limit else data.partition(b"\n")[2]


def _read(path: Path, size: int, *, tail: bool) -> bytes | None:
    try:
        # A worker may have put a FIFO or a link where a file belongs: neither is waited for or followed.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(fd, "rb", closefd=False) as file:
            file.seek(max(0, status.st_size - size) if tail else 0)
            return file.read(size)
    except OSError:
        return None
    finally:
        os.close(fd)
