# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run and measure what they say; their figures depend on the machine and are nobody's promise here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def results_of(name: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark prints as JSON."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), "--json", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=580,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout)["results"]
    return found


@pytest.mark.slow
def test_step_overhead_measures_both_ways_to_start() -> None:
    """Under the supervisor and without one, ours is compared with a bare loop."""
    results = results_of("step_overhead.py", "--blocks", "3")
    assert set(results) == {"resilient run", "plain python"}
    assert all(found["ours_us"] > found["bare_us"] > 0 for found in results.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_recovery_counts_every_run() -> None:
    """Ours resumes, and its phases add up to all of the time; a peer that does not resume is counted as well."""
    results = results_of("recovery.py", "--runs", "1")
    assert all(found["runs"] == 1 for found in results.values())
    ours = results["resilient"]
    assert ours["resumed"] == 1
    phases = ("detect", "stop", "start", "import", "rendezvous", "restore", "first step")
    assert sum(ours[phase][0] for phase in phases) == pytest.approx(ours["in all"][0], abs=0.01)
    assert 0 <= ours["steps done again"][0] < 35


@pytest.mark.slow
def test_s3_is_saved_to_and_loaded_from_by_all() -> None:
    """What each loads is compared with what it saved, and how busy the server was is told beside it."""
    results = results_of("checkpoint_s3.py", "--mib", "32", "--rounds", "1")
    assert set(results) == {"resilient", "s3fs", "boto3", "dcp_fsspec"}
    assert all(found[figure][0] > 0 for found in results.values() for figure in ("save_s", "load_s", "save_busy"))
