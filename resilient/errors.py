# SPDX-License-Identifier: Apache-2.0
"""The errors that resilient raises, whole.

    ResilientError
    ├── SettingsError        a wrong setting or command line; raised before anything starts
    ├── CheckpointError      a state that cannot be saved, or a checkpoint that must not be loaded
    │   └── StoreError       the store did not answer, or refused
    ├── Stop                 raised by the user: the job is to stop, exit 114
    ├── Retry                raised by the user: restart in place
    └── Reschedule           raised by the user: move to another node, exit 194

Messages read "cannot X: why; do Y".
"""

from __future__ import annotations


class ResilientError(Exception):
    """Base of everything that resilient raises on purpose."""


class SettingsError(ResilientError):
    """A setting, flag or combination that cannot work."""


class CheckpointError(ResilientError):
    """A state that cannot be saved exactly, or a checkpoint that failed verification."""


class StoreError(CheckpointError):
    """A checkpoint store that could not do what was asked."""

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered
        """Whether the store answered (a refusal or a fact about its content), or could not be reached."""


class Ruled(ResilientError):
    """Base of the three rulings of the user's own code, each with a reason."""


class Stop(Ruled):
    """Raise in a worker to end the job for good: ``raise resilient.Stop("loss is nan")``."""


class Retry(Ruled):
    """Raise in a worker to have all workers restarted in place from the last snapshot."""


class Reschedule(Ruled):
    """Raise in a worker to have the pod moved to another node."""
