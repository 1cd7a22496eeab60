# SPDX-License-Identifier: Apache-2.0
"""How all workers of an attempt come to resume from one and the same state.

Candidates are tried newest first, memory before the store; one from the store is
fetched into memory first. Every rank reads and checks one, writing nothing; only when
all have said yes are they told to load it. A candidate that one rank refuses, or that
cannot be fetched, is set aside for all of them, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from resilient.core.batch import Batch
from resilient.link.board import Extent
from resilient.link.messages import AlreadyFinished, Begin, Go, Hello, Steps, Tried, Try

MEMORY: Final = "memory"
"""Name of a state that no checkpoint has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A state that may be resumed from; later attempts win over earlier ones, then later steps."""

    attempt: int
    step: int
    name: str
    slot: int | None = None
    """``None`` while it lies in the store only."""
    ranks: int | None = None
    """How many saved it; ``None``: as many as there are now."""
    contents: Extent | None = None
    """What the slot begins with where all ranks share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A candidate that could not be read, or that a rank refused."""

    name: str
    why: str


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Newest first; of the same state the one in memory."""
    return sorted(candidates, key=lambda c: (c.attempt, c.step, c.slot is not None), reverse=True)


@dataclass(slots=True, kw_only=True)
class Agreement:
    """One attempt's way from ``Hello`` to training.

    ``send`` reaches one rank; ``fetch`` has a candidate brought into memory, and ``fetched`` is called then;
    ``refuse`` is told what a rank refused, and ``exhausted`` is called when no candidate is left.
    """

    ranks: int
    send: Callable[[int, object], None]
    fetch: Callable[[Candidate], None]
    exhausted: Callable[[], None]
    refuse: Callable[[Candidate], None]
    hellos: dict[int, Hello] = field(default_factory=dict)
    refused: list[SetAside] = field(default_factory=list)
    chosen: Candidate | None = None
    agreed: bool = False
    """``Go`` was said."""
    restored: set[int] = field(default_factory=set)
    _left: list[Candidate] | None = None
    _trying: Candidate | None = None
    _answers: dict[int, Tried] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """All ranks train."""
        return len(self.restored) == self.ranks

    def hello(self, rank: int, message: Hello) -> bool:
        """Note it; True once all have said it."""
        self.hellos[rank] = message
        return len(self.hellos) == self.ranks

    def contradiction(self) -> str | None:
        """What the workers do not agree on, or ``None``."""
        sizes = {message.world_size for message in self.hellos.values()}
        if sizes != {self.ranks}:
            return f"cannot train: {self.ranks} workers were started, but they say WORLD_SIZE is {sorted(sizes)}"
        settings = [message.settings for message in self.hellos.values()]
        for rank, given in enumerate(settings):
            if given != settings[0]:
                return f"cannot train: Run() of rank {rank} was given {dict(given)}, that of rank 0 {dict(settings[0])}"
        return None

    def begin(
        self,
        attempt: int,
        checkpoints: str | None,
        candidates: Sequence[Candidate],
        skipped: tuple[Batch, ...] = (),
    ) -> None:
        """Start the trial; with nothing to try it is over at once."""
        self._left = in_order(candidates)
        for rank in range(self.ranks):
            self.send(rank, Begin(attempt=attempt, checkpoints=checkpoints, skipped=skipped))
        self._try_next()

    @property
    def begun(self) -> bool:
        return self._left is not None

    def fetched(self, name: str, slot: int | None, why: str = "", contents: Extent | None = None) -> None:
        """A candidate of the store lies in a slot now, or cannot be read."""
        if self._trying is None or self._trying.name != name or self._trying.slot is not None:
            return
        if slot is None:
            self.refused.append(SetAside(name=name, why=why))
            self._try_next()
        else:
            self._trying = replace(self._trying, slot=slot, contents=contents)
            self._ask(self._trying, slot)

    def tried(self, rank: int, message: Tried) -> None:
        """Note an answer."""
        if self._trying is None or message.name != self._trying.name:
            return
        self._answers[rank] = message
        if len(self._answers) < self.ranks:
            return
        refusals = [(rank, answer.why) for rank, answer in sorted(self._answers.items()) if not answer.ok]
        if not refusals:
            self._go(self._trying)
            return
        name = self._trying.name
        self.refused += [SetAside(name=name, why=f"rank {rank}: {why}") for rank, why in refusals]
        self.refuse(self._trying)
        self._try_next()

    def start_over(self) -> None:
        """Train from nothing."""
        self._go(None)

    def note_restored(self, rank: int) -> bool:
        """True once all have loaded."""
        self.restored.add(rank)
        return self.complete

    def steps(self, rank: int, message: Steps, finished: int | None) -> bool:
        """Answer how ``batches`` is to go on; ``finished``: steps that an earlier submission had done.

        True where that were all: nothing is left to train.
        """
        is_done = finished is not None and message.total <= finished
        self.send(rank, AlreadyFinished(steps=finished or 0) if is_done else Go(name="", step=self.step))
        return is_done

    @property
    def step(self) -> int:
        """Step that training goes on from."""
        return 0 if self.chosen is None else self.chosen.step

    def settings(self) -> Mapping[str, str]:
        """What ``Run()`` was given."""
        return self.hellos[0].settings

    def _try_next(self) -> None:
        self._answers = {}
        self._trying = self._left.pop(0) if self._left else None
        if self._trying is None:
            self.exhausted()
        elif self._trying.slot is None:
            self.fetch(self._trying)
        else:
            self._ask(self._trying, self._trying.slot)

    def _ask(self, candidate: Candidate, slot: int) -> None:
        order = Try(name=candidate.name, step=candidate.step, slot=slot, contents=candidate.contents)
        for rank in range(self.ranks):
            self.send(rank, order)

    def _go(self, candidate: Candidate | None) -> None:
        self.chosen, self.agreed = candidate, True
        go = Go(name=candidate.name if candidate else "", step=self.step)
        for rank in range(self.ranks):
            self.send(rank, go)
