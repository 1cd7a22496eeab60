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

from resilient.core import edges, edges_ending, edges_opening, edges_pods, edges_preflight, edges_told
from resilient.core import events as ev
from resilient.core.edges_ending import Step
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
    """The table as a Mermaid flowchart: what may follow each phase; which event it takes stands in the table."""
    start = f"    start([start]) --> {Phase.PREPARING.name} & {Phase.EXAMINING.name}"
    arrows = [
        f"    {phase.name} --> {' & '.join(target.name for target in Phase if target in follows)}"
        for phase, row in TRANSITIONS.items()
        if (follows := {target for edge in row.values() for target in edge.to} - {phase})
    ]
    return "\n".join(["flowchart LR", start, *arrows])


_P = Phase
_OF_WORKERS: Final = (
    ev.CannotRun,
    ev.HeartbeatOpened,
    ev.Advanced,
    ev.WorkerEnded,
    ev.HangFound,
    ev.Unusable,
)
_OF_STARTING: Final = (ev.Examined, ev.Announced)
_OF_JUDGING: Final = (ev.GroupEnded, ev.Collected)
_OF_SAVING: Final = (ev.SaveSettled, ev.Recorded, ev.RecordFailed)
_OF_PODS: Final = (ev.Assembled, ev.PeerGone, ev.PeerAsked, ev.EndOrdered, ev.Dismissed, ev.Dispersed)


def _row(moves: Mapping[type[ev.Event], Edge], staying: tuple[type[ev.Event], ...], phase: Phase) -> dict[type, Edge]:
    """One phase of the table; an event that is named twice or not at all is an error at import."""
    row = {**{event: Edge(edges_ending.stay, (phase,)) for event in staying}, **moves}
    if len(moves) + len(staying) != len(ev.EVENTS) or set(row) != set(ev.EVENTS):
        raise AssertionError(f"the row of {phase.value} is not total: {set(ev.EVENTS) ^ set(row)}")
    return row


