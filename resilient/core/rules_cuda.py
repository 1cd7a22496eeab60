# SPDX-License-Identifier: Apache-2.0
"""Rules about CUDA: its error strings, in torch's and NCCL's own forms, and device memory.

Only rows. An error that a kernel of the user's can cause as well as a card is never
a device verdict; the strings are those of cudaGetErrorString.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.lanes import Lane
from resilient.core.rule import (
    AllOf,
    AnyOf,
    Condition,
    Family,
    Rule,
    alike_everywhere,
    died_of,
    left_behind,
    printed,
    raised,
    raised_anywhere,
    stated,
)
from resilient.core.symptoms import Symptoms

CUDA: Final = "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"
TORCH_CUDA: Final = "https://github.com/pytorch/pytorch/blob/main/c10/cuda/CUDAException.cpp"

_TYPES: Final = ("RuntimeError", "CudaError", "DeferredCudaCallError")
# torch's own forms, today's and that of old releases; NCCL's; and the same below a "Caught RuntimeError in replica".
_BEFORE: Final = (
    r"^(?:[\w.]{1,80}: )?(?:\[[^\n]{0,160}\] )?(?:.{0,120}terminated with exception: )?"
    r"(?:(?:CUDA|HIP) error: |Triton Error \[CUDA\]: |(?:[^\n]{0,200} )?Error \d{3}: |CUDA driver error: "
    r"|cuda runtime error \(\d{1,4}\) : |Cuda failure (?:\d{1,4} )?')"
)


# "CUDA error recovery is enabled" reports none.
_REPORTED: Final = (
    r"\b(?:CUDA|Cuda|cuda) (?:runtime |driver |kernel |API )?(?:[Ee]rror|ERROR|[Ff]ailure|failed)"
    r"(?:\s{0,2}(?:[:=(\[,'\"#]|\d|$)"
    r"|\s(?:at|code|detected|during|encountered|from|has|in|number|occurred|on|returned|to|was|when|while|with)\b)"
    r"|\bCUDA_ERROR_[A-Z]|\bcudaError[A-Z]|\bTHCudaCheck FAIL |\bGPUassert\b|\bcudaMalloc\w{0,20} failed\b"
    r"|^uncorrectable ECC error|\billegal memory access\b|\blaunch failure\b|\bside assert\b|\bno kernel image\b"
)


def _cuda_said(*strings: str, names: str = "") -> Condition:
    """State that CUDA reported one of these, in a form that only torch or NCCL print; in a log in any form."""
    pattern = _BEFORE + "(?:" + "|".join(strings) + ")"
    # Others print the name of the code, without its string: CUDA_ERROR_X of the driver, cudaErrorX of the runtime.
    code = rf"|\bCUDA_ERROR_(?:{names.upper()})\b|\bcudaError(?:{names.replace('_', '')})\b" if names else ""
    return AnyOf(
        (
            raised_anywhere(*_TYPES, text=pattern),
            printed(Lane.TORCH, pattern),
            printed(Lane.NCCL, pattern),
            printed(Lane.CUDA, ("(?:" + "|".join(strings) + ")" + code) if strings else _REPORTED),
        )
    )


def _cuda(
    name: str,
    cause: Cause,
    action: Action,
    why: str,
    *strings: str,
    names: str = "",
    said: str = "",
    confidence: Confidence = Confidence.HIGH,
    device_grade: bool = False,
    of_anybody: bool = False,
) -> Rule:
    """``of_anybody``: nothing but CUDA has such words, and they blame no device, so anybody may pass them on."""
    when = _cuda_said(*strings, names=names)
    return Rule(
        id=f"cuda-{name}",
        family=Family.CUDA,
        cause=cause,
        action=action,
        confidence=confidence,
        when=AnyOf((when, stated("|".join(strings)))) if of_anybody else when,
        why=f"{why} on rank {{rank}}{{where}}: {{seen}}",
        source=CUDA,
        example=died_of("torch.AcceleratorError", f"CUDA error: {said or strings[0]}\nCompile with TORCH_USE_CUDA_DSA"),
        device_grade=device_grade,
    )


def _no_device_anywhere(symptoms: Symptoms) -> str | None:
    """No rank of a run that has not made a step sees a device: there is none to see."""
    ranks = symptoms.evidence.ranks
    return "" if all(rank.step in (None, 0) for rank in ranks) else None


_NO_DEVICE: Final = AnyOf(
    (_cuda_said("no CUDA-capable device is detected", names="No_Device"), raised("RuntimeError", text="^No CUDA GPUs"))
)
_LATER: Final = Evidence(ranks=(died_of("RuntimeError", "No CUDA GPUs are available", step=12).ranks[0],))

_OTHER: Final = AnyOf(
    (
        _cuda_said(),
        raised_anywhere(
            "RuntimeError",
            text=r"\bCU(?:BLAS|DNN|FFT|SPARSE|SOLVER)_STATUS_|cuDNN error: |^CUDA unknown error|ncclUnhandledCudaError"
            r"|^CUDA driver initialization failed|^Unexpected error from cudaGetDeviceCount|, unhandled cuda error",
        ),
        printed(Lane.LOG, r"\bCU(?:BLAS|DNN|FFT|SPARSE|SOLVER)_STATUS_|ncclUnhandledCudaError"),
    )
)
_STATUS: Final = r"\bCU(?:BLAS|DNN|FFT|SPARSE|SOLVER)_STATUS_(?!EXECUTION_FAILED|MAPPING_ERROR|SUCCESS)[A-Z]"
# What assert() prints inside of a kernel. The error that comes up afterwards is whatever call was next.
_KERNEL_ASSERT: Final = r"^\S{1,400}\.cuh?:\d+: .{0,400}: block: \[\d+,\d+,\d+\], thread: \[\d+,\d+,\d+\] Assertion "
_KERNEL_ASSERTED: Final = (
    "/aten/src/ATen/native/cuda/Loss.cu:250: nll_loss: block: [0,0,0], thread: [4,0,0] Assertion `t >= 0` failed.",
    "Traceback (most recent call last):",
    "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
)

_BY_CODE_OR_BOARD: Final = (
    "an illegal memory access was encountered",
    "misaligned address",
    "unspecified launch failure",
    "an illegal instruction was encountered",
    "invalid program counter",
)
_BY_CODE_OR_BOARD_NAMES: Final = (
    "Illegal_Address|Misaligned_Address|Launch_Fail(?:ed|ure)|Illegal_Instruction|Invalid_Pc"
)


def _illegal(rank: int) -> RankEvidence:
    """One of several ranks with the same error."""
    one = died_of("torch.AcceleratorError", "CUDA error: an illegal memory access was encountered").ranks[0]
    return replace(one, rank=rank, order=rank)


_BROKEN, _CODE = (Cause.DEVICE_FAULT, Action.RESCHEDULE), (Cause.USER_CODE, Action.STOP)
_SETUP, _UNCLEAR = (Cause.CONFIG_OR_ENVIRONMENT, Action.STOP), (Cause.AMBIGUOUS, Action.INVESTIGATE)

CUDA_RULES: Final = (
    Rule(
        id="torch-absurd-allocation",
        family=Family.CUDA,
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        when=raised_anywhere("RuntimeError", text=r"Tried to allocate more than 1EB"),
        why="rank {rank} asked for more memory than exists, from a size that was not a size{where}: {seen}",
        source="https://github.com/pytorch/pytorch/blob/main/c10/cuda/CUDACachingAllocator.cpp",
        example=died_of("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate more than 1EB memory."),
    ),
    _cuda(
        "ecc",
        *_BROKEN,
        "GPU memory had an error that ECC could not correct",
        "uncorrectable ECC error",
        device_grade=True,
        names="ECC_Uncorrectable",
    ),
    _cuda(
        "nvlink",
        Cause.INTERCONNECT_FAULT,
        Action.RESCHEDULE,
        "NVLink had an error that it could not correct",
        "uncorrectable NVLink error",
        "Invalid access of peer GPU memory over nvlink or a hardware error",
        device_grade=True,
        names="Nvlink_Uncorrectable|Contained",
    ),
    _cuda(
        "external",
        *_BROKEN,
        "a device outside CUDA failed",
        "an async error has occured in external",
        device_grade=True,
        names="External_Device",
    ),
    _cuda(
        "out-of-memory",
        Cause.OUT_OF_MEMORY_DEVICE,
        Action.STOP,
        "the GPU has too little memory",
        "out of memory",
        confidence=Confidence.MEDIUM,
        names="Out_Of_Memory|Memory_Allocation",
    ),
    Rule(
        id="torch-out-of-memory",
        family=Family.CUDA,
        cause=Cause.OUT_OF_MEMORY_DEVICE,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=AnyOf(
            (
                raised_anywhere("OutOfMemoryError"),
                raised_anywhere("RuntimeError", text=r"(?:CUDA|HIP) out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
                # A handle needs little memory: where not even that is left.
                raised_anywhere("RuntimeError", text=r"_STATUS_NOT_INITIALIZED when calling `?cu\w+Create"),
                printed(Lane.TORCH, r"(?:CUDA|HIP) out of memory\. Tried"),
                # What is behind an "unhandled cuda error" of NCCL's.
                raised_anywhere("RuntimeError", text=r"^Failed to CUDA (?:calloc|malloc|host alloc)"),
                printed(Lane.NCCL, r"^Failed to CUDA (?:calloc|malloc|host alloc)"),
            )
        ),
        why="the GPU of rank {rank} has too little memory{where}: {seen}",
        source="https://docs.pytorch.org/docs/stable/notes/cuda.html",
        example=died_of("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ),
    _cuda(
        "assert",
        *_CODE,
        "a device-side assertion failed (an index or label out of range)",
        "device-side assert triggered",
        names="Assert",
    ),
    Rule(
        id="cuda-kernel-assert",
        family=Family.CUDA,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        when=AllOf((printed(Lane.STDERR, _KERNEL_ASSERT, ": block: ["), _OTHER)),
        why="an assertion inside a kernel failed on rank {rank} (an index or label out of range){where}: {seen}",
        source=TORCH_CUDA,
        example=left_behind(*_KERNEL_ASSERTED, code=1),
    ),
    _cuda(
        "driver",
        *_SETUP,
        "the driver does not fit the image",
        "CUDA driver version is insufficient",
        "CUDA driver is a stub library",
        "API call is not supported in the installed CUDA driver",
        "system has unsupported display driver / cuda driver combination",
        "forward compatibility was attempted on non supported HW",
        "the provided PTX was compiled with an unsupported toolchain",
        "Loader version is insufficient",
        names="Insufficient_Driver|Stub_Library|System_Driver_Mismatch|Compat_Not_Supported_On_Device|Unsupported_Ptx_Version",
        of_anybody=True,
    ),
    _cuda(
        "build",
        *_SETUP,
        "the program was not built for this GPU",
        "no kernel image is available for execution on the device",
        "invalid device function",
        "device kernel image is invalid",
        "a PTX JIT compilation failed",
        "PTX JIT compil",
        names="No_Binary_For_Gpu|No_Kernel_Image_For_Device|Invalid_Ptx",
        of_anybody=True,
    ),
    Rule(
        id="cuda-not-there",
        family=Family.CUDA,
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=AnyOf(
            (
                raised(text=r"Found no NVIDIA driver on your system|The NVIDIA driver on your system is too old"),
                raised("AssertionError", text=r"^Torch not compiled with CUDA enabled"),
                raised(text=r"^ProcessGroupNCCL is only supported with GPUs|device >= 0 && device < num_gpus"),
            )
        ),
        why="CUDA cannot be used on rank {rank}: {seen}",
        source="https://github.com/pytorch/pytorch/blob/main/torch/csrc/cuda/Module.cpp",
        example=died_of("AssertionError", "Torch not compiled with CUDA enabled"),
    ),
    Rule(
        id="cuda-no-device-at-start",
        family=Family.CUDA,
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        when=AllOf((_NO_DEVICE, _no_device_anywhere)),
        why="rank {rank} saw no GPU before its first step; a lost GPU or a pod that asked for none: {seen}",
        source=CUDA,
        example=died_of("RuntimeError", "No CUDA GPUs are available"),
    ),
    Rule(
        id="cuda-device-lost",
        family=Family.CUDA,
        cause=Cause.DEVICE_FAULT,
        action=Action.RESCHEDULE,
        when=_NO_DEVICE,
        why="a GPU that was there is gone on rank {rank}: {seen}",
        source=CUDA,
        example=_LATER,
        device_grade=True,
    ),
    _cuda(
        "busy",
        *_BROKEN,
        "the GPU is taken or in a bad state",
        r"(?:all )?CUDA-capable device\(s\) (?:is/are|are) busy or unavailable",
        said="CUDA-capable device(s) is/are busy or unavailable",
        confidence=Confidence.MEDIUM,
        names="Devices?_Unavailable",
    ),
    _cuda(
        "fabric-not-ready",
        *_BROKEN,
        "the node's GPU fabric is not ready",
        "system not yet initialized",
        "GPU fabric is not ready",
        confidence=Confidence.MEDIUM,
        names="System_Not_Ready",
    ),
    Rule(
        id="cuda-alike-everywhere",
        family=Family.CUDA,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=AllOf((_cuda_said(*_BY_CODE_OR_BOARD, names=_BY_CODE_OR_BOARD_NAMES), alike_everywhere)),
        why="nearly all ranks died of the same CUDA error, which boards do not do together{where}: {seen}",
        source="resilient/core/crowd.py",
        example=Evidence(ranks=tuple(_illegal(rank) for rank in range(4))),
    ),
    _cuda(
        "memory-access",
        *_UNCLEAR,
        "a kernel went wrong, by a bug or a bad board",
        "an illegal memory access was encountered",
        "misaligned address",
        "operation not supported on global/shared address space",
        "invalid program counter",
        confidence=Confidence.LOW,
        names="Illegal_Address|Misaligned_Address|Invalid_Address_Space|Invalid_Pc",
    ),
    _cuda(
        "launch-failure",
        *_UNCLEAR,
        "a kernel ended without a reason",
        "unspecified launch failure",
        "an illegal instruction was encountered",
        "hardware stack error",
        "the launch timed out and was terminated",
        "wait operation timed out",
        confidence=Confidence.LOW,
        names="Launch_Fail(?:ed|ure)|Illegal_Instruction|Hardware_Stack_Error|Launch_Timeout",
    ),
    _cuda(
        "usage",
        *_CODE,
        "CUDA was called wrongly",
        "invalid argument",
        "invalid configuration argument",
        "too many resources requested for launch",
        "too many blocks in cooperative launch",
        "tensor memory not completely freed",
        "operation not permitted when stream is capturing",
        "operation not supported$",
        "invalid resource handle",
        confidence=Confidence.MEDIUM,
        names="Invalid_Value|Invalid_Configuration|Invalid_(?:Resource_)?Handle|Launch_Out_Of_Resources",
    ),
    _cuda(
        "ordinal",
        *_SETUP,
        "a GPU of that number does not exist (more workers than GPUs, or a missing one)",
        "invalid device ordinal",
        "peer access is not supported between these two devices",
        confidence=Confidence.MEDIUM,
        names="Invalid_Device",
    ),
    Rule(
        id="cuda-library-status",
        family=Family.CUDA,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confidence=Confidence.LOW,
        # A bad board is but one of the four that are known to be behind it, and the others come back at the same step.
        when=stated(_STATUS, "RuntimeError"),
        why="a CUDA library failed on rank {rank} (an index out of range, too little memory, unfit versions, "
        "or a bad board){where}: {seen}",
        source="https://docs.nvidia.com/cuda/cublas/#cublasstatus-t",
        example=died_of("RuntimeError", "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm`"),
    ),
    Rule(
        id="cuda-other",
        family=Family.CUDA,
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        when=_OTHER,
        why="the GPU of rank {rank} reported an error that names no culprit{where}: {seen}",
        source=TORCH_CUDA,
        example=died_of("torch.AcceleratorError", "CUDA error: unknown error"),
    ),
)
