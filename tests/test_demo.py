# SPDX-License-Identifier: Apache-2.0
"""``make demo``, shorter: what it promises, it has seen itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 880.0


@pytest.mark.timeout(900)
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    """It ends with 0 after every promise, says what it killed, and explains it; nothing is left in its directory."""
    demo = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo.py"), "--steps", "100"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stdout.count("  ok  ") == 6
    assert ">>> kill -KILL" in demo.stdout
    assert "SIGKILL" in demo.stdout.split("$ resilient explain")[1]
    assert "both ended with the same bits" in demo.stdout
    assert "read more" not in demo.stdout
    assert not list(tmp_path.glob("resilient*"))  # torch keeps a cache of its own there
