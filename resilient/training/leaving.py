# SPDX-License-Identifier: Apache-2.0
"""How a worker ends that others wait for: once, by one ``SystemExit``, and at once.

An interpreter that has loaded torch looks through all its objects for garbage when it ends, several times. That takes
up to a second, and nobody gets anything of it: a restart has to wait for the ranks that have survived.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
from typing import Final, NoReturn

_FILES: Final = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


class WayOut:
    """The one ``SystemExit`` of ours by which this worker leaves; the boundary and the handler of SIGTERM share it."""

    def __init__(self) -> None:
        self._code: int | None = None

    @property
    def taken(self) -> bool:
        """It was raised, or could not be where it was asked for: what is raised now would disturb the leaving."""
        return self._code is not None

    def take(self, code: int) -> NoReturn:
        """Leave."""
        self.note(code)
        raise SystemExit(code)

    def note(self, code: int) -> None:
        """Leave at the next boundary."""
        self._code = code
        hurry()

    def take_again(self) -> None:
        """Somebody has caught the ``SystemExit``, or it would have been lost."""
        if self._code is not None:
            raise SystemExit(self._code)


def hurry() -> None:
    """Once this process ends, it does so without a search for garbage; ``atexit`` and logging come to their right."""
    atexit.register(_forgo_search)


def _forgo_search() -> None:
    # A file within a cycle is closed, and so flushed, by that search alone.
    for found in gc.get_objects():
        if issubclass(type(found), _FILES):  # isinstance would ask proxies of all kinds what they are
            with contextlib.suppress(OSError, ValueError):  # a full disk, a closed one: Python says nothing either
                found.flush()
    gc.freeze()
