# SPDX-License-Identifier: Apache-2.0
"""How fast a save may write, and whether it still may: one limit, shared by all of its threads and files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Throttle:
    """Passes ``bytes_per_s`` (``None``: everything at once), piece after piece, in the order in which they were asked.

    Setting ``lifted`` ends every wait and the limit with it: who leaves writes what is left as fast as it goes, and
    no piece is tried again. A pause between saves is not saved up: after it, too, nothing goes faster than the limit.
    ``wanted`` is called for each piece, and raises where the file is of no use any more: what has not passed then is
    not counted. ``wait`` returns early once that may be so; it is ``lifted``'s where there is no such thing.
    """

    bytes_per_s: int | None = None
    lifted: threading.Event = field(default_factory=threading.Event)
    now: Callable[[], float] = time.monotonic
    wanted: Callable[[], None] = lambda: None
    wait: Callable[[float], object] | None = None
    _free_s: float = float("-inf")
    """When what was asked so far has passed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may be written."""
        if self.bytes_per_s is not None:
            with self._lock:
                now_s = self.now()
                begin_s = max(now_s, self._free_s)
                self._free_s = begin_s + count / self.bytes_per_s
            (self.wait or self.lifted.wait)(begin_s - now_s)
        try:
            self.wanted()
        except BaseException:
            if self.bytes_per_s is not None:
                with self._lock:  # the next save does not wait for what this one did not write
                    self._free_s -= count / self.bytes_per_s
            raise
