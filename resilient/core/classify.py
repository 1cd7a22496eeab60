# SPDX-License-Identifier: Apache-2.0
"""The classifier: evidence of an ended attempt in, one verdict with its reason out.

Pure, total and deterministic. Each rank is matched against the table of rules;
then one rank is blamed: the user's rulings before device verdicts, device
verdicts before other culprits, culprits before victims, the first to end before
the next. The others are told of as its victims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.batch import Batch
from resilient.core.causes import Cause, Verdict
from resilient.core.collectives import Suspect
from resilient.core.crowd import Crowd
from resilient.core.device_blamed import device_blamed, only_device
from resilient.core.evidence import UNNAMED, Evidence, Place, RankEvidence
from resilient.core.fingerprint import fingerprint
from resilient.core.grammar import going_on
from resilient.core.rule import Family, Role, Rule
from resilient.core.rules import RULES
from resilient.core.symptoms import Symptoms, observe
from resilient.core.traceback_text import unwrapped

_QUOTE_CHARS: Final = 240
_PRECEDENCE: Final = {rule.id: place for place, rule in enumerate(RULES)}
_TO_BE_CORRECTED: Final = (Cause.USER_CODE, Cause.USER_DATA)
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


def classify(evidence: Evidence, rules: Sequence[Rule] = RULES) -> Verdict:
    """Say what ended the attempt, who is to blame, and which rung of the ladder that asks for."""
    evidence = _unwrapped(evidence)
    crowd = Crowd(evidence)
    seen = (_find(observe(rank, evidence, crowd), rules) for rank in evidence.ranks)
    findings = [finding for finding in seen if finding is not None]
    if evidence.hang is not None and not any(finding.rule.family is Family.HANG for finding in findings):
        findings += _absent_hang(evidence, rules)
    if not findings:
        rank = evidence.ranks[0] if evidence.ranks else RankEvidence(rank=0)
        return replace(_verdict(_Finding(observe(rank, evidence), RULES[-1], "")), culprit=None, step=None, evidence=())
    blamed = min(findings, key=_blame)
    verdict = _verdict(blamed)
    suspect = _suspect(blamed, findings, evidence, crowd)
    if suspect is not None:
        return _with_suspect(verdict, suspect, evidence)
    return verdict if blamed.rule.role is Role.VICTIM else _with_victims(verdict, blamed, findings)


def _unwrapped(evidence: Evidence) -> Evidence:
    """Ranks are compared by what was raised, not by who carried it over."""
    ranks = (replace(rank, error=unwrapped(rank.error)) if rank.error else rank for rank in evidence.ranks)
    return replace(evidence, ranks=tuple(ranks))


def _find(symptoms: Symptoms, rules: Sequence[Rule]) -> _Finding | None:
    """Match one rank against the table; ``None`` where nothing is wrong with it."""
    users: _Finding | None = None
    for rule in rules[:-1]:
        if symptoms.rank.stopped and not _counts_for_stopped(rule, symptoms.evidence):
            continue
        if users is not None and not rule.device_grade:
            continue  # a rule of the user's outranks all of ours but a verdict on hardware
        seen = rule.when(symptoms)
        if seen is None:
            continue
        finding = _Finding(symptoms, rule, seen)
        if rule.family is not Family.USER:
            return finding
        users = users or finding
    return users


def _counts_for_stopped(rule: Rule, evidence: Evidence) -> bool:
    """What may still be said of a worker that ended because the group was stopped."""
    if rule.device_grade or rule.family in (Family.RULING, Family.HANG):
        return True
    # After a hang, what workers raise is the work of our own signals.
    return rule.family not in _BY_EXIT_ALONE and evidence.hang is None


def _absent_hang(evidence: Evidence, rules: Sequence[Rule]) -> list[_Finding]:
    """Blame the hung rank although a stronger rule, or nothing, was found for it."""
    if evidence.hang is None:
        return []
    rank = next((rank for rank in evidence.ranks if rank.rank == evidence.hang.rank), None)
    symptoms = observe(rank or RankEvidence(rank=evidence.hang.rank, stopped=True), evidence)
    hangs = (rule for rule in rules if rule.family is Family.HANG)
    return [_Finding(symptoms, rule, seen) for rule in hangs if (seen := rule.when(symptoms)) is not None]


def _blame(finding: _Finding) -> tuple[bool, int, bool, int, bool, bool, bool, bool, bool, float, int]:
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
        _says_little(finding),
        finding.rule.role is Role.VICTIM,
        finding.rank.outlived,
        finding.rank.stopped,
        # To leave with 0 is a fault only where nobody else has a worse one.
        finding.rule.family is Family.EXIT and finding.symptoms.code == 0,
        float("inf") if order is None else order,
        finding.rank.rank,
    )


def _says_little(finding: _Finding) -> bool:
    """In a log the ending is that of the whole command, so any line says more of a worker."""
    return finding.symptoms.evidence.from_log and finding.rule.family in _BY_EXIT_ALONE and not finding.seen


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
        evidence=_evidence(finding),
        fingerprint=fingerprint(rule.id, name, function, finding.seen),
        culprit=None if rule.role is Role.VICTIM or symptoms.rank.rank == UNNAMED else symptoms.rank.rank,
        step=_step(symptoms),
        batch=_of_any_rank(symptoms.rank.batch) if rule.role is Role.VICTIM else symptoms.rank.batch,
        between=_between(symptoms),
        node=None if rule.role is Role.VICTIM else symptoms.rank.node,
        device=device_blamed(rule, symptoms.rank, finding.seen),
        ruled=rule.family is Family.RULING,
        device_grade=rule.device_grade,
    )


def _step(symptoms: Symptoms) -> int | None:
    """The step by the heartbeat, else by the worker's own record."""
    record = symptoms.rank.error
    return symptoms.rank.step if symptoms.rank.step is not None or record is None else record.step


