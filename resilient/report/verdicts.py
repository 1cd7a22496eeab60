# SPDX-License-Identifier: Apache-2.0
"""``resilient classify`` and ``resilient rules``: the classifier on its own, for logs that people already have."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from rich.console import Console

from resilient.core.causes import Verdict
from resilient.core.classify import classify
from resilient.core.exit_codes import ExitCode
from resilient.core.history import HISTORY_RULES, HistoryRule
from resilient.core.log_text import LOG_CHARS, SIGNALS, Ending, read_log
from resilient.core.redact import Redactor
from resilient.core.rule import Role, Rule
from resilient.core.rules import RULES
from resilient.core.user_rules import with_user_rules
from resilient.core.words import further, headline, paragraph
from resilient.errors import SettingsError
from resilient.report.tables import PlainConsole, print_line, print_table, shown

_RECORD_BYTES: Final = 64 * 1024 * 1024
_FIELDS: Final = {"exit_code": "number", "signal": "signal", "stderr": "text", "ranks": "number of ranks"}


def classify_command(source: str, *, jsonl: bool, own: Sequence[Rule] = ()) -> int:
    """Judge a log, or each of the records in a file of JSON lines."""
    rules = with_user_rules(own)
    console = PlainConsole()
    if not jsonl:
        verdict = judge_text(_tail(source), rules=rules)
        _show(verdict, console) if console.is_terminal else _print(as_json(_name(source), verdict))
        return 0
    unused: list[str] = []
    judged = (judge_record(record, rules) for record in _records(source, unused))
    if console.is_terminal:
        rows = [[str(found[key] if found[key] is not None else "") for key in _KEYS] for found in judged]
        print_table([key.upper() for key in _KEYS], rows, console)
    else:
        for found in judged:
            _print(found)
    return ExitCode.CONFIG_FAULT if unused else ExitCode.FINISHED


def rules_command(own: Sequence[Rule], *, as_json: bool) -> int:
    """Print the whole table, in the order in which it is asked."""
    rows = [_row(rule, rule.family.value, rule.role.value) for rule in with_user_rules(own)]
    rows += [_row(rule, "history", Role.CULPRIT.value) for rule in HISTORY_RULES]
    head = ("rule", "family", "cause", "role", "confidence", "action", "source")
    if as_json:
        print(json.dumps([dict(zip(head, row, strict=True)) for row in rows], indent=2))
    else:
        print_table([title.upper() for title in head], rows)
    return 0


_KEYS: Final = ("id", "cause", "action", "confidence", "rule", "culprit", "why")


def _row(rule: Rule | HistoryRule, family: str, role: str) -> tuple[str, ...]:
    return (rule.id, family, rule.cause.value, role, rule.confidence.value, rule.action.value, rule.source)


def judge_text(
    text: str, ending: Ending | None = None, ranks: int | None = None, rules: Sequence[Rule] = RULES
) -> Verdict:
    """The verdict on a log as it is on disk."""
    return classify(read_log(Redactor().clean(text, LOG_CHARS, tail=True), ending, ranks), rules)


def judge_record(record: Mapping[str, Any], rules: Sequence[Rule] = RULES) -> dict[str, Any]:
    """The verdict on one record, in the form that programs read."""
    code, signal, ranks = record.get("exit_code"), record.get("signal"), record.get("ranks")
    number = _signal(signal)
    ending = Ending(code=_number(code) if number is None else None, signal=number)
    text = record.get("stderr")
    return as_json(record.get("id"), judge_text(text if isinstance(text, str) else "", ending, _number(ranks), rules))


def as_json(name: Any, verdict: Verdict) -> dict[str, Any]:
    """A verdict as programs read it."""
    return {
        "id": name,
        "cause": verdict.cause.value,
        "action": verdict.action.value,
        "confidence": verdict.confidence.value,
        "rule": verdict.rule,
        "why": verdict.why,
        "culprit": verdict.culprit,
        "device": verdict.device.short if verdict.device else None,
    }


def _show(verdict: Verdict, console: Console) -> None:
    print_line(headline(verdict), console)
    print_line("", console)
    print_line(paragraph(verdict), console)
    evidence = further(verdict)
    if evidence:
        print_line("", console)
        print_line("Evidence:", console)
    for line in evidence:
        print_line(f"  {line}", console)


def _print(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else None


def _signal(value: object) -> int | None:
    return SIGNALS.get(value.upper()) if isinstance(value, str) else _number(value)


def _name(source: str) -> str | None:
    return None if source == "-" else Path(source).name


def _tail(source: str) -> str:
    """The last bytes of a log, however long it is."""
    if source == "-":
        kept = b""
        while piece := sys.stdin.buffer.read(1 << 20):
            kept = (kept + piece)[-LOG_CHARS:]
        return kept.decode("utf-8", "replace")
    with _open(source) as file:
        if file.seekable():
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_CHARS))
        return file.read(LOG_CHARS).decode("utf-8", "replace")


def _records(source: str, unused: list[str]) -> Iterator[dict[str, Any]]:
    if source == "-":
        yield from _parsed(sys.stdin.buffer, source, unused)
        return
    with _open(source) as file:
        yield from _parsed(file, source, unused)


def _parsed(file: BinaryIO, source: str, unused: list[str]) -> Iterator[dict[str, Any]]:
    """``unused`` gets what cannot be used, which is said as well: others write these records."""

    def say(what: str, why: str) -> None:
        unused.append(f"cannot use {what} {number} of {shown(source, 1000)}: {why}")
        sys.stderr.write(f"resilient: {unused[-1]}\n")

    number = 0
    while line := file.readline(_RECORD_BYTES):
        number += 1
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            say("line", "it is no JSON object; give one record a line")
            continue
        for name in _unread(record):
            say(f"{name} in line", f"it is no {_FIELDS[name]}; correct it, as the record was judged without")
        yield record


def _unread(record: Mapping[str, Any]) -> list[str]:
    """Fields without which the record is judged."""
    usable = {
        "exit_code": _number(record.get("exit_code")) is not None,
        "signal": _signal(record.get("signal")) is not None,
        "stderr": isinstance(record.get("stderr"), str),
        "ranks": _number(record.get("ranks")) is not None,
    }
    return [name for name, is_usable in usable.items() if record.get(name) is not None and not is_usable]


def _open(source: str) -> BinaryIO:
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise SettingsError(
            f"cannot read {source}: {error.strerror}; give the path of a log, or - for stdin"
        ) from error
