# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of the run as its host knows them: those that were there, and those that were saved since."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from resilient.checkpoint.requests import CheckpointRef
from resilient.supervisor.agreement import Candidate


class Checkpoints:
    """The first is the one to be tried first."""

    def __init__(self) -> None:
        self._saved: list[CheckpointRef] = []

    def opened(self, found: Sequence[CheckpointRef]) -> None:
        """What lies in the store."""
        self._saved = list(found)

    def add(self, saved: CheckpointRef, pruned: Collection[object]) -> None:
        """One more, for which others may have gone."""
        self._saved = [saved, *(old for old in self._saved if old.name not in pruned)]

    def set_aside(self, names: Collection[str]) -> None:
        """These cannot be used."""
        self._saved = [ref for ref in self._saved if ref.name not in names]

    @property
    def newest(self) -> str | None:
        """Its name."""
        return self._saved[0].name if self._saved else None

    @property
    def highest_step(self) -> int:
        return max((ref.step for ref in self._saved), default=0)

    def candidates(self) -> list[Candidate]:
        """To resume from."""
        return [
            Candidate(attempt=ref.attempt, step=ref.step, name=ref.name, ranks=ref.world_size) for ref in self._saved
        ]
