# SPDX-License-Identifier: Apache-2.0
"""Rules about what the driver of a device answers when it is asked.

Only rows. They come before every text: the driver knows its devices as no log does. A
condition that a device was in before the attempt began is no reason for how it ended,
except where the driver asks for something to be done.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.device_conditions import (
    Found,
    contained,
    example_of,
    in_state,
    lost_rows,
    miscounted,
    wants_recovery,
)
from resilient.core.devices import NO_RECOVERY, Device, State
from resilient.core.rule import Condition, Family, Rule

NVML: Final = "https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html"
FIELDS: Final = "https://docs.nvidia.com/deploy/nvml-api/group__nvmlFieldValueEnums.html"
ECC: Final = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/index.html"


def _device(name: str, when: Condition, why: str, source: str, device: Device, *, before: Device | None = None) -> Rule:
    return Rule(
        id=f"device-{name}",
        family=Family.DRIVER,
        cause=Cause.DEVICE_FAULT,
        action=Action.RESCHEDULE,
        when=when,
        why=f"{why}: {{seen}}",
        source=source,
        example=example_of(device, before=before),
        device_grade=True,
    )


DEVICE_RULES: Final = (
    _device(
        "lost",
        in_state(State.LOST, "it cannot be reached any more"),
        "the driver lost the GPU of rank {rank}",
        NVML,
        Device(index=0, state=State.LOST),
    ),
    _device(
        "needs-reset",
        in_state(State.NEEDS_RESET, "it cannot be used until it is reset"),
        "the driver has put the GPU of rank {rank} out of use",
        NVML,
        Device(index=0, state=State.NEEDS_RESET),
    ),
    _device(
        "recovery",
        Found(wants_recovery),
        "the driver wants the GPU of rank {rank} repaired",
        FIELDS,
        Device(index=0, state=State.ANSWERS, recovery="GPU reset"),
    ),
    _device(
        "rows-failed",
        Found(lost_rows),
        "the memory of the GPU of rank {rank} is worn out",
        ECC,
        Device(index=0, state=State.ANSWERS, rows_failed=True),
        before=Device(index=0, state=State.ANSWERS, rows_failed=False),
    ),
)

COUNT_RULES: Final = (
    Rule(
        id="device-ecc-contained",
        family=Family.DRIVER,
        cause=Cause.DEVICE_FAULT,
        action=Action.RESTART_IN_PLACE,
        when=Found(contained),
        why="the GPU of rank {rank} had a memory error that was contained, so that a new process may use it: {seen}",
        source=ECC,
        example=example_of(
            Device(index=0, state=State.ANSWERS, recovery=NO_RECOVERY, uncorrected=1),
            before=Device(index=0, state=State.ANSWERS, uncorrected=0),
        ),
    ),
    Rule(
        id="device-ecc",
        family=Family.DRIVER,
        cause=Cause.DEVICE_FAULT,
        action=Action.RESCHEDULE,
        confidence=Confidence.MEDIUM,
        when=Found(miscounted),
        why="the GPU of rank {rank} had a memory error, and its driver does not say that it was contained: {seen}",
        source=ECC,
        example=example_of(
            Device(index=0, state=State.ANSWERS, uncorrected=3),
            before=Device(index=0, state=State.ANSWERS, uncorrected=1),
        ),
        device_grade=True,
    ),
)
