# SPDX-License-Identifier: Apache-2.0
"""Rules about links: NCCL's own words on adapters, NVLink domains, and how it was set up or called.

Only rows. What ranks say of one another is in the next table.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import (
    AnyOf,
    Condition,
    Family,
    Rule,
    died_of,
    left_behind,
    printed,
    raised_anywhere,
    stated,
)

NCCL: Final = "https://github.com/NVIDIA/nccl"
C10D: Final = "https://github.com/pytorch/pytorch/tree/main/torch/csrc/distributed/c10d"

WARN: Final = "node-1:4242:4300 [0] transport/net_ib.cc:139 NCCL WARN "
NCCL_ERROR: Final = "NCCL error in: ProcessGroupNCCL.cpp:1275, {}, NCCL version 2.27.3\n{}"

NVLINK_DOMAIN_RULES: Final = (
    Rule(
        id="nccl-mnnvl",
        family=Family.COMMUNICATION,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        confidence=Confidence.MEDIUM,
        when=printed(Lane.NCCL, r"MNNVL .{0,200}not working on this system|Failed to bind NVLink SHARP"),
        why="the NVLink domain of rank {rank}'s node does not work: {seen}",
        source=f"{NCCL}/blob/master/src/mnnvl.cc",
        example=left_behind(f"{WARN}MNNVL (cliqueSize 8) is available but not working on this system.", code=1),
    ),
)

IB_RULES: Final = (
    Rule(
        id="ib-adapter-health",
        family=Family.DRIVER,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        when=printed(
            Lane.KERNEL,
            r"^mlx5_core .{0,80}(?:health compromised|[Hh]ealth recovery .{0,20}fail|irisc not responding"
            r"|handling bad device|[Ff]atal error|assert_var\[0\] 0x0*[1-9a-f])",
        ),
        why="the network adapter of rank {rank}'s node is in a bad state: {seen}",
        source="https://github.com/torvalds/linux/blob/master/drivers/net/ethernet/mellanox/mlx5/core/health.c",
        example=left_behind("mlx5_core 0000:18:00.0: device's health compromised - reached miss count", signal=6),
        device_grade=True,
    ),
    Rule(
        id="ib-async-fatal",
        family=Family.COMMUNICATION,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        # A local access violation is the program's or the set-up's, whatever the adapter calls it.
        when=printed(
            Lane.NCCL,
            r"NET/IB ?: (?:[\w-]{1,32}:\d+ async fatal event(?! on QP .{0,80}access violation)"
            r"|Got async event ?: local catastrophic error)",
        ),
        why="the network adapter of rank {rank}'s node failed: {seen}",
        source=NCCL,
        example=left_behind(f"{WARN}NET/IB : mlx5_0:1 async fatal event: local catastrophic error", signal=6),
        device_grade=True,
    ),
    Rule(
        id="ib-port-error",
        family=Family.COMMUNICATION,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        confidence=Confidence.MEDIUM,
        when=printed(
            Lane.NCCL, r"NET/IB ?: (?:[\w-]{1,32}:\d+ )?Got (?:non-fatal )?async (?:error )?event ?: port error"
        ),
        why="the link of rank {rank}'s network adapter went down: {seen}",
        source=NCCL,
        example=left_behind(f"{WARN}NET/IB : mlx5_3:1 Got non-fatal async event: port error(10)", signal=6),
    ),
)


def _said(text: str) -> Condition:
    """State that torch raised it, or that NCCL printed it on its way down, or that a log quotes it."""
    return AnyOf((stated(text, "RuntimeError"), printed(Lane.NCCL, text)))


# gloo throws it in a thread of its own, where nobody can catch it.
_UNEQUAL: Final = printed(Lane.TORCH, r"gloo/transport/.{0,200}Received data size doesn't match expected size")

MISUSE_RULES: Final = (
    Rule(
        id="collective-mismatch",
        family=Family.COMMUNICATION,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        when=AnyOf(
            (
                _said(
                    r"Detected mismatch between collectives on ranks|Mismatched collective detected"
                    r"|Message truncated ?: received"
                ),
                _UNEQUAL,
            )
        ),
        why="the ranks called different collectives{where}: {seen}",
        source=C10D,
        example=died_of("RuntimeError", "Detected mismatch between collectives on ranks. Rank 0 is running collective"),
    ),
    Rule(
        id="ddp-unused-parameters",
        family=Family.COMMUNICATION,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        when=raised_anywhere("RuntimeError", text=r"^Expected to (?:have finished reduction|mark a variable ready)"),
        why="DistributedDataParallel was used in a way that it does not support{where}: {seen}",
        source="https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html",
        example=died_of("RuntimeError", "Expected to have finished reduction in the prior iteration before starting"),
    ),
    Rule(
        id="nccl-duplicate-gpu",
        family=Family.COMMUNICATION,
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.STOP,
        when=_said(
            r"Duplicate GPU detected|Multiple Ranks are using the same GPU|Mismatched NCCL version detected"
            r"|rank \d+ of \d+ ranks has already checked in"
        ),
        why="the ranks share a GPU, or differ in their NCCL: {seen}",
        source=NCCL,
        example=died_of(
            "torch.distributed.DistBackendError", "Duplicate GPU detected : rank 1 and rank 0 both on CUDA"
        ),
    ),
    Rule(
        id="nccl-environment",
        family=Family.COMMUNICATION,
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.STOP,
        when=_said(
            r"no socket interface found|No usable listening interface"
            r"|Call to ibv_reg_mr\w* failed.{0,60}Cannot allocate"
            r"|Call to ibv_modify_qp failed with (?:error )?(?:22|Invalid)"
            r"|Got completion .{0,120}(?:status=4|error 4)\b.{0,80}vendor err 81\b"
            r"|NET/OFI .{0,200}(?:Invalid argument|No data available|Function not implemented|No such device)"
            r"|failed to (?:extend|create shared memory file) /dev/shm/"
            r"|Error while creating shared memory segment /dev/shm/"
        ),
        why="NCCL lacks an interface, locked memory or shared memory on rank {rank}: {seen}",
        source="https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
        example=died_of("torch.distributed.DistBackendError", "Bootstrap : no socket interface found"),
    ),
    Rule(
        id="nccl-nvls",
        family=Family.COMMUNICATION,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        confidence=Confidence.MEDIUM,
        when=printed(
            Lane.STDERR,
            r"^\S{1,255}:\d{1,10}:\d{1,10} \[-?\d{1,5}\] transport/nvls\.cc:\d{1,5} NCCL WARN "
            r"(?:Cuda failure |Failed to bind NVLink)",
            "transport/nvls.cc:",
        ),
        why="NCCL could not set up the NVLink switches of rank {rank}'s node (its fabric manager?): {seen}",
        source="https://github.com/NVIDIA/nccl/blob/master/src/transport/nvls.cc",
        example=left_behind(
            "node-1:4242:4300 [0] transport/nvls.cc:244 NCCL WARN Cuda failure 802 'system not yet initialized'", code=1
        ),
    ),
    Rule(
        id="nccl-invalid-usage",
        family=Family.COMMUNICATION,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=_said(r"ncclInvalid(?:Usage|Argument)\b|^NCCL [Ee]rror .{0,200}invalid (?:usage|argument)"),
        why="NCCL was called wrongly on rank {rank}{where}: {seen}",
        source=NCCL,
        example=died_of(
            "torch.distributed.DistBackendError",
            NCCL_ERROR.format(
                "invalid usage", "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
            ),
        ),
    ),
)
