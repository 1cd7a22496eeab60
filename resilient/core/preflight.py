# SPDX-License-Identifier: Apache-2.0
"""A preflight's words: a check, what it found, and the exit code that follows from all of them.

Owns the form; the checks are rows in the ``checks_*`` tables, their facts are those of
:mod:`resilient.core.measured` and :mod:`resilient.core.devices`. Pure: facts in, report out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.core.measured import UNLIMITED, Unmeasured


class Grade(str, enum.Enum):
    """What a check came to."""

    OK = "ok"
    WARN = "warn"
    """It may train all the same; a person should know."""
    FAIL = "fail"
    """It cannot train like this."""
    SKIP = "skip"
    """There is nothing to look at here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the training will need, as far as it is known."""

    ranks: int = 1
    """Workers on this machine."""
    devices: int | None = None
    """Devices that were asked for, or handed out by the platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one check makes of its facts."""

    grade: Grade
    found: str
    do: str = ""
    refusal: ExitCode | None = None
    """For a failure that is not the check's usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row: what is looked at, by which probes, and how their facts are judged."""

    id: str
    looks_at: str
    probes: tuple[str, ...]
    judge: Callable[..., Judgement]
    """Takes the facts of each probe, then ``Asked``."""
    refusal: ExitCode = ExitCode.NODE_REFUSED
    """What a failure means."""
    late: Grade = Grade.WARN
    """What it means that a probe did not end in time."""
    broken: Grade = Grade.WARN
    """What it means that a probe ended without facts."""
    follows: bool = False
    """Another check of the same probe says already that it gave none."""
    do: str
    """What to do where a probe gave none."""
    source: str
    """Of the threshold, or of what the check is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check has found."""

    check: str
    looks_at: str
    grade: Grade
    found: str
    do: str
    refusal: int | None
    """The exit code that a failure stands for."""


_FIRST: Final = (ExitCode.NODE_REFUSED, ExitCode.CONFIG_FAULT, ExitCode.RESTART)
"""Which code goes first where failures differ. A suspect node is no witness against settings, which end the job for
good; and another container may find the store, but neither a setting nor a device that is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of a preflight."""

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.grade is Grade.FAIL)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.grade is Grade.WARN)

    @property
    def code(self) -> int:
        """0, or what a start here would be refused with."""
        refusals = {finding.refusal for finding in self.failures}
        return int(next((code for code in _FIRST if code in refusals), ExitCode.FINISHED))


def judge(checks: Iterable[Check], measured: Mapping[str, object], asked: Asked) -> Report:
    """Every check whose probes were sent out; ``measured`` has their facts, or ``Unmeasured``."""
    return Report(
        findings=tuple(_finding(check, measured, asked) for check in checks if measured.keys() >= {*check.probes})
    )


def _finding(check: Check, measured: Mapping[str, object], asked: Asked) -> Finding:
    facts = [measured[probe] for probe in check.probes]
    silent = next((fact for fact in facts if isinstance(fact, Unmeasured)), None)
    judged = check.judge(*facts, asked) if silent is None else _unmeasured(check, silent)
    failed = judged.grade is Grade.FAIL
    return Finding(
        check=check.id,
        looks_at=check.looks_at,
        grade=judged.grade,
        found=judged.found,
        do=judged.do if judged.grade in (Grade.WARN, Grade.FAIL) else "",
        refusal=int(judged.refusal or check.refusal) if failed else None,
    )


def _unmeasured(check: Check, silent: Unmeasured) -> Judgement:
    """What could not be measured is unknown, never fine; what the kernel does not let go of has failed. A probe that
    ended without facts says more of what is installed or set than of the node."""
    if check.follows:
        return skip(f"not known: {silent.why}")
    grade = Grade.FAIL if silent.stuck else check.late if silent.late else check.broken
    of_node = silent.late or silent.stuck or check.refusal is not ExitCode.NODE_REFUSED
    return Judgement(
        grade=grade, found=silent.why, do=check.do, refusal=check.refusal if of_node else ExitCode.CONFIG_FAULT
    )


def ok(found: str) -> Judgement:
    return Judgement(grade=Grade.OK, found=found)


def warn(found: str, do: str) -> Judgement:
    return Judgement(grade=Grade.WARN, found=found, do=do)


def fail(found: str, do: str, refusal: ExitCode | None = None) -> Judgement:
    return Judgement(grade=Grade.FAIL, found=found, do=do, refusal=refusal)


def skip(found: str) -> Judgement:
    return Judgement(grade=Grade.SKIP, found=found)


def unread(what: str) -> Judgement:
    """What could not be read is unknown."""
    return warn(f"{what} cannot be read here", "look at it on the node itself")


def size_text(size_bytes: int) -> str:
    """Bytes in the unit that leaves one to four digits, in powers of 1024 as memory is sold."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def limit_text(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else str(limit)
