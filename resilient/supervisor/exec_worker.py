# SPDX-License-Identifier: Apache-2.0
"""The stub that becomes a worker: what must happen between fork and exec, without ``preexec_fn``.

It is run as a script, ``python -I -S exec_worker.py PARENT COMMAND...``, so it must
import nothing but the standard library. It ties the process to its parent's life,
gives the command the signals of a fresh process, and reports a command that cannot
be executed as a shell does: 127 not found, 126 found but not executable.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
NOT_FOUND = 127
CANNOT_EXECUTE = 126


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` (the thread that started it) ends; exec keeps it so."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError) as error:
        # The worker can still train. A killed supervisor leaves it behind; the next start finds it by its token.
        print(f"resilient: this worker will outlive a killed supervisor: {error}", file=sys.stderr)
    if os.getppid() != parent:  # it was gone before prctl
        os._exit(128 + signal.SIGKILL)


def reset_signals() -> None:
    """Undo what was inherited (``nohup``, a caller's mask) and what Python set up itself (SIGPIPE, SIGINT)."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become(command: Sequence[str]) -> int:
    """Execute the command in this process; returns the status to exit with only where that fails."""
    try:
        os.execvp(command[0], list(command))
    except ValueError as error:  # an empty name
        why, status = str(error), NOT_FOUND
    except (FileNotFoundError, NotADirectoryError) as error:
        why, status = f"{error.strerror} (the file, or the interpreter its first line names)", NOT_FOUND
    except OSError as error:
        why, status = error.strerror or str(error), CANNOT_EXECUTE
    print(f"resilient: cannot run {command[0]!r}: {why}; check the command and PATH", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    reset_signals()
    os._exit(become(sys.argv[2:]))
