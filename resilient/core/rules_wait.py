# SPDX-License-Identifier: Apache-2.0
"""Rules about waits in vain that mostly come out the same each time: who was waited for was not late by chance.

Only rows, asked before those about peers. What they say of a rank that waited is that
of a witness, so any other rank with a fault of its own is blamed first.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.crowd import UNREACHED
from resilient.core.lanes import Lane
from resilient.core.rule import AllOf, AnyOf, Family, Role, Rule, died_of, kept_log, logged, printed, raised_anywhere
from resilient.core.symptoms import Symptoms

TCP_STORE: Final = "https://github.com/pytorch/pytorch/blob/main/torch/csrc/distributed/c10d/socket.cpp"
BARRIERS: Final = "https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.init_process_group"

_TO_CONNECT: Final = AnyOf(
    (
        raised_anywhere("RuntimeError", "TimeoutError", text=UNREACHED),
        # The same from the log of its sockets, where the exception is cut off.
        AllOf((kept_log, printed(Lane.TORCH, UNREACHED))),
    )
)


# torch/distributed/elastic/rendezvous, as a frame of a traceback shows it.
_RENDEZVOUS: Final = printed(Lane.STDERR, r"elastic[/.]rendezvous", "rendezvous")


def _never_connected(symptoms: Symptoms) -> str | None:
    """No rank that is known reached the store, and nothing was done before."""
    seen = _TO_CONNECT(symptoms)
    # The rendezvous of an elastic launcher is made to wait for nodes that come later.
    elastic = any("Rendezvous" in link.type for link in symptoms.chain) or _RENDEZVOUS(symptoms) is not None
    return seen if seen is not None and not elastic and symptoms.crowd.unconnected else None


_IN_VAIN: Final = AnyOf(
    (
        # What others print of a watchdog that has ended them follows from the same wait.
        printed(
            Lane.TORCH,
            r"Watchdog caught collective|Received a dump signal|terminated with exception"
            r"|Some NCCL operations have failed|taking the entire process down",
        ),
        raised_anywhere(
            "RuntimeError", text=r"Watchdog caught collective|Timed out waiting \d+ms for|wait timeout after \d+ms"
        ),
    )
)


def _prepared_meanwhile(symptoms: Symptoms) -> str | None:
    return symptoms.crowd.preparation if _IN_VAIN(symptoms) is not None else None


WAIT_RULES: Final = (
    Rule(
        # A pod may come up before the name of the first one does; twice before the first step is a wrong setting.
        id="store-never-reached",
        family=Family.COMMUNICATION,
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.INVESTIGATE,
        role=Role.VICTIM,
        confidence=Confidence.LOW,
        when=_never_connected,
        why="rank {rank} never reached the address where all ranks are to meet (its name, port or network, "
        "or a first rank that did not start): {seen}",
        source=TCP_STORE,
        example=died_of(
            "torch.distributed.DistNetworkError",
            "The client socket has timed out after 60000ms while trying to connect to (node-1, 29500).",
        ),
    ),
    Rule(
        id="preparation-too-long",
        family=Family.COMMUNICATION,
        cause=Cause.HANG_OR_COLLECTIVE_TIMEOUT,
        action=Action.STOP,
        role=Role.VICTIM,
        confidence=Confidence.MEDIUM,
        when=_prepared_meanwhile,
        why="one rank prepared something for as long as the others may wait for it: prepare it beforehand, or raise "
        "the time-out of the process group: {seen}",
        source=BARRIERS,
        example=logged(
            "Tokenizing:   9%|7    | 280000/2969526 [09:55<4:48:08, 155.57 examples/s]",
            "[rank1]:[E1123 10:11:12 ProcessGroupNCCL.cpp:670] [Rank 1] Watchdog caught collective operation timeout: "
            "WorkNCCL(SeqNum=2, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600081 milliseconds before timing out.",
        ),
    ),
)
