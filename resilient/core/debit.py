# SPDX-License-Identifier: Apache-2.0
"""What an exit leaves on record."""

from __future__ import annotations

from dataclasses import dataclass

from resilient.core.batch import Batch
from resilient.core.usage import NOTHING_USED, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Debit:
    """An exit that is on record: what spends a submission's budget across containers."""

    code: int
    step: int
    """Highest step completed when it was recorded."""
    fingerprint: str = ""
    node: str | None = None
    """The machine of the pod that left."""
    fault_step: int | None = None
    """Step that the culprit of the last fault had entered."""
    times: int = 1
    """It had struck there, without progress in between."""
    strikes: int = 0
    """Restarts in place that this fault has had without progress."""
    batch: Batch | None = None
    """The batch that it was at."""
    usage: Usage = NOTHING_USED
    """Of the submission's budgets, with the restart that this exit leads to."""
    forgiven: bool = False
    """A person has cleared the fault."""
