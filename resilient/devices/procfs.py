# SPDX-License-Identifier: Apache-2.0
"""Which NVIDIA devices there are, by the files of the driver: names and addresses only, and without any library.

Container runtimes show there the devices that a container was given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from resilient.core.devices import Device, Look

FOLDER: Final = Path("/proc/driver/nvidia/gpus")
_MOST_BYTES: Final = 4096


def list_devices(folder: Path = FOLDER) -> Look | None:
    """The devices in the order of their addresses, which is the driver's; nothing is known of how they are."""
    try:
        buses = sorted(path.name for path in folder.iterdir())
    except OSError:
        return None
    return Look(devices=tuple(_device(folder / bus, index) for index, bus in enumerate(buses)))


def _device(folder: Path, index: int) -> Device:
    try:
        with open(folder / "information", "rb") as file:
            text = file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        text = ""
    pairs = (line.partition(":") for line in text.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    uuid = facts.get("GPU UUID", "")
    # The driver writes question marks until it has woken the device up.
    return Device(
        index=index,
        uuid=uuid if uuid and "?" not in uuid else None,
        bus=folder.name.lower(),
        name=facts.get("Model"),
    )
