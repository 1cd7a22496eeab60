# SPDX-License-Identifier: Apache-2.0
"""The form in which every vendor's library is asked about its devices."""

from __future__ import annotations

from typing import Protocol

from resilient.core.devices import DeviceEvent, Look


class Unavailable(Exception):
    """Nothing can be asked (any more); the message says why, and what would help."""


class Devices(Protocol):
    """All devices of one vendor, whose events are registered for as long as this exists.

    Any call may hang with the driver: make them in a process that can be given up.
    """

    def look(self) -> Look:
        """Read every device now; never raises, what cannot be read is ``None``."""

    def wait(self, timeout_s: float) -> DeviceEvent | None:
        """Give the next event, ``None`` when the time is over; ``Unavailable`` once no more can come."""

    def close(self) -> None:
        """Let go of the library."""
