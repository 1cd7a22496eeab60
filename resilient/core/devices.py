# SPDX-License-Identifier: Apache-2.0
"""Devices: what a driver says of its accelerators, whoever made them.

Frozen words only. ``None`` is what could not be read: unknown, never fine.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NO_RECOVERY: Final = "none"
"""What ``Device.recovery`` says of a device that needs nothing done to it."""


RESET_EVENT: Final = "reset"
"""``DeviceEvent.kind`` where the driver resets a device, so that all processes on it lose what they had there."""


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
class DeviceId:
    """Which device it is, as far as somebody has said: a UUID means it anywhere, the others on its own node only."""

    uuid: str | None = None
    bus: str | None = None
    """PCI address, as ``0000:05:00.0``."""
    index: int | None = None

    def __str__(self) -> str:
        """Everything that is known, for people."""
        address = f"PCI {self.bus}" if self.bus else ""
        name = self.uuid or ("" if self.index is None else f"device {self.index}")
        return ", ".join(word for word in (name, address) if word) or "a device"

    @property
    def short(self) -> str:
        """The one word that says most."""
        return self.uuid or self.bus or str(self)


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

    @property
    def id(self) -> DeviceId:
        return DeviceId(uuid=self.uuid, bus=self.bus, index=self.index)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvidence:
    """A device of a worker: now that the attempt has ended, before it began, and what it reported meanwhile."""

    device: Device
    before: Device | None = None
    events: tuple[DeviceEvent, ...] = ()
    """The first of them, in order."""


def assigned(
    look: Look | None,
    before: Look | None,
    events: Sequence[DeviceEvent],
    ranks: int,
    *,
    visible: Sequence[str],
    by_bus: bool,
    shared: bool,
) -> tuple[tuple[DeviceEvidence, ...], ...]:
    """Give each local rank what is known of its devices, as a framework would that was told nothing more.

    ``visible`` are lists like ``CUDA_VISIBLE_DEVICES``, each within the one before,
    ``by_bus`` says that they count by PCI address, as drivers do, and ``shared`` that all
    ranks may use all of them. Where nobody can tell whose a device is, it is everybody's.
    Without a look the devices of the look before it are left, of which nothing is known any
    more but what they reported.
    """
    past = {device.index: device for device in before.devices} if before else {}
    devices = look.devices if look else tuple(_unread(device) for device in past.values())
    told = {device.index: tuple(event for event in events if event.index == device.index) for device in devices}
    chosen = tuple(
        DeviceEvidence(device=device, before=past.get(device.index), events=told[device.index])
        for device in visible_devices(devices, visible)
    )
    alike = len({device.name for device in devices}) == 1
    numbered = not visible or any(entry.strip().isdecimal() for each in visible for entry in each.split(","))
    if shared or ranks == 1 or (numbered and not (alike or by_bus)):
        return (chosen,) * ranks
    return tuple(chosen[rank : rank + 1] for rank in range(ranks))


def _unread(device: Device) -> Device:
    """Keep who it is, and nothing of how it was."""
    return Device(
        index=device.index,
        uuid=device.uuid,
        bus=device.bus,
        name=device.name,
        instances=device.instances,
        watched=device.watched,
    )


def visible_devices(devices: Sequence[Device], lists: Sequence[str]) -> tuple[Device, ...]:
    """Those that lists like ``CUDA_VISIBLE_DEVICES`` leave, each of which is within the one before."""
    return functools.reduce(_visible, lists, tuple(devices))


def _visible(devices: tuple[Device, ...], visible: str) -> tuple[Device, ...]:
    """Those that a list names, in its order; it counts up to its first entry that is no device."""
    chosen = []
    for entry in visible.split(","):
        named = (device for at, device in enumerate(devices) if _is_named(device, at, entry.strip()))
        device = next(named, None)
        if device is None:
            break
        chosen.append(device)
    return tuple(chosen)


def _is_named(device: Device, at: int, entry: str) -> bool:
    """By its place, or by the beginning of a UUID, its own or that of one of its parts."""
    if entry.isdecimal():
        return int(entry) == at
    uuids = (device.uuid or "", *device.instances)
    return len(entry) > len("GPU-") and any(uuid.startswith(entry) for uuid in uuids)
