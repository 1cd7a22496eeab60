# SPDX-License-Identifier: Apache-2.0
"""What a process may have for itself alone, where it is allowed to: a tiny /dev/shm."""

import ctypes
import os

NOT_PERMITTED = 77
"""Exit code of a process that this machine does not allow what it needs."""
_MS_REC_PRIVATE = 0x44000
_CLONE_NEWNS = 0x20000


def make_shared_memory_tiny() -> None:
    """Mount 1 MiB over /dev/shm, for this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = (
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(None, b"/", None, _MS_REC_PRIVATE, None) == 0
        and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1M") == 0
    )
    if not done:
        os._exit(NOT_PERMITTED)