TRANSITIONS: Final[Mapping[Phase, Mapping[type, Edge]]] = {
    _P.PREPARING: _row(
        {
            ev.Opened: Edge(edges_opening.prepared, (_P.EXAMINING, _P.ENDED)),
            ev.OpenFailed: Edge(edges_opening.open_failed, (_P.RECORDING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges_ending.asked_idle, (_P.SETTLING,)),
            ev.DeadlinePassed: Edge(edges_opening.open_hung, (_P.RECORDING,)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_SAVING,
            *_OF_WORKERS,
            *_OF_PODS,
            ev.Committed,
            ev.LeaveExplained,
        ),
        _P.PREPARING,
    ),
    _P.EXAMINING: _row(
        {
            ev.Examined: Edge(
                edges_preflight.examined, (_P.ASSEMBLING, _P.RUNNING, _P.BACKING_OFF, _P.RECORDING, _P.SETTLING)
            ),
            ev.Committed: Edge(edges.committed, (_P.EXAMINING,)),
            ev.LeaveAsked: Edge(edges_ending.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.EXAMINING, _P.SETTLING, _P.ENDED)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
            ev.PeerGone: Edge(edges_pods.peer_gone_idle, (_P.EXAMINING, _P.SETTLING)),
            ev.Dismissed: Edge(edges_pods.dismissed, (_P.SETTLING,)),
        },
        (
            *_OF_JUDGING,
            *_OF_SAVING,
            *_OF_WORKERS,
            ev.Announced,
            ev.OpenFailed,
            ev.LeaveExplained,
            ev.DeadlinePassed,
            ev.PeerAsked,
            ev.Assembled,
            ev.EndOrdered,
            ev.Dispersed,
        ),
        _P.EXAMINING,
    ),
    _P.ASSEMBLING: _row(
        {
            ev.Assembled: Edge(edges_pods.assembled, (_P.RUNNING,)),
            ev.PeerGone: Edge(edges_pods.peer_gone_idle, (_P.ASSEMBLING, _P.SETTLING, _P.YIELDING, _P.ENDED)),
            ev.Dismissed: Edge(edges_pods.dismissed, (_P.RECORDING, _P.SETTLING, _P.YIELDING, _P.ENDED)),
            ev.DeadlinePassed: Edge(edges_pods.not_assembled, (_P.RECORDING, _P.SETTLING)),
            ev.Committed: Edge(edges.committed, (_P.ASSEMBLING,)),
            ev.LeaveAsked: Edge(edges_ending.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.ASSEMBLING, _P.SETTLING, _P.YIELDING, _P.ENDED)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_SAVING,
            *_OF_WORKERS,
            ev.OpenFailed,
            ev.LeaveExplained,
            ev.PeerAsked,
            ev.EndOrdered,
            ev.Dispersed,
        ),
        _P.ASSEMBLING,
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
            ev.Broken: Edge(edges_ending.broken, (_P.STOPPING,)),
            ev.PeerGone: Edge(edges_pods.peer_gone, (_P.STOPPING,)),
            ev.PeerAsked: Edge(edges_pods.peer_asked, (_P.PAUSING,)),
            ev.EndOrdered: Edge(edges_pods.end_ordered, (_P.STOPPING,)),
            ev.Dismissed: Edge(edges_pods.dismissed, (_P.STOPPING,)),
        },
        (
            *_OF_JUDGING,
            *_OF_SAVING,
            ev.Examined,
            ev.LeaveExplained,
            ev.Assembled,
            ev.Dispersed,
        ),
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
            ev.Broken: Edge(edges_ending.broken, (_P.STOPPING,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_SAVING,
            *_OF_PODS,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HangFound,
            ev.Unusable,
        ),
        _P.LEAVING,
    ),
    _P.PAUSING: _row(
        {
            ev.HeartbeatOpened: Edge(edges.heartbeat_opened, (_P.PAUSING,)),
            ev.Advanced: Edge(edges.advanced, (_P.PAUSING,)),
            ev.Committed: Edge(edges.committed, (_P.PAUSING,)),
            ev.WorkerEnded: Edge(edges.worker_left, (_P.PAUSING, _P.STOPPING)),
            ev.DeadlinePassed: Edge(edges.boundary_missed, (_P.STOPPING,)),
            ev.PeerGone: Edge(edges_pods.peer_gone, (_P.STOPPING,)),
            ev.LeaveAsked: Edge(edges.asked_pausing, (_P.LEAVING,)),
            ev.Opened: Edge(edges_opening.opened_quietly, (_P.PAUSING,)),
            ev.Broken: Edge(edges_ending.broken, (_P.STOPPING,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_SAVING,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HangFound,
            ev.Unusable,
            ev.LeaveExplained,
            ev.Assembled,
            ev.PeerAsked,
            ev.EndOrdered,
            ev.Dismissed,
            ev.Dispersed,
        ),
        _P.PAUSING,
    ),
    _P.STOPPING: _row(
        {
            ev.HeartbeatOpened: Edge(edges.heartbeat_opened, (_P.STOPPING,)),
            ev.Advanced: Edge(edges.advanced, (_P.STOPPING,)),
            ev.Committed: Edge(edges.committed, (_P.STOPPING,)),
            ev.WorkerEnded: Edge(edges.ended_late, (_P.STOPPING,)),
            ev.GroupEnded: Edge(edges_ending.group_ended, (_P.JUDGING, _P.SETTLING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges_ending.asked_busy, (_P.STOPPING,)),
            ev.LeaveExplained: Edge(edges_told.leave_explained, (_P.STOPPING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.STOPPING,)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
            ev.PeerGone: Edge(edges_pods.peer_gone_meanwhile, (_P.STOPPING,)),
            ev.Dismissed: Edge(edges_pods.dismissed, (_P.STOPPING,)),
        },
        (
            *_OF_STARTING,
            *_OF_SAVING,
            ev.OpenFailed,
            ev.CannotRun,
            ev.HangFound,
            ev.Unusable,
            ev.Collected,
            ev.DeadlinePassed,
            ev.PeerAsked,
            ev.Assembled,
            ev.EndOrdered,
            ev.Dispersed,
        ),
        _P.STOPPING,
    ),
    _P.JUDGING: _row(
        {
            ev.Committed: Edge(edges.committed, (_P.JUDGING,)),
            ev.Collected: Edge(edges_pods.collected, (_P.BACKING_OFF, _P.EXAMINING, _P.ASSEMBLING, _P.SETTLING)),
            ev.LeaveAsked: Edge(edges_ending.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.JUDGING, _P.SETTLING)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
            ev.PeerGone: Edge(edges_pods.peer_gone_meanwhile, (_P.JUDGING, _P.SETTLING)),
            ev.Dismissed: Edge(edges_pods.dismissed, (_P.SETTLING,)),
        },
        (
            *_OF_STARTING,
            *_OF_SAVING,
            *_OF_WORKERS,
            ev.OpenFailed,
            ev.GroupEnded,
            ev.LeaveExplained,
            ev.DeadlinePassed,
            ev.PeerAsked,
            ev.Assembled,
            ev.EndOrdered,
            ev.Dispersed,
        ),
        _P.JUDGING,
    ),
    _P.BACKING_OFF: _row(
        {
            ev.Committed: Edge(edges.committed, (_P.BACKING_OFF,)),
            ev.DeadlinePassed: Edge(edges.launch_again, (_P.ASSEMBLING, _P.RUNNING)),
            ev.LeaveAsked: Edge(edges_ending.asked_idle, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_between, (_P.BACKING_OFF, _P.YIELDING, _P.ENDED)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
            ev.PeerGone: Edge(edges_pods.peer_gone_idle, (_P.BACKING_OFF, _P.YIELDING, _P.ENDED)),
            ev.Dismissed: Edge(edges_pods.dismissed, (_P.RECORDING, _P.YIELDING, _P.ENDED)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_SAVING,
            *_OF_WORKERS,
            ev.OpenFailed,
            ev.LeaveExplained,
            ev.PeerAsked,
            ev.Assembled,
            ev.EndOrdered,
            ev.Dispersed,
        ),
        _P.BACKING_OFF,
    ),
    _P.SETTLING: _row(
        {
            ev.Committed: Edge(edges.committed, (_P.SETTLING,)),
            ev.SaveSettled: Edge(edges_ending.settled, (_P.RECORDING, _P.YIELDING, _P.ENDED)),
            ev.DeadlinePassed: Edge(edges_ending.settled_late, (_P.RECORDING, _P.YIELDING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges_ending.asked_settling, (_P.SETTLING,)),
            ev.LeaveExplained: Edge(edges_told.leave_explained, (_P.SETTLING,)),
            ev.Opened: Edge(edges_opening.opened_quietly, (_P.SETTLING,)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
            ev.Dismissed: Edge(edges_pods.dismissed_settling, (_P.SETTLING,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_WORKERS,
            ev.Assembled,
            ev.PeerGone,
            ev.PeerAsked,
            ev.EndOrdered,
            ev.Dispersed,
            ev.OpenFailed,
            ev.Recorded,
            ev.RecordFailed,
        ),
        _P.SETTLING,
    ),
    _P.RECORDING: _row(
        {
            ev.Recorded: Edge(edges_ending.recorded, (_P.YIELDING, _P.ENDED)),
            ev.RecordFailed: Edge(edges_ending.record_failed, (_P.YIELDING, _P.ENDED)),
            ev.DeadlinePassed: Edge(edges_ending.record_failed, (_P.YIELDING, _P.ENDED)),
            ev.LeaveAsked: Edge(edges_ending.asked_recording, (_P.RECORDING, _P.ENDED)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_WORKERS,
            *_OF_PODS,
            ev.Opened,
            ev.OpenFailed,
            ev.Committed,
            ev.LeaveExplained,
            ev.SaveSettled,
        ),
        _P.RECORDING,
    ),
    _P.YIELDING: _row(
        {
            ev.Dispersed: Edge(edges_ending.dispersed, (_P.YIELDING, _P.ENDED)),
            ev.DeadlinePassed: Edge(edges_ending.yielded, (_P.ENDED,)),
            ev.LeaveAsked: Edge(edges_ending.asked_yielding, (_P.RECORDING, _P.ENDED)),
            ev.Broken: Edge(edges_ending.broken_last, (_P.ENDED,)),
        },
        (
            *_OF_STARTING,
            *_OF_JUDGING,
            *_OF_SAVING,
            *_OF_WORKERS,
            ev.Opened,
            ev.OpenFailed,
            ev.Committed,
            ev.LeaveExplained,
            ev.PeerAsked,
            ev.Assembled,
            ev.PeerGone,
            ev.EndOrdered,
            ev.Dismissed,
        ),
        _P.YIELDING,
    ),
    _P.ENDED: _row({}, ev.EVENTS, _P.ENDED),
}
