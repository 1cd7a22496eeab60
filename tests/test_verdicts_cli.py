# SPDX-License-Identifier: Apache-2.0
"""``resilient classify`` and ``resilient rules``, as people and programs use them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from resilient import cli
from resilient.core.causes import Action, Cause, Confidence, Verdict
from resilient.core.history import HISTORY_RULES
from resilient.core.rules import RULES
from resilient.core.words import ACTIONS, CAUSES, further, headline, paragraph
from resilient.errors import SettingsError

BUG = 'Traceback (most recent call last):\n  File "/app/train.py", line 41, in loss\nTypeError: bad operand\n'
UNKNOWN: dict[str, Any] = {
    "cause": Cause.AMBIGUOUS,
    "action": Action.INVESTIGATE,
    "confidence": Confidence.LOW,
    "rule": "unknown",
    "why": "x",
    "fingerprint": "x",
}
KEYS = ["id", "cause", "action", "confidence", "rule", "why", "culprit", "device"]


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints."""
    assert cli.main(words) == 0
    return capsys.readouterr().out


def test_a_log_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON line for programs."""
    path = tmp_path / "train.log"
    path.write_text("step 1\n" + BUG)
    found = json.loads(asked(capsys, "classify", str(path)))
    assert list(found) == KEYS
    assert (found["id"], found["cause"], found["action"]) == ("train.log", "user_code", "stop")
    assert "train.py:41 in loss" in found["why"]


@pytest.mark.parametrize("words", [["classify"], ["classify", "-"]])
def test_stdin_is_judged(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dash, or nothing."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n" + BUG.encode())))
    assert json.loads(asked(capsys, *words))["rule"] == "user-type-error"


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However long it is."""
    path = tmp_path / "train.log"
    path.write_text("uncorrectable\n" * 400_000 + BUG)
    assert json.loads(asked(capsys, "classify", str(path)))["rule"] == "user-type-error"


def test_records_are_judged_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit counts where the text says nothing; causes are the words of the issue."""
    records = [
        {"id": "a", "exit_code": 1, "signal": None, "stderr": BUG, "ranks": 1},
        {"id": "b", "exit_code": None, "signal": "SIGTERM", "stderr": "", "ranks": 8},
        {"id": 3, "exit_code": -9, "stderr": "step 1"},
        {},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    found = [json.loads(line) for line in asked(capsys, "classify", "--jsonl", str(path)).splitlines()]
    assert [each["id"] for each in found] == ["a", "b", 3, None]
    assert [each["action"] for each in found] == ["stop", "checkpoint_and_exit", "restart_in_place", "investigate"]
    assert all(list(each) == KEYS for each in found)


def test_a_field_that_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record is judged by what is left of it, and the next one as ever; the exit code says that."""
    path = tmp_path / "records.jsonl"
    odd = {"id": "q", "exit_code": "one", "signal": 1 << 70, "stderr": BUG, "ranks": [1]}
    path.write_text(f'{json.dumps(odd)}\n{{"id": "next", "exit_code": 1}}\n')
    assert cli.main(["classify", "--jsonl", str(path)]) == 115
    said = capsys.readouterr()
    judged = [json.loads(line) for line in said.out.splitlines()]
    assert [(each["id"], each["action"]) for each in judged] == [("q", "stop"), ("next", "investigate")]
    assert all("in line 1 of" in line and "judged without" in line for line in said.err.splitlines())
    assert [line.split()[3] for line in said.err.splitlines()] == ["exit_code", "signal", "ranks"]


@pytest.mark.parametrize("line", ["{", "[]", "3"])
def test_what_is_no_record_is_refused(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its line number; the others are judged."""
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"id": 1}}\n{line}\n{{"id": 3}}\n')
    assert cli.main(["classify", "--jsonl", str(path)]) == 115
    said = capsys.readouterr()
    assert "cannot use line 2" in said.err
    assert [json.loads(each)["id"] for each in said.out.splitlines()] == [1, 3]


def test_a_file_that_is_not_there_is_refused() -> None:
    """As any wrong argument is."""
    from resilient.report.verdicts import classify_command

    with pytest.raises(SettingsError, match="cannot read /no/such/log"):
        classify_command("/no/such/log", jsonl=False)


def test_people_get_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, a paragraph and what other evidence there is, each thing once; a table for records."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    path = tmp_path / "train.log"
    path.write_text(BUG)
    text = asked(capsys, "classify", str(path))
    assert text.startswith("a fault of the code: train.py:41 in loss: the code of a worker raised TypeError")
    assert "Action stop: the same would happen again: correct it before starting again" in " ".join(text.split())
    for once in ("bad operand", "train.py:41", "fault of the code"):
        assert text.count(once) == 1
    assert "Evidence" not in text
    quoted = Verdict(**{**UNKNOWN, "evidence": ("x", "y")})
    assert further(quoted) == ["y"]
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"id": "mine", "stderr": BUG}))
    assert "mine" in asked(capsys, "classify", "--jsonl", str(records))


def test_the_table_is_printed_with_sources(capsys: pytest.CaptureFixture[str]) -> None:
    """In order, ours and those about history."""
    rows = json.loads(asked(capsys, "rules", "--json"))
    assert [row["rule"] for row in rows] == [rule.id for rule in RULES] + [rule.id for rule in HISTORY_RULES]
    assert all(row["source"] for row in rows)
    assert asked(capsys, "rules").splitlines()[0].split()[:2] == ["RULE", "FAMILY"]


def test_rules_of_ones_own_are_checked_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good file is said to be good, a bad one what is wrong with it."""
    path = tmp_path / "rules.toml"
    path.write_text('[[rule]]\nid = "x-card"\npattern = "^X-ERR "\ncause = "device_fault"\nexample = "X-ERR 1"\n')
    assert "1 rule, and each example selects its own" in asked(capsys, "rules", "--check", str(path))
    assert "x-card" in asked(capsys, "rules", "--rules", str(path))
    log = tmp_path / "log"
    log.write_text("X-ERR 9\n")
    assert json.loads(asked(capsys, "classify", "--rules", str(path), str(log)))["rule"] == "x-card"
    path.write_text("[[rule]]\nid = 3\n")
    assert cli.main(["rules", "--check", str(path)]) == 115
    assert "id is not text" in capsys.readouterr().err


def test_every_cause_and_action_has_words() -> None:
    """And a verdict that does not know says so."""
    assert set(CAUSES) == set(Cause)
    assert set(ACTIONS) == set(Action)
    unknown = Verdict(**UNKNOWN)
    assert headline(unknown) == "unknown: x"
    assert "does not decide whose fault it was" in paragraph(unknown)
