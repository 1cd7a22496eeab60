# SPDX-License-Identifier: Apache-2.0
"""Memory that several processes share and that leaves no name behind."""

from __future__ import annotations

import os
import tempfile


def anonymous_file(name: str) -> int:
    """Descriptor of an empty file in memory; it is gone with its last holder.

    Where the system has no ``memfd_create`` (macOS) it is an unlinked temporary file.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix=f"{name}-")
    os.unlink(path)
    return fd
