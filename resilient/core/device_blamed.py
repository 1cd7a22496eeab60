# SPDX-License-Identifier: Apache-2.0
"""Which device a verdict is about: the one that its words name, else the only one of the rank that is blamed."""

from __future__ import annotations

import re
from typing import Final

from resilient.core.causes import Cause
from resilient.core.devices import DeviceId
from resilient.core.evidence import RankEvidence
from resilient.core.rule import Family, Role, Rule

_UUID: Final = re.compile(r"\bGPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
# The driver writes domains of four digits and of eight, and leaves out the function, which is 0.
_BUS: Final = re.compile(
    r"(?:\bPCI[: ]|\bGPU |^amdgpu )(?:[0-9a-f]{4})?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2})(?:\.0)?\b(?!:)", re.IGNORECASE
)
_TELLERS: Final = (Family.DRIVER, Family.KUBELET)
_OF_HARDWARE: Final = frozenset({Cause.DEVICE_FAULT, Cause.INTERCONNECT_FAULT})
_NOT_OF_DEVICES: Final = "nvidia-nvswitch"
"""What connects devices has an address as well."""


def device_blamed(rule: Rule, rank: RankEvidence, seen: str) -> DeviceId | None:
    """The device that a finding is about; ``None`` where nobody can tell, or it is no device of a rank's."""
    if rule.role is Role.VICTIM:
        return None
    if rule.family in _TELLERS or rule.cause in _OF_HARDWARE:
        named = _named(seen, rank)
        # Drivers and kernels tell of switches, ports and processors too: without a name it may be any of these.
        if named is not None or rule.family in _TELLERS or rule.cause is Cause.INTERCONNECT_FAULT:
            return named
    return only_device(rank)


def only_device(rank: RankEvidence) -> DeviceId | None:
    """The device of a rank that has one."""
    return rank.devices[0].device.id if len(rank.devices) == 1 else None


def _named(seen: str, rank: RankEvidence) -> DeviceId | None:
    """The device that a line names, with all that is known of it if it is one of the rank's."""
    uuid, bus = _UUID.search(seen), None if seen.startswith(_NOT_OF_DEVICES) else _BUS.search(seen)
    said = DeviceId(uuid=uuid[0] if uuid else None, bus=f"{bus[1].lower()}.0" if bus else None)
    known = (evidence.device.id for evidence in rank.devices)
    mine = next((each for each in known if _agree(each, said) or f"({each})" in seen), None)
    return mine or (said if uuid or bus else None)


def _agree(one: DeviceId, other: DeviceId) -> bool:
    """Whether they share a name."""
    same_uuid = one.uuid is not None and one.uuid == other.uuid
    return same_uuid or (one.bus is not None and one.bus == other.bus)
