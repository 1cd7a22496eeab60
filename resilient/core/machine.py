# SPDX-License-Identifier: Apache-2.0
"""The supervisor as a table: what each event does in each phase.

``advance(job, event, now) -> (job, commands)`` is pure and total: every pair of
phase and event stands in ``TRANSITIONS``, "stay" is written out. The loop performs
the commands and feeds the events back; it decides nothing. The state diagram in
the README is generated from this table, and a test walks every reachable state
for the invariants of the exit-code contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from resilient.core import edges, edges_opening, edges_preflight, edges_told
from resilient.core import events as ev
from resilient.core.edges import Step
from resilient.core.edges_opening import begin
from resilient.core.job import Job, Phase

__all__ = ["TRANSITIONS", "Edge", "advance", "begin", "diagram"]


@dataclass(frozen=True, slots=True)
class Edge:
    """What an event does in a phase, and every phase that may follow."""

    do: Callable[[Job, Any, float], Step]
    to: tuple[Phase, ...]


def advance(job: Job, event: ev.Event, now: float) -> Step:
    """The job after ``event`` at monotonic time ``now`` (seconds), and what is to be done about it."""
    return TRANSITIONS[job.phase][type(event)].do(job, event, now)


def diagram() -> str:
    """The table as a Mermaid state diagram: one arrow for each pair of phases, with the events that take it."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for phase, row in TRANSITIONS.items():
        for event, edge in row.items():
            for target in edge.to:
                if target is not phase:
                    arrows.setdefault((phase, target), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.PREPARING.name}", f"    [*] --> {Phase.EXAMINING.name}"]
    lines += [f"    {a.name} --> {b.name}: {', '.join(sorted(names))}" for (a, b), names in arrows.items()]
    return "\n".join([*lines, f"    {Phase.ENDED.name} --> [*]"])


_P = Phase


def _row(moves: Mapping[type[ev.Event], Edge], staying: tuple[type[ev.Event], ...], phase: Phase) -> dict[type, Edge]:
    """One phase of the table; an event that is named twice or not at all is an error at import."""
    row = {**{event: Edge(edges.stay, (phase,)) for event in staying}, **moves}
    if len(moves) + len(staying) != len(ev.EVENTS) or set(row) != set(ev.EVENTS):
        raise AssertionError(f"the row of {phase.value} is not total: {set(ev.EVENTS) ^ set(row)}")
    return row


