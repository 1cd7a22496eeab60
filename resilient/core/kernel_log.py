# SPDX-License-Identifier: Apache-2.0
"""Lines of the kernel's log: which of them matter, and whose they are.

On a node that is shared the log tells of everybody's devices and processes. A line is
evidence for a worker only where it names a device of the worker's, or the fabric that
its devices hang on; the others are kept for people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from resilient.core.devices import Device

_LINE_CHARS: Final = 512
_KERNEL_FACILITY: Final = 0
_RECORD: Final = re.compile(r"(\d{1,5}),\d{1,20},\d{1,20},[^;\n]{0,64};([^\n]*)")
_MATTERS: Final = re.compile(
    r"^(?:NVRM: |amdgpu |nvidia-nvswitch\d{1,3}: SXid |mlx5_core |oom-kill:"
    r"|Out of memory: Killed process |Memory cgroup out of memory: Killed process )"
)
_FABRIC: Final = re.compile(r"^nvidia-nvswitch\d{1,3}: SXid ")
_BUS: Final = re.compile(
    r"^(?:NVRM: .{0,40}?\b|amdgpu )(?:[0-9a-fA-F]{4})?([0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})\b"
)


def message(record: str) -> str | None:
    """The line of a record of ``/dev/kmsg``, if it matters and the kernel itself, no process, wrote it."""
    found = _RECORD.match(record)
    if found is None or int(found[1]) >> 3 != _KERNEL_FACILITY:
        return None
    return found[2][:_LINE_CHARS] if _MATTERS.match(found[2]) else None


def about(lines: Iterable[str], devices: Sequence[Device]) -> tuple[str, ...]:
    """The lines that tell of these devices; none where no address of theirs is known."""
    buses = {device.bus.lower().rpartition(".")[0] for device in devices if device.bus}
    return tuple(line for line in lines if buses and (_FABRIC.match(line) or _bus(line) in buses))


def _bus(line: str) -> str | None:
    found = _BUS.match(line)
    return found[1].lower() if found else None
