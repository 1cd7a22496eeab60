# SPDX-License-Identifier: Apache-2.0
"""How large the controllers' own counters are made.

They never refill, so they must not be the budget: the supervisor has that, and refills it with progress. They
bound what a supervisor cannot, so they are sized far above what a planned run will see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

LEAST: Final = 20
FACTOR: Final = 10
FAULTS_PER_DEVICE_DAY: Final = 0.0005
"""419 unexpected interruptions on 16,384 GPUs in 54 days: Llama 3, arXiv:2407.21783, section 3.3.4."""
SOURCE: Final = "419 unexpected interruptions on 16,384 GPUs in 54 days: Llama 3, arXiv:2407.21783, section 3.3.4"
MOST: Final = 2**31 - 1
"""The counters' type is int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is planned: how many devices for how long, and how often one of them fails."""

    devices: int
    """Of the whole run; a pod without a device counts as one."""
    days: float
    faults_per_device_day: float = FAULTS_PER_DEVICE_DAY

    @property
    def faults(self) -> float:
        """How many faults are to be expected."""
        return self.devices * self.days * self.faults_per_device_day

    @property
    def backstop(self) -> int:
        """max(20, 10 x the faults expected)."""
        return min(MOST, max(LEAST, math.ceil(FACTOR * self.faults)))
