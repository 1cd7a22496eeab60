# SPDX-License-Identifier: Apache-2.0
"""Conditions of rules about devices, as their driver answered when it was asked.

Whose a device is was decided before; here only what it says counts, and what it does
not say meets no condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.devices import NO_RECOVERY, Device, DeviceEvent, DeviceEvidence, State
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.symptoms import Symptoms

XID_EVENT: Final = "xid"
"""``DeviceEvent.kind`` of an Xid."""


@dataclass(frozen=True, slots=True)
class Found:
    """A device of the rank is in a state that the test has words for."""

    test: Callable[[DeviceEvidence], str | None]

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the words, and which device it is."""
        for evidence in symptoms.rank.devices:
            words = self.test(evidence)
            if words is not None:
                return f"{words} ({evidence.device.id})"
        return None


def reported(*numbers: int) -> Found:
    """State that the driver reported one of these Xids for a device of the rank, when it happened."""

    def test(evidence: DeviceEvidence) -> str | None:
        events = (event for event in evidence.events if event.kind == XID_EVENT and event.number in numbers)
        event = next(events, None)
        return None if event is None else f"Xid {event.number}"

    return Found(test)


def happened(kind: str, words: str) -> Found:
    """State that the driver reported such an event for a device of the rank."""
    return Found(lambda evidence: words if any(event.kind == kind for event in evidence.events) else None)


def in_state(state: State, words: str) -> Found:
    """State that a device is in this state."""
    return Found(lambda evidence: words if evidence.device.state is state else None)


def wants_recovery(evidence: DeviceEvidence) -> str | None:
    """Give what the driver wants done, if anything."""
    recovery = evidence.device.recovery
    return None if recovery in (None, NO_RECOVERY) else f"it asks for: {recovery}"


def lost_rows(evidence: DeviceEvidence) -> str | None:
    """Say that rows could not be replaced, if that was not so before the attempt."""
    before = evidence.before
    new = evidence.device.rows_failed and before is not None and before.rows_failed is False
    return "memory rows could not be replaced" if new else None


def miscounted(evidence: DeviceEvidence) -> str | None:
    """Say by how much the count of memory errors that ECC could not correct rose."""
    now, before = evidence.device.uncorrected, evidence.before.uncorrected if evidence.before else None
    if now is None or before is None or now <= before:
        return None
    return f"{now - before} uncorrected memory errors"


def contained(evidence: DeviceEvidence) -> str | None:
    """The same where the driver says that nothing need be done before the next process."""
    return miscounted(evidence) if evidence.device.recovery == NO_RECOVERY else None


def example_of(device: Device, *numbers: int, before: Device | None = None) -> Evidence:
    """Make an example: one worker that failed without a word, and its device."""
    events = tuple(
        DeviceEvent(index=device.index, kind=XID_EVENT, number=number, monotonic_s=1.0) for number in numbers
    )
    device = replace(device, uuid="GPU-5f1c2d3e-0000-1111-2222-333344445555", bus="0000:18:00.0")
    seen = DeviceEvidence(device=device, before=before, events=events)
    return Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, devices=(seen,)),))
