# SPDX-License-Identifier: Apache-2.0
"""What the module ``pynvml`` answers, as recorded: functions, codes and words as in nvidia-ml-py 13."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

TIMEOUT, NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED = 10, 3, 13, 15, 16
WORDS = {
    NOT_SUPPORTED: "Not Supported",
    4: "Insufficient Permissions",
    9: "Driver Not Loaded",
    TIMEOUT: "Timeout",
    12: "NVML Shared Library Not Found",
    FUNCTION_NOT_FOUND: "Function Not Found",
    GPU_IS_LOST: "GPU is lost",
    RESET_REQUIRED: "GPU requires restart",
    18: "RM has detected an NVML/RM version mismatch.",
    999: "Unknown Error",
}


class NVMLError(Exception):
    """As the binding raises it."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return WORDS[self.value]


@dataclass
class Gpu:
    """One board: what each function returns for it; a number in ``refused`` is the code that it fails with."""

    index: int
    answers: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    lost: bool = False

    @property
    def uuid(self) -> str:
        return f"GPU-0000000{self.index}-1111-2222-3333-444444444444"


def h100(index: int, **answers: Any) -> Gpu:
    """A healthy H100 SXM; ``answers`` change what it says."""
    return Gpu(
        index,
        {
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetPciInfo": SimpleNamespace(domain=0, bus=0x18 + index, device=0),
            "nvmlDeviceGetSupportedEventTypes": 0x1FEFF,
            "nvmlDeviceGetRemappedRows": (0, 0, 0, 0),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetTotalEccErrors": 0,
            "nvmlDeviceGetFieldValues": 0,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, free=70 << 30),
            "nvmlDeviceGetCurrPcieLinkWidth": 16,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetNvLinkState": 1,
            "nvmlDeviceGetMigMode": [0, 0],
        }
        | answers,
    )


class Pynvml:
    """The module, for these boards."""

    NVMLError = NVMLError

    def __init__(self, *gpus: Gpu, init: int = 0, absent: tuple[str, ...] = ()) -> None:
        self.gpus = gpus
        self.init = init
        self.absent = absent
        """Functions that this release of the binding lacks."""
        self.events: list[SimpleNamespace | int] = []
        """What the waits give; a number is the code that one fails with."""
        self.registered: dict[int, int] = {}
        self.open = False
        self._functions: dict[str, Callable[..., Any]] = {
            "nvmlInit": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlSystemGetDriverVersion": self._system_get_driver_version,
            "nvmlSystemGetCudaDriverVersion": self._system_get_cuda_driver_version,
            "nvmlDeviceGetCount": self._device_get_count,
            "nvmlDeviceGetHandleByIndex": self._device_get_handle_by_index,
            "nvmlDeviceGetUUID": self._device_get_uuid,
            "nvmlDeviceGetIndex": self._device_get_index,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._device_get_mig_device_handle_by_index,
            "nvmlEventSetCreate": self._event_set_create,
            "nvmlEventSetFree": self._event_set_free,
            "nvmlDeviceRegisterEvents": self._device_register_events,
            "nvmlEventSetWait_v2": self._event_set_wait_v2,
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml") or name in self.__dict__.get("absent", ()):
            raise AttributeError(name)
        return self._functions.get(name) or functools.partial(self._device, name)

    def happen(self, gpu: Gpu, kind: int, data: int = 0) -> None:
        """Let the next wait report an event."""
        self.events.append(SimpleNamespace(device=gpu, eventType=kind, eventData=data))

    def _init(self) -> None:
        if self.init:
            raise NVMLError(self.init)
        self.open = True

    def _shutdown(self) -> None:
        self.open = False

    def _system_get_driver_version(self) -> str:
        return "570.86.15"

    def _system_get_cuda_driver_version(self) -> int:
        return 12080

    def _device_get_count(self) -> int:
        return len(self.gpus)

    def _device_get_handle_by_index(self, index: int) -> Gpu:
        self._check(self.gpus[index], "nvmlDeviceGetHandleByIndex")
        return self.gpus[index]

    def _device_get_uuid(self, gpu: Gpu | str) -> str:
        if isinstance(gpu, str):
            return gpu
        self._check(gpu, "nvmlDeviceGetUUID")
        return gpu.uuid

    def _device_get_index(self, gpu: Gpu) -> int:
        return gpu.index

    def _device_get_mig_device_handle_by_index(self, gpu: Gpu, number: int) -> str:
        if number > 1:
            raise NVMLError(6)
        return f"MIG-{number}-{gpu.uuid}"

    def _event_set_create(self) -> str:
        return "set"

    def _event_set_free(self, events: str) -> None:
        assert events == "set"

    def _device_register_events(self, gpu: Gpu, kinds: int, events: str) -> None:
        self._check(gpu, "nvmlDeviceRegisterEvents")
        self.registered[gpu.index] = kinds

    def _event_set_wait_v2(self, events: str, timeout_ms: int) -> SimpleNamespace:
        what = self.events.pop(0) if self.events else TIMEOUT
        if isinstance(what, int):
            raise NVMLError(what)
        return what

    def _device(self, name: str, gpu: Gpu, *arguments: Any) -> Any:
        self._check(gpu, name)
        if name not in gpu.answers:
            raise NVMLError(NOT_SUPPORTED)
        answer = gpu.answers[name]
        if name == "nvmlDeviceGetFieldValues":
            assert arguments == ([230],)
            code, number = (answer, 0) if isinstance(answer, str) else (0, answer)
            return [SimpleNamespace(fieldId=230, nvmlReturn=int(code), value=SimpleNamespace(uiVal=number))]
        return answer

    def _check(self, gpu: Gpu, name: str) -> None:
        if gpu.lost:
            raise NVMLError(GPU_IS_LOST)
        if name in gpu.refused:
            raise NVMLError(gpu.refused[name])
