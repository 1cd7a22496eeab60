# SPDX-License-Identifier: Apache-2.0
"""``resilient manifest --check``: what is wrong with manifests, for people, for CI and for programs.

What is printed of a manifest is redacted: commands and values may hold secrets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from resilient.core.redact import Redactor
from resilient.errors import SettingsError
from resilient.kubernetes.api_problems import field_name
from resilient.kubernetes.documents import read_file
from resilient.kubernetes.lint import Finding, check, kinds
from resilient.kubernetes.vectors import Case, judge_vectors
from resilient.report.tables import PlainConsole, print_line, shown

_DETAIL_CHARS: Final = 400
_STYLES: Final = {"error": "bold red", "warning": "bold yellow"}


def check_command(files: Sequence[str], *, as_json: bool, vectors: str | None = None) -> int:
    """Print what is found; 1 where the API server would refuse something or the contract breaks, else 0."""
    if vectors is not None:
        return _vectors(judge_vectors(vectors), as_json=as_json)
    documents = [read_file(path) for path in files]
    found = [finding for those in documents for finding in check(those)]
    judged, left = [], []
    for those in documents:
        ours, others = kinds(those)
        judged += ours
        left += others
    if not judged and not left and not found:
        raise SettingsError(
            f"cannot check {' '.join(files)}: there is no manifest in it; see whether what writes it failed"
        )
    if as_json:
        print(json.dumps(_as_json(found, judged, left), indent=2))
    else:
        console = PlainConsole()
        for finding in found:
            _show(finding, console)
        print_line(_summary(found, judged, left), console)
    return 1 if any(finding.is_error for finding in found) else 0


def _show(finding: Finding, console: Console) -> None:
    severity = finding.row.severity.value
    line = Text(f"{shown(finding.file, 1000)}:{finding.line}: ")
    line.append(severity, style=_STYLES[severity] if console.is_terminal else "")
    line.append(f": {finding.row.id}: {finding.row.why}")
    console.print(line, soft_wrap=True)
    detail = _detail(finding)
    if detail:
        print_line(f"    {detail}", console)
    print_line(f"    fix: {finding.row.fix}", console)


def _detail(finding: Finding) -> str:
    return Redactor().clean(finding.detail, _DETAIL_CHARS).replace("\n", " ")


def _summary(found: Sequence[Finding], judged: Sequence[str], left: Sequence[str]) -> str:
    errors = sum(finding.is_error for finding in found)
    counts = f"{_count(errors, 'error')}, {_count(len(found) - errors, 'warning')}"
    what = ", ".join(_counted(judged)) or "nothing that runs a training"
    others = f"; left alone: {', '.join(_counted(left))}" if left else ""
    return f"{counts} in {what}{others}"


def _counted(names: Sequence[str]) -> list[str]:
    return [f"{count} {shown(name, 80)}" for name, count in Counter(names).items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _as_json(found: Sequence[Finding], judged: Sequence[str], left: Sequence[str]) -> dict[str, Any]:
    return {
        "findings": [
            {
                "file": finding.file,
                "line": finding.line,
                "field": field_name(finding.path),
                "severity": finding.row.severity.value,
                "id": finding.row.id,
                "why": finding.row.why,
                "detail": _detail(finding),
                "fix": finding.row.fix,
            }
            for finding in found
        ],
        "errors": sum(finding.is_error for finding in found),
        "warnings": sum(not finding.is_error for finding in found),
        "checked": dict(Counter(judged)),
        "left_alone": dict(Counter(left)),
    }


def _vectors(cases: Sequence[Case], *, as_json: bool) -> int:
    differing = [case for case in cases if not case.agrees]
    if as_json:
        print(json.dumps([_case_json(case) for case in cases], indent=2))
    else:
        console = PlainConsole()
        for case in cases:
            outcome = "refused" if case.said else "accepted"
            print_line(f"{'agrees' if case.agrees else 'DIFFERS'}  {outcome:8}  {case.name}", console)
            if not case.agrees:
                expected = "accepted" if case.valid else "refused"
                print_line(f"    the case: {expected}; not said: {list(case.unsaid)}; said: {list(case.said)}", console)
        print_line(f"{len(cases) - len(differing)} of {len(cases)} agree", console)
    return 1 if differing else 0


def _case_json(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "agrees": case.agrees,
        "outcome": "refused" if case.said else "accepted",
        "expected": "accepted" if case.valid else "refused",
        "messages": list(case.said),
        "not_said": list(case.unsaid),
    }
