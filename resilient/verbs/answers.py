# SPDX-License-Identifier: Apache-2.0
"""What a command that prints owes to whoever reads it."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable


def shown(command: Callable[[], int]) -> int:
    """The code of a command that prints, of which nobody may read the rest: ``... list | head``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names and logs may have what this terminal has no letters for
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # at the interpreter's exit it would be too late to say anything about it
    except BrokenPipeError:  # what is still to be flushed must not raise once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
