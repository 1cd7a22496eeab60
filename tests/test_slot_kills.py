# SPDX-License-Identifier: Apache-2.0
"""A rank that is killed at any point of taking a snapshot leaves a whole one, the same on all ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_one_snapshot_apart_agree_wherever_one_is_killed(stride: int) -> None:
    """At every 29th line, or at each: the snapshot before or the new one is there, on both ranks, with all its bits."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "slot_kills.py"), str(stride)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 400 / stride
