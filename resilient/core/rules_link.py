# SPDX-License-Identifier: Apache-2.0
"""Rules about communication: NCCL, gloo, the store, and the network under them.

Only rows. Most of these lines are printed by the ranks that wait, not by the one
that failed: such rows have the role victim and lose to any culprit.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.rule import AnyOf, Condition, Family, Role, Rule, died_of, left_behind, printed, raised_anywhere
from resilient.core.symptoms import Lane

NCCL: Final = "https://github.com/NVIDIA/nccl"
C10D: Final = "https://github.com/pytorch/pytorch/tree/main/torch/csrc/distributed/c10d"
GLOO: Final = "https://github.com/pytorch/gloo/tree/main/gloo/transport/tcp"

_WARN: Final = "node-1:4242:4300 [0] transport/net_ib.cc:139 NCCL WARN "
_NCCL_ERROR: Final = "NCCL error in: ProcessGroupNCCL.cpp:1275, {}, NCCL version 2.27.3\n{}"

IB_RULES: Final = (
    Rule(
        id="ib-async-fatal",
        family=Family.COMMUNICATION,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        # A local access violation is the program's or the set-up's, whatever the adapter calls it.
        when=printed(
            Lane.NCCL,
            r"NET/IB ?: (?:[\w-]{1,32}:\d+ async fatal event(?! on QP .{0,80}access violation)"
            r"|Got async event ?: (?:local catastrophic error|port error))",
        ),
        why="the network adapter of rank {rank}'s node failed: {seen}",
        source=NCCL,
        example=left_behind(f"{_WARN}NET/IB : mlx5_0:1 async fatal event: local catastrophic error", signal=6),
        device_grade=True,
    ),
    Rule(
        id="ib-port-error",
        family=Family.COMMUNICATION,
        cause=Cause.INTERCONNECT_FAULT,
        action=Action.RESCHEDULE,
        confidence=Confidence.MEDIUM,
        when=printed(Lane.NCCL, r"NET/IB ?: [\w-]{1,32}:\d+ Got non-fatal async event: port error"),
        why="the link of rank {rank}'s network adapter went down: {seen}",
        source=NCCL,
        example=left_behind(f"{_WARN}NET/IB : mlx5_3:1 Got non-fatal async event: port error(10)", signal=6),
    ),
)


def _said(text: str, *names: str) -> Condition:
    """State that torch raised it, or that torch or NCCL printed it on their way down."""
    return AnyOf((raised_anywhere(*(names or ("RuntimeError",)), text=text), printed(Lane.NCCL, text)))


MISUSE_RULES: Final = (
    Rule(
        id="collective-mismatch",
        family=Family.COMMUNICATION,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        when=_said(
            r"Detected mismatch between collectives on ranks|Mismatched collective detected"
            r"|Message truncated ?: received"
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
        when=_said(r"Duplicate GPU detected|Multiple Ranks are using the same GPU|Mismatched NCCL version detected"),
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
            r"|failed to (?:extend|create shared memory file) /dev/shm/"
            r"|Error while creating shared memory segment /dev/shm/"
        ),
        why="NCCL lacks an interface, locked memory or shared memory on rank {rank}: {seen}",
        source="https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
        example=died_of("torch.distributed.DistBackendError", "Bootstrap : no socket interface found"),
    ),
    Rule(
        id="nccl-invalid-usage",
        family=Family.COMMUNICATION,
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=_said(r"ncclInvalid(?:Usage|Argument)\b"),
        why="NCCL was called wrongly on rank {rank}{where}: {seen}",
        source=NCCL,
        example=died_of(
            "torch.distributed.DistBackendError",
            _NCCL_ERROR.format(
                "invalid usage", "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
            ),
        ),
    ),
)


def _victim(
    name: str, cause: Cause, why: str, when: Condition, example: tuple[str, str] | str, source: str = C10D
) -> Rule:
    kind = died_of(*example) if isinstance(example, tuple) else left_behind(example, signal=6)
    return Rule(
        id=name,
        family=Family.COMMUNICATION,
        cause=cause,
        action=Action.INVESTIGATE if cause is Cause.HANG_OR_COLLECTIVE_TIMEOUT else Action.RESTART_IN_PLACE,
        role=Role.VICTIM,
        confidence=Confidence.MEDIUM,
        when=when,
        why=why + ": {seen}",
        source=source,
        example=kind,
    )


_PEER, _LATE = Cause.NETWORK_OR_PEER, Cause.HANG_OR_COLLECTIVE_TIMEOUT
_WATCHDOG: Final = r"Watchdog caught collective operation timeout|collective timeout from|Heartbeat monitor timed out"

PEER_RULES: Final = (
    Rule(
        id="address-in-use",
        family=Family.COMMUNICATION,
        cause=Cause.NETWORK_OR_PEER,
        action=Action.RESTART_IN_PLACE,
        when=AnyOf(
            (
                raised_anywhere("OSError", text=r"^\[Errno 98\]|Address already in use"),
                raised_anywhere("RuntimeError", text=r"EADDRINUSE|[Aa]ddress already in use"),
            )
        ),
        why="a port that rank {rank} wanted was taken: {seen}",
        source="https://man7.org/linux/man-pages/man2/bind.2.html",
        example=died_of("torch.distributed.DistNetworkError", "The server socket failed to bind, EADDRINUSE"),
    ),
    _victim(
        "gloo-timeout",
        _LATE,
        "rank {rank} waited in vain for a peer{where}",
        raised_anywhere("RuntimeError", text=r"Timed out waiting \d+ms for (?:recv|send) operation|monitoredBarrier"),
        (
            "RuntimeError",
            "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete",
        ),
        GLOO,
    ),
    _victim(
        "gloo-peer-lost",
        _PEER,
        "rank {rank} lost the connection to a peer{where}",
        raised_anywhere(
            "RuntimeError",
            text=r"Connection closed by peer|Application timeout caused pair closure|connectFullMesh failed"
            r"|(?:Read error|writev|Socket|recv|send)\b.{0,120}"
            r"(?:Connection reset by peer|Broken pipe|[Cc]onnection refused)",
        ),
        ("RuntimeError", "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:44759"),
        GLOO,
    ),
    _victim(
        "store-timeout",
        _LATE,
        "rank {rank} waited in vain for a peer at the store",
        raised_anywhere(
            "RuntimeError",
            text=r"wait timeout after \d+ms|client socket has timed out"
            r"|[Tt]imed out (?:after \d+|initializing|waiting)|Socket Timeout",
        ),
        ("torch.distributed.DistStoreError", "wait timeout after 1000ms, keys: /default_pg/0//nokey"),
    ),
    _victim(
        "store-lost",
        _PEER,
        "rank {rank} lost the store, which lives in another process",
        AnyOf(
            (
                raised_anywhere("DistNetworkError", "DistStoreError", "RendezvousConnectionError"),
                raised_anywhere("RuntimeError", text=r"^Failed to recv, got 0 bytes|Connection was likely closed"),
            )
        ),
        ("torch.distributed.DistNetworkError", "Failed to recv, got 0 bytes. Connection was likely closed."),
    ),
    _victim(
        "nccl-timeout",
        _LATE,
        "rank {rank} waited in vain in a collective{where}",
        raised_anywhere("RuntimeError", text=_WATCHDOG),
        (
            "torch.distributed.DistBackendError",
            "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)",
        ),
    ),
    _victim(
        "nccl-peer-lost",
        _PEER,
        "NCCL of rank {rank} lost a peer{where}",
        raised_anywhere(
            "RuntimeError",
            text=r"ncclRemoteError|NCCL communicator was aborted|closed by remote peer|exceeded error retry count",
        ),
        (
            "torch.distributed.DistBackendError",
            _NCCL_ERROR.format(
                "remote process exited", "ncclRemoteError: A call failed possibly due to a network error"
            ),
        ),
        NCCL,
    ),
    Rule(
        id="nccl-system-error",
        family=Family.COMMUNICATION,
        cause=Cause.NETWORK_OR_PEER,
        action=Action.INVESTIGATE,
        confidence=Confidence.MEDIUM,
        when=raised_anywhere("RuntimeError", text=r"\bncclSystemError\b"),
        why="a call to the system failed in NCCL on rank {rank}{where}: {seen}",
        source=NCCL,
        example=died_of(
            "torch.distributed.DistBackendError",
            _NCCL_ERROR.format("unhandled system error", "ncclSystemError: System call (e.g. socket, malloc) failed"),
        ),
    ),
    Rule(
        id="nccl-other",
        family=Family.COMMUNICATION,
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        when=raised_anywhere("DistBackendError", "DistError"),
        why="the communication of rank {rank} failed without naming a culprit{where}: {seen}",
        source=C10D,
        example=died_of(
            "torch.distributed.DistBackendError",
            _NCCL_ERROR.format("internal error", "ncclInternalError: Internal check failed."),
        ),
    ),
    _victim(
        "connection-lost",
        _PEER,
        "rank {rank} lost a connection{where}",
        AnyOf(
            (
                raised_anywhere("ConnectionError", "gaierror"),
                raised_anywhere("OSError", text=r"^\[Errno (?:100|101|103|104|107|110|111|112|113)\]"),
            )
        ),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer"),
        "https://man7.org/linux/man-pages/man3/errno.3.html",
    ),
)

ABORT_RULES: Final = (
    _victim(
        "watchdog-timeout",
        _LATE,
        "rank {rank} waited in vain in a collective until the watchdog ended it",
        printed(Lane.TORCH, _WATCHDOG),
        "[rank1]:[E1123 10:11:12.130 ProcessGroupNCCL.cpp:670] [Rank 1] Watchdog caught collective operation timeout: "
        "WorkNCCL(SeqNum=1, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
    ),
    _victim(
        "watchdog-abort",
        _PEER,
        "the watchdog of rank {rank} ended it because of a failed collective",
        printed(
            Lane.TORCH,
            r"watchdog thread terminated with exception|taking the entire process down|communicator was aborted on rank"
            r"|Some NCCL operations have failed or timed out|failure detected by watchdog",
        ),
        "[rank0]:[E1123 10:11:12.130 ProcessGroupNCCL.cpp:684] "
        "To avoid data inconsistency, we are taking the entire process down.",
    ),
    _victim(
        "nccl-witness",
        _PEER,
        "NCCL of rank {rank} lost a peer",
        printed(
            Lane.NCCL,
            r"closed by remote peer|exceeded error retry count|Got completion from peer"
            r"|Connection (?:reset by peer|refused)"
            r"|Call to \w+ failed",
        ),
        f"{_WARN}NET/IB: Got completion from peer 10.0.0.1<47534> with status=12 opcode=0 len=0 vendor err 129",
        NCCL,
    ),
)
