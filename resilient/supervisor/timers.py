# SPDX-License-Identifier: Apache-2.0
"""What is due by the clock, beside a selector."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timers:
    """Named actions, each with the monotonic time at which it is due; a name set again replaces itself."""

    def __init__(self) -> None:
        self._due: dict[str, tuple[float, Callable[[], None]]] = {}

    def after(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        """Once, in ``seconds``."""
        self._due[name] = (time.monotonic() + seconds, action)

    def every(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        """Again and again, that long after the last time."""

        def again() -> None:
            self.after(name, seconds, again)
            action()

        self.after(name, seconds, again)

    def wait_s(self, longest: float) -> float:
        """How long a selector may wait, ``longest`` where nothing is due before."""
        now = time.monotonic()
        return max(0.0, min([longest, *(at - now for at, _ in self._due.values())]))

    def run(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for name, (at, action) in list(self._due.items()):
            if now >= at and self._due.get(name) == (at, action):
                del self._due[name]
                action()
