# SPDX-License-Identifier: Apache-2.0
"""The side of a pod that does not lead: it comes to pod 0, does what that says, and tells what it sees."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final

from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core.evidence import Evidence, Hang
from resilient.core.testimony import of_pod, shorter
from resilient.errors import SettingsError
from resilient.launch import Launch, Seat
from resilient.link.messages import FromWorker, Hello, Refused
from resilient.supervisor.hand import Hand
from resilient.supervisor.mail import Address
from resilient.supervisor.pod_words import (
    FROM_LEADER,
    LEADER,
    Announced,
    Asked,
    Begin,
    End,
    Ended,
    FromLeader,
    Heard,
    Hung,
    Joined,
    Leave,
    Left,
    Lives,
    Settle,
    Settled,
    Testified,
    Word,
)
from resilient.supervisor.pods import AGAIN_S, BEAT_S, LOST_S, OneOfSeveral, Wiring
from resilient.version import version

SHOW_S: Final = 0.5
"""How often pod 0 is shown how far the workers are."""
_KILLED: Final = "its supervisor ended without a word"


class Following(OneOfSeveral[FromLeader]):
    """Of any pod but the first."""

    def __init__(
        self,
        launch: Launch,
        node: str | None,
        wiring: Wiring,
        environ: Mapping[str, str],
        *,
        knows_store: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(launch, node, wiring, environ, FROM_LEADER, now=now)
        self._hand = Hand(
            wiring.board, self._first, tell=wiring.tell, submit=wiring.submit, give_back=wiring.give_back,
            use=self._use, durable=self._durable, wake=wiring.wake, say=self._word,
        )  # fmt: skip
        self._leaving = False
        self._durable_step = 0
        self._settling: Callable[[int], None] | None = None
        self._address = ""
        self._begun: Begin | None = None
        self._leader_left = False
        self._heard_at = 0.0
        self._show_at = 0.0
        self._knows_store = knows_store

    @property
    def _first(self) -> int:
        return self._launch.node * self._launch.nproc

    def said(self, rank: int, message: FromWorker) -> None:
        if isinstance(message, (Hello, Refused)):
            self._wiring.emit(ev.HeartbeatOpened())
        self._hand.said(rank, message)

    def settle(self, then: Callable[[int], None]) -> bool:
        """Pod 0 sees to it; without it nothing is saved any more."""
        self._settling = then
        if not self._knows_store or not self._word(Settle):
            self._settled()
        return True

    # What the loop asks for.

    def assemble(self) -> None:
        self._assembling = True
        if not self._opened:
            self._opened = True
            self._wiring.say(f"waiting for pod 0 at {self._launch.master_addr}:{self._launch.store_port}")
            self._open()
            self._beat()
        self._join()

    def seat(self, command: cm.StartWorkers) -> Seat:
        begun, launch = self._begun, self._launch
        assert begun is not None, "workers are started when pod 0 says so"
        return Seat(
            first=self._first, world_size=launch.nproc * launch.nodes, node=launch.node, nodes=launch.nodes,
            master_addr=launch.master_addr, master_port=begun.port, restarts=begun.launch - 1, run_id=begun.run_id,
        )  # fmt: skip

    def local(self, event: ev.Event) -> ev.Event | None:
        if isinstance(event, ev.WorkerEnded) and self._begun is not None:
            self._hand.show()
            self._word(
                Ended, launch=self._begun.launch, rank=self._first + event.rank, clean=event.clean,
                finished=event.finished,
            )  # fmt: skip
        if isinstance(event, ev.GroupEnded) and self._leaving:
            self.testify(Evidence(ranks=()))  # nothing of it is a fault
        return event

    def hung(self, hang: Hang) -> None:
        if self._begun is not None:
            evidence = of_pod(Evidence(ranks=(), hang=hang), first=self._first, node=None)
            assert evidence.hang is not None
            self._word(Hung, launch=self._begun.launch, hang=evidence.hang)
        super().hung(hang)

    def testify(self, evidence: Evidence) -> None:
        if self._begun is None:
            return
        whole = of_pod(evidence, first=self._first, node=self._node)
        for less in shorter(whole):
            if self._word(Testified, launch=self._begun.launch, evidence=less):
                return

    def leaving(self, by: str, within_s: float) -> None:
        self._leaving = True
        self._word(Asked, by=by, within_s=within_s)

    def tick(self) -> None:
        if self._mail.connected and self._now() - self._heard_at > LOST_S:
            self._mail.cut(f"nothing was heard from pod 0 for {LOST_S:.0f} s")
        if self._now() >= self._show_at:
            self._show_at = self._now() + SHOW_S
            self._hand.show()

    def close(self, exit_: cm.Exit | None, patience_s: float) -> None:
        if exit_ is not None:
            self._word(Left, why=exit_.why, leaving=self._leaving, code=exit_.code)
        self._mail.close(patience_s)

    # What pod 0 says.

    def _heard(self, word: FromLeader) -> None:
        self._heard_at = self._now()
        match word:
            case Begin() if self._assembling:
                self._assembling, self._begun = False, word
                self._wiring.emit(ev.Assembled(attempt=word.attempt))
            case End():
                self._wiring.emit(ev.EndOrdered(grace_s=word.grace_s))
            case Leave():
                self._word(Heard)
                self.verdict = word.verdict
                self._wiring.emit(ev.Dismissed(decision=word.decision, yield_s=word.yield_s))
            case Left():
                self._leader_left = True
                self._wiring.emit(ev.PeerGone(pod=0, why=word.why, leaving=word.leaving, code=word.code))
            case Settled():
                self._durable_step = word.durable_step
                self._settled()
            case Announced():
                self._wiring.say(f"pod 0: {word.text}")
            case Lives():
                self.others_outside = word.outside
            case Begin():
                pass
            case _:
                self._hand.do(word)

    def _use(self, run: Mapping[str, str]) -> None:
        """Pod 0 has heard what ``Run()`` was given; where that names the store, it is opened here as well."""
        knew = self._knows_store
        try:
            self._knows_store = self._wiring.resolve(run).settings.checkpoints is not None
        except SettingsError as error:  # with what this pod has been given besides
            self._wiring.emit(ev.Unusable(why=str(error)))
            return
        if self._knows_store and not knew:
            self._wiring.emit(ev.Announced())

    def _durable(self, step: int) -> None:
        self._durable_step = step
        self._wiring.emit(ev.Committed(step=step))

    def _settled(self) -> None:
        settling, self._settling = self._settling, None
        if settling is not None:
            settling(self._durable_step)

    # Letters.

    def _open(self) -> None:
        launch = self._launch
        self._address = f"pod-{launch.node}-{secrets.token_hex(8)}"
        try:
            self._mail.open(Address(host=launch.master_addr, port=launch.store_port, queue=self._address, holds=False))
        except OSError as error:
            self._cut(str(error))

    def _connected(self) -> None:
        self._heard_at = self._now()
        self._leader_left = False
        self._hand.connected()
        self._mail.leave(LEADER, Left(pod=self._launch.node, address=self._address, why=_KILLED))
        self._join()

    def _cut(self, why: str) -> None:
        if not self._leader_left:
            self._wiring.emit(ev.PeerGone(pod=0, why=why))
        self._begun = None
        self._hand.release()
        self._settled()
        self._wiring.after("mailbox", AGAIN_S, self._open)

    def _join(self) -> None:
        if self._assembling:
            self._hand.show()
            self._word(Joined, workers=self._launch.nproc, node=self._node, version=version())

    def _beat(self) -> None:
        self._join()
        self._word(Lives, outside=self._wiring.is_outside())
        self._wiring.after("beat", BEAT_S, self._beat)

    def _word(self, kind: type[Word], **fields: object) -> bool:
        """Say one to pod 0; False where it could not be sent."""
        return self._mail.send(LEADER, kind(pod=self._launch.node, address=self._address, **fields))
