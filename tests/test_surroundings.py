# SPDX-License-Identifier: Apache-2.0
"""Tests of what a manifest says of its surroundings: whatever a script has set, it can be asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASKED = """
import contextlib, json, torch, warnings
warnings.simplefilter("error")
with contextlib.suppress(AttributeError):
    {how}
from resilient.training.surroundings import determinism
print(json.dumps(determinism(":4096:8")))
"""


def asked(how: str) -> dict[str, str]:
    """In a process of its own: what is set there can hardly be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED.format(how=how)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("how", "name", "value"),
    [
        ("torch.set_float32_matmul_precision('high')", "float32_matmul_precision", "high"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "cuda_matmul_fp32", "tf32"),
        ("torch.use_deterministic_algorithms(True)", "deterministic_algorithms", "True"),
    ],
)
def test_whatever_a_script_has_set_can_be_asked(how: str, name: str, value: str) -> None:
    """torch raises where one asks by another of its two ways than was set by; that must not end the training."""
    found = asked(how)
    assert found.get(name, value) == value  # older ones have one way only
    assert (found["cublas_workspace"], found["cudnn_benchmark"]) == (":4096:8", "False")
