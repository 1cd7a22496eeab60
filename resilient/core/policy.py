# SPDX-License-Identifier: Apache-2.0
"""The ladder: which rung a verdict asks for, and when a rung is spent.

    rung 1  restart the workers in place        here, within budgets
    rung 3  a fresh container on this node      exit 193
    rung 4  another node                        exit 194
    rung 5  stop                                exit 114, 115, 116

Pure: a verdict and the ledger in, a decision with its reason out. A fault starts
on the rung that its cause deserves and climbs when it comes back without
progress in between. A code verdict after the first step gets exactly one
confirming restart, because a wrong one must not end a month of work.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.events import Debit
from resilient.core.exit_codes import OBSERVED_FAILURE, ExitCode

LONGEST_BACKOFF_S: Final = 30.0


class OnCodeFault(str, enum.Enum):
    """What is done about a verdict that the same code would fail again."""

    CONFIRM = "confirm"
    """Stop before the first step; later restart once, and stop if it comes back at the same step."""
    STOP = "stop"
    """Stop at once."""
    RESTART = "restart"
    """Restart within the budgets, as for any other fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What does not change while a supervisor lives."""

    in_kubernetes: bool = False
    counters_bound: bool = False
    """The controller's counters of this index are known and at most 20: it would end a loop by itself."""
    observe: bool = False
    node: str | None = None
    """The machine of this pod."""
    on_code_fault: OnCodeFault = OnCodeFault.CONFIRM
    max_restarts: int | None = None
    """Restarts in all that a submission may have; ``None``: only the budgets below bound them."""
    restarts_per_fingerprint: int = 3
    """In place, without progress in between."""
    second_looks: int = 1
    """The same for a verdict that is only a guess."""
    restarts_between_commits: int = 20
    max_time_without_progress_s: float = 86400.0
    grace_s: float = 30.0
    """From SIGTERM to the platform's SIGKILL."""
    stop_grace_s: float = 5.0
    """From our SIGTERM to a failed group to our SIGKILL."""
    settle_s: float = 600.0
    """How long a last save may take when nobody presses."""
    record_s: float = 30.0

    @property
    def open_s(self) -> float:
        """How long opening the store may take: patience for its lock, and for the store itself."""
        return 2 * self.settle_s + self.record_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """The same fault, counted since the last progress."""

    fingerprint: str
    step: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a submission has spent, and what it has achieved."""

    steps_known: bool = False
    """A worker opened a heartbeat, or a checkpoint exists."""
    highest_step: int = 0
    committed_step: int = 0
    strikes: tuple[Strike, ...] = ()
    restarts_since_commit: int = 0
    restarts: int = 0
    spent: frozenset[int] = frozenset()
    """Exit codes of this submission since the last progress: rungs that were tried."""
    held_s: float = 0.0
    """Devices held without a newly committed step, before ``held_since``."""
    held_since: float = 0.0

    def count(self, fingerprint: str) -> int:
        return sum(strike.count for strike in self.strikes if strike.fingerprint == fingerprint)

    def seen_at(self, fingerprint: str, step: int) -> bool:
        return any(strike.fingerprint == fingerprint and strike.step == step for strike in self.strikes)

    def held(self, now: float) -> float:
        """Seconds for which devices have been held without a newly committed step."""
        return self.held_s + max(0.0, now - self.held_since)

    def advanced(self, step: int) -> Ledger:
        """A step that nobody had completed: faults before it are cured."""
        return replace(self, highest_step=step, strikes=(), spent=frozenset())

    def committed(self, step: int, now: float) -> Ledger:
        return replace(self, committed_step=step, restarts_since_commit=0, held_s=0.0, held_since=now)

    def struck(self, fingerprint: str, step: int) -> Ledger:
        """One more restart for this fault."""
        others = tuple(s for s in self.strikes if (s.fingerprint, s.step) != (fingerprint, step))
        here = sum(s.count for s in self.strikes if (s.fingerprint, s.step) == (fingerprint, step))
        return replace(
            self,
            strikes=(*others, Strike(fingerprint=fingerprint, step=step, count=here + 1)),
            restarts_since_commit=self.restarts_since_commit + 1,
            restarts=self.restarts + 1,
        )


def opening_ledger(
    ledger: Ledger, *, committed_step: int, held_s: float, debits: Iterable[Debit], now: float
) -> Ledger:
    """The ledger of a supervisor that has just read what the store knows of its submission."""
    # Steps done again after an earlier exit are no progress: the highest one of the run stands in its debits.
    known = tuple(debits)
    highest_step = max([committed_step, ledger.highest_step, *(debit.step for debit in known)])
    since = [debit for debit in known if debit.step >= highest_step]
    return replace(
        ledger,
        steps_known=ledger.steps_known or committed_step > 0,
        highest_step=highest_step,
        committed_step=committed_step,
        spent=frozenset(debit.code for debit in since),
        held_s=held_s,
        held_since=now,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done about a fault: restart after ``delay_s``, or exit with ``code``."""

    code: int | None
    why: str
    do: str
    delay_s: float = 0.0


