# SPDX-License-Identifier: Apache-2.0
"""Signals in a worker.

SIGTERM is obeyed only when the host is ending the group, otherwise it is the host that names the stop. SIGCHLD is
not heard while something is being said.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.link.board import END, Board, row_base
from resilient.training.leaving import hurry

TERM: Final = 7
"""Word of a row: 1 once the worker of a standalone keeper was asked to leave."""
LEAVE_NOW: Final = 128 + signal.SIGTERM


def install(board: Board, index: int, *, supervised: bool, host_is_gone: Callable[[], bool]) -> None:
    """Take SIGTERM over. A platform that signals every process of the container then changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may, and who builds the run elsewhere keeps the handler that is there
    owner = os.getpid()
    term = row_base(index) + TERM

    def obey(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child: the host speaks to the worker only
            return
        if not threading.main_thread().is_alive():  # the interpreter ends already, and what is raised helps nobody
            return
        if board.words[END] == 1 or host_is_gone():
            hurry()
            raise SystemExit(LEAVE_NOW if supervised else int(ExitCode.PREEMPTED_UNSAVED))
        if not supervised:
            board.words[term] = 1

    signal.signal(signal.SIGTERM, obey)


@contextlib.contextmanager
def children_unheard() -> Iterator[None]:
    """No handler for SIGCHLD runs in it.

    torch's raises, wherever the main thread is, that a DataLoader worker was killed
    (torch/utils/data/_utils/signal_handling.py). The loader itself finds that out as well, if later.
    """
    before = signal.getsignal(signal.SIGCHLD)
    # Handlers run in the main thread only; one that is not Python's (None) does not raise, and could not be put back.
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
