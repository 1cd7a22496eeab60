# SPDX-License-Identifier: Apache-2.0
"""The classifier: evidence of an ended attempt in, one verdict with its reason out.

Pure, total and deterministic. Each rank is matched against the table of rules;
then one rank is blamed: the user's rulings before device verdicts, device
verdicts before other culprits, culprits before victims, the first to end before
the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from resilient.core.causes import Verdict
from resilient.core.collectives import absent
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.fingerprint import fingerprint
from resilient.core.rule import Family, Role, Rule
from resilient.core.rules import RULES
from resilient.core.symptoms import Symptoms, observe

_QUOTE_CHARS: Final = 240
_PRECEDENCE: Final = {rule.id: place for place, rule in enumerate(RULES)}
_BY_EXIT_ALONE: Final = (Family.HOST, Family.EXIT)


@dataclass(frozen=True, slots=True)
class _Finding:
    """A rank, the rule that holds for it, and the words that met the rule."""

    symptoms: Symptoms
    rule: Rule
    seen: str

    @property
    def rank(self) -> RankEvidence:
        return self.symptoms.rank


def classify(evidence: Evidence) -> Verdict:
    """Say what ended the attempt, who is to blame, and which rung of the ladder that asks for."""
    seen = (_find(observe(rank, evidence)) for rank in evidence.ranks)
    findings = [finding for finding in seen if finding is not None]
    if evidence.hang is not None and not any(finding.rule.family is Family.HANG for finding in findings):
        findings += _absent_hang(evidence)
    if not findings:
        rank = evidence.ranks[0] if evidence.ranks else RankEvidence(rank=0)
        return replace(_verdict(_Finding(observe(rank, evidence), RULES[-1], "")), culprit=None, step=None)
    blamed = min(findings, key=_blame)
    verdict = _verdict(blamed)
    is_victim = blamed.rule.role is Role.VICTIM
    # Where all stand still their stacks look alike; how far each had come does not.
    if is_victim or blamed.rule.family is Family.HANG:
        late = absent({rank.rank: rank.collectives for rank in evidence.ranks})
        if late is not None:
            return replace(verdict, culprit=late.rank, why=f"{verdict.why}; {late.why}, and is the suspect")
    return _with_suspect(verdict, findings, evidence) if is_victim else verdict


def _find(symptoms: Symptoms) -> _Finding | None:
    """Match one rank against the table; ``None`` where nothing is wrong with it."""
    for rule in RULES[:-1]:
        if symptoms.rank.stopped and not _counts_for_stopped(rule, symptoms.evidence):
            continue
        seen = rule.when(symptoms)
        if seen is not None:
            return _Finding(symptoms, rule, seen)
    return None


def _counts_for_stopped(rule: Rule, evidence: Evidence) -> bool:
    """What may still be said of a worker that ended because the group was stopped."""
    if rule.device_grade or rule.family in (Family.RULING, Family.HANG):
        return True
    # After a hang, what workers raise is the work of our own signals.
    return rule.family not in _BY_EXIT_ALONE and evidence.hang is None


def _absent_hang(evidence: Evidence) -> list[_Finding]:
    """Blame the hung rank although a stronger rule, or nothing, was found for it."""
    if evidence.hang is None:
        return []
    rank = next((rank for rank in evidence.ranks if rank.rank == evidence.hang.rank), None)
    symptoms = observe(rank or RankEvidence(rank=evidence.hang.rank, stopped=True), evidence)
    rules = (rule for rule in RULES if rule.family is Family.HANG)
    return [_Finding(symptoms, rule, seen) for rule in rules if (seen := rule.when(symptoms)) is not None]


def _blame(finding: _Finding) -> tuple[bool, int, bool, int, bool, bool, bool, float, int]:
    """Sort findings, the one to blame in front."""
    ruled = finding.rule.family is Family.RULING
    order = finding.rank.order
    return (
        not ruled,
        # Rulings that differ: to stop outweighs to move, to move outweighs to retry.
        _PRECEDENCE[finding.rule.id] if ruled else 0,
        not finding.rule.device_grade,
        # A fault of one device is reported for its peers too; the more certain rules stand before the others.
        _PRECEDENCE[finding.rule.id] if finding.rule.device_grade else 0,
        finding.rule.role is Role.VICTIM,
        finding.rank.stopped,
        # To leave with 0 is a fault only where nobody else has a worse one.
        finding.rule.family is Family.EXIT and finding.symptoms.code == 0,
        float("inf") if order is None else order,
        finding.rank.rank,
    )


def _verdict(finding: _Finding) -> Verdict:
    rule, symptoms = finding.rule, finding.symptoms
    name = symptoms.head[0].type if symptoms.head else None
    function = symptoms.function
    if rule.family is Family.HANG:
        name, function = None, _hang_function(symptoms.evidence)
    return Verdict(
        cause=rule.cause,
        action=rule.action,
        confidence=rule.confidence,
        rule=rule.id,
        why=_why(finding),
        fingerprint=fingerprint(rule.id, name, function, finding.seen),
        culprit=None if rule.role is Role.VICTIM else symptoms.rank.rank,
        step=_step(symptoms),
        ruled=rule.family is Family.RULING,
        device_grade=rule.device_grade,
    )


def _step(symptoms: Symptoms) -> int | None:
    """The step by the heartbeat, else by the worker's own record."""
    record = symptoms.rank.error
    return symptoms.rank.step if symptoms.rank.step is not None or record is None else record.step


def _why(finding: _Finding) -> str:
    symptoms, hang = finding.symptoms, finding.symptoms.evidence.hang
    is_hang = finding.rule.family is Family.HANG and hang is not None
    frame = hang.where if is_hang and hang is not None else symptoms.frame
    step = _step(symptoms)
    where = (f" at {frame}" if frame else "") + (f" in step {step}" if step else "")
    head = symptoms.head[0] if symptoms.head else None
    sentence = finding.rule.why.format(
        rank=symptoms.rank.rank,
        where=where,
        type=head.type if head else "nothing",
        seen=finding.seen[:_QUOTE_CHARS],
        silent_s=hang.silent_s if hang else 0.0,
        bound_s=hang.bound_s if hang else 0.0,
    )
    return " ".join(sentence.split()).removesuffix(":")


def _hang_function(evidence: Evidence) -> str | None:
    """Turn ``train.py:41 in loss`` into ``train.py:loss``: lines move between versions of a script."""
    if evidence.hang is None or not evidence.hang.where:
        return None
    place, _, function = evidence.hang.where.partition(" in ")
    return f"{place.partition(':')[0]}:{function}"


def _with_suspect(verdict: Verdict, victims: list[_Finding], evidence: Evidence) -> Verdict:
    """Only victims are known: name the one rank that did not report what all others did."""
    reporters = {finding.rank.rank for finding in victims}
    silent = [rank for rank in evidence.ranks if rank.rank not in reporters]
    by_itself = [rank for rank in silent if not rank.stopped and (rank.exit_code, rank.signal) != (None, None)]
    suspects = by_itself or silent
    if len(suspects) != 1:
        return verdict
    suspect = suspects[0]
    left = f" (it had left with exit code {suspect.exit_code})" if suspect in by_itself else ""
    why = f"{verdict.why}; rank {suspect.rank} alone did not report it{left} and is the suspect"
    return replace(verdict, culprit=suspect.rank, why=why)
