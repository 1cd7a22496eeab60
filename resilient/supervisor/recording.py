# SPDX-License-Identifier: Apache-2.0
"""Putting on record how a submission ends, before it does: in the store, or without one beside the journal."""

from __future__ import annotations

import time
from collections.abc import Callable

from resilient.checkpoint import layout
from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.errors import StoreError
from resilient.supervisor.scene import Scene
from resilient.supervisor.store_link import StoreLink


class Recording:
    """One exit at a time; the record of one that was overtaken by another is of no interest."""

    def __init__(self, scene: Scene, store: StoreLink, emit: Callable[[ev.Event], None]) -> None:
        self._scene = scene
        self._store = store
        self._emit = emit
        self._number = 0

    def begin(
        self,
        command: cm.RecordDebit | cm.RecordFinished,
        *,
        attempt: int,
        total_steps: int | None,
        has_store: bool,
        patience_s: float,
    ) -> None:
        """Write it; an event says how that went. ``total_steps``: of the whole run, if its script said so."""
        self._number += 1
        number = self._number

        def then(problem: str | None) -> None:
            if number == self._number:
                self._emit(ev.Recorded() if problem is None else ev.RecordFailed(why=problem))

        if not has_store:
            then(None if isinstance(command, cm.RecordFinished) else self._here(command, attempt))
        elif isinstance(command, cm.RecordFinished):
            self._store.finish(
                steps=total_steps, reached=command.step, attempt=attempt, patience_s=patience_s, then=then
            )
        else:
            self._store.record(command.debit, attempt=attempt, why=command.why, patience_s=patience_s, then=then)

    def _here(self, command: cm.RecordDebit, attempt: int) -> str | None:
        """Without a checkpoint URL the journal's directory holds the debits."""
        row = self._store.debit(command.debit, attempt=attempt, why=command.why)
        try:
            self._scene.journal.record_local(f"{time.time_ns()}", layout.encode(row))
        except (OSError, StoreError) as error:
            return str(error)
        return None
