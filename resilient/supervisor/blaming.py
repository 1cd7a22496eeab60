# SPDX-License-Identifier: Apache-2.0
"""Which of the hangs that several pods have found is the one to act on.

Where one rank stands still all others wait for it, and each pod sees its own workers only: one whose ranks all wait in
a collective has a victim to show. So it is waited a little for a pod that has found more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from resilient.core import events as ev
from resilient.core.evidence import Hang

PATIENCE_S: Final = 5.0
"""Bounds of pods differ by what each has learned, and stacks take their time."""


class Hangs:
    """Of the workers of one launch."""

    def __init__(
        self,
        pods: int,
        *,
        emit: Callable[[ev.Event], None],
        after: Callable[[str, float, Callable[[], None]], None],
    ) -> None:
        self._pods = pods
        self._emit = emit
        self._after = after
        self._found: dict[int, Hang] = {}

    def forget(self) -> None:
        """New workers."""
        self._found = {}

    def found(self, pod: int, hang: Hang) -> None:
        """A pod has found one; its rank is that of the run."""
        found = self._found
        first = not found
        found[pod] = hang
        if not hang.waits or len(found) == self._pods:
            self._emit(ev.HangFound(hang=hang))
        elif first:
            self._after("hang", PATIENCE_S, lambda: self._late(found, hang))

    def _late(self, found: dict[int, Hang], hang: Hang) -> None:
        if found is self._found:
            self._emit(ev.HangFound(hang=hang))
