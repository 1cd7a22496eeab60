# SPDX-License-Identifier: Apache-2.0
"""Which vendors' devices there may be here, found out without any of their libraries.

Another vendor is a class with the three methods of ``Devices``, in a file of its own,
and a row in ``VENDORS``; nothing outside of this folder changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from resilient.devices.amd import open_amd
from resilient.devices.nvml import open_nvml
from resilient.devices.protocol import Devices

_NO_DEVICE: Final = re.compile(r"\s*(?:-.*|NoDevFiles|none|void)?\s*", re.IGNORECASE | re.DOTALL)
"""What launchers write where a process is to see no device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """How devices of one make are noticed and asked."""

    name: str
    nodes: re.Pattern[str]
    """Names in ``/dev`` that are there where such devices are."""
    variables: tuple[tuple[str, ...], ...]
    """With them a user says which devices a process is to use: each list is within the one before; of several names
    for one list the first counts that is set."""
    open: Callable[[], Devices]
    """``Unavailable`` where the library or the driver is missing."""


VENDORS: Final = (
    Vendor(name="NVIDIA", nodes=re.compile(r"nvidia\d+"), variables=(("CUDA_VISIBLE_DEVICES",),), open=open_nvml),
    Vendor(
        name="AMD",
        nodes=re.compile("kfd"),
        variables=(("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
        open=open_amd,
    ),
)


def vendor_here(environ: Mapping[str, str], dev: Path = Path("/dev")) -> Vendor | None:
    """The vendor whose devices are visible, else asked for; ``None`` on a machine without any."""
    nodes = _names(dev)
    there = (vendor for vendor in VENDORS if any(vendor.nodes.fullmatch(node) for node in nodes))
    asked = (vendor for vendor in VENDORS if any(not _NO_DEVICE.fullmatch(each) for each in visible(vendor, environ)))
    return next(there, None) or next(asked, None)


def visible(vendor: Vendor, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The lists that are set, each within the one before."""
    set_ = (next((environ[name] for name in names if name in environ), None) for names in vendor.variables)
    return tuple(each for each in set_ if each is not None)


def _names(dev: Path) -> list[str]:
    try:
        return [path.name for path in dev.iterdir()]
    except OSError:
        return []
