# SPDX-License-Identifier: Apache-2.0
"""One large file as pieces, of which a few are under way at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

Ready: TypeAlias = Callable[[int, int], None]
"""Called with begin and end of each piece before it is filled, by the thread that fills it."""


def there_already(start: int, end: int) -> None:
    """The memory is there already."""


def each_piece(size: int, piece: int, at_once: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, end)`` for each piece of ``size`` bytes, ``at_once`` of them in threads.

    After the first error no piece is begun any more. It is raised when nothing is under way: whoever then deletes
    what is there, or frees the memory, is not overtaken by a late piece.
    """
    if size <= piece:
        if size:
            work(0, size)
        return
    starts = iter(range(0, size, piece))
    taking = threading.Lock()
    ended = threading.Event()

    def run() -> None:
        try:
            while not ended.is_set():
                with taking:
                    start = next(starts, None)
                if start is None:
                    return
                work(start, min(size, start + piece))
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(min(at_once, -(-size // piece)), "piece") as threads:
        jobs = [threads.submit(run) for _ in range(min(at_once, -(-size // piece)))]
        try:
            for job in jobs:
                job.result()
        finally:
            ended.set()
