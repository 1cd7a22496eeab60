# SPDX-License-Identifier: Apache-2.0
"""A second thought: what earlier faults of the same run say about this one.

A symptom with two owners is decided by what comes back where: the same fault at the
same step on another machine is the code's, faults of one device at ever other steps
are the device's, and what has failed twice before the first step was set up wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.causes import Action, Cause, Confidence, Verdict
from resilient.core.events import Debit
from resilient.core.evidence import Past
from resilient.core.exit_codes import PREEMPTED
from resilient.core.fingerprint import rule_of

KEPT: Final = 64
"""So many earlier faults are remembered."""
_TWO_OWNERS: Final = frozenset({Cause.AMBIGUOUS, Cause.HANG_OR_COLLECTIVE_TIMEOUT, Cause.FRAMEWORK_BUG})
_FROM_OUTSIDE: Final = frozenset({"sigkill", "sigkill-while-loading", "sigterm", "not-started"})
"""Rules of what the kernel or a person does to a process: neither code nor device does, however often it comes back."""
_MAY_BE_THE_DEVICE: Final = frozenset({Cause.AMBIGUOUS, Cause.USER_CODE, Cause.NUMERIC_INSTABILITY})
NVRX: Final = "https://github.com/NVIDIA/nvidia-resiliency-ext"
LEMONS: Final = "https://arxiv.org/abs/2410.21680"
AEGIS: Final = "https://www.usenix.org/conference/nsdi25/presentation/dong"


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
    when: Callable[[Now, Sequence[Past]], bool]
    why: str
    source: str


def remember(verdict: Verdict, *, node: str | None, reached: int | None) -> Past:
    """What is kept of a fault."""
    return Past(
        fingerprint=verdict.fingerprint,
        step=verdict.step,
        reached=reached,
        node=verdict.node or node,
        rank=verdict.culprit,
    )


def on_record(debits: Iterable[Debit]) -> tuple[Past, ...]:
    """What earlier pods of the submission put on record of their faults; to be preempted is none."""
    faults = (debit for debit in debits if debit.fingerprint and debit.code not in PREEMPTED)
    return tuple(
        Past(fingerprint=debit.fingerprint, step=debit.fault_step, reached=debit.step, node=debit.node)
        for debit in faults
    )


def reconsider(now: Now, past: Sequence[Past]) -> Verdict:
    """The verdict in the light of earlier faults; the same where they say nothing."""
    verdict = now.verdict
    if verdict.ruled or verdict.device_grade or not past or rule_of(verdict.fingerprint) in _FROM_OUTSIDE:
        return verdict
    for rule in HISTORY_RULES:
        if rule.when(now, past):
            return replace(
                verdict,
                cause=rule.cause,
                action=rule.action,
                confidence=rule.confidence,
                device_grade=rule.device_grade,
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


def _every_time(now: Now, past: Sequence[Past]) -> bool:
    """For the third time at the same step: chance does not aim."""
    return now.verdict.cause in _TWO_OWNERS and bool(now.verdict.step) and len(_same(now, past)) >= 2


def _before_the_first_step(now: Now, past: Sequence[Past]) -> bool:
    """The same fault twice, and the run has never made a step."""
    again = [each for each in past if each.fingerprint == now.verdict.fingerprint and each.reached == 0]
    return now.verdict.cause in _TWO_OWNERS and now.reached == 0 and bool(again)


def _one_device(now: Now, past: Sequence[Past]) -> bool:
    """One device has had every fault of the run, at ever other steps, while the others had none."""
    verdict = now.verdict
    place = (verdict.node or now.node, verdict.culprit)
    faults = [each for each in past if each.rank is not None]
    rules = {rule_of(each.fingerprint) for each in faults}
    least = 2 if verdict.cause is Cause.AMBIGUOUS else 3
    steps = {verdict.step, *(each.step for each in faults)}
    return (
        verdict.cause in _MAY_BE_THE_DEVICE
        and verdict.culprit is not None
        and not rules & _FROM_OUTSIDE
        and now.ranks > 1
        and len(faults) >= least
        and all((each.node, each.rank) == place for each in faults)
        and not steps & {None, 0}
        and len(steps) == len(faults) + 1
    )


def _same(now: Now, past: Sequence[Past]) -> list[Past]:
    """Earlier faults with this one's fingerprint and step."""
    verdict = now.verdict
    return [each for each in past if (each.fingerprint, each.step) == (verdict.fingerprint, verdict.step)]


HISTORY_RULES: Final = (
    HistoryRule(
        id="same-step-elsewhere",
        cause=Cause.USER_CODE,
        action=Action.STOP,
        confidence=Confidence.HIGH,
        when=_elsewhere,
        why="the same came back at the same step on another machine, so it is the code or its data",
        source=NVRX,
    ),
    HistoryRule(
        id="same-step-every-time",
        cause=Cause.USER_CODE,
        action=Action.STOP,
        when=_every_time,
        why="the same came back at the same step for the third time, which chance does not do",
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
        why="every fault of this run was on this one rank and machine, at ever other steps, while the others had none",
        source=LEMONS,
    ),
)
