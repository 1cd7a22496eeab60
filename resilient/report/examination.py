# SPDX-License-Identifier: Apache-2.0
"""``resilient doctor``: a preflight's report as a table on a terminal, as plain lines, or as JSON.

What was found may quote a store, a driver or a mount: it is printed as text, never as markup.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resilient.core.exit_codes import ExitCode
from resilient.core.preflight import Finding, Grade, Report
from resilient.preflight.doctor import Subject, examine
from resilient.report.tables import PlainConsole, print_line, shown

_STYLES: Final = {Grade.OK: "green", Grade.WARN: "yellow", Grade.FAIL: "bold red", Grade.SKIP: "dim"}
_TEXT: Final = 1000
_CODES: Final[Mapping[int, str]] = {
    ExitCode.NODE_REFUSED: "this node is not fit to train",
    ExitCode.CONFIG_FAULT: "a setting is wrong, or what the store answered",
    ExitCode.RESTART: "the checkpoint store refuses or does not answer",
}
"""What a failed examination means here; it is no exit of a run."""


def doctor_command(subject: Subject, environ: Mapping[str, str], *, quick: bool, as_json: bool) -> int:
    """Examine this machine, print what was found, and give the exit code that follows."""
    report = examine(subject, environ, quick=quick)
    if as_json:
        print(json.dumps(as_data(report), indent=2))
    else:
        show(report)
    return report.code


def as_data(report: Report) -> dict[str, object]:
    """The report as JSON data."""
    findings = [{**dataclasses.asdict(finding), "grade": finding.grade.value} for finding in report.findings]
    return {"code": report.code, "findings": findings}


def show(report: Report, console: Console | None = None) -> None:
    """Print the report; what there was nothing to look at for comes in one line at the end."""
    console = console or PlainConsole()
    looked = [finding for finding in report.findings if finding.grade is not Grade.SKIP]
    if console.is_terminal:
        console.print(_table(looked))
    else:
        for finding in looked:
            print_line(f"{finding.grade.value:4}  {finding.looks_at}: {finding.found}", console)
            if finding.do:
                print_line(f"      do: {finding.do}", console)
    skipped: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.grade is Grade.SKIP:
            skipped.setdefault(finding.found, []).append(finding.looks_at)
    for why, checks in skipped.items():
        print_line(f"not looked at: {', '.join(checks)} ({why})", console)
    print_line(_summary(report), console)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "CHECK", "FOUND", "DO" if any(finding.do for finding in findings) else ""):
        table.add_column(Text(title), overflow="fold")
    for finding in findings:
        grade = Text(finding.grade.value, style=_STYLES[finding.grade])
        cells = (finding.looks_at, finding.found, finding.do)
        table.add_row(grade, *(Text(shown(cell, _TEXT)) for cell in cells))
    return table


def _summary(report: Report) -> str:
    failed, warned = len(report.failures), len(report.warnings)
    if not failed:
        return f"nothing failed, {warned} to be warned of" if warned else "nothing failed"
    return f"{failed} failed, {warned} to be warned of: exit code {report.code} ({_CODES[report.code]})"
