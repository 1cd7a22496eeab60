# SPDX-License-Identifier: Apache-2.0
"""A second thought: what earlier faults of the same run say about this one.

A symptom with two owners is decided by what comes back where: the same fault at the
same step on another machine is the code's, faults of one device at ever other steps
are the device's, and what has failed twice before the first step was set up wrongly.
The same sample at another step, an epoch later, is the data's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.aftermath import CONTAINER_OOM
from resilient.core.batch import Batch, narrowed, same_data
from resilient.core.causes import Action, Cause, Confidence, Verdict
from resilient.core.events import Debit
from resilient.core.evidence import Past
from resilient.core.exit_codes import PREEMPTED
from resilient.core.fingerprint import FROM_OUTSIDE, rule_of
from resilient.core.skipping import is_about_data

_OFTEN: Final = 3
"""As often in a row at the same step, and another machine has to tell."""
KEPT: Final = 64
"""So many earlier faults are remembered."""
_TWO_OWNERS: Final = frozenset({Cause.AMBIGUOUS, Cause.HANG_OR_COLLECTIVE_TIMEOUT, Cause.FRAMEWORK_BUG})
_MAY_BE_THE_DEVICE: Final = frozenset({Cause.AMBIGUOUS, Cause.USER_CODE, Cause.NUMERIC_INSTABILITY})
NVRX: Final = "https://github.com/NVIDIA/nvidia-resiliency-ext"
CGROUP: Final = "https://docs.kernel.org/admin-guide/cgroup-v2.html"
LEMONS: Final = "https://arxiv.org/abs/2410.21680"
AEGIS: Final = "https://www.usenix.org/conference/nsdi25/presentation/dong"
SKIPPING: Final = "https://arxiv.org/abs/2204.02311"
"""PaLM, section 5.1: what the batches of one step did to the loss they did not do again at another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """The fault that is judged, and where the run stands."""

    verdict: Verdict
    node: str | None = None
    reached: int | None = None
    """Highest step of the run; ``None`` where its steps are unknown."""
    ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRule:
    """One row: when earlier faults change a verdict, and into what."""

    id: str
    cause: Cause
    action: Action
    confidence: Confidence = Confidence.MEDIUM
    device_grade: bool = False
    confirmed: bool = False
    """No restart has to confirm it any more."""
    when: Callable[[Now, Sequence[Past]], bool]
    why: str
    source: str
    from_outside: bool = False
    """It is about what is done to a process, and about nothing else."""


def remember(verdict: Verdict, *, node: str | None, reached: int | None) -> Past:
    """What is kept of a fault."""
    return Past(
        fingerprint=verdict.fingerprint,
        step=verdict.step,
        reached=reached,
        node=verdict.node or node,
        rank=verdict.culprit,
        device=_uuid(verdict),
        batch=verdict.batch if is_about_data(verdict) else None,
    )


def on_record(debits: Iterable[Debit]) -> tuple[Past, ...]:
    """What earlier pods of the submission put on record of their faults; to be preempted is none."""
    told = (debit for debit in debits if debit.fingerprint and not debit.forgiven)
    faults = (debit for debit in told if debit.code not in PREEMPTED)
    return tuple(
        Past(
            fingerprint=debit.fingerprint,
            step=debit.fault_step,
            times=debit.times,
            reached=debit.step,
            node=debit.node,
            batch=debit.batch,
        )
        for debit in faults
    )


def reconsider(now: Now, past: Sequence[Past]) -> Verdict:
    """The verdict in the light of earlier faults; the same where they say nothing."""
    verdict = now.verdict
    if verdict.ruled or verdict.device_grade or not past:
        return verdict
    from_outside = rule_of(verdict.fingerprint) in FROM_OUTSIDE
    for rule in HISTORY_RULES:
        if rule.from_outside == from_outside and rule.when(now, past):
            return replace(
                verdict,
                cause=rule.cause,
                action=rule.action,
                confidence=rule.confidence,
                device_grade=rule.device_grade,
                confirmed=rule.confirmed,
                batch=_narrowed(now, past),
                rule=rule.id,
                why=f"{rule.why}: {verdict.why}",
            )
    return verdict


def _elsewhere(now: Now, past: Sequence[Past]) -> bool:
    """The same fault at the same step on another machine."""
    here = now.verdict.node or now.node
    return (
        now.verdict.cause in _TWO_OWNERS
        and bool(now.verdict.step)
        and here is not None
        and any(each.node not in (None, here) for each in _same(now, past))
    )


def _times(now: Now, past: Sequence[Past]) -> int:
    """How often a symptom with two owners has come at this step by now; 0 where no step is known."""
    counts = now.verdict.cause in _TWO_OWNERS and bool(now.verdict.step)
    return 1 + sum(each.times for each in _same(now, past)) if counts else 0


def _thrice(now: Now, past: Sequence[Past]) -> bool:
    """Chance does not aim. A broken device may: its memory fills to the same place each time."""
    return _times(now, past) == _OFTEN


def _every_time(now: Now, past: Sequence[Past]) -> bool:
    """Another machine was tried, or there is none: whatever it is, it needs a person."""
    return _times(now, past) > _OFTEN