def _between(symptoms: Symptoms) -> bool:
    """Whether it had completed the step that is named; the next is entered before its batch is made."""
    step, completed = symptoms.rank.step, symptoms.rank.completed
    return step is not None and completed is not None and completed >= step


def _when(symptoms: Symptoms, *, outside: bool) -> str:
    """``outside``: it was in no step; the one that it had entered is the next, whose batch is awaited."""
    step = symptoms.rank.completed if outside else _step(symptoms)
    if not step:
        return " before the first step" if outside and step == 0 else ""
    return f" {'after' if outside or _between(symptoms) else 'in'} step {step}"


def _why(finding: _Finding) -> str:
    symptoms, hang = finding.symptoms, finding.symptoms.evidence.hang
    found = hang if finding.rule.family is Family.HANG else None
    frame = found.where if found else symptoms.frame
    node = f" on {symptoms.rank.node}" if symptoms.rank.node else ""
    # Whoever has to correct the code wants to know where, before anything else.
    first = finding.rule.cause in _TO_BE_CORRECTED and frame is not None and not found
    when = _when(symptoms, outside=found is not None and found.place is not Place.STEP)
    where = ("" if first or not frame else f" at {frame}") + when + node
    head = symptoms.head[0] if symptoms.head else None
    who = "a worker" if symptoms.rank.rank == UNNAMED else f"rank {symptoms.rank.rank}"
    sentence = finding.rule.why.replace("rank {rank}", "{who}").format(
        who=who,
        where=where,
        type=head.type if head else "nothing",
        seen=finding.seen[:_QUOTE_CHARS],
        silent_s=hang.silent_s if hang else 0.0,
        bound_s=hang.bound_s if hang else 0.0,
    )
    sentence = " ".join(sentence.split()).removesuffix(":")
    return f"{frame}: {sentence}" if first else sentence


