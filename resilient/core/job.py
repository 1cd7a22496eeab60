# SPDX-License-Identifier: Apache-2.0
"""The state of a supervised job: one frozen value, changed only by :mod:`resilient.core.machine`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from resilient.core.denied import Denial
from resilient.core.events import PeerGone
from resilient.core.ledger import Ledger
from resilient.core.policy import Decision, Terms
from resilient.core.rule import Rule
from resilient.core.rules import RULES


class Phase(str, enum.Enum):
    """Where a job stands."""

    PREPARING = "preparing"
    """The store is being opened; no worker exists."""
    EXAMINING = "examining"
    """The preflight: before the first workers, and before others once a device is suspected."""
    ASSEMBLING = "assembling"
    """Of several pods, not all are there; no worker exists."""
    RUNNING = "running"
    LEAVING = "leaving"
    """Asked to leave: all workers go to one common boundary."""
    PAUSING = "pausing"
    """Another pod was asked to leave: all workers go to one common boundary, and on once it is replaced."""
    STOPPING = "stopping"
    """The group is being ended."""
    JUDGING = "judging"
    """Evidence is being collected."""
    BACKING_OFF = "backing off"
    SETTLING = "settling"
    """No workers any more; the newest snapshot is made durable before an exit."""
    RECORDING = "recording"
    """The exit is being put on record."""
    YIELDING = "yielding"
    """The exit is due, and waits for other pods to hear of it, or to end first."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The whole state. ``ending`` says how it will end once that is decided."""

    terms: Terms
    ranks: int
    """Whose ends decide what is done: of all pods in the one that leads, of this one elsewhere."""
    phase: Phase = Phase.PREPARING
    ledger: Ledger = field(default_factory=Ledger)
    attempt: int = 0
    launch: int = 0
    has_store: bool = False
    ended: frozenset[int] = frozenset()
    """Ranks of this attempt that are gone."""
    finished: frozenset[int] = frozenset()
    """Those of them that ended with 0 and had nothing left to do."""
    leave_by: str | None = None
    """Who asked to leave; from then on nothing is started and nobody is blamed."""
    leave_explained: bool = False
    """It is known why the pod is to go, and said."""
    must_end_at: float | None = None
    """When the platform will kill us, once it has asked to leave."""
    leave_s: float | None = None
    """How long that was when it asked."""
    backoff_s: float = 0.0
    """What is left to wait for once the machine has been examined."""
    devices: tuple[str, ...] = ()
    """UUIDs of those that the preflight saw, as long as a store may still be named that has a deny list."""
    denials: tuple[Denial, ...] = ()
    """The run's deny list, until the first workers are started."""
    refusals: int = 0
    """How often this index was refused in a row before; until then as well."""
    refusals_guessed: bool = False
    """No record says so, only what the controller has not counted."""
    rules: tuple[Rule, ...] = field(default=RULES, compare=False, repr=False)
    """The classifier's table, with the user's own rules in it; it never changes."""
    met: bool = False
    """Other pods may know of it."""
    gone: tuple[PeerGone, ...] = ()
    """Pods that this attempt has lost."""
    yield_s: float = 0.0
    """For how long the exit waits for others."""
    yield_until: float = 0.0
    ending: Decision | None = None
