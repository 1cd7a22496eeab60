# SPDX-License-Identifier: Apache-2.0
"""The ledger: what a submission has spent of its budgets, and what it has achieved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from resilient.core.batch import Batch
from resilient.core.debit import Debit
from resilient.core.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """The same fault, counted since the last progress."""

    fingerprint: str
    step: int
    count: int
    batch: Batch | None = None
    """The one that it struck last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a submission has spent, and what it has achieved."""

    steps_known: bool = False
    """A worker opened a heartbeat, or a checkpoint exists."""
    highest_step: int = 0
    committed_step: int = 0
    strikes: tuple[Strike, ...] = ()
    """Of this pod."""
    earlier: tuple[Strike, ...] = ()
    """Of the submission's earlier pods, by fault: they count for its budget."""
    restarts_since_commit: int = 0
    restarts: int = 0
    spent: frozenset[int] = frozenset()
    """Exit codes of this submission since the last progress: rungs that were tried."""
    held_s: float = 0.0
    """Devices held without a newly committed step, before ``held_since``."""
    held_since: float = 0.0

    @property
    def never_ran(self) -> bool:
        """No step was ever made, as far as steps are known."""
        return self.steps_known and self.highest_step == 0

    def count(self, fingerprint: str) -> int:
        return sum(strike.count for strike in self.earlier + self.strikes if strike.fingerprint == fingerprint)

    def count_at(self, fingerprint: str, step: int) -> int:
        return sum(strike.count for strike in self.strikes if (strike.fingerprint, strike.step) == (fingerprint, step))

    def held(self, now: float) -> float:
        """Seconds for which devices have been held without a newly committed step."""
        return self.held_s + max(0.0, now - self.held_since)

    def usage(self, now: float) -> Usage:
        """What whoever comes next has to go on from."""
        return Usage(held_s=self.held(now), restarts=self.restarts, restarts_since_commit=self.restarts_since_commit)

    def advanced(self, step: int) -> Ledger:
        """A step that nobody had completed: faults before it are cured."""
        return replace(self, highest_step=step, strikes=(), earlier=(), spent=frozenset())

    def committed(self, step: int, now: float) -> Ledger:
        return replace(self, committed_step=step, restarts_since_commit=0, held_s=0.0, held_since=now)

    def strike(self, fingerprint: str, step: int, batch: Batch | None = None) -> Strike:
        """This fault, once more."""
        count = self.count_at(fingerprint, step) + 1
        return Strike(fingerprint=fingerprint, step=step, count=count, batch=batch)

    def struck(self, fingerprint: str, step: int, batch: Batch | None = None) -> Ledger:
        """One more restart for this fault."""
        others = tuple(s for s in self.strikes if (s.fingerprint, s.step) != (fingerprint, step))
        return replace(
            self,
            strikes=(*others, self.strike(fingerprint, step, batch)),
            restarts_since_commit=self.restarts_since_commit + 1,
            restarts=self.restarts + 1,
        )

    def skipped(self, fingerprint: str) -> Ledger:
        """One more restart, without the batch that this fault came of: should it come again, it is another's."""
        return replace(
            self,
            strikes=tuple(strike for strike in self.strikes if strike.fingerprint != fingerprint),
            earlier=tuple(strike for strike in self.earlier if strike.fingerprint != fingerprint),
            restarts_since_commit=self.restarts_since_commit + 1,
            restarts=self.restarts + 1,
        )


def opening_ledger(ledger: Ledger, *, committed_step: int, usage: Usage, debits: Iterable[Debit], now: float) -> Ledger:
    """The ledger of a supervisor that has just read what the store knows of its submission."""
    # Steps done again after an earlier exit are no progress: the highest one of the run stands in its debits.
    known = tuple(debits)
    highest_step = max([committed_step, ledger.highest_step, *(debit.step for debit in known)])
    since = [debit for debit in known if debit.step >= highest_step and not debit.forgiven]
    return replace(
        ledger,
        steps_known=ledger.steps_known or committed_step > 0,
        highest_step=highest_step,
        committed_step=committed_step,
        spent=frozenset(debit.code for debit in since),
        earlier=_strikes(since, ledger),
        # A start without the store has counted from the exits that its journal holds: some may be the same.
        restarts=max(ledger.restarts, usage.restarts),
        restarts_since_commit=max(ledger.restarts_since_commit, usage.restarts_since_commit),
        held_s=usage.held_s,
        held_since=now,
    )


def _strikes(since: Iterable[Debit], ledger: Ledger) -> tuple[Strike, ...]:
    """The restarts in place that earlier pods have spent on a fault: a new pod gets no new ones for it."""
    newest = {debit.fingerprint: debit for debit in since if debit.strikes and not ledger.count(debit.fingerprint)}
    return tuple(
        Strike(fingerprint=name, step=debit.fault_step or 0, count=debit.strikes, batch=debit.batch)
        for name, debit in newest.items()
    )
