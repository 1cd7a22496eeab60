# SPDX-License-Identifier: Apache-2.0
"""What a rule of the classifier is made of: its words, and the conditions it may state.

Owns the form; the rules themselves are rows in the ``rules_*`` tables. A
condition gives the words that met it (possibly ``""``), or ``None``.
"""

from __future__ import annotations

import enum
import functools
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
    KUBELET = "kubelet"
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
            if self.names and not self.names & _names(link.type, link.bases):
                continue
            if self.pattern is None:
                return _first_line(link.message)
            if found := self.pattern.search(link.message):
                return _line_around(link.message, found.start())
        return None


@dataclass(frozen=True, slots=True)
class RaisedBy:
    """The worker died of an exception type of one of these packages, whatever it is called."""

    packages: tuple[str, ...]

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the first line of the message."""
        link = next(iter(symptoms.head), None)
        return _first_line(link.message) if link and link.type.startswith(self.packages) else None


@dataclass(frozen=True, slots=True)
class Printed:
    """A line of a known printer was on stderr; free text never is one."""

    lane: Lane
    pattern: re.Pattern[str]
    words: tuple[str, ...] = ()
    """One of these is in all that fits, where some are given. To look for words costs a hundredth of a pattern."""

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the line."""
        text = symptoms.lanes[self.lane]
        if not text or (self.words and not any(word in text for word in self.words)):
            return None
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
        quoted = ""
        for part in self.parts:
            seen = part(symptoms)
            if seen is None:
                return None
            quoted = quoted or seen
        return quoted


def raised(*names: str, text: str | None = None) -> Raised:
    """State that the exception the worker died of has one of these names."""
    return Raised(frozenset(names), re.compile(text, re.MULTILINE) if text else None)


def raised_anywhere(*names: str, text: str | None = None) -> Raised:
    """State that an exception, or one that led to it, has one of these names."""
    return Raised(frozenset(names), re.compile(text, re.MULTILINE) if text else None, anywhere=True)


def raised_by(*packages: str) -> RaisedBy:
    """State that the exception the worker died of is of a type that one of these packages defines."""
    return RaisedBy(tuple(f"{package}." for package in packages))


def printed(lane: Lane, text: str, *words: str) -> Printed:
    """State that a line of this printer fits, which has one of the words in it."""
    return Printed(lane, re.compile(text, re.MULTILINE), words)


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


@functools.lru_cache(maxsize=256)
def _names(type_: str, bases: tuple[str, ...]) -> frozenset[str]:
    """Every name an exception goes by; modules move between versions, so the last part counts."""
    last = type_.rpartition(".")[2]
    return frozenset((last, *(base.rpartition(".")[2] for base in bases), *_TORCH_BASES.get(last, ())))


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


def row(
    name: str,
    cause: Cause,
    action: Action,
    why: str,
    when: Condition,
    example: Evidence,
    source: str,
    *,
    family: Family,
    role: Role = Role.CULPRIT,
    confidence: Confidence = Confidence.HIGH,
    device_grade: bool = False,
) -> Rule:
    """Make a rule of its cells, in the order in which the tables write them."""
    return Rule(
        id=name,
        family=family,
        cause=cause,
        action=action,
        role=role,
        confidence=confidence,
        when=when,
        why=why,
        source=source,
        example=example,
        device_grade=device_grade,
    )


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
    family = Family.STORAGE if cause is Cause.STORAGE else Family.EXCEPTION
    shown = died_of(*example) if isinstance(example, tuple) else example
    return row(name, cause, action, why + "{where}: {seen}", when, shown, source, family=family, confidence=confidence)


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
    holds = printed(Lane.LOG, when) if isinstance(when, str) else when
    shown = logged(*example.split("\n"))
    return row(
        name,
        cause,
        action,
        why + "{where}: {seen}",
        holds,
        shown,
        source,
        family=family,
        role=role,
        confidence=confidence,
    )


def kept_log(symptoms: Symptoms) -> str | None:
    """State that all this is read from a log that somebody kept."""
    return "" if symptoms.evidence.from_log else None


def alike_everywhere(symptoms: Symptoms) -> str | None:
    """State that nearly all ranks, and more than one, ended the same way."""
    return "" if symptoms.crowd.alike(symptoms.rank) else None
