# SPDX-License-Identifier: Apache-2.0
"""The ladder: which rung a verdict asks for, and when a rung is spent.

    rung 1  restart the workers in place        here, within budgets
    rung 3  a fresh container on this node      exit 193
    rung 4  another node                        exit 194
    rung 5  stop                                exit 114, 115, 116

Pure: a verdict and the ledger in, a decision with its reason out. A fault starts
on the rung that its cause deserves and climbs when it comes back without
progress in between. A code verdict after the first step gets exactly one
confirming restart, because a wrong one must not end a month of work: the same
fingerprint at the same step or sample stops the job, or leaves the batch out
where the user allows that, and anything else climbs like a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from resilient.core.batch import Batch
from resilient.core.causes import Action, Cause, Verdict
from resilient.core.denied import Suspect
from resilient.core.exit_codes import OBSERVED_FAILURE, ExitCode
from resilient.core.grammar import going_on
from resilient.core.ledger import Ledger, Strike
from resilient.core.on_code_fault import OnCodeFault
from resilient.core.skipping import NOTHING_SKIPPED, Skipping, is_about_data, objection

LONGEST_BACKOFF_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What does not change while a supervisor lives."""

    in_kubernetes: bool = False
    counters_bound: bool = False
    """The controller's counters of this index are known and at most 20: it would end a loop by itself."""
    observe: bool = False
    node: str | None = None
    """The machine of this pod."""
    pods: int = 1
    """Of the run."""
    pod: int = 0
    """Which of them this is; the first one leads."""
    pod_patience_s: float = 1800.0
    """How long the others are waited for: a controller may take 10 minutes to replace one, and a scheduler longer."""
    on_code_fault: OnCodeFault = OnCodeFault.CONFIRM
    max_restarts: int | None = None
    """Restarts in all that a submission may have; ``None``: only the budgets below bound them."""
    restarts_per_fingerprint: int = 3
    """In place, without progress in between."""
    second_looks: int = 1
    """The same for a verdict that is only a guess, and for one on the code, which it confirms or makes one."""
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
    def leads(self) -> bool:
        """It decides for several pods."""
        return self.pods > 1 and self.pod == 0

    @property
    def follows(self) -> bool:
        """Another pod decides."""
        return self.pod > 0

    @property
    def open_s(self) -> float:
        """How long opening the store may take: patience for its lock, and for the store itself."""
        return 2 * self.settle_s + self.record_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done about a fault: restart after ``delay_s``, or exit with ``code``."""

    code: int | None
    why: str
    do: str
    delay_s: float = 0.0
    skip: Batch | None = None
    """Left out from then on."""
    fault: Strike | None = None
    """The fault that ends it, where one does."""
    suspect: Suspect | None = None
    """What is kept off from now on."""
    for_store: str = ""
    """What is to be done about the checkpoint store, where that is what ends it."""
    unrecorded: bool = False
    """It could not be put on record, and the code is for that."""
    lost: bool = False
    """The work is done, and its final state is in no checkpoint: a new start is to make it again."""
    pods: tuple[int, ...] | None = None
    """Of several pods those that it is about; ``None``: all."""

    def is_about(self, pod: int) -> bool:
        """Whether this pod has to do with why."""
        return self.pods is None or pod in self.pods


RESTORE: Final = "restore the checkpoint store; the job goes on from its newest checkpoint"
NO_RECORD: Final = "give --checkpoints, or pass RESILIENT_FAILURE_COUNT and RESILIENT_IGNORED_COUNT"


def unrecorded(ending: Decision, why: str, *, has_store: bool) -> Decision:
    """What becomes of an ending that must be on record and is not: one that every controller counts."""
    return Decision(
        code=ExitCode.INTERNAL,
        why=f"{going_on(ending.why)}; that exit ({ending.code}) could not be put on record: {why}",
        do=ending.for_store or (RESTORE if has_store else NO_RECORD),
        unrecorded=True,
    )


def not_durable(ending: Decision, durable_step: int, reached_step: int, *, by_break: bool) -> Decision:
    """The work is done, and its final state is in no checkpoint."""
    last = f"the last checkpoint is of step {durable_step}" if durable_step else "there is no checkpoint"
    goes_on = f"goes on from step {durable_step}" if durable_step else "begins anew"
    do = f"restore the checkpoint store and start the run again: it {goes_on}, as it is not marked as finished"
    if by_break:
        do = "no last snapshot is taken after `break`: save what you need of that state in the code behind it"
    why = f"{going_on(ending.why)}; but the final state, of step {reached_step}, is not durable: {last}"
    return replace(ending, why=why, do=do, lost=not by_break)


def without_record(ending: Decision, why: str) -> Decision:
    """An ending that stands although it is not on record; a start again does not know of it."""
    return replace(ending, why=f"{going_on(ending.why)} (not on record: {why})")


def decide(
    verdict: Verdict, ledger: Ledger, terms: Terms, now: float, skipping: Skipping = NOTHING_SKIPPED
) -> Decision:
    """The cheapest action that can cure the fault and is not spent."""
    if terms.observe:
        return _as_torchrun(verdict, ledger, terms)
    # Before the first step ever it is the code that is wrong, whichever batch comes first.
    objected = objection(verdict, skipping) if _came_back(verdict, ledger) and not ledger.never_ran else ""
    if objected is None:
        return too_long(ledger, terms, now) or _skip(verdict, ledger, terms, skipping)
    if verdict.action is Action.STOP and not verdict.device_grade:
        return _stop(verdict, ledger, terms, now, objected)
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


def left(by: str, ledger: Ledger, terms: Terms, *, durable_step: int, reached: int) -> Decision:
    """How a job that was asked to leave has left, and from where a start would go on."""
    saved = f"step {durable_step} is saved" if durable_step else "nothing was saved"
    if not ledger.steps_known:
        where = "no step of it is known"
        do = "started again it begins anew, unless its script keeps checkpoints, its own or by resilient.Run"
    else:
        where = f"step {reached} was reached"
        do = f"the run {'goes on from there' if durable_step else 'begins anew'} when it is started again"
    code: int = ExitCode.PREEMPTED_UNSAVED
    if terms.observe:
        code = OBSERVED_FAILURE
    elif ledger.steps_known and durable_step > 0 and durable_step >= reached:
        code = ExitCode.PREEMPTED_SAVED
    return Decision(code=code, why=f"asked to leave by {by}; {saved}, {where}", do=do)


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


def _came_back(verdict: Verdict, ledger: Ledger) -> bool:
    """The same fault at the same step or sample."""
    return verdict.confirmed or ledger.count_at(verdict.fingerprint, verdict.step or 0) > 0


def _stop(verdict: Verdict, ledger: Ledger, terms: Terms, now: float, objected: str) -> Decision:
    """``objected``: why the batch was not left out instead."""
    again = _came_back(verdict, ledger) or (not ledger.steps_known and ledger.count(verdict.fingerprint) > 0)
    at_once = terms.on_code_fault is OnCodeFault.STOP or ledger.never_ran or again
    if verdict.ruled or (at_once and terms.on_code_fault is not OnCodeFault.RESTART):
        seen = " (twice, at the same point)" if again and not verdict.confirmed else ""
        where = f", in {verdict.batch}" if verdict.batch else ""
        more = seen + where + (f", and {objected}" if objected else "")
        why = f"{going_on(verdict.why)}{more}" if more else verdict.why
        do = "correct it and submit the job again"
        if verdict.batch and not objected and is_about_data(verdict):
            do += ", or leave the batch out: --skip-bad-batches 1"
        return Decision(code=stop_code(verdict), why=why, do=do)
    return too_long(ledger, terms, now) or _restart(verdict, ledger, terms)


def _skip(verdict: Verdict, ledger: Ledger, terms: Terms, skipping: Skipping) -> Decision:
    """It is a restart in place like any other, and comes out of the same budgets."""
    batch = verdict.batch
    assert batch is not None, "nothing is left out without being known"
    if (spent := _no_restart_left(verdict, ledger, terms)) is not None:
        return spent
    used = f"{skipping.count + batch.count} of {skipping.allowed}"
    how = "" if batch.exact else ", once it has been fetched"
    return Decision(
        code=None,
        why=f"{going_on(verdict.why)}, in {batch}, which is left out by all ranks{how} (skip_bad_batches: {used})",
        do="restart all workers in place without it",
        skip=batch,
    )


def _no_restart_left(verdict: Verdict, ledger: Ledger, terms: Terms) -> Decision | None:
    """What is done where no restart in place is left to any fault."""
    if terms.max_restarts is not None and ledger.restarts >= terms.max_restarts:
        return _spent(verdict, f"the {terms.max_restarts} restarts of --max-restarts are spent")
    return _climb(verdict, ledger, terms) if ledger.restarts_since_commit >= terms.restarts_between_commits else None


def _restart(verdict: Verdict, ledger: Ledger, terms: Terms) -> Decision:
    if (spent := _no_restart_left(verdict, ledger, terms)) is not None:
        return spent
    count = ledger.count(verdict.fingerprint)
    if count >= _looks(verdict, terms):
        return _climb(verdict, ledger, terms)
    confirming = " to see whether it comes back at the same step" if verdict.action is Action.STOP else ""
    return Decision(
        code=None,
        why=verdict.why,
        do="restart all workers in place" + confirming,
        delay_s=0.0 if count == 0 else min(LONGEST_BACKOFF_S, 2.0 ** (count - 1)),
    )


def _looks(verdict: Verdict, terms: Terms) -> int:
    """Restarts in place that one fault may have without progress. Where one on the code comes back elsewhere than it
    was, the restart that was to confirm it has made a guess of it, and a guess gets no more than that one."""
    guess = verdict.action is Action.INVESTIGATE
    to_confirm = verdict.action is Action.STOP and terms.on_code_fault is not OnCodeFault.RESTART
    return terms.second_looks if guess or to_confirm else terms.restarts_per_fingerprint


def _climb(verdict: Verdict, ledger: Ledger, terms: Terms) -> Decision:
    if terms.in_kubernetes and ExitCode.RESTART not in ledger.spent and ExitCode.RESCHEDULE not in ledger.spent:
        return Decision(
            code=ExitCode.RESTART,
            why=f"{going_on(verdict.why)}; restarts in place did not cure it",
            do="a fresh container is tried next",
        )
    if terms.in_kubernetes and ExitCode.RESCHEDULE not in ledger.spent:
        return Decision(
            code=ExitCode.RESCHEDULE,
            why=f"{going_on(verdict.why)}; neither restarts nor a fresh container cured it",
            do="another node is tried next",
        )
    return _spent(verdict, "every cheaper action was tried without progress")


def _spent(verdict: Verdict, what: str) -> Decision:
    return Decision(
        code=ExitCode.BUDGET_SPENT,
        why=f"{going_on(verdict.why)}; {what}",
        do="find the cause before submitting the job again; a new submission starts with full budgets",
    )
