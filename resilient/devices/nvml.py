# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's devices, asked through NVML.

Owns ``pynvml`` (the package ``nvidia-ml-py``, our extra ``gpu``) and the numbers of
``nvml.h``, which older bindings do not name. A device that answers one question and not
another is normal (MIG, consumer boards, old drivers): each answer stands alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from resilient.core.devices import NO_RECOVERY, Device, DeviceEvent, Look, State
from resilient.devices.protocol import Unavailable

_TIMEOUT: Final = 10
_GPU_IS_LOST: Final = 15
_RESET_REQUIRED: Final = 16
_ENABLED: Final = 1
_UNCORRECTED: Final = 1
_VOLATILE: Final = 0
_MOST_LINKS: Final = 18
_XID_UNKNOWN: Final = 999

RECOVERY_FIELD: Final = 230
"""``NVML_FI_DEV_GET_GPU_RECOVERY_ACTION``; there is no function for it. Drivers from r570 on fill it in."""
_RECOVERY: Final = {
    0: NO_RECOVERY,
    1: "GPU reset",
    2: "node reboot",
    3: "drain of peer-to-peer traffic",
    4: "drain and reset",
    5: "recovery of the IMEX domain",
    6: "bus reset",
    7: "system reboot",
}

_XID: Final = 0x8
_EVENTS: Final = {
    _XID: "xid",
    0x2: "uncorrected memory error",
    0x800: "memory row not replaced",
    0x2000: "fatal poison",
    0x4000: "unavailable",
    0x8000: "recovery",
}

# Power capping (0x4) is left out: a board under full load is held at its limit by design.
_SLOWED: Final = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def open_nvml(library: Any = None) -> Nvml:
    """Load NVML and register for events; ``Unavailable`` says what is missing."""
    if library is None:
        try:
            import pynvml

            library = pynvml
        except ImportError as error:
            raise Unavailable(
                "cannot ask the NVIDIA driver: the package nvidia-ml-py is not installed; "
                "install resilient-training[gpu]"
            ) from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise Unavailable(f"cannot ask the NVIDIA driver: {error}; check that this container is given it") from error
    return Nvml(library)