def _before_the_first_step(now: Now, past: Sequence[Past]) -> bool:
    """The same fault twice, and the run has never made a step."""
    again = [each for each in past if each.fingerprint == now.verdict.fingerprint and each.reached == 0]
    return now.verdict.cause in _TWO_OWNERS and now.reached == 0 and bool(again)


def _memory_ran_out(now: Now, past: Sequence[Past]) -> bool:
    """A SIGKILL that nothing explains, in a submission of which a whole container was lost for its memory."""
    before = any(rule_of(each.fingerprint) == CONTAINER_OOM for each in past)
    return now.verdict.rule == "sigkill" and before


def _one_device(now: Now, past: Sequence[Past]) -> bool:
    """One device has had every fault of the run, at ever other steps, while the others had none."""
    verdict = now.verdict
    faults = [each for each in past if each.rank is not None]
    rules = {rule_of(each.fingerprint) for each in faults}
    least = 2 if verdict.cause is Cause.AMBIGUOUS else 3
    steps = {verdict.step, *(each.step for each in faults)}
    return (
        verdict.cause in _MAY_BE_THE_DEVICE
        and verdict.culprit is not None
        and not rules & FROM_OUTSIDE
        and now.ranks > 1
        and len(faults) >= least
        and all(_on_its_device(now, each) for each in faults)
        and not steps & {None, 0}
        and len(steps) == len(faults) + 1
    )


def _on_its_device(now: Now, past: Past) -> bool:
    """By the device's UUID where both know one, as ranks may change places; else by machine and rank."""
    verdict = now.verdict
    uuid = _uuid(verdict)
    if uuid is not None and past.device is not None:
        return uuid == past.device
    return (verdict.node or now.node, verdict.culprit) == (past.node, past.rank)


def _uuid(verdict: Verdict) -> str | None:
    return None if verdict.device is None else verdict.device.uuid


def _same_sample(now: Now, past: Sequence[Past]) -> bool:
    """The same fault with the same sample at another step. At the same step the policy knows by itself."""
    return is_about_data(now.verdict) and bool(_with_same_data(now, past))


def _with_same_data(now: Now, past: Sequence[Past]) -> list[Past]:
    """Earlier faults with this one's fingerprint and sample, at other steps."""
    verdict = now.verdict
    return [
        each
        for each in past
        if each.fingerprint == verdict.fingerprint
        and each.step != verdict.step
        and each.batch is not None
        and verdict.batch is not None
        and same_data(each.batch, verdict.batch)
    ]


def _narrowed(now: Now, past: Sequence[Past]) -> Batch | None:
    """The batch of the fault, with the sample that it shares with an earlier one's."""
    batch = now.verdict.batch
    for each in _with_same_data(now, past):
        if batch is not None and each.batch is not None:
            return narrowed(batch, each.batch)
    return batch


def _same(now: Now, past: Sequence[Past]) -> list[Past]:
    """Earlier faults with this one's fingerprint and step."""
    verdict = now.verdict
    return [each for each in past if (each.fingerprint, each.step) == (verdict.fingerprint, verdict.step)]


HISTORY_RULES: Final = (
    HistoryRule(
        id="same-sample-again",
        cause=Cause.USER_DATA,
        action=Action.STOP,
        confidence=Confidence.HIGH,
        confirmed=True,
        when=_same_sample,
        why="the same came back with the same sample at another step, so it is the data",
        source=SKIPPING,
    ),
    HistoryRule(
        id="same-step-elsewhere",
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confidence=Confidence.HIGH,
        confirmed=True,
        when=_elsewhere,
        why="the same came back at the same step on another machine, so it is the code or its data",
        source=NVRX,
    ),
    HistoryRule(
        id="same-step-every-time",
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confirmed=True,
        when=_every_time,
        why="the same comes back at the same step every time, so it is the code or its data",
        source=NVRX,
    ),
    HistoryRule(
        id="same-step-three-times",
        cause=Cause.AMBIGUOUS,
        action=Action.RESCHEDULE,
        confidence=Confidence.LOW,
        when=_thrice,
        why="the same came back at the same step for the third time, and another machine tells whether it is the code",
        source=NVRX,
    ),
    HistoryRule(
        id="twice-before-the-first-step",
        cause=Cause.CONFIG_OR_ENVIRONMENT,
        action=Action.STOP,
        when=_before_the_first_step,
        why="the same happened twice and the run has never made a step, so it was set up wrongly",
        source=AEGIS,
    ),
    HistoryRule(
        id="one-device-again",
        cause=Cause.DEVICE_FAULT,
        action=Action.RESCHEDULE,
        device_grade=True,
        when=_one_device,
        why="every fault of this run was on this one device, or rank, at ever other steps, while the others had none",
        source=LEMONS,
    ),
    HistoryRule(
        id="out-of-memory-before",
        cause=Cause.OUT_OF_MEMORY_HOST,
        action=Action.RESTART_IN_PLACE,
        confidence=Confidence.LOW,
        when=_memory_ran_out,
        why="a container of this submission has probably run out of memory before, and so may this one",
        source=CGROUP,
        from_outside=True,
    ),
)
