# SPDX-License-Identifier: Apache-2.0
"""What a submission has used of its budgets, as every attempt and every exit puts it on record for the pod after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Restarts are counted with those that led to another pod."""

    held_s: float = 0.0
    """Seconds for which devices were held without a newly committed step."""
    restarts: int = 0
    """Of the workers, since the submission began."""
    restarts_since_commit: int = 0

    def and_restarted(self) -> Usage:
        """The same once the workers are started again."""
        return Usage(
            held_s=self.held_s,
            restarts=self.restarts + 1,
            restarts_since_commit=self.restarts_since_commit + 1,
        )

    def and_committed(self) -> Usage:
        """The same once a step is committed: the clock and the second count begin anew."""
        return Usage(restarts=self.restarts)


NOTHING_USED: Final = Usage()
