# SPDX-License-Identifier: Apache-2.0
"""The words for what a deny list keeps off: workers and probes know how its entries are stored, and judge none."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from resilient.core.grammar import going_on

LASTS_S: Final = 86400.0
"""From the verdict to the end of an entry."""


class Denied(str, enum.Enum):
    """What is kept off."""

    NODE = "node"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """What a device-grade verdict blames."""

    kind: Denied
    name: str
    """Of the node, or the UUID of the device."""
    rule: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """An entry of a list."""

    suspect: Suspect
    written_s: float
    """Wall time."""
    expires_s: float
    of_platform: bool = False
    """It stands in the platform's list, not in the run's."""

    @property
    def until_s(self) -> float:
        """When it runs out: an entry of the run's own never lasts longer than ``LASTS_S``, whatever it says."""
        return self.expires_s if self.of_platform else min(self.expires_s, self.written_s + LASTS_S)

    def __str__(self) -> str:
        suspect = self.suspect
        whose = "the platform's deny list" if self.of_platform else "the deny list of this run"
        rule = f"(rule {suspect.rule})" if suspect.rule else ""
        because = " ".join(filter(None, (going_on(suspect.evidence) if rule else suspect.evidence, rule)))
        return f"{suspect.kind.value} {suspect.name} is on {whose}" + (f": {because}" if because else "")
