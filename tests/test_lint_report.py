# SPDX-License-Identifier: Apache-2.0
"""What ``resilient manifest --check`` prints, and the code that CI sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lint_manifests import BACKUP, EXAMPLE, JOB, TRAINER, edited

from resilient.errors import SettingsError
from resilient.kubernetes import documents
from resilient.report.lint import check_command

TEXT = EXAMPLE.read_text()
SPOILED = TEXT.replace("backoffLimitPerIndex: 20", "backoffLimitPerIndex: 2").replace("[114, 115, 116]", "[114, 115]")
"""One error and one warning."""


def line_of(words: str, text: str = SPOILED) -> int:
    """Where some words stand."""
    return text[: text.index(words)].count("\n") + 1


def write(tmp_path: Path, *texts: str) -> list[str]:
    """Files with these texts."""
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return list(map(str, paths))


def test_findings_are_lines_that_editors_jump_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File and line, severity, id, why; then what it is about here, and what to do."""
    (path,) = write(tmp_path, f"{SPOILED}---\nkind: Service\napiVersion: v1\n")
    assert check_command([path], as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}:{line_of('backoffLimitPerIndex')}: warning: per-index-small: The controller's counter never refills, "
        "so that a long run ends by it and not by the run's own budget.",
        "    2",
        "    fix: make it max(20, 10 x the faults expected over the planned run)",
        f"{path}:{line_of('rules:')}: error: stop-code-goes-on: A fault that the same code or settings will meet again "
        "does not end the Job, and holds devices for nothing.",
        "    116: Count, as no rule matches",
        "    fix: give 114, 115 and 116 the action FailJob, in the first rule",
        "1 error, 1 warning in 1 Job; left alone: 1 Service",
    ]


def test_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs, with the field as the API server writes it."""
    paths = write(tmp_path, SPOILED, TEXT)
    assert check_command(paths, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["warnings"], found["checked"], found["left_alone"]) == (1, 1, {"Job": 2}, {})
    assert [(one["id"], one["severity"], one["field"]) for one in found["findings"]] == [
        ("per-index-small", "warning", "spec.backoffLimitPerIndex"),
        ("stop-code-goes-on", "error", "spec.podFailurePolicy.rules"),
    ]
    assert {one["file"] for one in found["findings"]} == {paths[0]}


def test_codes_for_ci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for nothing and for warnings, 1 for errors; what cannot be read is the command line's 115."""
    good, warned, nothing = write(
        tmp_path, TEXT, SPOILED.replace("[114, 115]", "[114, 115, 116]"), "kind: ConfigMap\napiVersion: v1\n"
    )
    assert check_command([good], as_json=False) == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings in 1 Job\n"
    assert check_command([good, warned], as_json=False) == 0
    capsys.readouterr()
    assert check_command([nothing], as_json=False) == 0
    assert capsys.readouterr().out == (
        "0 errors, 0 warnings in nothing that runs a training; left alone: 1 ConfigMap\n"
    )
    with pytest.raises(SettingsError, match=r"cannot read .*: No such file or directory; name a file"):
        check_command([good, str(tmp_path / "missing.yaml")], as_json=False)


def test_helm_output_with_templates_that_made_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty documents are none, and lines are those of the whole output."""
    head = "---\n# Source: chart/templates/off.yaml\n---\n# Source: chart/templates/job.yaml\n"
    (path,) = write(tmp_path, head + SPOILED)
    check_command([path], as_json=True)
    first, _ = json.loads(capsys.readouterr().out)["findings"]
    assert first["line"] == line_of("backoffLimitPerIndex") + head.count("\n")


def test_what_is_no_manifest_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several documents too; an empty one is none, and what is in a List is looked at."""
    (path,) = write(tmp_path, f"---\n# nothing\n---\n{TEXT}---\nError: no such chart\n")
    assert check_command([path], as_json=False) == 1
    out = capsys.readouterr().out
    assert ": error: kind-missing: " in out
    assert out.endswith("1 error, 0 warnings in 1 Job\n")


def test_secrets_and_control_characters_stay_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command may hold a token, and a value what a terminal would act upon."""
    secret = "hf_abcdefghijklmnopqrstuvwxyz"
    whole = edited(JOB, (f"{TRAINER}.command", ["torchrun", f"--token={secret}", "\x1b[31mred"]))
    (path,) = write(tmp_path, documents.dump(documents.fresh(whole)))
    for as_json in (False, True):
        assert check_command([path], as_json=as_json) == 1
        out = capsys.readouterr().out
        assert secret not in out
        assert "\x1b" not in out
        assert "torchrun" in out


def vectors(tmp_path: Path, *cases: Any) -> str:
    """A file of cases."""
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(cases))
    return str(path)


def test_vectors_are_printed_case_by_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the outcome and whether it agrees; 1 if any does not."""
    good = {"name": "good", "job": BACKUP, "valid": True}
    bad = {"name": "bad", "job": BACKUP, "valid": False, "error_contains": "spec.x"}
    assert check_command([], as_json=False, vectors=vectors(tmp_path, good)) == 0
    assert capsys.readouterr().out == "agrees  accepted  good\n1 of 1 agree\n"
    assert check_command([], as_json=False, vectors=vectors(tmp_path, good, bad)) == 1
    assert "DIFFERS  accepted  bad\n    the case: refused; not said: ['spec.x']; said: []" in capsys.readouterr().out
    assert check_command([], as_json=True, vectors=vectors(tmp_path, good, bad)) == 1
    assert [case["agrees"] for case in json.loads(capsys.readouterr().out)] == [True, False]


def test_nothing_is_no_manifest_that_is_right(tmp_path: Path) -> None:
    """Whatever should have written it has failed, and a build must not pass for that."""
    empty = tmp_path / "empty.yaml"
    empty.touch()
    with pytest.raises(SettingsError, match="there is no manifest in it"):
        check_command([str(empty)], as_json=False)