class Nvml:
    """All GPUs that NVML shows to this process."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._refusals: set[int] = set()
        """Error codes that questions met since this was last emptied."""
        count = self._ask("nvmlDeviceGetCount") or 0
        self._handles = {index: self._ask("nvmlDeviceGetHandleByIndex", index) for index in range(count)}
        # A GPU that is lost later answers nothing, not even its name.
        self._events = self._ask("nvmlEventSetCreate")
        self._known = {index: self._identity(index, handle) for index, handle in self._handles.items()}

    def look(self) -> Look:
        """Read every GPU now."""
        return Look(
            devices=tuple(self._device(index) for index in self._handles),
            driver=_text(self._ask("nvmlSystemGetDriverVersion")),
            runtime=_version(self._ask("nvmlSystemGetCudaDriverVersion")),
        )

    def wait(self, timeout_s: float) -> DeviceEvent | None:
        """Give the next event; events from before this was made are gone, NVML keeps none."""
        if not any(device.watched for device in self._known.values()):
            raise Unavailable("cannot wait for events: no GPU lets this process register for them")
        try:
            data = self._nvml.nvmlEventSetWait_v2(self._events, int(timeout_s * 1000))
        except self._nvml.NVMLError as error:
            if error.value == _TIMEOUT:
                return None
            raise Unavailable(f"cannot wait for events any longer: {error}") from error
        bit, number = int(data.eventType), int(data.eventData)
        is_number = bit == _XID and number != _XID_UNKNOWN
        return DeviceEvent(
            index=self._index_of(data.device),
            kind=_EVENTS.get(bit, f"event {bit:#x}"),
            number=number if is_number else None,
            monotonic_s=time.monotonic(),
        )

    def close(self) -> None:
        """Let go of NVML."""
        if self._events is not None:
            self._ask("nvmlEventSetFree", self._events)
        self._ask("nvmlShutdown")

    def _register(self, handle: Any) -> bool:
        """Register for all that the GPU can tell; whether Xids are among it."""
        if handle is None or self._events is None:
            return False
        supported = self._ask("nvmlDeviceGetSupportedEventTypes", handle)
        kinds = sum(_EVENTS) & (_XID if supported is None else int(supported))
        if not kinds & _XID:
            return False
        try:
            self._nvml.nvmlDeviceRegisterEvents(handle, kinds, self._events)
        except self._nvml.NVMLError:
            return False
        return True

    def _identity(self, index: int, handle: Any) -> Device:
        place = self._ask("nvmlDeviceGetPciInfo", handle)
        return Device(
            index=index,
            uuid=_text(self._ask("nvmlDeviceGetUUID", handle)),
            bus=None if place is None else f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.0",
            name=_text(self._ask("nvmlDeviceGetName", handle)),
            watched=self._register(handle),
        )

    def _device(self, index: int) -> Device:
        self._refusals.clear()
        handle, known = self._handles[index], self._known[index]
        if handle is None:  # it could not be had at the start; the driver says again why
            self._ask("nvmlDeviceGetHandleByIndex", index)
            return replace(known, state=self._state(answers=False))
        health = self._health(handle)
        return replace(
            known,
            **health,
            **self._memory(handle),
            **self._connection(handle),
            **self._division(handle),
            state=self._state(answers=any(value is not None for value in health.values())),
        )

    def _state(self, *, answers: bool) -> State:
        """What the refusals of all questions come to; a lost GPU may still answer from what NVML remembers."""
        if _GPU_IS_LOST in self._refusals:
            return State.LOST
        if _RESET_REQUIRED in self._refusals:
            return State.NEEDS_RESET
        return State.ANSWERS if answers else State.UNKNOWN

    def _health(self, handle: Any) -> dict[str, Any]:
        rows = self._ask("nvmlDeviceGetRemappedRows", handle)
        slowed = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if slowed is None:  # its name until r535
            slowed = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return {
            "recovery": self._recovery(handle),
            "uncorrected": self._ask("nvmlDeviceGetTotalEccErrors", handle, _UNCORRECTED, _VOLATILE),
            "rows_pending": None if rows is None else bool(rows[2]),
            "rows_failed": None if rows is None else bool(rows[3]),
            "slowed": None if slowed is None else tuple(word for bit, word in _SLOWED.items() if slowed & bit),
        }

    def _recovery(self, handle: Any) -> str | None:
        values = self._ask("nvmlDeviceGetFieldValues", handle, [RECOVERY_FIELD])
        if values is None or values[0].nvmlReturn != 0:
            return None
        number = int(values[0].value.uiVal)
        return _RECOVERY.get(number, f"recovery action {number}")

    def _memory(self, handle: Any) -> dict[str, Any]:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return {} if memory is None else {"memory_free": int(memory.free), "memory_total": int(memory.total)}

    def _connection(self, handle: Any) -> dict[str, Any]:
        asked = (self._ask("nvmlDeviceGetNvLinkState", handle, number) for number in range(_MOST_LINKS))
        links = [link for link in asked if link is not None]
        return {
            "lanes": self._ask("nvmlDeviceGetCurrPcieLinkWidth", handle),
            "lanes_possible": self._ask("nvmlDeviceGetMaxPcieLinkWidth", handle),
            "links_up": links.count(_ENABLED) if links else None,
            "links": len(links) or None,
        }

    def _division(self, handle: Any) -> dict[str, Any]:
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if mode is None or mode[0] != _ENABLED:
            return {"divided": None if mode is None else False}
        count = self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        parts = (self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, number) for number in range(count))
        uuids = (_text(self._ask("nvmlDeviceGetUUID", part)) for part in parts if part is not None)
        return {"divided": True, "instances": tuple(uuid for uuid in uuids if uuid is not None)}

    def _index_of(self, handle: Any) -> int | None:
        uuid = _text(self._ask("nvmlDeviceGetUUID", handle))
        index = next((known.index for known in self._known.values() if uuid and known.uuid == uuid), None)
        return self._ask("nvmlDeviceGetIndex", handle) if index is None else index

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Give the answer, or ``None`` where the driver, the library or the binding has none."""
        function = getattr(self._nvml, name, None)
        if function is None or (arguments and arguments[0] is None):
            return None
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            self._refusals.add(error.value)
            return None


def _text(value: Any) -> str | None:
    """Give text as it is; old bindings give bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _version(number: Any) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if isinstance(number, int) and number > 0 else None