def _evidence(finding: _Finding) -> tuple[str, ...]:
    """What the verdict rests on."""
    symptoms, evidence = finding.symptoms, finding.symptoms.evidence
    ended = f"ended by signal {symptoms.signal}" if symptoms.signal is not None else None
    if symptoms.code is not None:
        ended = f"ended with exit code {symptoms.code}"
    known = (
        finding.seen[:_QUOTE_CHARS],
        symptoms.frame,
        ended,
        f"the OOM killer struck {_count(evidence.oom_kills, 'time')}" if evidence.oom_kills else None,
        f"/dev/shm is {evidence.shm_used_fraction:.0%} full" if evidence.shm_used_fraction is not None else None,
    )
    return (*(line for line in known if line), *evidence.announced)


def _hang_function(evidence: Evidence) -> str | None:
    """Turn ``train.py:41 in loss`` into ``train.py:loss``: lines move between versions of a script."""
    if evidence.hang is None or not evidence.hang.where:
        return None
    place, _, function = evidence.hang.where.partition(" in ")
    return f"{place.partition(':')[0]}:{function}"


def _with_victims(verdict: Verdict, blamed: _Finding, findings: list[_Finding]) -> Verdict:
    """Say of the other ranks that they suffer from the one that is blamed, or that they died alike."""
    others = {each.rank.rank: each for each in findings if each.rank.rank not in (blamed.rank.rank, UNNAMED)}
    alike = [rank for rank, each in others.items() if each.rule is blamed.rule]
    victims = [rank for rank, each in others.items() if each.rule.role is Role.VICTIM]
    why = verdict.why
    if alike and blamed.symptoms.crowd.alike(blamed.rank):
        # Where all die of the same there is no first one: that one was merely seen first.
        words = f"{going_on(why)}; {_count(len(alike), 'other rank')} alike"
        return replace(verdict, culprit=None, device=None, batch=_of_any_rank(verdict.batch), why=words)
    if victims:
        why += f"; {_count(len(victims), 'other rank')} suffered from it"
    return replace(verdict, why=why)


def _of_any_rank(batch: Batch | None) -> Batch | None:
    """Ranks have the same numbers of batches, and in them samples of their own."""
    return batch and replace(batch, sample=None, samples=(), more=0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _suspect(blamed: _Finding, findings: list[_Finding], evidence: Evidence, crowd: Crowd) -> Suspect | None:
    """The rank that the one that is blamed had waited for, where one can be told from the others."""
    if blamed.rule.family is Family.HANG:
        # Where all stand still their stacks look alike; how far each had come does not.
        return crowd.late
    if blamed.rule.role is Role.VICTIM:
        return crowd.absent or _unreported(findings, evidence)
    return None


def _unreported(victims: list[_Finding], evidence: Evidence) -> Suspect | None:
    """The one rank that did not report what all others did."""
    reporters = {finding.rank.rank for finding in victims}
    silent = [rank for rank in evidence.ranks if rank.rank not in reporters]
    by_itself = [rank for rank in silent if not rank.stopped and (rank.exit_code, rank.signal) != (None, None)]
    suspects = by_itself or silent
    if len(suspects) != 1 or suspects[0].rank == UNNAMED:
        return None
    rank = suspects[0].rank
    left = f" (it had left with exit code {suspects[0].exit_code})" if by_itself else ""
    return Suspect(rank=rank, why=f"rank {rank} alone did not report it{left}")


def _with_suspect(verdict: Verdict, suspect: Suspect, evidence: Evidence) -> Verdict:
    rank = next((each for each in evidence.ranks if each.rank == suspect.rank), RankEvidence(rank=suspect.rank))
    why = f"{going_on(verdict.why)}; {suspect.why}, and is the suspect"
    batch = rank.batch or verdict.batch
    return replace(verdict, culprit=suspect.rank, node=rank.node, device=only_device(rank), batch=batch, why=why)
