# SPDX-License-Identifier: Apache-2.0
"""Verdicts: who is to blame, and which rung of the ladder that asks for."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from resilient.core.batch import Batch
from resilient.core.devices import DeviceId


class Cause(str, enum.Enum):
    """What broke, in the words of published failure studies."""

    USER_CODE = "user_code"
    USER_DATA = "user_data"
    CONFIG_OR_ENVIRONMENT = "config_or_environment"
    OUT_OF_MEMORY_DEVICE = "out_of_memory_device"
    OUT_OF_MEMORY_HOST = "out_of_memory_host"
    DEVICE_FAULT = "device_fault"
    INTERCONNECT_FAULT = "interconnect_fault"
    NETWORK_OR_PEER = "network_or_peer"
    HANG_OR_COLLECTIVE_TIMEOUT = "hang_or_collective_timeout"
    STORAGE = "storage"
    PREEMPTED = "preempted"
    FRAMEWORK_BUG = "framework_bug"
    NUMERIC_INSTABILITY = "numeric_instability"
    AMBIGUOUS = "ambiguous"


class Action(str, enum.Enum):
    """What a verdict asks for; the policy decides what is done."""

    STOP = "stop"
    RESTART_IN_PLACE = "restart_in_place"
    RESCHEDULE = "reschedule"
    CHECKPOINT_AND_EXIT = "checkpoint_and_exit"
    INVESTIGATE = "investigate"
    """A bounded second look: once in place, then the next rung."""


class Confidence(str, enum.Enum):
    """How sure a rule is of its cause."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The classifier's answer, with its reason."""

    cause: Cause
    action: Action
    confidence: Confidence
    rule: str
    """Id of the rule that decided."""
    why: str
    """One plain sentence for people, naming rank, step and place where known."""
    fingerprint: str
    """Equal for the same fault on any rank, node, step, address or time."""
    evidence: tuple[str, ...] = ()
    """What it rests on, most telling first: quoted lines, the ending, counters."""
    culprit: int | None = None
    """Rank to blame; ``None`` where all ranks failed alike or nobody can be named."""
    node: str | None = None
    """Machine of the culprit, where it is known."""
    device: DeviceId | None = None
    """What broke, where the evidence names it; else the one device of the culprit, if it has but one."""
    step: int | None = None
    """Step the culprit had entered."""
    batch: Batch | None = None
    """The batch that the culprit was at."""
    confirmed: bool = False
    """Earlier faults confirm it: no restart has to."""
    between: bool = False
    """It had completed that step and not entered the next: it failed between the two."""
    ruled: bool = False
    """The user's own code ruled (``Stop``, ``Retry``, ``Reschedule``)."""
    device_grade: bool = False
    """The evidence names hardware: exits 194 anywhere, with no second look."""
