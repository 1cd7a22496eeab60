# SPDX-License-Identifier: Apache-2.0
"""The host of a group of workers: what it answers to each of their messages.

It brings them to one state, has snapshots taken and saved, and reports what the
state machine must know as events. The supervisor uses it, and so does the keeper
of a script that runs without one; it neither starts nor ends processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.checkpoint.requests import CheckpointRef, Opened, Reply, Request
from resilient.core import events as ev
from resilient.core.cadence import Cadence
from resilient.core.usage import Usage
from resilient.errors import SettingsError
from resilient.link import messages as ms
from resilient.link.board import SPILL, Board
from resilient.settings import Effective
from resilient.supervisor.adopting import Newest
from resilient.supervisor.agreement import MEMORY, Agreement, Candidate, in_order
from resilient.supervisor.checkpoints import Checkpoints
from resilient.supervisor.claiming import Claiming
from resilient.supervisor.fetching import Fetching, Outcome
from resilient.supervisor.loop_end import LoopEnd
from resilient.supervisor.party import OneParty, Orders
from resilient.supervisor.tiers import Tiers

SAY_AGAIN_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a host needs of its owner."""

    send: Callable[[int, object], None]
    """A message to one rank."""
    submit: Callable[[Callable[[int], Request], Callable[[Reply], None]], None]
    """A request to the saver."""
    emit: Callable[[ev.Event], None]
    journal: Callable[[str, Mapping[str, object]], None]
    resolve: Callable[[Mapping[str, str]], Effective]
    """The settings in force, given those of ``Run()``."""
    now: Callable[[], float]
    """The monotonic clock."""
    usage: Callable[[], Usage]
    """What the submission has used of its budgets."""
    say: Callable[[str], None]
    """A line for whoever reads the log."""
    give_back: Callable[[int], None]
    """Free the memory of a slot, of every rank: it is read no more."""
    settled: Callable[[int], None]
    last_saved: Callable[[int, bool], None]
    """The state of a final or stopping boundary is durable, or is not."""
    orders: Orders | None = None
    """Where boundaries are named with other pods."""


