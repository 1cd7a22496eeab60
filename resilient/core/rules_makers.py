# SPDX-License-Identifier: Apache-2.0
"""Rules about what nvidia-smi, NVML and the runtimes of other makers say of their devices.

Only rows. A HIP error in torch's own form is read like one of CUDA, and is no matter of this table.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import Family, log_rule, printed, raised, stated

SMI: Final = "https://docs.nvidia.com/deploy/nvidia-smi/index.html"
CONTAINER: Final = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/troubleshooting.html"
NVML: Final = "https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html"

_UNCLEAR: Final = (Cause.AMBIGUOUS, Action.INVESTIGATE)
_BROKEN: Final = (Cause.DEVICE_FAULT, Action.RESCHEDULE)

# The runtimes of other makers; a HIP error in torch's own form is read like one of CUDA.
OTHER_MAKERS_RULES: Final = (
    log_rule(
        "amd-hardware-exception",
        *_BROKEN,
        "AMD's runtime reports an exception of the hardware",
        printed(Lane.STDERR, r"^HW Exception by GPU node-\d{1,3} .{0,200}GPU Hang", "HW Exception by GPU node-"),
        "HW Exception by GPU node-1 (Agent handle: 0x55d0) reason :GPU Hang",
        "https://github.com/ROCm/legacy-rocm-build/issues/4021",
        family=Family.DRIVER,
    ),
    log_rule(
        "amd-memory-fault",
        *_UNCLEAR,
        "a kernel touched memory that is not its own, by a bug or a bad board",
        printed(Lane.STDERR, r"^Memory access fault by GPU node-\d{1,3} ", "Memory access fault by GPU node-"),
        "Memory access fault by GPU node-1 (Agent handle: 0x55d0) on address 0x7f00. Reason: Unknown.",
        "https://github.com/ROCm/legacy-rocm-build/issues/3766",
        confidence=Confidence.LOW,
        family=Family.DRIVER,
    ),
    log_rule(
        "ascend-hardware",
        *_BROKEN,
        "Ascend's runtime reports broken memory or a broken link",
        stated(r"(?:error code is|ErrCode=|ret ?[=:]) ?(?:50705[3-6])\b|HBM MULTI BIT ECC|UCE ERROR", "RuntimeError"),
        "RuntimeError: The process exits for this inner error, error code is 507054",
        "https://gitee.com/ascend/pytorch",
        family=Family.DRIVER,
    ),
    log_rule(
        "ascend-kernel",
        *_UNCLEAR,
        "a kernel on an Ascend device failed, by a bug or a bad device",
        stated(r"(?:error code is|ErrCode=|ret ?[=:]) ?(?:507015|50703[56]|50704[2-5])\b", "RuntimeError"),
        "RuntimeError: synchronize failed, error code is 507015",
        "https://gitee.com/ascend/pytorch",
        confidence=Confidence.LOW,
        family=Family.DRIVER,
    ),
)

DEVICE_TEXT_RULES: Final = (
    log_rule(
        "nvml-lost",
        *_BROKEN,
        "NVML says that a GPU is lost or must be reset",
        raised("NVMLError_GpuIsLost", "NVMLError_ResetRequired"),
        "pynvml.NVMLError_GpuIsLost: GPU is lost",
        NVML,
        confidence=Confidence.HIGH,
        family=Family.DRIVER,
    ),
    log_rule(
        "smi-lost",
        *_BROKEN,
        "nvidia-smi cannot reach a GPU",
        stated(
            r"\bUnable to determine the device handle for (?:GPU|gpu)|GPU is lost\. +Reboot the system"
            r"|^No devices were found|\bERROR_GPU_IS_LOST\b|\b(?:NVML|nvml).{0,80}(?:GPU is lost|GPU requires restart)"
            r"|couldn't communicate with the NVIDIA driver"
        ),
        "Unable to determine the device handle for GPU 0000:18:00.0: Unknown Error",
        SMI,
        confidence=Confidence.HIGH,
        family=Family.DRIVER,
    ),
    log_rule(
        "smi-container",
        Cause.CONFIG_OR_ENVIRONMENT,
        Action.RESTART_IN_PLACE,
        "the container has lost its devices, which a new one gets back",
        r"^Failed to initialize NVML: (?:Unknown Error|Insufficient Permissions)",
        "Failed to initialize NVML: Unknown Error",
        CONTAINER,
        family=Family.DRIVER,
    ),
    log_rule(
        "smi-mismatch",
        Cause.CONFIG_OR_ENVIRONMENT,
        Action.RESCHEDULE,
        "the node's driver was replaced while its module is still loaded",
        r"^Failed to initialize NVML: Driver/library version mismatch",
        "Failed to initialize NVML: Driver/library version mismatch",
        SMI,
        family=Family.DRIVER,
    ),
)
