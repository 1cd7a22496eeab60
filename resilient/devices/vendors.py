# SPDX-License-Identifier: Apache-2.0
"""Which vendors' devices there may be here, found out without any of their libraries.

Another vendor is a class with the three methods of ``Devices``, in a file of its own,
and a row in ``VENDORS``; nothing outside of this folder changes. For AMD that would be
``amdsmi`` behind ``/dev/kfd`` and ``ROCR_VISIBLE_DEVICES``: its RAS counts are
``uncorrected``, its bad pages ``rows_pending``, its event notifications the events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient.devices.nvml import open_nvml
from resilient.devices.protocol import Devices

_NO_DEVICE: Final = re.compile(r"\s*(?:-.*|NoDevFiles|none|void)?\s*", re.IGNORECASE | re.DOTALL)
"""What launchers write where a process is to see no device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """How devices of one make are noticed and asked."""

    name: str
    nodes: re.Pattern[str]
    """Names in ``/dev``, one for each device."""
    variable: str
    """With it a user says which devices a process is to use."""
    open: Callable[[], Devices]
    """``Unavailable`` where the library or the driver is missing."""


VENDORS: Final = (
    Vendor(name="NVIDIA", nodes=re.compile(r"nvidia\d+"), variable="CUDA_VISIBLE_DEVICES", open=open_nvml),
)


def vendor_here(environ: Mapping[str, str], dev: Path = Path("/dev")) -> Vendor | None:
    """The vendor whose devices are visible or asked for; ``None`` on a machine without any."""
    nodes = _names(dev)
    for vendor in VENDORS:
        asked = environ.get(vendor.variable, "")
        if any(vendor.nodes.fullmatch(node) for node in nodes) or not _NO_DEVICE.fullmatch(asked):
            return vendor
    return None


def _names(dev: Path) -> list[str]:
    try:
        return [path.name for path in dev.iterdir()]
    except OSError:
        return []
