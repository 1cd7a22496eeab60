# SPDX-License-Identifier: Apache-2.0
"""What the module ``amdsmi`` answers, as recorded: functions, keys, codes and exceptions as in its release 7.0."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any

TIMEOUT, NOT_SUPPORTED, NO_DATA, DRIVER_NOT_LOADED = 8, 2, 40, 34
HANDLE = ctypes.c_void_p


class AmdSmiException(Exception):
    """As the binding raises it."""


class AmdSmiLibraryException(AmdSmiException):
    """With the library's code."""

    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS"

    def get_error_code(self) -> int:
        return self.err_code


class AmdSmiTimeoutException(AmdSmiLibraryException):
    """Of a read that met no event in time."""

    def __init__(self) -> None:
        super().__init__(TIMEOUT)


class AmdSmiEvtNotificationType(IntEnum):
    """The first of them."""

    NONE, VMFAULT, THERMAL_THROTTLE, GPU_PRE_RESET, GPU_POST_RESET = range(5)


def mi300x(index: int, **answers: Any) -> dict[str, Any]:
    """A healthy MI300X; ``answers`` change what a function returns, a number is the code that it fails with."""
    return {
        "amdsmi_get_gpu_device_bdf": f"0000:{0x05 + index * 0x10:02x}:00.0",
        "amdsmi_get_gpu_device_uuid": f"{index}cff74a1-0000-1000-80d7-2b0a2f3c4d5e",
        "amdsmi_get_gpu_asic_info": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "oam_id": index},
        "amdsmi_get_gpu_driver_info": {"driver_name": "amdgpu", "driver_version": "6.14.14", "driver_date": "N/A"},
        "amdsmi_get_gpu_total_ecc_count": {"correctable_count": 2, "uncorrectable_count": 0, "deferred_count": 0},
        "amdsmi_get_gpu_bad_page_info": [],
        "amdsmi_get_violation_status": {
            "active_prochot_thrm": False,
            "active_ppt_pwr": True,
            "active_socket_thrm": False,
            "active_vr_thrm": "N/A",
            "active_hbm_thrm": False,
        },
        "amdsmi_get_gpu_vram_usage": {"vram_total": 196592, "vram_used": 283},
        "amdsmi_get_pcie_info": {
            "pcie_static": {"max_pcie_width": 16, "slot_type": "OAM"},
            "pcie_metric": {"pcie_width": 16, "pcie_speed": 32000},
        },
    } | answers


class Amdsmi:
    """The module, for these boards."""

    AmdSmiException = AmdSmiException
    AmdSmiLibraryException = AmdSmiLibraryException
    AmdSmiTimeoutException = AmdSmiTimeoutException
    AmdSmiEvtNotificationType = AmdSmiEvtNotificationType

    def __init__(self, *boards: dict[str, Any], init: int = 0, events: bool = True) -> None:
        self.boards = boards
        self.init = init
        self.reads: list[list[tuple[int, str]] | Exception] = []
        """What the reads of events give, by board and name."""
        self.readers = 0
        self.may_register = events
        self.open = False
        self.AmdSmiEventReader = self._register

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not any(name in board for board in self.__dict__.get("boards", ())):
            raise AttributeError(name)
        return functools.partial(self._answer, name)

    def amdsmi_init(self) -> None:
        if self.init:
            raise AmdSmiLibraryException(self.init)
        self.open = True

    def amdsmi_shut_down(self) -> None:
        self.open = False

    def amdsmi_get_processor_handles(self) -> list[HANDLE]:
        return [HANDLE(0x1000 + index) for index in range(len(self.boards))]

    def _register(self, handle: HANDLE, kinds: list[IntEnum]) -> _Reader:
        if not self.may_register:
            raise AmdSmiLibraryException(NOT_SUPPORTED)
        assert self.AmdSmiEvtNotificationType.GPU_PRE_RESET in kinds
        self.readers += 1
        return _Reader(self)

    def _answer(self, name: str, handle: HANDLE) -> Any:
        answer = self.boards[(handle.value or 0) - 0x1000].get(name, NOT_SUPPORTED)
        if isinstance(answer, int):
            raise AmdSmiLibraryException(answer)
        return answer


class _Reader:
    def __init__(self, library: Amdsmi) -> None:
        self._library = library

    def read(self, timestamp: int, num_elem: int = 10) -> list[dict[str, Any]]:
        read = self._library.reads.pop(0) if self._library.reads else AmdSmiTimeoutException()
        if isinstance(read, Exception):
            raise read
        return [{"processor_handle": HANDLE(0x1000 + at), "event": name, "message": ""} for at, name in read]

    def stop(self) -> None:
        self._library.readers -= 1
