# SPDX-License-Identifier: Apache-2.0
"""The pods of a run as the loop of each supervisor sees them; here of a run that has one only."""

from __future__ import annotations

import abc
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from resilient.checkpoint.requests import Reply, Request
from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core.causes import Verdict
from resilient.core.evidence import Evidence, Hang
from resilient.launch import Launch, Seat
from resilient.link.board import Board
from resilient.link.messages import FromWorker
from resilient.settings import Effective
from resilient.supervisor.mail import Mail
from resilient.supervisor.party import Orders
from resilient.supervisor.spread import Submit

T = TypeVar("T")
Emit = Callable[[ev.Event], None]
BEAT_S: Final = 2.0
LOST_S: Final = 30.0
"""A pod that says nothing for so long is gone: its machine is, or the network to it."""
STALE_S: Final = 3 * BEAT_S
"""How long it may take until a pod has heard, by way of the first one, that a worker of another is outside of a step:
no silence within one is a hang sooner."""
_MOST_NAMED: Final = 8
AGAIN_S: Final = 1.0
"""Between a mailbox that was cut and the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the pods' side needs of the loop."""

    emit: Emit
    say: Callable[[str], None]
    journal: Callable[..., None]
    watch: Callable[[int, Callable[[], None]], None]
    unwatch: Callable[[int], None]
    after: Callable[[str, float, Callable[[], None]], None]
    board: Board
    """Of the own workers."""
    tell: Callable[[int, object], None]
    """A word to one of them, by its place in this pod."""
    wake: Callable[[], None]
    """Have them look at the board."""
    heard: Callable[[int, FromWorker], None]
    """A worker of the run has said something to its host."""
    ended: Callable[[int], None]
    """A worker of another pod has ended with 0."""
    submit: Submit
    """A request to the own saver."""
    settle: Callable[[], None]
    """Make durable what all workers have reached; ``settled`` is told."""
    give_back: Callable[[int], None]
    """The memory of a slot of the own workers."""
    resolve: Callable[[Mapping[str, str]], Effective]
    """The settings, given those of ``Run()``."""
    is_outside: Callable[[], bool]
    """Whether one of the own workers is outside of a step."""


class Alone:
    """There is no other pod."""

    def __init__(self, launch: Launch, wiring: Wiring) -> None:
        self._launch = launch
        self._wiring = wiring
        self.board = wiring.board
        """Of all workers of the run that are led from here."""
        self.orders: Orders | None = None
        """How boundaries are named, where others have to be asked."""
        self.verdict: Verdict | None = None
        """Of another pod, on why this one ends."""
        self.others_outside = False
        """Some worker of another pod is outside of a step."""
        self.stale_s = 0.0 if launch.nodes == 1 else STALE_S
        """How old that may be."""

    def tell(self, rank: int, message: object) -> None:
        """A word to a worker of the run."""
        self._wiring.tell(rank, message)

    def said(self, rank: int, message: FromWorker) -> None:
        """An own worker has said something."""
        self._wiring.heard(rank, message)

    def submit(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        """A request about the memory of all workers, or the run."""
        self._wiring.submit(make, then)

    def give_back(self, slot: int) -> None:
        """The memory of a slot, of all workers."""
        self._wiring.give_back(slot)

    def resolve(self, run: Mapping[str, str]) -> Effective:
        """The settings, given those of ``Run()``."""
        return self._wiring.resolve(run)

    def committed(self, step: int) -> None:
        """A checkpoint of this step is durable."""

    def settle(self, then: Callable[[int], None]) -> bool:
        """Wait until another pod has seen to it that what was reached is durable; False where that is our own
        business."""
        return False

    def settled(self, durable_step: int) -> None:
        """It was, and nothing is being saved any more."""

    @property
    def pids(self) -> set[int]:
        """Of processes that are the supervisor's own."""
        return set()

    def assemble(self) -> None:
        """Be there for the others, and wait for them."""
        raise AssertionError("one pod waits for no other")

    @property
    def awaited(self) -> str:
        """Pods that are waited for, in words."""
        return ""

    def seat(self, command: cm.StartWorkers) -> Seat:
        """Where the workers of a launch have their place among those of all pods."""
        launch = self._launch
        port = launch.master_port or free_port(launch.master_addr)
        return Seat(
            first=0, world_size=launch.nproc, node=0, nodes=1, master_addr=launch.master_addr, master_port=port,
            restarts=command.launch - 1,
        )  # fmt: skip

    def end(self, grace_s: float) -> None:
        """Have the workers of other pods ended."""

    def local(self, event: ev.Event) -> ev.Event | None:
        """What has happened to the own workers, as the machine is to hear it; ``None``: later."""
        return event

    def hung(self, hang: Hang) -> None:
        """One of them stands still."""
        self._wiring.emit(ev.HangFound(hang=hang))

    def together(self, evidence: Evidence) -> Evidence:
        """What was seen here, with what others have seen."""
        return evidence

    def testify(self, evidence: Evidence) -> None:
        """Tell what was seen here."""
        raise AssertionError("there is nobody to testify to")

    def dismiss(self, command: cm.Dismiss, verdict: Verdict | None) -> None:
        """Tell another pod how it ends."""
        raise AssertionError("there is no other pod to dismiss")

    def announce(self, text: str) -> None:
        """Tell the others what was decided."""

    def leaving(self, by: str, within_s: float) -> None:
        """This pod was asked to leave, and has so long."""

    def tick(self) -> None:
        """Look whether something is due."""

    def close(self, exit_: cm.Exit | None, patience_s: float) -> None:
        """Say that this pod ends, and let go of everything, within that time."""


class OneOfSeveral(Alone, abc.ABC, Generic[T]):
    """What the first of several pods and the others have in common: a mailbox, which is opened when it is needed."""

    def __init__(
        self,
        launch: Launch,
        node: str | None,
        wiring: Wiring,
        environ: Mapping[str, str],
        kinds: Mapping[str, type[T]],
        *,
        now: Callable[[], float],
    ) -> None:
        """``node`` is the machine's name; ``kinds`` are the words that other pods may say."""
        super().__init__(launch, wiring)
        self._node = node
        self._now = now
        self._mail: Mail[T] = Mail(
            kinds, environ, heard=self._heard, connected=self._connected, cut=self._cut, watch=wiring.watch,
            unwatch=wiring.unwatch,
        )  # fmt: skip
        self._opened = False
        self._assembling = False

    @property
    def pids(self) -> set[int]:
        return set() if self._mail.pid is None else {self._mail.pid}

    @abc.abstractmethod
    def _heard(self, word: T) -> None:
        """Another pod has said something."""

    @abc.abstractmethod
    def _connected(self) -> None:
        """Words can be said from now on."""

    @abc.abstractmethod
    def _cut(self, why: str) -> None:
        """None can any more, until the mailbox is opened again."""


def named(pods: Sequence[int]) -> str:
    """Which pods, in words."""
    more = f" and {len(pods) - _MOST_NAMED} others" if len(pods) > _MOST_NAMED else ""
    listed = ", ".join(map(str, pods[:_MOST_NAMED])) + more
    return f"pod{'s' if len(pods) > 1 else ''} {listed}" if pods else ""


def free_port(address: str) -> int:
    """A port that is free now; where somebody else takes it first the attempt fails with EADDRINUSE and is repeated."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
