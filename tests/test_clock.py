# SPDX-License-Identifier: Apache-2.0
"""For how long a submission has held devices without a commit, by what its pods have left in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from saved_run import SavedRun

from resilient.checkpoint.layout import Debit
from resilient.checkpoint.survey import Survey, survey
from resilient.core.aftermath import Trace


@pytest.fixture
def run(tmp_path: Path) -> SavedRun:
    return SavedRun(tmp_path / "run")


def look(run: SavedRun) -> Survey:
    """As a start of the submission sees it."""
    return survey(run.store, run.run, "sub", 0)


def test_time_held_goes_on_until_a_killed_supervisor_wrote_last(run: SavedRun) -> None:
    """Since its claim, its last commit, or its start, by which of these is the newest; never into the future."""
    started = Trace(started_s=500.0, last_s=700.0)
    run.claim(1, held_s=50.0, claimed_s=600.0)
    found = look(run)
    assert found.usage("sub", started, 1000.0).held_s == 50.0 + 100.0
    assert found.usage("sub", replace(started, last_s=1e15), 800.0).held_s == 50.0 + 200.0
    assert found.usage("sub", replace(started, last_s=0.0), 800.0).held_s == 50.0
    run.vault.record(Debit(submission="sub", index=0, attempt=2, code=193, step=0, fingerprint="", held_s=90.0,
                       wall_s=650.0, why=""))  # fmt: skip
    assert look(run).usage("sub", started, 1000.0).held_s == 90.0 + 50.0
    assert look(run).usage("sub", Trace(started_s=900.0, last_s=950.0), 1000.0).held_s == 90.0 + 50.0


def test_a_submission_has_a_clock_of_its_own(run: SavedRun) -> None:
    """What the one before had held does not count, though its claim is the newest."""
    run.claim(1, held_s=50.0)
    assert look(run).usage("resubmitted", None, 0.0).held_s == 0.0
