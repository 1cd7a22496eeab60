# SPDX-License-Identifier: Apache-2.0
"""What a rule of the classifier is made of: its words, and the conditions it may state.

Owns the form; the rules themselves are rows in the ``rules_*`` tables. A
condition gives the words that met it (possibly ``""``), or ``None``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence
from resilient.core.lanes import Lane
from resilient.core.log_text import Ending, read_log
from resilient.core.symptoms import Symptoms

Condition = Callable[[Symptoms], "str | None"]


class Family(str, enum.Enum):
    """What a rule looks at; for people and for tables in the documentation."""

    RULING = "ruling"
    USER = "user"
    DRIVER = "driver"
    CUDA = "cuda"
    COMMUNICATION = "communication"
    STORAGE = "storage"
    EXCEPTION = "exception"
    HANG = "hang"
    HOST = "host"
    PLATFORM = "platform"
    EXIT = "exit"


class Role(str, enum.Enum):
    """Whether a rank with this symptom started the trouble, or suffers from another's."""

    CULPRIT = "culprit"
    VICTIM = "victim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row: when it holds, whose fault that is, why, and an example that selects it."""

    id: str
    family: Family
    cause: Cause
    action: Action
    role: Role = Role.CULPRIT
    confidence: Confidence = Confidence.HIGH
    when: Condition
    why: str
    """One sentence; ``{rank}``, ``{where}``, ``{type}``, ``{message}`` and ``{seen}`` are filled in."""
    source: str
    example: Evidence
    device_grade: bool = False


@dataclass(frozen=True, slots=True)
class Raised:
    """The worker died of one of these exceptions (or a subclass), with a message that fits."""

    names: frozenset[str]
    pattern: re.Pattern[str] | None = None
    anywhere: bool = False
    """Look at the whole chain; else only at the exception that says most."""

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the first line of the message that met the condition."""
        links = symptoms.chain if self.anywhere else symptoms.head
        for link in links:
            if self.names and not self.names & _names(link):
                continue
            if self.pattern is None:
                return _first_line(link.message)
            if found := self.pattern.search(link.message):
                return _line_around(link.message, found.start())
        return None


@dataclass(frozen=True, slots=True)
class Printed:
    """A line of a known printer was on stderr; free text never is one."""

    lane: Lane
    pattern: re.Pattern[str]

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the line."""
        text = symptoms.lanes[self.lane]
        found = self.pattern.search(text)
        return _line_around(text, found.start()) if found else None


@dataclass(frozen=True, slots=True)
class Ended:
    """The process ended by one of these signals, or with one of these codes."""

    signals: frozenset[int] = frozenset()
    codes: frozenset[int] = frozenset()

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give nothing to quote."""
        return "" if symptoms.signal in self.signals or symptoms.code in self.codes else None


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of the parts holds."""

    parts: tuple[Condition, ...]

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the words of the first part that holds."""
        return next((seen for part in self.parts if (seen := part(symptoms)) is not None), None)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds."""

    parts: tuple[Condition, ...]

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the first words that any part has to quote."""
        seen = [part(symptoms) for part in self.parts]
        return None if None in seen else next((words for words in seen if words), "")


def raised(*names: str, text: str | None = None) -> Raised:
    """State that the exception the worker died of has one of these names."""
    return Raised(frozenset(names), re.compile(text, re.MULTILINE) if text else None)


def raised_anywhere(*names: str, text: str | None = None) -> Raised:
    """State that an exception, or one that led to it, has one of these names."""
    return Raised(frozenset(names), re.compile(text, re.MULTILINE) if text else None, anywhere=True)


def printed(lane: Lane, text: str) -> Printed:
    """State that a line of this printer fits."""
    return Printed(lane, re.compile(text, re.MULTILINE))


def stated(text: str, *names: str) -> Condition:
    """State that an exception says this, or a log in which no exception says more."""
    return AnyOf((raised_anywhere(*names, text=text), printed(Lane.LOG, text)))


def logged(*lines: str, code: int | None = None, signal: int | None = None) -> Evidence:
    """Make an example: a log that somebody kept."""
    return read_log("\n".join(lines), Ending(code=code, signal=signal))


_TORCH_BASES: Final = {
    "AcceleratorError": ("RuntimeError",),
    "OutOfMemoryError": ("RuntimeError",),
    "DistError": ("RuntimeError",),
    "DistBackendError": ("DistError", "RuntimeError"),
    "DistNetworkError": ("DistError", "RuntimeError"),
    "DistStoreError": ("DistError", "RuntimeError"),
}


def _names(link: ErrorLink) -> frozenset[str]:
    """Every name a link goes by; modules move between versions, so the last part counts."""
    last = link.type.rpartition(".")[2]
    bases = (base.rpartition(".")[2] for base in link.bases)
    return frozenset((last, *bases, *_TORCH_BASES.get(last, ())))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _line_around(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    return text[start:].partition("\n")[0].strip()


def died_of(name: str, message: str = "", *, bases: tuple[str, ...] = (), step: int | None = None) -> Evidence:
    """Make an example: one worker with an error record."""
    record = ErrorRecord(chain=(ErrorLink(type=name, message=message, bases=bases),))
    return Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, error=record, step=step),))


def left_behind(*lines: str, code: int | None = None, signal: int | None = None) -> Evidence:
    """Make an example: one worker without an error record, its last lines and its end."""
    text = "".join(f"{line}\n" for line in lines)
    return Evidence(ranks=(RankEvidence(rank=0, exit_code=code, signal=signal, order=0, stderr_tail=text),))


def exception_rule(
    name: str,
    cause: Cause,
    action: Action,
    why: str,
    when: Condition,
    example: tuple[str, str] | Evidence,
    source: str = "https://docs.python.org/3/library/exceptions.html",
    confidence: Confidence = Confidence.HIGH,
) -> Rule:
    """Make a rule about an exception; its sentence goes on with the place and the message."""
    storage = cause is Cause.STORAGE
    return Rule(
        id=name,
        family=Family.STORAGE if storage else Family.EXCEPTION,
        cause=cause,
        action=action,
        confidence=confidence,
        when=when,
        why=why + "{where}: {seen}",
        source=source,
        example=died_of(*example) if isinstance(example, tuple) else example,
    )


def log_rule(
    name: str,
    cause: Cause,
    action: Action,
    why: str,
    when: Condition | str,
    example: str,
    source: str,
    *,
    confidence: Confidence = Confidence.MEDIUM,
    family: Family = Family.HOST,
    role: Role = Role.CULPRIT,
) -> Rule:
    """Make a rule about lines of a log; its sentence goes on with the line."""
    return Rule(
        id=name,
        family=family,
        cause=cause,
        action=action,
        role=role,
        confidence=confidence,
        when=printed(Lane.LOG, when) if isinstance(when, str) else when,
        why=why + "{where}: {seen}",
        source=source,
        example=logged(*example.split("\n")),
    )


def kept_log(symptoms: Symptoms) -> str | None:
    """State that all this is read from a log that somebody kept."""
    return "" if symptoms.evidence.from_log else None


def alike_everywhere(symptoms: Symptoms) -> str | None:
    """State that nearly all ranks, and more than one, ended the same way."""
    return "" if symptoms.crowd.alike(symptoms.rank) else None
