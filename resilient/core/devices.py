# SPDX-License-Identifier: Apache-2.0
"""Devices: what a driver says of its accelerators, whoever made them.

Frozen words only. ``None`` is what could not be read: unknown, never fine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

NO_RECOVERY: Final = "none"
"""What ``Device.recovery`` says of a device that needs nothing done to it."""


class State(str, enum.Enum):
    """Whether a device answers at all."""

    ANSWERS = "answers"
    LOST = "lost"
    """The driver knows it and cannot reach it any more."""
    NEEDS_RESET = "needs reset"
    """The driver refuses to use it until it is reset."""
    UNKNOWN = "unknown"
    """Nobody could say: no permission, a driver that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One look at one device."""

    index: int
    """As the driver counts them, which is not always as a framework does."""
    uuid: str | None = None
    bus: str | None = None
    """PCI address, as ``0000:05:00.0``."""
    name: str | None = None
    instances: tuple[str, ...] = ()
    """UUIDs of the parts that it is divided into (MIG)."""
    divided: bool | None = None
    state: State = State.UNKNOWN
    recovery: str | None = None
    """What the driver wants done to it: ``NO_RECOVERY``, ``GPU reset``, ``node reboot`` ..."""
    uncorrected: int | None = None
    """Memory errors that ECC could not correct, since the driver was loaded."""
    rows_pending: bool | None = None
    """Memory rows wait for a reset to be replaced."""
    rows_failed: bool | None = None
    """Memory rows could not be replaced."""
    slowed: tuple[str, ...] | None = None
    """Why its clocks are held back by heat or power, in the driver's words; empty: they are not."""
    memory_free: int | None = None
    memory_total: int | None = None
    lanes: int | None = None
    """Width of its PCIe link now."""
    lanes_possible: int | None = None
    links_up: int | None = None
    """Links to other devices (NVLink) that are up."""
    links: int | None = None
    """Such links that could be asked."""
    watched: bool = False
    """Its events are listened to: only then does their absence mean something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at every device that this process may see."""

    devices: tuple[Device, ...]
    driver: str | None = None
    """Version of the driver."""
    runtime: str | None = None
    """The newest CUDA that it runs, as ``12.8``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent:
    """Something that the driver reported at the moment it happened."""

    index: int | None
    """Of the device; ``None`` where the driver did not say."""
    kind: str
    """``xid``, ``recovery``, ``uncorrected`` ..."""
    number: int | None = None
    """The Xid; ``None`` for other kinds, and where the driver gave none."""
    monotonic_s: float