TRANSITIONS: Final[Mapping[Phase, Mapping[type, Edge]]] = {
    _P.PREPARING: _row(
        {
            ev.Opened: Edge(edges_opening.prepared, (_P.EXAMINING, _P.ENDED)),
            ev.OpenFailed: Edge(edges_opening.open_failed, (_P.RECORDING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges.asked_idle, (_P.SETTLING,)),
            ev.DeadlinePassed: Edge(edges_opening.open_hung, (_P.RECORDING,)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.CannotRun,
            ev.HeartbeatOpened,
            ev.Advanced,
            ev.Committed,
            ev.WorkerEnded,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.Collected,
            ev.LeaveExplained,
            ev.SaveSettled,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.PREPARING,
    ),
    _P.EXAMINING: _row(
        {
            ev.Examined: Edge(edges_preflight.examined, (_P.RUNNING, _P.BACKING_OFF, _P.RECORDING, _P.SETTLING)),
            ev.Committed: Edge(edges.committed, (_P.EXAMINING,)),
            ev.LeaveAsked: Edge(edges.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.EXAMINING, _P.SETTLING, _P.ENDED)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Announced,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HeartbeatOpened,
            ev.Advanced,
            ev.WorkerEnded,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.Collected,
            ev.LeaveExplained,
            ev.DeadlinePassed,
            ev.SaveSettled,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.EXAMINING,
    ),
    _P.RUNNING: _row(
        {
            ev.Announced: Edge(edges_opening.announced, (_P.RUNNING,)),
            ev.Opened: Edge(edges_opening.opened_late, (_P.RUNNING, _P.STOPPING)),
            ev.OpenFailed: Edge(edges_opening.open_failed, (_P.STOPPING,)),
            ev.CannotRun: Edge(edges.cannot_run, (_P.STOPPING,)),
            ev.HeartbeatOpened: Edge(edges.heartbeat_opened, (_P.RUNNING,)),
            ev.Advanced: Edge(edges.advanced, (_P.RUNNING,)),
            ev.Committed: Edge(edges.committed, (_P.RUNNING,)),
            ev.WorkerEnded: Edge(edges.worker_ended, (_P.RUNNING, _P.STOPPING)),
            ev.HangFound: Edge(edges.hang_found, (_P.RUNNING, _P.STOPPING)),
            ev.Unusable: Edge(edges.unusable, (_P.STOPPING,)),
            ev.LeaveAsked: Edge(edges.asked_running, (_P.LEAVING,)),
            ev.DeadlinePassed: Edge(edges_opening.open_hung, (_P.STOPPING,)),
            ev.Broken: Edge(edges.broken, (_P.STOPPING,)),
        },
        (ev.Examined, ev.GroupEnded, ev.Collected, ev.LeaveExplained, ev.SaveSettled, ev.Recorded, ev.RecordFailed),
        _P.RUNNING,
    ),
    _P.LEAVING: _row(
        {
            ev.HeartbeatOpened: Edge(edges.heartbeat_opened, (_P.LEAVING,)),
            ev.Advanced: Edge(edges.advanced, (_P.LEAVING,)),
            ev.Committed: Edge(edges.committed, (_P.LEAVING,)),
            ev.WorkerEnded: Edge(edges.worker_left, (_P.LEAVING, _P.STOPPING)),
            ev.DeadlinePassed: Edge(edges.boundary_missed, (_P.STOPPING,)),
            ev.LeaveAsked: Edge(edges.asked_again, (_P.LEAVING, _P.STOPPING)),
            ev.LeaveExplained: Edge(edges_told.leave_explained, (_P.LEAVING,)),
            ev.Opened: Edge(edges_opening.opened_quietly, (_P.LEAVING,)),
            ev.Broken: Edge(edges.broken, (_P.STOPPING,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.Collected,
            ev.SaveSettled,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.LEAVING,
    ),
    _P.STOPPING: _row(
        {
            ev.HeartbeatOpened: Edge(edges.heartbeat_opened, (_P.STOPPING,)),
            ev.Advanced: Edge(edges.advanced, (_P.STOPPING,)),
            ev.Committed: Edge(edges.committed, (_P.STOPPING,)),
            ev.WorkerEnded: Edge(edges.ended_late, (_P.STOPPING,)),
            ev.GroupEnded: Edge(edges.group_ended, (_P.JUDGING, _P.SETTLING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges.asked_busy, (_P.STOPPING,)),
            ev.LeaveExplained: Edge(edges_told.leave_explained, (_P.STOPPING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.STOPPING,)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HangFound,
            ev.Unusable,
            ev.Collected,
            ev.DeadlinePassed,
            ev.SaveSettled,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.STOPPING,
    ),
    _P.JUDGING: _row(
        {
            ev.Committed: Edge(edges.committed, (_P.JUDGING,)),
            ev.Collected: Edge(edges.collected, (_P.BACKING_OFF, _P.EXAMINING, _P.SETTLING)),
            ev.LeaveAsked: Edge(edges.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.JUDGING, _P.SETTLING)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HeartbeatOpened,
            ev.Advanced,
            ev.WorkerEnded,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.LeaveExplained,
            ev.DeadlinePassed,
            ev.SaveSettled,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.JUDGING,
    ),
    _P.BACKING_OFF: _row(
        {
            ev.Committed: Edge(edges.committed, (_P.BACKING_OFF,)),
            ev.DeadlinePassed: Edge(edges.launch_again, (_P.RUNNING,)),
            ev.LeaveAsked: Edge(edges.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.BACKING_OFF, _P.ENDED)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HeartbeatOpened,
            ev.Advanced,
            ev.WorkerEnded,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.Collected,
            ev.LeaveExplained,
            ev.SaveSettled,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.BACKING_OFF,
    ),
    _P.SETTLING: _row(
        {
            ev.Committed: Edge(edges.committed, (_P.SETTLING,)),
            ev.SaveSettled: Edge(edges.settled, (_P.RECORDING, _P.ENDED)),
            ev.DeadlinePassed: Edge(edges.settled_late, (_P.RECORDING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges.asked_settling, (_P.SETTLING,)),
            ev.LeaveExplained: Edge(edges_told.leave_explained, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_quietly, (_P.SETTLING,)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HeartbeatOpened,
            ev.Advanced,
            ev.WorkerEnded,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.Collected,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.SETTLING,
    ),
    _P.RECORDING: _row(
        {
            ev.Recorded: Edge(edges.recorded, (_P.ENDED,)),
            ev.RecordFailed: Edge(edges.record_failed, (_P.ENDED,)),
            ev.DeadlinePassed: Edge(edges.record_failed, (_P.ENDED,)),
            ev.LeaveAsked: Edge(edges.asked_recording, (_P.RECORDING, _P.ENDED)),
            ev.Broken: Edge(edges.broken_last, (_P.ENDED,)),
        },
        (
            ev.Examined,
            ev.Announced,
            ev.Opened,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HeartbeatOpened,
            ev.Advanced,
            ev.Committed,
            ev.WorkerEnded,
            ev.HangFound,
            ev.Unusable,
            ev.GroupEnded,
            ev.Collected,
            ev.LeaveExplained,
            ev.SaveSettled,
        ),
        _P.RECORDING,
    ),
    _P.ENDED: _row({}, ev.EVENTS, _P.ENDED),
}
