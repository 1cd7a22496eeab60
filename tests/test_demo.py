# SPDX-License-Identifier: Apache-2.0
"""``make demo``, shorter: what it promises, it has seen itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from s3_server import running

from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import survey
from resilient.checkpoint.vault import Vault

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 880.0
STEPS = "60"


def check(tmp_path: Path, *arguments: str) -> None:
    demo = subprocess.run(
        [sys.executable, str(ROOT / "examples/demo.py"), "--steps", STEPS, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stdout.count("  ok  ") == 6
    assert ">>> kill -KILL" in demo.stdout
    assert "SIGKILL" in demo.stdout.split("What resilient explain says")[1]
    assert "both ended with the same bits" in demo.stdout
    assert "read more" not in demo.stdout
    assert f"explain {tmp_path}" not in demo.stdout  # which is gone, so that nobody can look there
    assert not list(tmp_path.glob("resilient*"))  # torch keeps a cache of its own there


@pytest.mark.timeout(900)
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    """It ends with 0 after every promise, says what it killed, and explains it; nothing is left in its directory."""
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_keeps_its_promises_on_s3(tmp_path: Path) -> None:
    """The checkpoints of both trainings are there then, whole."""
    with running():
        check(tmp_path, "--checkpoints", "s3://bucket/demo")
        for name in ("undisturbed", "disturbed"):
            vault = Vault(open_store(f"s3://bucket/demo/{name}"), clock=lambda: 1.0)
            found = survey(vault.store, vault.identify(make=False), "s", 0)
            assert found.finished is not None
            assert found.checkpoints[0].step == int(STEPS)
            assert vault.verify(found.checkpoints[0].name).world_size == 2
