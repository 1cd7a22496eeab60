# SPDX-License-Identifier: Apache-2.0
"""The deny list of a run: nodes and devices that it keeps off for a day, and how far it may trust that list.

A wrong entry must never cost a run more than some starts: entries run out, only the newest few count,
and after some refusals in a row a start goes on if its preflight finds nothing. A platform's own list is
read and never written; it is somebody else's decision, so that only the last of these bounds holds for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

from resilient.core.causes import Cause, Verdict
from resilient.core.denied import Denial, Denied, Suspect
from resilient.core.device_conditions import XID_EVENT, lost_rows, miscounted, wants_recovery
from resilient.core.devices import DeviceEvidence, State
from resilient.core.evidence import Evidence
from resilient.core.exit_codes import ExitCode
from resilient.core.grammar import going_on

SKEW_S: Final = 3600.0
"""By so much the clock of whoever wrote an entry may be ahead of ours; an entry of a later time says nothing."""
LEAST_ENTRIES: Final = 2
SHARE_OF_PODS: Final = 0.05
MOST_REFUSALS: Final = 3
"""In a row, of one index of a submission."""
_EVIDENCE_CHARS: Final = 400


class Recorded(Protocol):
    """An exit on record."""

    @property
    def code(self) -> int: ...


def suspect_of(verdict: Verdict, evidence: Evidence, node: str | None) -> Suspect | None:
    """What to keep off: the device where exactly one can be to blame, else the node where it is known."""
    if not verdict.device_grade:
        return None
    said = " ".join((verdict.evidence[0] if verdict.evidence else verdict.why).split())[:_EVIDENCE_CHARS]
    if verdict.cause is Cause.DEVICE_FAULT and (device := _device(verdict, evidence)) is not None:
        return Suspect(kind=Denied.DEVICE, name=device, rule=verdict.rule, evidence=said)
    if node is not None:
        return Suspect(kind=Denied.NODE, name=node, rule=verdict.rule, evidence=said)
    return None


def in_force(denials: Iterable[Denial], *, wall_s: float, pods: int) -> tuple[Denial, ...]:
    """Those of a run's own list that count at this time, the newest first."""
    valid = [denial for denial in denials if is_valid(denial, wall_s)]
    newest = sorted(valid, key=lambda denial: denial.written_s, reverse=True)
    return tuple(newest[: max(LEAST_ENTRIES, int(SHARE_OF_PODS * pods))])


def is_valid(denial: Denial, wall_s: float) -> bool:
    """Whether it was written in the past and has not run out."""
    return denial.written_s - SKEW_S <= wall_s < denial.until_s


def concerning(denials: Iterable[Denial], node: str | None, devices: Collection[str]) -> tuple[Denial, ...]:
    """Those that name this node, or a device that can be seen here; one that has left the node denies nothing."""
    names: Mapping[Denied, Collection[str]] = {Denied.NODE: () if node is None else (node,), Denied.DEVICE: devices}
    return tuple(denial for denial in denials if denial.suspect.name in names[denial.suspect.kind])


def refusals_in_a_row(debits: Iterable[Recorded]) -> int:
    """How often an index was refused since it last ended otherwise, by its exits on record, the oldest first."""
    count = 0
    for debit in debits:
        count = count + 1 if debit.code == ExitCode.NODE_REFUSED else 0
    return count


def refusals_by_counter(in_kubernetes: bool, ignored: int | None) -> int:
    """How often an index may have been refused in a row, where nothing is on record: the directory of a pod's journal
    mostly goes with the pod. Its controller has ignored so many ends of the index, and may have ignored refusals only.
    """
    return (ignored or 0) if in_kubernetes else 0


def overruled(refusals: int) -> bool:
    """Whether a start goes on although it is denied."""
    return refusals >= MOST_REFUSALS


def refusal(denial: Denial, refusals: int) -> tuple[str, str]:
    """Why a start is refused, and what to do."""
    kind = denial.suspect.kind.value
    cure = "ask who keeps that list" if denial.of_platform else "clear the entry with resilient forgive"
    count = f"refusal {refusals + 1} of at most {MOST_REFUSALS} in a row"
    return str(denial), f"have the {kind} looked at, or {cure}; {count}"


def in_spite_of(denial: Denial, *, observe: bool, guessed: bool = False) -> str:
    """What is said where a start goes on although it is denied; ``guessed``: only its controller has counted."""
    if observe:
        return f"{going_on(str(denial))}; started all the same (--observe)"
    times = f"it was refused {MOST_REFUSALS} times in a row and"
    if guessed:
        times = f"{MOST_REFUSALS} refusals in a row may be among the ends that its controller has not counted, and it"
    return f"{going_on(str(denial))}; {times} has passed its preflight, so it is used"


def _device(verdict: Verdict, evidence: Evidence) -> str | None:
    """The UUID of the culprit's device, if it has one only, or one only that is not well."""
    rank = next((rank for rank in evidence.ranks if rank.rank == verdict.culprit), None)
    devices = rank.devices if rank is not None else ()
    blamed = [seen for seen in devices if _is_unwell(seen)] or list(devices)
    return blamed[0].device.uuid if len(blamed) == 1 else None


def _is_unwell(seen: DeviceEvidence) -> bool:
    broken = seen.device.state in (State.LOST, State.NEEDS_RESET)
    reported = any(event.kind == XID_EVENT for event in seen.events)
    return broken or reported or any(test(seen) is not None for test in (wants_recovery, lost_rows, miscounted))
