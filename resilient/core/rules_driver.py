# SPDX-License-Identifier: Apache-2.0
"""Rules about what the driver says of its devices.

Only rows. Which Xid means what follows NVIDIA's Xid catalog; one that a program
causes as often as a board is never a device verdict.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.device_conditions import happened, reported
from resilient.core.devices import RESET_EVENT, Device, DeviceEvent, DeviceEvidence
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.lanes import Lane
from resilient.core.rule import AnyOf, Family, Role, Rule, left_behind, printed, row

XID: Final = "https://docs.nvidia.com/deploy/xid-errors/"
FABRIC: Final = "https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/"

# Transcripts shorten it to "Xid 79, ...", which only the loose form of the lane lets in.
_BUS: Final = r"^(?:NVRM: Xid \((?:PCI:)?[0-9a-fA-F:.]{7,20}(?: GPU-I:\d+)?(?: GPU-CI:\d+)?\): |Xid )"


# Those that the guide calls fatal, for drivers that print a severity as a number.
_FATAL_SXIDS: Final = (
    "11001|11009|11013|1101[89]|11020|1200[12]|12020|1202[24567]|1203[012]|14017|15001|15006|15009|1501[0235]|1904[78]"
    "|1905[468]|1906[013467]|19069|19070|20034|22003|22011|22012|2300[1-9]|2301[0-7]|2400[4-7]"
)


def _xid_line(number: int, text: str) -> str:
    return f"[ 1234.567890] NVRM: Xid (PCI:0000:05:00): {number}, pid=4242, name=python3, {text}"


def _xid(
    name: str,
    numbers: tuple[int, ...],
    why: str,
    *,
    text: str = "",
    said: str = "",
    cause: Cause = Cause.DEVICE_FAULT,
    action: Action = Action.RESCHEDULE,
    role: Role = Role.CULPRIT,
    confidence: Confidence = Confidence.HIGH,
    device_grade: bool = True,
) -> Rule:
    """Make the rule for some Xids; where their line must also say ``text``, the number alone is not enough."""
    choice = "|".join(map(str, numbers))
    line = printed(Lane.KERNEL, rf"{_BUS}(?:{choice}),{text}")
    return Rule(
        id=f"xid-{name}",
        family=Family.DRIVER,
        cause=cause,
        action=action,
        role=role,
        confidence=confidence,
        when=line if text else AnyOf((reported(*numbers), line)),
        why=f"the driver of rank {{rank}}'s node reported {why}: {{seen}}",
        source=XID,
        example=left_behind(_xid_line(numbers[0], said or why), code=1),
        device_grade=device_grade,
    )


def _kernel(
    name: str, why: str, text: str, example: str, source: str, confidence: Confidence = Confidence.HIGH
) -> Rule:
    """Make the rule for a line of the kernel log that names broken hardware."""
    return row(
        name,
        Cause.DEVICE_FAULT,
        Action.RESCHEDULE,
        f"the kernel of rank {{rank}}'s node {why}: {{seen}}",
        printed(Lane.KERNEL, text),
        left_behind(example, code=1),
        source,
        family=Family.DRIVER,
        confidence=confidence,
        device_grade=True,
    )


DRIVER_RULES: Final = (
    _xid("ecc", (48, 95, 140, 172), "a memory error that ECC could not correct"),
    _xid("remap-failure", (64, 157), "memory rows that could not be remapped"),
    _xid("off-the-bus", (79, 167), "that the GPU fell off the bus", said="GPU has fallen off the bus."),
    Rule(
        id="driver-off-the-bus",
        family=Family.DRIVER,
        cause=Cause.DEVICE_FAULT,
        action=Action.RESCHEDULE,
        when=printed(Lane.KERNEL, r"^NVRM: .{0,200}(?:fallen off the bus|GPU is lost)"),
        why="the driver of rank {rank}'s node lost a GPU: {seen}",
        source=XID,
        example=left_behind("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.", code=1),
        device_grade=True,
    ),
    _xid(
        "nvlink",
        (74, 136, 150, 173),
        "an NVLink error",
        cause=Cause.INTERCONNECT_FAULT,
    ),
    _xid(
        "nvlink-fatal",
        (144, 145, 146, 149),
        "a fatal NVLink error",
        text=r".{0,200}(?<!Non-)(?<!Non)\bFatal\b",
        said="NETIR_LINK_EVT Fatal XC0 i0 Link 08",
        cause=Cause.INTERCONNECT_FAULT,
    ),
    _xid("firmware", (46, 61, 62, 110, 119, 120, 143, 158, 166, 169, 175), "that the GPU's own processor gave up"),
    _xid(
        "after-another",
        (45,),
        "that it removed the process after a fault of the device",
        text=r".{0,200} caused by previous Xid (?:46|48|62|64|74|79|95|119|120|140|143|149|158)\b",
        said="Ch 00000008 caused by previous Xid 48",
    ),
    _xid("board", (54, 57, 58, 59, 151, 168), "a fault of the board"),
    _xid(
        "recovery-action",
        (154,),
        "that the GPU needs recovery",
        text=r".{0,200} to 0x[0-9a-fA-F]+ \((?!None\))",
        said="GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
    ),
    Rule(
        id="sxid-fatal",
        family=Family.DRIVER,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        when=printed(
            Lane.KERNEL,
            rf"^nvidia-nvswitch\d+: SXid \(PCI:[0-9a-fA-F:.]{{7,20}}\): (?:\d+, Fatal\b|(?:{_FATAL_SXIDS}),)",
        ),
        why="the NVSwitch of rank {rank}'s node reported a fatal error: {seen}",
        source=FABRIC,
        example=left_behind(
            "nvidia-nvswitch0: SXid (PCI:0000:00:00.0): 20034, Fatal, Link 30 LTSSM Fault Up", signal=6
        ),
        device_grade=True,
    ),
    _kernel(
        "driver-init",
        "could not start one of its GPUs",
        r"^NVRM: .{0,80}(?:RmInitAdapter failed|rm_init_adapter failed)",
        "NVRM: GPU 0000:0a:00.0: RmInitAdapter failed! (0x24:0x72:1568)",
        XID,
        Confidence.MEDIUM,
    ),
    _kernel(
        "driver-reset-required",
        "wants a GPU to be reset",
        r"^NVRM: .{0,200}NV_ERR_RESET_REQUIRED",
        "NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062)",
        "https://github.com/NVIDIA/open-gpu-kernel-modules/blob/main/src/common/sdk/nvidia/inc/nvstatuscodes.h",
    ),
    _kernel(
        "amdgpu-uncorrectable",
        "found an error of the hardware that it could not correct",
        r"^amdgpu .{0,200}uncorrectable (?:hardware )?error|^amdgpu .{0,120}\bRAS\b.{0,80}uncorrectable",
        "amdgpu 0000:e3:00.0: amdgpu: uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!",
        "https://docs.kernel.org/gpu/amdgpu/ras.html",
    ),
    _kernel(
        "pcie-fatal",
        "saw a fatal error of a PCIe device",
        r"^pcieport .{0,120}Uncorrect(?:ed|able) \(Fatal\)|^pcieport .{0,80}Surprise Down",
        "pcieport 0000:00:02.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
        "https://docs.kernel.org/PCI/pcieaer-howto.html",
        Confidence.MEDIUM,
    ),
    _kernel(
        "machine-check",
        "saw a machine check that could not be corrected",
        r"^mce: \[Hardware Error\].{0,120}(?:Machine Check Exception|[Uu]ncorrected)",
        "mce: [Hardware Error]: CPU 12: Machine Check Exception: 5 Bank 7: be00000000800400",
        "https://docs.kernel.org/arch/x86/x86_64/machinecheck.html",
    ),
    _kernel(
        "host-memory-broken",
        "found an error of its memory that ECC could not correct",
        r"^EDAC MC\d+: \d+ UE ",
        "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
        "https://docs.kernel.org/driver-api/edac.html",
    ),
    _xid(
        "ecc-contained",
        (94,),
        "a memory error that was contained, so that a new process may use the GPU",
        action=Action.RESTART_IN_PLACE,
        device_grade=False,
    ),
)

_RESET: Final = DeviceEvidence(
    device=Device(index=0, bus="0000:e3:00.0"), events=(DeviceEvent(index=0, kind=RESET_EVENT, monotonic_s=1.0),)
)

LATE_DRIVER_RULES: Final = (
    _xid(
        "program",
        (13, 31, 43, 69, 137),
        "an exception that programs cause more often than boards",
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        device_grade=False,
    ),
    Rule(
        id="device-reset",
        family=Family.DRIVER,
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        when=happened(RESET_EVENT, "it was reset"),
        why="the driver reset the GPU of rank {rank}, after a hang or a fault of the board or of a program: {seen}",
        source="https://rocm.docs.amd.com/projects/amdsmi/en/latest/reference/amdsmi-py-api.html",
        example=Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, devices=(_RESET,)),)),
    ),
    _xid(
        "either",
        (8, 11, 25, 32, 38, 39, 40, 41, 44, 80, 109, 155, 159),
        "an error of the driver or the program",
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        device_grade=False,
    ),
    _xid(
        "cleanup",
        (45,),
        "that it removed the process after another fault",
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        role=Role.VICTIM,
        confidence=Confidence.LOW,
        device_grade=False,
    ),
)
