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
from resilient.errors import SettingsError
from resilient.link import messages as ms
from resilient.link.board import Board
from resilient.settings import Effective
from resilient.supervisor.agreement import MEMORY, Agreement, Candidate, in_order
from resilient.supervisor.claiming import Claiming
from resilient.supervisor.fetching import Fetching, Outcome
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
    held_s: Callable[[], float]
    """Seconds for which devices have been held without a newly committed step."""
    say: Callable[[str], None]
    """A line for whoever reads the log."""
    give_back: Callable[[], None]
    """The slots that all ranks share are read no more."""
    settled: Callable[[int], None]
    last_saved: Callable[[int, bool], None]
    """The state of a final or stopping boundary is durable, or is not."""


class Host:
    """One run's host, over all attempts of its owner."""

    def __init__(self, board: Board, ports: Ports) -> None:
        self._board = board
        self._ports = ports
        self.tiers = Tiers(
            board,
            ask=lambda make, then: ports.submit(make, then),
            told=self._told,
            committed=lambda step: ports.emit(ev.Committed(step=step)),
            settled=ports.settled,
        )
        self._fetching = Fetching(board, ports.submit, self.tiers.slots.free, ports.journal)
        self._claiming = Claiming(
            ports.submit, self._may_save, ports.emit, self._journal, now=ports.now, held_s=ports.held_s
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
        self._saved: list[CheckpointRef] = []
        self._attempt: int | None = None
        self._agreed_on: Agreement | None = None
        self._at_end: dict[int, int] = {}
        """The step that each rank has come to the end of its loop with."""
        self._gone: set[int] = set()
        self._not_taken: dict[int, str] = {}
        self._released = False
        self._heartbeat = False
        self._say_from = 0.0
        """The time from which people are told again that nothing can be saved."""

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
        self._at_end.clear()
        self._gone.clear()
        self._not_taken.clear()
        self._released = False
        self._attempt = attempt if numbered else None
        self._claiming.forget()
        self.tiers.start(attempt, None)

    def opened(self, reply: Opened, patience_s: float) -> None:
        """The store is open; ``patience_s``: how long it is asked again should it fall silent."""
        self._patience_s = patience_s
        self._opened = reply
        self._saved = list(reply.checkpoints)
        self.tiers.durable_step = max((ref.step for ref in self._saved), default=0)
        durable = in_order(self._durable())
        if durable and not self.tiers.candidates():
            self._fetching.begin(durable[0], self._patience_s)

    def _may_save(self, may: bool | None) -> None:
        self.tiers.can_save = may

    def _durable(self) -> list[Candidate]:
        return [
            Candidate(attempt=ref.attempt, step=ref.step, name=ref.name, ranks=ref.world_size) for ref in self._saved
        ]

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
        mark = self._opened.earlier if self._opened else None
        return mark.steps if mark else None

    def tick(self, now: float) -> None:
        """What is due by the clock."""
        self._claiming.tick(now)
        self.tiers.tick(now)

    @property
    def past_last_step(self) -> bool:
        """A worker has done all steps: the others do so as well, and no boundary is left."""
        return bool(self._at_end)

    def stop(self) -> int | None:
        """Order all ranks to one boundary; ``None`` where they are not all training."""
        if not self.training:
            return None
        return self.tiers.stop(self.agreement.step)

    # The workers' side.

    def message(self, rank: int, message: ms.FromWorker, now: float) -> None:
        """One word of a worker."""
        match message:
            case ms.Hello():
                self._hello(rank, message)
            case ms.Tried():
                self._tried(rank, message)
            case ms.Restored():
                self._restored(rank, message, now)
            case ms.Steps():
                self.total_steps = message.total
                self._begin_loop(rank)
                if self.agreement.steps(rank, message, self.finished) and rank == 0:
                    self._ports.journal("already_finished", {"steps": self.finished})
            case ms.PhaseNamed():
                self.phases.setdefault(rank, {})[message.number] = message.name
            case ms.AtEnd():
                self._end_reached(rank, message.step)
            case _:
                self._snapshot_message(rank, message, now)

    def _snapshot_message(self, rank: int, message: ms.FromWorker, now: float) -> None:
        match message:
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
        if self.agreement.note_restored(rank, message):
            self._train(now)

    def _hello(self, rank: int, message: ms.Hello) -> None:
        if not self._heartbeat:
            self._heartbeat = True
            self._ports.emit(ev.HeartbeatOpened())
        if not self.agreement.hello(rank, message):
            return
        wrong = self.agreement.contradiction()
        if wrong is None:
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
        candidates = self._fetching.known([*self.tiers.candidates(), *self._durable()])
        self.agreement.begin(self._attempt, self.effective.settings.checkpoints, candidates)

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
        self._saved = [ref for ref in self._saved if ref.name not in refused]
        self.tiers.durable_step = max((ref.step for ref in self._saved), default=0)
        newest = self._saved[0].name if self._saved else None
        attempt = self._attempt or 0
        began_from = chosen.name if chosen and chosen.name != MEMORY else (newest if chosen else None)
        self.tiers.began_from[attempt] = began_from
        if self._opened is not None:
            self._claiming.begin(attempt, began_from)

    def _train(self, now: float) -> None:
        if self.effective is None:
            return
        if self._fetching.forget_whole():
            self._ports.give_back()
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
        )
        hello = self.agreement.hellos[0]
        self.tiers.versions, self.tiers.determinism = hello.versions, hello.determinism
        self.tiers.rules = settings.retention
        self.tiers.train(cadence, self.agreement.step)

    def _begin_loop(self, rank: int) -> None:
        """A script may have several loops: the end of the one before is over once nobody is there any more."""
        if self._at_end.pop(rank, None) is not None and not self._at_end:
            self._released = False
            self.tiers.go_on()

    def _end_reached(self, rank: int, step: int) -> None:
        self._at_end[rank] = step
        if list(self._at_end.values()) == [step] * self._board.rows:
            self.tiers.finish(step, self._answer_end)
        else:
            self._release_the_rest()

    def left(self, rank: int) -> None:
        """A worker ended with 0: a last state of all ranks will not come any more."""
        self._gone.add(rank)
        self._release_the_rest()

    def _release_the_rest(self) -> None:
        incomplete = len(self._at_end) < self._board.rows
        if (
            incomplete
            and self._at_end
            and len(self._at_end.keys() | self._gone) == self._board.rows
            and not self._released
        ):
            self._released = True
            self._answer_end(None)

    def _answer_end(self, slot: int | None) -> None:
        for rank in range(self._board.rows):
            self._ports.send(rank, ms.FinalSlot(slot=slot))

    def _journal(self, kind: str, fields: Mapping[str, object]) -> None:
        """What keeps a run from being saved is said as well: at once, then now and then until something is saved."""
        self._ports.journal(kind, fields)
        if kind == "checkpoint":
            self._say_from = 0.0
        elif kind == "save_failed" and (now := self._ports.now()) >= self._say_from:
            self._say_from = now + SAY_AGAIN_S
            self._ports.say(f"step {fields.get('step')} could not be saved: {fields.get('why')}; training goes on")

    def _told(self, kind: str, fields: Mapping[str, object]) -> None:
        self._journal(kind, fields)
        step, attempt = fields.get("step"), fields.get("attempt")
        if kind == "checkpoint" and isinstance(step, int) and isinstance(attempt, int):
            name, pruned = fields.get("name"), fields.get("pruned")
            gone = set(pruned) if isinstance(pruned, Sequence) else set()
            ref = CheckpointRef(
                name=str(name),
                attempt=attempt,
                step=step,
                world_size=self._board.rows,
                began_from=self.tiers.began_from.get(attempt),
            )
            self._saved = [ref, *(old for old in self._saved if old.name not in gone)]
        if kind in ("checkpoint", "save_failed") and isinstance(step, int):
            self._ports.last_saved(step, kind == "checkpoint")
