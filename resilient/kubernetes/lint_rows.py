# SPDX-License-Identifier: Apache-2.0
"""What a finding is: a row of a table that says why and what to do, and the place where it holds."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from resilient.kubernetes.building import PartPath
from resilient.kubernetes.lint_subject import Subject


class Severity(str, enum.Enum):
    """How bad it is."""

    ERROR = "error"
    """The API server refuses it, or an exit does not lead to what the contract promises."""
    WARNING = "warning"
    """It works, with less than could be had, or only as long as nothing unusual happens."""


class Scope(enum.Enum):
    """Where a rule matters."""

    SUPERVISED = "what resilient run starts"
    TRAINING = "what trains, under whatever"
    EVERY_POD = "whatever has a policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is said wherever it is found."""

    id: str
    severity: Severity
    why: str
    """One sentence."""
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One place."""

    path: PartPath
    detail: str = ""
    """What it is about here: the codes, the field, the API server's words."""


Find: TypeAlias = Callable[[Subject], Iterator[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row with what finds it."""

    row: Row
    find: Find
    scope: Scope

    def concerns(self, subject: Subject) -> bool:
        """Whether it matters here."""
        if self.scope is Scope.SUPERVISED:
            return subject.is_training and subject.is_supervised
        return self.scope is Scope.EVERY_POD or subject.is_training


def error(name: str, why: str, fix: str, find: Find, *, scope: Scope = Scope.SUPERVISED) -> Rule:
    return Rule(row=Row(id=name, severity=Severity.ERROR, why=why, fix=fix), find=find, scope=scope)


def warning(name: str, why: str, fix: str, find: Find, *, scope: Scope = Scope.SUPERVISED) -> Rule:
    return Rule(row=Row(id=name, severity=Severity.WARNING, why=why, fix=fix), find=find, scope=scope)
