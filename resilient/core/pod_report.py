# SPDX-License-Identifier: Apache-2.0
"""What is written about the own pod where people look at it, and how often: an annotation and Events.

Pure. Events are a courtesy: lossy, gone after an hour, and stored where everybody's are, so that a run that fails
again and again must not fill that store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

ANNOTATION: Final = "resilient.dev/verdict"
"""Holds the same JSON line as the termination message, also of a restart in place, which has none."""
NOTE_BYTES: Final = 1024
"""The API server takes no longer note."""
RESTARTED: Final = "RestartInPlace"
SAME_S: Final = 600.0
"""The same is not said again so soon."""
BURST: Final = 25.0
EVERY_S: Final = 60.0
"""After a burst one more each minute."""
_KEPT: Final = 32
_CUT_MARK: Final = "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One decision, for people with kubectl."""

    annotation: str
    reason: str
    """One word in CamelCase, which tools sort by."""
    note: str
    warning: bool
    last: bool
    """The pod ends with it."""

    @property
    def action(self) -> str:
        """What is done about it."""
        return "Restart" if self.reason == RESTARTED else "Exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sieve:
    """What has been said of late."""

    left: float = BURST
    at_s: float = 0.0
    """When that was counted, by the monotonic clock."""
    said: tuple[tuple[str, str, float], ...] = ()
    """Reasons and notes, each with its time, the oldest first."""

    def admit(self, report: Report, now: float) -> tuple[Sieve, bool]:
        """Whether it becomes an Event now; the last one does, unless the same was said a moment ago."""
        recent = tuple(one for one in self.said if now - one[2] < SAME_S)[-_KEPT:]
        left = min(BURST, self.left + (now - self.at_s) / EVERY_S)
        sieve = replace(self, left=left, at_s=now, said=recent)
        again = any((reason, note) == (report.reason, report.note) for reason, note, _ in recent)
        if again or (left < 1 and not report.last):
            return sieve, False
        return replace(sieve, left=left - 1, said=(*recent, (report.reason, report.note, now))), True


def reason_of(name: str) -> str:
    """``code_fault`` -> ``CodeFault``."""
    return "".join(word.capitalize() for word in name.split("_"))


def fitting(note: str) -> str:
    """As much of it as the API server takes, on one line."""
    flat = " ".join(note.split())
    data = flat.encode()
    if len(data) <= NOTE_BYTES:
        return flat
    return data[: NOTE_BYTES - len(_CUT_MARK)].decode(errors="ignore") + _CUT_MARK
