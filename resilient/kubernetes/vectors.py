# SPDX-License-Identifier: Apache-2.0
"""Cases of what the API server accepts and refuses, as data, held against our own judgement.

A file holds a list of ``{"name", "job", "valid", "error_contains"}``, with ``old_job`` for a change and
``error_contains_all`` for further parts of the message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resilient.errors import SettingsError
from resilient.kubernetes.api_objects import problems, update_problems

_FORM = 'give a list of {"name", "job", "valid", "error_contains"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case, and what we say."""

    name: str
    valid: bool
    """What the case says."""
    said: tuple[str, ...]
    """Our own messages, in the API server's words; none where we accept it."""
    unsaid: tuple[str, ...]
    """Parts of its message that none of ours has."""

    @property
    def agrees(self) -> bool:
        return self.valid == (not self.said) and not self.unsaid


def judge_vectors(path: str) -> list[Case]:
    """Every case of a file, in its order."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"cannot read {path}: {error}; {_FORM}") from error
    if not isinstance(found, list):
        raise SettingsError(f"cannot read {path}: it is no list; {_FORM}")
    return [_judge(case, f"{path}: case {number}") for number, case in enumerate(found, 1)]


def _judge(case: Any, where: str) -> Case:
    if not isinstance(case, dict) or not isinstance(case.get("job"), dict) or not isinstance(case.get("valid"), bool):
        raise SettingsError(f"cannot read {where}: it has no job or no valid; {_FORM}")
    old = case.get("old_job")
    wrong = update_problems(old, case["job"]) if isinstance(old, dict) else problems({"kind": "Job", **case["job"]})
    said = tuple(problem.text for problem in wrong)
    unsaid = tuple(part for part in _parts(case) if not any(part in message for message in said))
    return Case(name=str(case.get("name", where)), valid=case["valid"], said=said, unsaid=unsaid)


def _parts(case: Mapping[str, Any]) -> list[str]:
    more = case.get("error_contains_all")
    wanted = [case.get("error_contains"), *(more if isinstance(more, list) else [])]
    return [part for part in wanted if isinstance(part, str)]
