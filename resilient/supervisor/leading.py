# SPDX-License-Identifier: Apache-2.0
"""The first pod's side of several: it knows who is there, has workers started and ended everywhere, and hears what was
seen. What is to be done is decided by the state machine, for which the ranks of all pods are those of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from resilient.checkpoint.requests import Reply, Request
from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core.causes import Verdict
from resilient.core.evidence import Evidence, Hang
from resilient.core.exit_codes import ExitCode
from resilient.core.policy import Decision
from resilient.core.testimony import is_of, of_pod, together
from resilient.launch import Launch, Seat
from resilient.link.board import Board
from resilient.settings import Effective
from resilient.supervisor.blaming import Hangs
from resilient.supervisor.mail import Address
from resilient.supervisor.party import Orders
from resilient.supervisor.pod_words import (
    LEADER,
    TO_LEADER,
    Announced,
    Asked,
    Begin,
    Durable,
    End,
    Ended,
    GiveBack,
    Heard,
    Hung,
    Joined,
    Leave,
    Left,
    Lives,
    Settle,
    Settled,
    Testified,
    ToLeader,
    UseSettings,
)
from resilient.supervisor.pods import AGAIN_S, BEAT_S, LOST_S, OneOfSeveral, Wiring, free_port, named
from resilient.supervisor.world import World
from resilient.version import version

SAY_AGAIN_S: Final = 60.0
_CONTRADICTION: Final = "what it says contradicts itself"


@dataclass(slots=True, kw_only=True)
class _Peer:
    """Another pod that is there."""

    pod: int
    address: str
    node: str | None
    heard_at: float
    ready: bool = True
    """It has no workers, and waits."""
    in_attempt: bool = False
    """Its workers were started, and it has not testified."""
    outside: bool = False
    """A worker of its is outside of a step."""
    fits: bool = True
    """Else it ends, and the run with it, as soon as it has heard why."""
    settles: bool = False
    """It waits to hear what is durable."""
    dismissed: bool = False
    """It was told how it ends."""
    has_heard: bool = False


class Leading(OneOfSeveral[ToLeader]):
    """Of pod 0."""

    def __init__(
        self,
        launch: Launch,
        node: str | None,
        wiring: Wiring,
        environ: Mapping[str, str],
        *,
        run_id: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(launch, node, wiring, environ, TO_LEADER, now=now)
        self._run_id = run_id
        self._world = World(
            wiring.board, launch.nodes, say=self._say_to, pods=self._connected_pods, submit=wiring.submit,
            heard=wiring.heard,
        )  # fmt: skip
        self.board: Board = self._world.board
        self.orders: Orders | None = self._world.orders
        self._run: Mapping[str, str] | None = None
        """What ``Run()`` was given, once it was."""
        self._hangs = Hangs(launch.nodes, emit=wiring.emit, after=wiring.after)
        self._peers: dict[int, _Peer] = {}
        self._dismissing = False
        self._launch_number = 0
        self._order: list[int] = []
        """Ranks as they were seen to end."""
        self._testimonies: dict[int, Evidence] = {}
        self._group: ev.GroupEnded | None = None
        """Of the own workers, while those of other pods have not all ended."""
        self._runs = False
        """Some worker of the launch may still run."""
        self._say_at = 0.0

    def tell(self, rank: int, message: object) -> None:
        if rank < self._launch.nproc:
            self._wiring.tell(rank, message)
        else:
            self._world.tell(rank, message)

    def submit(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        self._world.spread.submit(make, then)

    def give_back(self, slot: int) -> None:
        self._wiring.give_back(slot)
        self._say_to_all(GiveBack(pod=0, address=LEADER, slot=slot))

    def resolve(self, run: Mapping[str, str]) -> Effective:
        effective = self._wiring.resolve(run)
        self._run = {**run}
        self._say_to_all(UseSettings(pod=0, address=LEADER, run=self._run))
        return effective

    def committed(self, step: int) -> None:
        self._say_to_all(Durable(pod=0, address=LEADER, step=step))

    # What the loop asks for.

    def assemble(self) -> None:
        self._assembling = True
        self._say_at = self._now() + SAY_AGAIN_S
        if not self._opened:
            self._opened = True
            self._open()
            self._beat()
        self._look_who_is_there()

    def seat(self, command: cm.StartWorkers) -> Seat:
        launch = self._launch
        port = free_port(launch.master_addr)
        self._launch_number = command.launch
        self._order, self._testimonies, self._group = [], {}, None
        self._runs = True
        self._hangs.forget()
        begin = Begin(
            pod=0, address=LEADER, attempt=command.attempt, launch=command.launch, port=port, run_id=self._run_id
        )
        for peer in self._peers.values():
            peer.ready, peer.in_attempt = False, True
            self._say(peer, begin)
        return Seat(
            first=0, world_size=launch.nproc * launch.nodes, node=0, nodes=launch.nodes, master_addr=launch.master_addr,
            master_port=port, restarts=command.launch - 1,
        )  # fmt: skip

    def end(self, grace_s: float) -> None:
        for peer in self._peers.values():
            if peer.in_attempt:
                self._say(peer, End(pod=0, address=LEADER, grace_s=grace_s))

    def local(self, event: ev.Event) -> ev.Event | None:
        if isinstance(event, ev.WorkerEnded):
            self._order.append(event.rank)
        if not isinstance(event, ev.GroupEnded):
            return event
        self._group = event
        self._look_who_has_ended()
        return None

    def hung(self, hang: Hang) -> None:
        self._hangs.found(0, hang)

    def together(self, evidence: Evidence) -> Evidence:
        own = of_pod(evidence, first=0, node=self._node)
        others = [evidence for _, evidence in sorted(self._testimonies.items())]
        return together([own, *others], order=self._order, world_size=self._launch.nproc * self._launch.nodes)

    def dismiss(self, command: cm.Dismiss, verdict: Verdict | None) -> None:
        self._dismissing = True
        peer = self._peers.get(command.pod)
        if peer is not None:
            peer.ready, peer.dismissed = False, True
            self._say(peer, _leave(command.decision, verdict, command.yield_s))

    def announce(self, text: str) -> None:
        self._say_to_all(Announced(pod=0, address=LEADER, text=text))

    def tick(self) -> None:
        if self._dismissing and all(peer.has_heard for peer in self._peers.values() if peer.dismissed):
            self._dismissing = False
            self._wiring.emit(ev.Dispersed())
        now = self._now()
        for peer in [*self._peers.values()]:
            if now - peer.heard_at > LOST_S:
                self._gone(peer, f"nothing was heard from it for {LOST_S:.0f} s")
        if self._assembling and now >= self._say_at:
            self._say_at = now + SAY_AGAIN_S
            self._wiring.say(f"still waiting for {self.awaited}")

    def close(self, exit_: cm.Exit | None, patience_s: float) -> None:
        if exit_ is not None:
            for peer in self._peers.values():
                if not peer.dismissed:
                    self._say(peer, Left(pod=0, address=LEADER, why=exit_.why, code=exit_.code))
        self._mail.close(patience_s)
        self._world.close()

    # What the others say.

    def _heard(self, word: ToLeader) -> None:
        if isinstance(word, Joined):
            self._joined(word)
            return
        peer = self._peers.get(word.pod)
        if peer is None or peer.address != word.address:
            return  # of a connection that is over
        peer.heard_at = self._now()
        match word:
            case Asked() | Settle() | Heard() | Left():
                self._heard_of_its_end(peer, word)
            case Ended() | Hung() | Testified():
                if word.launch == self._launch_number and peer.in_attempt:
                    self._heard_of_workers(peer, word)
            case Lives():
                peer.outside = word.outside
                self.others_outside = any(other.outside for other in self._peers.values() if other.in_attempt)
            case _:
                if not self._world.hear(peer.pod, self._ranks_of(peer.pod), word):
                    self._gone(peer, _CONTRADICTION)

    def _heard_of_its_end(self, peer: _Peer, word: Asked | Settle | Heard | Left) -> None:
        match word:
            case Asked():
                self._wiring.emit(ev.PeerAsked(pod=peer.pod, by=word.by, within_s=word.within_s))
            case Settle():
                peer.settles = True
                if peer.in_attempt:  # it ends for a reason of its own, and testifies no more
                    peer.in_attempt = False
                    self._wiring.emit(ev.PeerGone(pod=peer.pod, why="it ends for a reason of its own", leaving=True))
                    self._look_who_has_ended()
                self._look_who_settles()
            case Heard():
                peer.has_heard = True
            case Left():
                self._gone(peer, word.why, leaving=word.leaving, code=word.code)

    def _heard_of_workers(self, peer: _Peer, word: Ended | Hung | Testified) -> None:
        ranks = self._ranks_of(peer.pod)
        match word:
            case Ended() if word.rank in ranks and word.rank not in self._order:
                self._order.append(word.rank)
                if word.clean:
                    self._wiring.ended(word.rank)
                self._wiring.emit(ev.WorkerEnded(rank=word.rank, clean=word.clean, finished=word.finished))
            case Hung() if word.hang.rank in ranks:
                self._hangs.found(peer.pod, word.hang)
            case Testified() if is_of(word.evidence, ranks):
                peer.in_attempt = False
                self._testimonies[peer.pod] = word.evidence
                self._look_who_has_ended()
            case _:
                self._gone(peer, _CONTRADICTION)

    def _joined(self, word: Joined) -> None:
        peer = self._peers.get(word.pod)
        if peer is not None and peer.address == word.address:
            peer.heard_at = self._now()
            peer.ready = peer.fits and not peer.in_attempt and not peer.dismissed
            self._look_who_is_there()
            return
        if word.pod not in range(1, self._launch.nodes):
            return
        if peer is not None:
            self._gone(peer, "it was replaced, or has lost touch")
        peer = _Peer(pod=word.pod, address=word.address, node=word.node, heard_at=self._now())
        self._peers[word.pod] = peer
        if self._run is not None:
            self._say(peer, UseSettings(pod=0, address=LEADER, run=self._run))
        self._wiring.journal("peer", pod=word.pod, node=word.node, what="joined", why="")
        wrong = self._misfit(word)
        if wrong is not None:
            decision = Decision(code=ExitCode.CONFIG_FAULT, why=wrong, do="give all pods of a run the same")
            peer.ready = peer.fits = False
            self._say(peer, _leave(decision, None, 0.0))
        self._look_who_is_there()

    def _misfit(self, word: Joined) -> str | None:
        if word.version != version():
            return f"pod {word.pod} has resilient {word.version}, and pod 0 has {version()}"
        if word.workers != self._launch.nproc:
            return f"pod {word.pod} starts {word.workers} workers, and pod 0 starts {self._launch.nproc}"
        return None

    def _gone(self, peer: _Peer, why: str, *, leaving: bool = False, code: int | None = None) -> None:
        if self._peers.get(peer.pod) is peer:
            del self._peers[peer.pod]
            self._world.lost(peer.pod)
        self._wiring.journal("peer", pod=peer.pod, node=peer.node, what="left" if leaving else "gone", why=why)
        if not peer.dismissed:
            self._wiring.emit(ev.PeerGone(pod=peer.pod, why=why, leaving=leaving, code=code))
        self._look_who_has_ended()

    def _look_who_is_there(self) -> None:
        if self._assembling and len([peer for peer in self._peers.values() if peer.ready]) == self._launch.nodes - 1:
            self._assembling = False
            self._world.spread.assembled()
            self._wiring.emit(ev.Assembled())

    def _look_who_has_ended(self) -> None:
        if self._group is not None and not any(peer.in_attempt for peer in self._peers.values()):
            group, self._group = self._group, None
            self._runs = False
            self._wiring.emit(group)
            self._look_who_settles()

    def _look_who_settles(self) -> None:
        """What is the last that all have reached is known once all workers have ended."""
        if not self._runs and any(peer.settles for peer in self._peers.values()):
            self._wiring.settle()

    def settled(self, durable_step: int) -> None:
        for peer in self._peers.values():
            if peer.settles:
                peer.settles = False
                self._say(peer, Settled(pod=0, address=LEADER, durable_step=durable_step))

    @property
    def awaited(self) -> str:
        here = {pod for pod, peer in self._peers.items() if peer.ready}
        return named([pod for pod in range(1, self._launch.nodes) if pod not in here])

    def _ranks_of(self, pod: int) -> range:
        return range(pod * self._launch.nproc, (pod + 1) * self._launch.nproc)

    # Letters.

    def _open(self) -> None:
        launch = self._launch
        try:
            self._mail.open(Address(host=launch.master_addr, port=launch.store_port, queue=LEADER, holds=True))
        except OSError as error:
            self._cut(str(error))

    def _connected(self) -> None:
        self._wiring.say(f"waiting for {self.awaited}, at port {self._launch.store_port}")

    def _cut(self, why: str) -> None:
        """The others have lost it as well, and come again once there is another one."""
        self._wiring.say(f"cannot hold the store for the other pods yet: {why}")
        for peer in [*self._peers.values()]:
            self._gone(peer, "the store between the pods was lost")
        self._wiring.after("mailbox", AGAIN_S, self._open)

    def _beat(self) -> None:
        own = self._wiring.is_outside()
        for peer in self._peers.values():
            others = [other.outside for other in self._peers.values() if other is not peer and other.in_attempt]
            self._say(peer, Lives(pod=0, address=LEADER, outside=own or any(others)))
        self._wiring.after("beat", BEAT_S, self._beat)

    def _say(self, peer: _Peer, word: object) -> None:
        self._mail.send(peer.address, word)

    def _say_to(self, pod: int, word: object) -> None:
        if (peer := self._peers.get(pod)) is not None:
            self._say(peer, word)

    def _say_to_all(self, word: object) -> None:
        for peer in self._peers.values():
            self._say(peer, word)

    def _connected_pods(self) -> Collection[int]:
        """Those that have not been told to end: they are no part of what comes next."""
        return [pod for pod, peer in self._peers.items() if not peer.dismissed]


def _leave(decision: Decision, verdict: Verdict | None, yield_s: float) -> Leave:
    return Leave(pod=0, address=LEADER, decision=decision, verdict=verdict, yield_s=yield_s)
