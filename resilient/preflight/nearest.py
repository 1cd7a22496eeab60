# SPDX-License-Identifier: Apache-2.0
"""Where a directory that is not there yet would be made: probes make none."""

from __future__ import annotations

import os


def nearest(path: str) -> str:
    """The directory itself, or the first one above it that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path
