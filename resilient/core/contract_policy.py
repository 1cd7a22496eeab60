# SPDX-License-Identifier: Apache-2.0
"""The contract as a Job's ``podFailurePolicy``: which exit gets which action, in which order, and why.

Rules are tried in order and the first match decides; what matches none is counted. ``restarts_in_place`` is
the variant for clusters whose kubelet restarts the container itself (container restart rules, on by default
from Kubernetes 1.35): the policy sees only the exits that end a pod.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient.core.exit_codes import STOP, ExitCode

RESTARTED_IN_PLACE: Final = (ExitCode.RESTART, ExitCode.PEER_FAILED)
"""What the kubelet answers with a new container in the same pod, where it can."""
ON_RECORD: Final = (
    ExitCode.RESCHEDULE,
    ExitCode.PREEMPTED_SAVED,
    ExitCode.PREEMPTED_UNSAVED,
    ExitCode.PEER_FAILED,
    ExitCode.NODE_REFUSED,
)
"""What the run's own budget has counted before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRule:
    """One rule: exits with these codes, or a pod with this condition, get this action."""

    action: str
    codes: tuple[ExitCode, ...] = ()
    condition: str | None = None
    why: str


_STOP: Final = ContractRule(
    action="FailJob",
    codes=tuple(sorted(STOP)),
    why="The same code, settings or lack of progress would fail again, also where a disruption came at the same time.",
)
_INTERNAL: Final = ContractRule(
    action="Count",
    codes=(ExitCode.INTERNAL,),
    why="The supervisor could not record why it left: counted even in a disruption, so that no loop is without a "
    "bound.",
)
_DISRUPTED: Final = ContractRule(
    action="Ignore",
    condition="DisruptionTarget",
    why="Preemption, eviction, taint, node shutdown, lost node, whatever the code: not the training's fault.",
)
_ON_RECORD: Final = ContractRule(
    action="Ignore",
    codes=ON_RECORD,
    why="Move to another node; preempted (saved, not saved); a peer failed; refused at start. All are on record.",
)
_ON_RECORD_IN_PLACE: Final = ContractRule(
    action="Ignore",
    codes=tuple(code for code in ON_RECORD if code not in RESTARTED_IN_PLACE),
    why="Move to another node; preempted (saved, not saved); refused at start. All are on record.",
)
_NO_COMMAND: Final = ContractRule(
    action="FailJob",
    codes=(ExitCode.CANNOT_EXECUTE, ExitCode.NOT_FOUND),
    why="The command cannot be executed, or does not exist: no node will change that.",
)


def policy_rules(*, restarts_in_place: bool = False) -> tuple[ContractRule, ...]:
    """The rules in their order; 193 and what is not ours match none and are counted."""
    on_record = _ON_RECORD_IN_PLACE if restarts_in_place else _ON_RECORD
    return (_STOP, _INTERNAL, _DISRUPTED, on_record, _NO_COMMAND)