class Host:
    """One run's host, over all attempts of its owner."""

    def __init__(self, board: Board, ports: Ports) -> None:
        self._board = board
        self._ports = ports
        self.tiers = Tiers(
            board,
            OneParty(board) if ports.orders is None else ports.orders,
            ask=lambda make, then: ports.submit(make, then),
            told=self._told,
            committed=lambda step: ports.emit(ev.Committed(step=step)),
            settled=ports.settled,
        )
        self._fetching = Fetching(board, ports.submit, self.tiers.slots.free, ports.journal)
        self.claiming = Claiming(
            ports.submit, self._may_save, ports.emit, self._journal, now=ports.now, usage=ports.usage
        )
        self._checkpoints = Checkpoints()
        self.loop_end = LoopEnd(
            board.rows,
            together=lambda step: self.tiers.finish(step, self._answer_end),
            apart=lambda: self._answer_end(None),
        )
        self.agreement = self._new_agreement()
        self.effective: Effective | None = None
        self.total_steps: int | None = None
        self.phases: dict[int, dict[int, str]] = {}
        self._opened: Opened | None = None
        self._patience_s = 0.0
        self._launches = 0
        self._launched_at = 0.0
        self._past: Cadence | None = None
        """What was measured in earlier attempts."""
        self._attempt: int | None = None
        self._agreed_on: Agreement | None = None
        self._not_taken: dict[int, str] = {}
        self._heartbeat = False
        self._say_from: dict[str, float] = {}
        """The time from which people are told again of what goes on being wrong."""

    def _new_agreement(self) -> Agreement:
        return Agreement(
            ranks=self._board.rows,
            send=self._ports.send,
            fetch=self._fetch,
            exhausted=self._nothing_left,
            refuse=self._refused,
        )

    # The owner's side.

    def launched(self, attempt: int, *, numbered: bool) -> None:
        """New workers are on their way; ``numbered``: the attempt's number is final."""
        self._launches += 1
        self._launched_at = self._ports.now()
        self._past = self.tiers.cadence or self._past
        self._board.reset_rows()
        self.agreement = self._new_agreement()
        self.phases.clear()
        self._not_taken.clear()
        self.loop_end.launched()
        self._attempt = attempt if numbered else None
        self.claiming.forget()
        self.tiers.start(attempt, None)

    def opened(self, reply: Opened, patience_s: float) -> None:
        """The store is open; ``patience_s``: how long it is asked again should it fall silent."""
        self._patience_s = patience_s
        self._opened = reply
        self._checkpoints.opened(reply.checkpoints)
        self.claiming.skipped = reply.skipped
        self.tiers.saving.durable_step = self._checkpoints.highest_step
        durable = in_order(self._checkpoints.candidates())
        if durable and not self.tiers.candidates():
            self._fetching.begin(durable[0], self._patience_s)

    def adopt(self, snapshot: Newest) -> None:
        """Go on from what an earlier container took."""
        self.claiming.origins[snapshot.whole.attempt] = snapshot.origin
        self.tiers.saving.adopt(snapshot.whole, snapshot.origin.began_from)

    @property
    def newest(self) -> Newest | None:
        """What all ranks have taken and have in memory; a checkpoint that was read into it is none of these."""
        for whole in self.tiers.slots.whole():
            if whole.slot != SPILL and whole.attempt in self.claiming.origins:
                return Newest(whole=whole, origin=self.claiming.origins[whole.attempt])
        return None

    def _may_save(self, may: bool | None) -> None:
        self.tiers.saving.may = may

    def number(self, attempt: int) -> None:
        """The store is open and has said which attempt this is."""
        self._attempt = attempt
        self.tiers.attempt = attempt
        self._begin_if_ready()

    @property
    def training(self) -> bool:
        """All workers have agreed and loaded."""
        return self.agreement.complete

    @property
    def wants_store(self) -> bool:
        return self.effective is not None and self.effective.settings.checkpoints is not None

    @property
    def finished(self) -> int | None:
        """Steps asked of an earlier submission that finished the run."""
        return self._opened.earlier.steps if self._opened and self._opened.earlier else None

    def tick(self, now: float) -> None:
        """What is due by the clock."""
        self.claiming.tick(now)
        self.tiers.tick(now)

    def stop(self) -> bool:
        """Order all ranks to one boundary; False where they are not all training."""
        if self.training:
            self.tiers.stop(self.agreement.step)
        return self.training

    # The workers' side.

    def message(self, rank: int, message: ms.FromWorker, now: float) -> None:
        """One word of a worker."""
        match message:
            case ms.Hello():
                self._hello(rank, message)
            case ms.Refused():
                self._hear_heartbeat()
            case ms.Tried():
                self._tried(rank, message)
            case ms.Restored():
                self._restored(rank, message, now)
            case ms.Steps():
                self.total_steps = message.total
                if self.loop_end.begin_loop(rank):
                    self.tiers.go_on()
                if self.agreement.steps(rank, message, self.finished) and rank == 0:
                    self._ports.journal("already_finished", {"steps": self.finished})
            case ms.PhaseNamed():
                self.phases.setdefault(rank, {})[message.number] = message.name
            case ms.AtEnd():
                self.loop_end.reached(rank, message.step)
            case _:
                self._snapshot_message(rank, message, now)

    def _snapshot_message(self, rank: int, message: ms.FromWorker, now: float) -> None:
        match message:
            case ms.Copied():
                self.tiers.copied(rank, message, now)
            case ms.Taken():
                self.tiers.taken(rank, message, now)
            case ms.NotTaken(soon=True):
                self.tiers.missed(rank, message, now)
            case ms.NotTaken():
                if self._not_taken.get(rank) != message.why:  # not again for each of many steps
                    self._not_taken[rank] = message.why
                    self._note(rank, f"no snapshot of step {message.step}: {message.why}")
                self.tiers.missed(rank, message, now)
            case ms.Leaving():
                self._note(rank, f"leaves after step {message.step}")
            case ms.Note():
                self._note(rank, message.text)

    def _note(self, rank: int, text: str) -> None:
        self._ports.journal("note", {"rank": rank, "text": text})

    def _restored(self, rank: int, message: ms.Restored, now: float) -> None:
        fields = {"read_s": message.read_s, "load_s": message.load_s}
        self._ports.journal(
            "restored",
            {
                "rank": rank,
                "step": message.step,
                "size_bytes": message.size_bytes,
                **{name: round(seconds, 6) for name, seconds in fields.items()},
            },
        )
        if self.agreement.note_restored(rank):
            self._train(now)

    def _hear_heartbeat(self) -> None:
        if not self._heartbeat:
            self._heartbeat = True
            self._ports.emit(ev.HeartbeatOpened())

    def _hello(self, rank: int, message: ms.Hello) -> None:
        self._hear_heartbeat()
        if not self.agreement.hello(rank, message):
            return
        if (wrong := self.agreement.contradiction()) is None:
            try:
                self.effective = self._ports.resolve(self.agreement.settings())
            except SettingsError as error:
                wrong = str(error)
        if wrong is not None:
            self._ports.emit(ev.Unusable(why=wrong))
        elif self.wants_store and self._opened is None:
            self._ports.emit(ev.Announced())
        else:
            self._begin_if_ready()

    def _begin_if_ready(self) -> None:
        ready = self.effective is not None and len(self.agreement.hellos) == self._board.rows
        if not ready or self._attempt is None or self.agreement.begun or self.effective is None:
            return
        if self.wants_store and self._opened is None:
            return
        candidates = self._fetching.known([*self.tiers.candidates(), *self._checkpoints.candidates()])
        checkpoints = self.effective.settings.checkpoints
        self.agreement.begin(self._attempt, checkpoints, candidates, self.claiming.skipped)

    def _tried(self, rank: int, message: ms.Tried) -> None:
        self.agreement.tried(rank, message)
        if self.agreement.agreed and self._agreed_on is not self.agreement:
            self._agreed()

    def _fetch(self, candidate: Candidate) -> None:
        agreement = self.agreement

        def answered(outcome: Outcome) -> None:
            if outcome.unreachable:
                self._ports.emit(ev.OpenFailed(why=outcome.why, wrong=False))
            elif agreement is self.agreement:
                agreement.fetched(candidate.name, outcome.slot, outcome.why, outcome.contents)

        self._fetching.want(candidate, self._patience_s, answered)

    def _refused(self, candidate: Candidate) -> None:
        """A state that one rank cannot use is no snapshot."""
        if candidate.slot is not None and candidate.contents is None:
            self.tiers.slots.void(candidate.slot)

    def _nothing_left(self) -> None:
        refused = self.agreement.refused
        set_aside = self._opened.set_aside if self._opened else ()
        durable = [aside for aside in refused if aside.name != MEMORY]
        if durable or set_aside:
            reasons = "; ".join([f"{aside.name}: {aside.why}" for aside in durable[:3]] or set_aside[:3])
            self._ports.emit(ev.Unusable(why=f"cannot resume: no saved state may be loaded: {reasons}"))
            return
        self.agreement.start_over()
        self._agreed()

    def _agreed(self) -> None:
        self._agreed_on = self.agreement
        chosen = self.agreement.chosen
        self._ports.journal(
            "restore",
            {
                "attempt": self._attempt or 0,
                "name": chosen.name if chosen else "",
                "step": self.agreement.step,
                "refused": [{"name": aside.name, "why": aside.why} for aside in self.agreement.refused],
            },
        )
        refused = {aside.name for aside in self.agreement.refused}
        for aside in dict.fromkeys(self.agreement.refused):  # two slots may be refused for the same reason
            self._ports.say(
                f"{aside.name} could not be used: {aside.why}; training goes on from step {self.agreement.step}"
            )
        self._checkpoints.set_aside(refused)
        self.tiers.saving.durable_step = self._checkpoints.highest_step
        attempt = self._attempt or 0
        began_from = chosen.name if chosen and chosen.name != MEMORY else (self._checkpoints.newest if chosen else None)
        self.tiers.saving.began_from[attempt] = began_from
        if self._opened is not None:
            self.claiming.begin(attempt, began_from)

    def _train(self, now: float) -> None:
        if self.effective is None:
            return
        for slot in self._fetching.needless():
            self._ports.give_back(slot)
        settings = self.effective.settings
        past = self._past or Cadence(durable=settings.every)
        cadence = replace(
            past,
            durable=settings.every,
            memory=settings.snapshot_every,
            has_store=self.wants_store,
            recovery_s=now - self._launched_at,
            failures=self._launches - 1,
            taken_at=now,
            saved_at=now,
            saved_step=self.agreement.step,
        )
        hello = self.agreement.hellos[0]
        self.tiers.saving.versions, self.tiers.saving.determinism = hello.versions, hello.determinism
        self.tiers.saving.rules = settings.retention
        self.tiers.train(cadence, self.agreement.step)

    def _answer_end(self, slot: int | None) -> None:
        for rank in range(self._board.rows):
            self._ports.send(rank, ms.FinalSlot(slot=slot))

    # What is told of it.

    def _journal(self, kind: str, fields: Mapping[str, object]) -> None:
        """What keeps a run from being saved, or its store from filling up, is said as well."""
        self._ports.journal(kind, fields)
        if kind == "checkpoint":
            if self._say_from.pop("save_failed", None) is not None:
                self._ports.say(f"the checkpoint store works again: step {fields.get('step')} is saved")
            not_pruned = fields.get("not_pruned")
            why = not_pruned[0] if isinstance(not_pruned, Sequence) and not_pruned else ""
            self._complain("not_pruned", f"old checkpoints go on taking up space: {why}" if why else "")
        elif kind == "save_failed":
            text = f"step {fields.get('step')} could not be saved: {fields.get('why')}; training goes on"
            self._complain("save_failed", text)

    def _complain(self, about: str, text: str) -> None:
        """Say it at once, then now and then until there is nothing to be said."""
        now = self._ports.now()
        if not text:
            self._say_from.pop(about, None)
        elif now >= self._say_from.get(about, 0.0):
            self._say_from[about] = now + SAY_AGAIN_S
            self._ports.say(text)

    def _told(self, kind: str, fields: Mapping[str, object]) -> None:
        self._journal(kind, fields)
        step, attempt = fields.get("step"), fields.get("attempt")
        if kind == "checkpoint" and isinstance(step, int) and isinstance(attempt, int):
            name, pruned = fields.get("name"), fields.get("pruned")
            ref = CheckpointRef(
                name=str(name),
                attempt=attempt,
                step=step,
                world_size=self._board.rows,
                began_from=self.tiers.saving.began_from.get(attempt),
            )
            self._checkpoints.add(ref, set(pruned) if isinstance(pruned, Sequence) else ())
        if kind in ("checkpoint", "save_failed") and isinstance(step, int):
            self._ports.last_saved(step, kind == "checkpoint")
