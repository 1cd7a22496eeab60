# SPDX-License-Identifier: Apache-2.0
"""The exit-code contract: one place for its integers, and words for each."""

import ast
from pathlib import Path

import readme

from resilient.core.exit_codes import NEEDS_DEBIT, OBSERVED_FAILURE, PREEMPTED, STOP, ExitCode
from resilient.supervisor.ending import MEANINGS

PACKAGE = Path(__file__).parents[1] / "resilient"
OWNER = PACKAGE / "core/exit_codes.py"
OWN_CODES = {*range(114, 117), *range(193, 200)}
SIGKILLED = 128 + 9


def integers(path: Path) -> list[tuple[int, int]]:
    """Line and value of every integer that is written out in a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [(n.lineno, n.value) for n in nodes if isinstance(n, ast.Constant) and type(n.value) is int]


def test_the_codes_are_those_of_the_contract() -> None:
    """Manifests in clusters act on these numbers, so none may change."""
    assert {code.name: int(code) for code in ExitCode} == {
        "FINISHED": 0,
        "CODE_FAULT": 114,
        "CONFIG_FAULT": 115,
        "BUDGET_SPENT": 116,
        "CANNOT_EXECUTE": 126,
        "NOT_FOUND": 127,
        "RESTART": 193,
        "RESCHEDULE": 194,
        "PREEMPTED_SAVED": 195,
        "PREEMPTED_UNSAVED": 196,
        "PEER_FAILED": 197,
        "NODE_REFUSED": 198,
        "INTERNAL": 199,
    }


def test_codes_are_integers_in_one_file_only() -> None:
    """Everywhere else they have names."""
    files = [path for path in PACKAGE.rglob("*.py") if path != OWNER]
    found = [f"{path}:{line}: {value}" for path in files for line, value in integers(path) if value in OWN_CODES]
    assert files
    assert {value for _, value in integers(OWNER)} >= OWN_CODES
    assert not found


def test_permanent_and_retryable_codes_lie_apart() -> None:
    """Permanent ones are below 128; what may be started again is above every signal, and put on record."""
    assert all(code < 128 for code in STOP)
    assert all(code > 128 + 64 for code in NEEDS_DEBIT)
    assert PREEMPTED <= NEEDS_DEBIT
    assert not STOP & NEEDS_DEBIT
    assert ExitCode.INTERNAL not in NEEDS_DEBIT  # it is what is left when nothing can be recorded


def test_the_readme_has_a_row_for_every_code() -> None:
    """Each code that a person may see, the observed failure and the foreign 137 too, in order."""
    rows = [row for row in readme.parts()["exit codes"].splitlines() if row[2:3].isdigit()]
    assert [int(row.split("|")[1]) for row in rows] == sorted({*ExitCode, OBSERVED_FAILURE, SIGKILLED})
    for row, (_, known) in zip(rows, sorted(MEANINGS.items()), strict=True):
        assert known.means in row
        assert known.do in row
        assert known.platform in row
