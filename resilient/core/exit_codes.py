# SPDX-License-Identifier: Apache-2.0
"""The exit-code contract: the only integers of the project.

Retryable codes lie above 128+64 (every signal) and below the ranges of systemd
and other trainers; permanent ones below 128, outside sysexits. A manifest's
``podFailurePolicy`` acts on them, so a number never changes its meaning.
"""

from __future__ import annotations

import enum
from typing import Final


class ExitCode(enum.IntEnum):
    """What ``resilient run`` exits with, and what it asks Kubernetes to do."""

    FINISHED = 0
    """The work is done, and only then."""
    CODE_FAULT = 114
    """The same code would fail again: stop."""
    CONFIG_FAULT = 115
    """Wrong settings, or a store that answered and holds nothing usable: stop."""
    BUDGET_SPENT = 116
    """Restarts, or time, went by without progress: stop."""
    CANNOT_EXECUTE = 126
    """The command is not executable (only before the run's first step ever)."""
    NOT_FOUND = 127
    """The command does not exist (only before the run's first step ever)."""
    RESTART = 193
    """This node is fine, a fresh container helps."""
    RESCHEDULE = 194
    """The node or a device is suspect: move the pod."""
    PREEMPTED_SAVED = 195
    """Asked to leave; a checkpoint of the last step is durable."""
    PREEMPTED_UNSAVED = 196
    """Asked to leave; the last durable checkpoint is older."""
    PEER_FAILED = 197
    """Nothing wrong here, and waiting longer in place is no use."""
    NODE_REFUSED = 198
    """This node is on the deny list, or failed its preflight."""
    INTERNAL = 199
    """A bug in the supervisor, or it could not do its bookkeeping."""


STOP: Final = frozenset({ExitCode.CODE_FAULT, ExitCode.CONFIG_FAULT, ExitCode.BUDGET_SPENT})
"""Permanent: the Job fails and nothing is started again."""

PREEMPTED: Final = frozenset({ExitCode.PREEMPTED_SAVED, ExitCode.PREEMPTED_UNSAVED})

RESTARTS: Final = frozenset({ExitCode.RESTART, ExitCode.RESCHEDULE})
"""The workers are started again elsewhere, because they failed here."""

NEEDS_DEBIT: Final = frozenset(
    {
        ExitCode.RESTART,
        ExitCode.RESCHEDULE,
        ExitCode.PREEMPTED_SAVED,
        ExitCode.PREEMPTED_UNSAVED,
        ExitCode.PEER_FAILED,
        ExitCode.NODE_REFUSED,
    }
)
"""Codes that a controller may ignore or restart in place without a limit of its own:
they are taken only after the exit is on record, so that some budget always runs."""

OBSERVED_FAILURE: Final = 1
"""With ``--observe`` any failure ends as torchrun would end it."""
