# SPDX-License-Identifier: Apache-2.0
"""What is known of a supervisor should it be killed: samples in its journal, and copies of the journal in the store."""

from __future__ import annotations

import time
from collections.abc import Callable

from resilient.core.aftermath import is_short, shortage_of
from resilient.supervisor import collect, samples
from resilient.supervisor.scene import Scene
from resilient.supervisor.store_link import StoreLink


class Shipping:
    """Of one supervisor; failing to ship is never a reason to stop."""

    def __init__(self, scene: Scene, store: StoreLink, inherited: Callable[[], int]) -> None:
        """``inherited``: memory of ours that an earlier container is charged for, in bytes."""
        self._scene = scene
        self._store = store
        self._inherited = inherited
        self._short = False
        """By the last sample, of something that supervisors are killed for."""

    @property
    def ships(self) -> bool:
        """The store is open: what the journal says can be read there."""
        return self._store.opened is not None

    def ship(self) -> None:
        """Keep a copy of what the journal has got since the last time."""
        journal = self._scene.journal
        cut = journal.segment() if self.ships else None
        if cut is not None:
            number, path = cut
            self._store.ship(number, str(path), lambda ok: journal.shipped(number) if ok else None)

    def sample(self) -> None:
        """Note what the machine has left of everything."""
        taken = collect.as_fields(samples.sample(inherited=self._inherited(), disk=self._scene.journal_dir))
        self._scene.journal.write("sample", **taken)
        short = is_short(shortage_of(taken))
        if short and not self._short:
            self.ship()  # whoever is killed for it ships nothing more
        self._short = short

    def ship_rest(self, within_s: float) -> None:
        """All that is left, as the last thing."""
        journal = self._scene.journal
        self._store.ship_rest(journal.segment, journal.shipped, time.monotonic() + within_s)
