# SPDX-License-Identifier: Apache-2.0
"""AMD's devices, asked through AMD SMI.

Owns ``amdsmi``, which comes with ROCm, and the numbers of ``amdsmi.h``. Written against its Python interface (7.0), it
has met recorded answers only. A device that answers one question and not another is normal, and "N/A" is unknown.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from resilient.core.devices import RESET_EVENT, Device, DeviceEvent, Look, State
from resilient.devices.protocol import Unavailable

_NO_DATA: Final = 40
_PENDING: Final = 1
_UNRESERVABLE: Final = 2
"""Of ``amdsmi_memory_page_status_t``."""
_MEBI: Final = 1 << 20

_EVENTS: Final = {"GPU_PRE_RESET": RESET_EVENT, "GPU_POST_RESET": "reset done", "THERMAL_THROTTLE": "thermal throttle"}
"""Faults of a page (VMFAULT) are left out: the kernel's log has them, and it is programs that cause them."""
_SLOWED: Final = {
    "active_prochot_thrm": "processor too hot",
    "active_socket_thrm": "socket too hot",
    "active_vr_thrm": "voltage regulator too hot",
    "active_hbm_thrm": "memory too hot",
}
"""The limit on power is left out, as a board under full load is held there by design."""


def open_amd(library: Any = None) -> Amd:
    """Load AMD SMI and register for events; ``Unavailable`` says what is missing."""
    if library is None:
        try:
            import amdsmi

            library = amdsmi
        except (ImportError, OSError) as error:  # OSError: the package is there, and its shared library is not
            raise Unavailable(
                f"cannot ask the AMD driver: {error}; install amdsmi, which comes with ROCm, in this image"
            ) from error
    try:
        library.amdsmi_init()
    except library.AmdSmiException as error:
        raise Unavailable(f"cannot ask the AMD driver: {error}; check that this container is given it") from error
    return Amd(library)


class Amd:
    """All GPUs that AMD SMI shows to this process."""

    def __init__(self, library: Any) -> None:
        self._smi = library
        self._handles = list(self._ask("amdsmi_get_processor_handles") or ())
        self._readers = [self._register(handle) for handle in self._handles]
        self._known = [self._identity(index) for index in range(len(self._handles))]
        self._events: deque[DeviceEvent] = deque()

    def look(self) -> Look:
        """Read every GPU now."""
        driver = self._ask("amdsmi_get_gpu_driver_info", self._handles[0]) if self._handles else None
        return Look(
            devices=tuple(self._device(index) for index in range(len(self._handles))),
            driver=_text(driver, "driver_version"),
        )

    def wait(self, timeout_s: float) -> DeviceEvent | None:
        """Give the next event; one read is for all GPUs that were registered."""
        if self._events:
            return self._events.popleft()
        reader = next((reader for reader in self._readers if reader is not None), None)
        if reader is None:
            raise Unavailable("cannot wait for events: no GPU lets this process register for them")
        try:
            found = reader.read(int(timeout_s * 1000))
        except self._smi.AmdSmiTimeoutException:
            return None
        except self._smi.AmdSmiLibraryException as error:
            if error.get_error_code() == _NO_DATA:
                return None
            raise Unavailable(f"cannot wait for events any longer: {error}") from error
        now = time.monotonic()
        for event in found:
            kind = _EVENTS.get(event["event"], event["event"].lower().replace("_", " "))
            index = self._index_of(event["processor_handle"])
            self._events.append(DeviceEvent(index=index, kind=kind, monotonic_s=now))
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Let go of the library."""
        for reader in self._readers:
            if reader is not None:
                self._try(reader.stop)
        self._ask("amdsmi_shut_down")

    def _register(self, handle: Any) -> Any:
        """Register for what is told of a GPU; ``None`` where that is refused."""
        reader, kinds = getattr(self._smi, "AmdSmiEventReader", None), self._smi.AmdSmiEvtNotificationType
        return None if reader is None else self._try(reader, handle, [kinds[name] for name in _EVENTS])

    def _identity(self, index: int) -> Device:
        handle = self._handles[index]
        bus = self._ask("amdsmi_get_gpu_device_bdf", handle)
        uuid = self._ask("amdsmi_get_gpu_device_uuid", handle)
        return Device(
            index=index,
            uuid=uuid if isinstance(uuid, str) and uuid else None,
            bus=bus.lower() if isinstance(bus, str) and bus else None,
            name=_text(self._ask("amdsmi_get_gpu_asic_info", handle), "market_name"),
            watched=self._readers[index] is not None,
        )

    def _device(self, index: int) -> Device:
        handle = self._handles[index]
        errors = self._ask("amdsmi_get_gpu_total_ecc_count", handle)
        health = {"uncorrected": _number(errors, "uncorrectable_count"), **self._pages(handle), **self._speed(handle)}
        memory = self._ask("amdsmi_get_gpu_vram_usage", handle)
        total, used = _number(memory, "vram_total"), _number(memory, "vram_used")
        link = self._ask("amdsmi_get_pcie_info", handle)
        answers = total is not None or any(value is not None for value in health.values())
        return replace(
            self._known[index],
            **health,
            state=State.ANSWERS if answers else State.UNKNOWN,
            memory_total=None if total is None else total * _MEBI,
            memory_free=None if total is None or used is None else (total - used) * _MEBI,
            lanes=_number(_part(link, "pcie_metric"), "pcie_width"),
            lanes_possible=_number(_part(link, "pcie_static"), "max_pcie_width"),
        )

    def _pages(self, handle: Any) -> dict[str, Any]:
        """Retired pages; a sentence, by older releases, where there are none."""
        pages = self._ask("amdsmi_get_gpu_bad_page_info", handle)
        if pages is None:
            return {"rows_pending": None, "rows_failed": None}
        states = {page.get("status") for page in pages if isinstance(page, Mapping)}
        return {"rows_pending": _PENDING in states, "rows_failed": _UNRESERVABLE in states}

    def _speed(self, handle: Any) -> dict[str, Any]:
        found = self._ask("amdsmi_get_violation_status", handle)
        told = {key: found.get(key) for key in _SLOWED} if isinstance(found, Mapping) else {}
        if not any(isinstance(value, bool) for value in told.values()):
            return {"slowed": None}
        return {"slowed": tuple(word for key, word in _SLOWED.items() if told[key] is True)}

    def _index_of(self, handle: Any) -> int | None:
        """Handles are pointers, made anew for each answer."""
        address = getattr(handle, "value", handle)
        addresses = [getattr(each, "value", each) for each in self._handles]
        return addresses.index(address) if address in addresses else None

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Give the answer, or ``None`` where the driver or this release of the library has none."""
        function = getattr(self._smi, name, None)
        return None if function is None else self._try(function, *arguments)

    def _try(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._smi.AmdSmiException:
            return None


def _part(answer: Any, key: str) -> Any:
    return answer.get(key) if isinstance(answer, Mapping) else None


def _number(answer: Any, key: str) -> int | None:
    value = _part(answer, key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(answer: Any, key: str) -> str | None:
    value = _part(answer, key)
    return value if isinstance(value, str) and value not in ("", "N/A") else None