def decide(verdict: Verdict, ledger: Ledger, terms: Terms, now: float) -> Decision:
    """The cheapest action that can cure the fault and is not spent."""
    if terms.observe:
        return _as_torchrun(verdict, ledger, terms)
    if verdict.action is Action.STOP and not verdict.device_grade:
        return _stop(verdict, ledger, terms, now)
    late = too_long(ledger, terms, now)
    if late is not None:
        return late
    if verdict.device_grade:
        return _leave_node(verdict)
    if verdict.action is Action.RESCHEDULE and (terms.in_kubernetes or verdict.ruled):
        return _leave_node(verdict) if ExitCode.RESCHEDULE not in ledger.spent else _climb(verdict, ledger, terms)
    return _restart(verdict, ledger, terms)


def too_long(ledger: Ledger, terms: Terms, now: float) -> Decision | None:
    """The one bound over all codes, in time; judged at a fault or a start, only where steps are known."""
    held = ledger.held(now)
    if not ledger.steps_known or held <= terms.max_time_without_progress_s:
        return None
    return Decision(
        code=ExitCode.BUDGET_SPENT,
        why=f"no step after {ledger.committed_step} was committed in {held / 3600:.1f} h of holding devices",
        do="look at what keeps the run from progress or from its checkpoint store; "
        "a new submission starts with full budgets",
    )


def stop_code(verdict: Verdict) -> ExitCode:
    """114 or 115: whose mistake it is."""
    return ExitCode.CONFIG_FAULT if verdict.cause is Cause.CONFIG_OR_ENVIRONMENT else ExitCode.CODE_FAULT


def _as_torchrun(verdict: Verdict, ledger: Ledger, terms: Terms) -> Decision:
    if ledger.restarts < (terms.max_restarts or 0):
        return Decision(code=None, why=verdict.why, do="restart all workers, as torchrun would (--observe)")
    return Decision(code=OBSERVED_FAILURE, why=verdict.why, do="exit 1, as torchrun would (--observe)")


def _leave_node(verdict: Verdict) -> Decision:
    return Decision(
        code=ExitCode.RESCHEDULE,
        why=verdict.why,
        do="the pod should run on another node; have this one looked at",
    )


def _stop(verdict: Verdict, ledger: Ledger, terms: Terms, now: float) -> Decision:
    step = verdict.step or 0
    never_ran = ledger.steps_known and ledger.highest_step == 0
    again = ledger.seen_at(verdict.fingerprint, step) or (
        not ledger.steps_known and ledger.count(verdict.fingerprint) > 0
    )
    at_once = terms.on_code_fault is OnCodeFault.STOP or never_ran or again
    if verdict.ruled or (at_once and terms.on_code_fault is not OnCodeFault.RESTART):
        seen = " (twice, at the same point)" if again else ""
        return Decision(code=stop_code(verdict), why=verdict.why + seen, do="correct it and submit the job again")
    return too_long(ledger, terms, now) or _restart(verdict, ledger, terms)


def _restart(verdict: Verdict, ledger: Ledger, terms: Terms) -> Decision:
    count = ledger.count(verdict.fingerprint)
    looks = terms.second_looks if verdict.action is Action.INVESTIGATE else terms.restarts_per_fingerprint
    if terms.max_restarts is not None and ledger.restarts >= terms.max_restarts:
        return _spent(verdict, f"the {terms.max_restarts} restarts of --max-restarts are spent")
    if count >= looks or ledger.restarts_since_commit >= terms.restarts_between_commits:
        return _climb(verdict, ledger, terms)
    confirming = " to see whether it comes back at the same step" if verdict.action is Action.STOP else ""
    return Decision(
        code=None,
        why=verdict.why,
        do="restart all workers in place" + confirming,
        delay_s=0.0 if count == 0 else min(LONGEST_BACKOFF_S, 2.0 ** (count - 1)),
    )


def _climb(verdict: Verdict, ledger: Ledger, terms: Terms) -> Decision:
    if terms.in_kubernetes and ExitCode.RESTART not in ledger.spent and ExitCode.RESCHEDULE not in ledger.spent:
        return Decision(
            code=ExitCode.RESTART,
            why=f"{verdict.why}; restarts in place did not cure it",
            do="a fresh container is tried next",
        )
    if terms.in_kubernetes and ExitCode.RESCHEDULE not in ledger.spent:
        return Decision(
            code=ExitCode.RESCHEDULE,
            why=f"{verdict.why}; neither restarts nor a fresh container cured it",
            do="another node is tried next",
        )
    return _spent(verdict, "every cheaper action was tried without progress")


def _spent(verdict: Verdict, what: str) -> Decision:
    return Decision(
        code=ExitCode.BUDGET_SPENT,
        why=f"{verdict.why}; {what}",
        do="find the cause before submitting the job again; a new submission starts with full budgets",
    )
