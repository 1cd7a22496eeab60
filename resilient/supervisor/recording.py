# SPDX-License-Identifier: Apache-2.0
"""Putting on record how a submission ends, before it does: in the store, or without one beside the journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from resilient.checkpoint import layout
from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core.denied import LASTS_S, Suspect
from resilient.core.exit_codes import ExitCode
from resilient.errors import StoreError
from resilient.supervisor.scene import Scene
from resilient.supervisor.store_link import StoreLink

DENY_S: Final = 5.0
"""The exit waits for no longer than this."""
MAY_BE_LOST: Final = "without a checkpoint URL it is in the journal's directory only, which may go with the pod"


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
            if command.suspect is not None:
                patience_s -= self._deny(command.suspect, patience_s)
            self._store.record(command.debit, attempt=attempt, why=command.why, patience_s=patience_s, then=then)

    def _deny(self, suspect: Suspect, patience_s: float) -> float:
        """Put it on the deny list first, so that how that went is known when the exit is on record; the time it may
        take. Without an entry the pod still leaves."""
        name = f"{suspect.kind.value} {suspect.name}"

        def then(problem: str | None) -> None:
            said = f"{name} is on the deny list of this run for {LASTS_S / 3600:.0f} h"
            self._scene.journal.write("denied", suspect=suspect, why=problem)
            self._scene.say(said if problem is None else f"{name} could not be put on the deny list: {problem}")

        limit_s = min(DENY_S, patience_s / 4)
        self._store.deny(suspect, patience_s=limit_s, then=then)
        return limit_s

    def _here(self, command: cm.RecordDebit, attempt: int) -> str | None:
        """Without a checkpoint URL the journal's directory holds the debits. Refusals make a loop by themselves, and a
        pod may take that directory with it: nothing earlier there, and no counter, leave them without a bound."""
        outlives = not self._scene.platform.in_kubernetes or bool(self._scene.local_debits())
        row = self._store.debit(command.debit, attempt=attempt, why=command.why)
        try:
            self._scene.journal.record_local(f"{time.time_ns()}", layout.encode(row))
        except (OSError, StoreError) as error:
            return str(error)
        bounded = outlives or self._scene.terms().counters_bound or command.debit.code != ExitCode.NODE_REFUSED
        return None if bounded else MAY_BE_LOST
