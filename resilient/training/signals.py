# SPDX-License-Identifier: Apache-2.0
"""Signals in a worker.

SIGTERM is obeyed only when the host is ending the group, otherwise it is the host that names the stop. It is obeyed
once: what is raised while the worker leaves already, or where Python drops what is raised, would only be printed as
ignored. SIGCHLD is not heard while something is being said.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.link.board import ATTENTION, END, Board, row_base
from resilient.training.leaving import WayOut

TERM: Final = 7
"""Word of a row: 1 once the worker of a standalone keeper was asked to leave."""
LEAVE_NOW: Final = 128 + signal.SIGTERM


def install(board: Board, index: int, way_out: WayOut, *, supervised: bool, host_is_gone: Callable[[], bool]) -> None:
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
        if way_out.taken:
            return
        if board.words[END] == 1 or host_is_gone():
            board.words[ATTENTION] = 0  # no boundary is named any more; should this be caught, the next one is the last
            code = LEAVE_NOW if supervised else int(ExitCode.PREEMPTED_UNSAVED)
            if _drops(frame):
                way_out.note(code)
                return
            way_out.take(code)
        if not supervised:
            board.words[term] = 1

    signal.signal(signal.SIGTERM, obey)


def _drops(frame: FrameType | None) -> bool:
    """Whether Python prints what is raised here as ignored, and goes on: a finalizer is running, or a generator's."""
    if sys.exc_info()[0] is GeneratorExit:
        return True
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def leaving_later() -> Iterator[None]:
    """A SIGTERM that comes in it is obeyed behind it: Python drops what is raised in what it calls around a fork.

    To block the signal is not enough, as another thread may take it; Python's handler then runs in the main one.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if heard:
            signal.raise_signal(signal.SIGTERM)


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
