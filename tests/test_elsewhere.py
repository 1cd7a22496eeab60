# SPDX-License-Identifier: Apache-2.0
"""A plain script on a system that has less than Linux: no such machine is had, so what macOS lacks is taken away."""

import os
import subprocess
import sys
from pathlib import Path

from supervised import LIMIT_S

ROOT = Path(__file__).parents[1]
# What the documentation of `os` does not list for macOS. Processes of ours are told a name as well; torch must not be.
WITHOUT = """\
import os, sys
for name in (
    "memfd_create", "MFD_CLOEXEC", "pidfd_open", "sched_getaffinity", "posix_fadvise", "posix_fallocate", "RWF_NOWAIT",
    "O_DIRECT", "eventfd", "splice",
):
    delattr(os, name)
if any(word.startswith("resilient.") for word in sys.orig_argv):
    sys.platform = "darwin"
"""
SCRIPT = """\
import sys, torch, torch._dynamo
sys.platform = "darwin"
import resilient
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters())
run = resilient.Run(state={"model": model, "optimizer": optimizer})
@run.step
def train_step(batch):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
for batch in run.batches([torch.ones(4, 4)] * 10, steps=int(sys.argv[1])):
    train_step(batch)
print("done", run.step_number, run.resumed_from)
"""


def train(folder: Path, steps: int) -> "subprocess.CompletedProcess[str]":
    """One launch, without a supervisor."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    environ = {**os.environ, "PYTHONPATH": path, "RESILIENT_CHECKPOINTS": str(folder / "checkpoints")}
    command = [sys.executable, str(folder / "train.py"), str(steps)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S)


def test_a_plain_script_saves_and_resumes(tmp_path: Path) -> None:
    """Its snapshots lie in a file without a name, in which room is taken by writing."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "train.py").write_text(SCRIPT)
    first = train(tmp_path, 20)
    assert (first.returncode, first.stdout) == (0, "done 20 None\n"), first.stderr
    second = train(tmp_path, 30)
    assert (second.returncode, second.stdout) == (0, "done 30 20\n"), second.stderr
    assert "resumed from step 20" in second.stderr
