# SPDX-License-Identifier: Apache-2.0
"""Rules about peers: what a rank prints and raises that waits for another, or loses it.

Only rows. Most of these lines come from the ranks that wait, not from the one that
failed: such rows have the role victim and lose to any culprit.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.lanes import Lane
from resilient.core.rule import (
    AllOf,
    AnyOf,
    Condition,
    Family,
    Role,
    Rule,
    died_of,
    kept_log,
    left_behind,
    logged,
    printed,
    raised_anywhere,
    stated,
)
from resilient.core.rules_link import C10D, NCCL, NCCL_ERROR, WARN
from resilient.core.symptoms import Symptoms

GLOO: Final = "https://github.com/pytorch/gloo/tree/main/gloo/transport/tcp"


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

_RENDEZVOUS: Final = (
    "RendezvousConnectionError", "RendezvousTimeoutError", "RendezvousClosedError", "RendezvousStateError",
)  # fmt: skip
_NO_STORE: Final = AnyOf(
    (
        raised_anywhere("DistNetworkError", *_RENDEZVOUS),
        raised_anywhere("RuntimeError", text=r"client socket has timed out|^connect\(\) timed out"),
    )
)


def _alone(symptoms: Symptoms) -> str | None:
    return "" if symptoms.evidence.world_size == 1 else None


# A warning of torch's is followed by another try.
_TAKEN: Final = r"^(?!(?:\[rank\d{1,6}\]: ?)?\[W)[^\n]{0,400}(?:EADDRINUSE|[Aa]ddress already in use)"

PEER_RULES: Final = (
    Rule(
        id="port-in-use",
        family=Family.COMMUNICATION,
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        # Under the supervisor ports are chosen anew; a launcher asks for the same one again.
        when=AllOf((kept_log, stated(_TAKEN))),
        why="the port is taken, as by a second run on this host: {seen}",
        source="https://docs.pytorch.org/docs/stable/elastic/run.html",
        example=logged("RuntimeError: The server socket has failed to bind to 0.0.0.0:29500 (Address already in use)."),
    ),
    Rule(
        id="address-in-use",
        family=Family.COMMUNICATION,
        cause=Cause.NETWORK_OR_PEER,
        action=Action.RESTART_IN_PLACE,
        when=AnyOf(
            (
                raised_anywhere("OSError", text=r"^\[Errno 98\]"),
                raised_anywhere("OSError", "RuntimeError", text=_TAKEN),
            )
        ),
        why="a port that rank {rank} wanted was taken: {seen}",
        source="https://man7.org/linux/man-pages/man2/bind.2.html",
        example=died_of("torch.distributed.DistNetworkError", "The server socket failed to bind, EADDRINUSE"),
    ),
    Rule(
        id="store-own",
        family=Family.COMMUNICATION,
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=AllOf((_alone, _NO_STORE)),
        why="the only rank of the run cannot reach its store, and no peer could have ended it "
        "(its address, or another run's at the same one): {seen}",
        source="https://docs.pytorch.org/docs/stable/elastic/rendezvous.html",
        example=replace(
            logged("RendezvousConnectionError: The connection to the C10d store has failed."), world_size=1
        ),
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
        AnyOf(
            (
                raised_anywhere(
                    "RuntimeError",
                    text=r"wait timeout after \d+ms|client socket has timed out|^connect\(\) timed out"
                    r"|[Tt]imed out (?:after \d+|initializing|waiting)|Socket Timeout",
                ),
                # The same from the log of its sockets, where the exception is cut off.
                AllOf((kept_log, printed(Lane.TORCH, r"^\[c10d\] .{0,300}\btimed out after \d"))),
            )
        ),
        ("torch.distributed.DistStoreError", "wait timeout after 1000ms, keys: /default_pg/0//nokey"),
    ),
    _victim(
        "store-lost",
        _PEER,
        "rank {rank} lost the store, which lives in another process",
        AnyOf(
            (
                raised_anywhere("DistNetworkError", "DistStoreError", *_RENDEZVOUS),
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
            text=r"ncclRemoteError|, remote process exited|NCCL communicator was aborted|closed by remote peer"
            r"|exceeded error retry count",
        ),
        (
            "torch.distributed.DistBackendError",
            NCCL_ERROR.format(
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
        when=raised_anywhere("RuntimeError", text=r"\bncclSystemError\b|^NCCL [Ee]rror.{0,200}unhandled system error"),
        why="a call to the system failed in NCCL on rank {rank}{where}: {seen}",
        source=NCCL,
        example=died_of(
            "torch.distributed.DistBackendError",
            NCCL_ERROR.format("unhandled system error", "ncclSystemError: System call (e.g. socket, malloc) failed"),
        ),
    ),
    Rule(
        id="nccl-other",
        family=Family.COMMUNICATION,
        cause=Cause.AMBIGUOUS,
        action=Action.INVESTIGATE,
        confidence=Confidence.LOW,
        when=AnyOf(
            (raised_anywhere("DistBackendError", "DistError"), raised_anywhere("RuntimeError", text=r"^NCCL [Ee]rror"))
        ),
        why="the communication of rank {rank} failed without naming a culprit{where}: {seen}",
        source=C10D,
        example=died_of(
            "torch.distributed.DistBackendError",
            NCCL_ERROR.format("internal error", "ncclInternalError: Internal check failed."),
        ),
    ),
    _victim(
        "connection-lost",
        _PEER,
        "rank {rank} lost a connection{where}",
        AnyOf(
            (
                raised_anywhere("ConnectionError", "gaierror"),
                raised_anywhere(
                    "CommError", "APIConnectionError", text=r"\A(?!.{0,200}(?:\b40[134]\b|permission|not found))"
                ),
                raised_anywhere("OSError", text=r"^\[Errno (?:100|101|103|104|107|110|111|112|113)\]"),
            )
        ),
        ("ConnectionResetError", "[Errno 104] Connection reset by peer"),
        "https://man7.org/linux/man-pages/man3/errno.3.html",
    ),
)


def _disagree(symptoms: Symptoms) -> str | None:
    return symptoms.crowd.disagreement


_DIFFERENT: Final = (
    "[rank1]:[E1123 10:11:12 ProcessGroupNCCL.cpp:670] [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
    "[rank2]:[E1123 10:11:12 ProcessGroupNCCL.cpp:670] [Rank 2] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=9, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
)
_DONE: Final = re.compile(
    r"(?i)\bmax_(?:epochs|steps)\S{0,12} reached|\btraining (?:is )?(?:complete|completed|finished|done)\b"
    r"|\b(?:finished|completed|done) training\b"
)


def _had_finished(symptoms: Symptoms) -> str | None:
    """Any rank of a kept log has said so."""
    if not symptoms.evidence.from_log:
        return None
    found = (_DONE.search(rank.stderr_tail) for rank in symptoms.evidence.ranks)
    return next((match[0] for match in found if match), None)


ABORT_RULES: Final = (
    Rule(
        id="timeout-after-the-end",
        family=Family.COMMUNICATION,
        cause=Cause.HANG_OR_COLLECTIVE_TIMEOUT,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=AllOf((_had_finished, printed(Lane.TORCH, _WATCHDOG))),
        why="the training had finished, and ranks waited for one another afterwards: {seen}",
        source="https://docs.pytorch.org/docs/stable/distributed.html",
        example=logged("Training finished.", _DIFFERENT[0]),
    ),
    Rule(
        id="collective-desync",
        family=Family.COMMUNICATION,
        cause=Cause.HANG_OR_COLLECTIVE_TIMEOUT,
        action=Action.STOP,
        confidence=Confidence.MEDIUM,
        when=AllOf((_disagree, printed(Lane.TORCH, _WATCHDOG))),
        why="the ranks waited for different collectives, as with uneven data or a branch that not all take: {seen}",
        source="https://docs.pytorch.org/docs/stable/distributed.algorithms.join.html",
        example=logged(*_DIFFERENT),
    ),
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
            r"watchdog thread terminated with exception|Received a dump signal|taking the entire process down"
            r"|communicator was aborted on rank"
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
        f"{WARN}NET/IB: Got completion from peer 10.0.0.1<47534> with status=12 opcode=0 len=0 vendor err 129",
        NCCL,
    ),
)
