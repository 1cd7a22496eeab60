# SPDX-License-Identifier: Apache-2.0
"""A real supervisor in a container whose memory has no room for snapshots: checkpoints are saved all the same."""

from collections.abc import Iterator
from pathlib import Path

import cgroups
import pytest
from supervised import HEAD, Folder

LIMIT = 1100 << 20
"""For torch, the state, its gradients, the supervisor and its saver; not for two snapshots beside what stays free."""
TRAINS = """
import torch, resilient
weight = torch.nn.Parameter(torch.zeros(60 << 20))
optimizer = torch.optim.SGD([weight], lr=1.0)
run = resilient.Run(state={"weights": {"weight": weight}, "optimizer": optimizer})

@run.step
def step(batch):
    weight.grad = torch.full_like(weight, -batch)
    optimizer.step()
    weight.grad = None

for batch in run.batches([1.0, 2.0, 3.0], steps=STEPS):
    step(batch)
note(f"{run.resumed_from},{weight.min().item()},{weight.max().item()}")
"""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    with cgroups.made(tmp_path.name, LIMIT) as group:
        yield group


def test_a_state_that_does_not_fit_twice_is_saved_through_the_disk(tmp_path: Path, group: Path) -> None:
    """It is said, nobody is killed for it, and the next start goes on from what was saved."""
    folder = Folder(tmp_path)
    for number, steps in enumerate((20, 40)):
        script = folder.script(HEAD + TRAINS.replace("STEPS", str(steps)))
        arguments = ("--checkpoints", folder.checkpoints, "--every", "5", "--snapshot-every", "5", script)
        with folder.start(*arguments, init=cgroups.entering(group)) as running:
            ended = running.wait()
        assert ended.code == 0, ended.stderr
        assert ended.entries("checkpoint")[-1]["step"] == steps
        assert {entry["slot"] for entry in ended.entries("snapshot")} == {2}
        value = sum(step % 3 + 1.0 for step in range(steps))
        assert folder.notes[number] == f"{[None, 20][number]},{value},{value}"
    assert cgroups.oom_kills(group) == 0
