# SPDX-License-Identifier: Apache-2.0
"""The trainings of WALK.md: small ones, each with what is to happen to it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

MARK: Final = "ready for the signal"
"""What a training prints when it is time for its pod's signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod of a Job, and how it is to end."""

    code: int
    script: str
    """The text of /app/train.py."""
    told: str = ""
    """What the page says of it; pods of which it says nothing only lead to the next one."""
    arguments: tuple[str, ...] = ("--nproc-per-node", "1", "--", "train.py")
    signal: signal.Signals | None = None
    """Sent to the supervisor when the training prints MARK."""
    node: str = "node-a"
    looks_back: bool = False
    """What it says at its start belongs to the section of the pod before."""


@dataclass(frozen=True, slots=True)
class Story:
    """The pods of one Job, one after the other, on the same volumes."""

    pods: tuple[Pod, ...]
    before: tuple[int, ...] = ()
    """How pods have ended before the first of these; only the Job knows of them."""


_TRAINING: Final = """\
import torch
import resilient

torch.set_num_threads(1)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
run = resilient.Run(state={{"model": model, "optimizer": optimizer}})

@run.step
def train_step(batch):
    {first}
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()

for batch in run.batches([torch.ones(1)] * 4, steps={steps}):
    train_step(batch)
"""
_TO_STEP_4: Final = _TRAINING.format(first="pass", steps=4)
_LABELS_MISSING: Final = _TRAINING.format(first='if run.step_number == 2: raise KeyError("labels")', steps=4)
_ENDLESS: Final = _TRAINING.format(
    first=f"if run.step_number == 1000: print({MARK!r}, flush=True)",
    steps=10**9,
)
_NOT_OURS: Final = f"import signal\nprint({MARK!r}, flush=True)\nsignal.pause()\n"
_DATA_MISSING: Final = 'open("/data/train.bin", "rb")\n'
_PROTOCOL: Final = 'raise OSError(71, "Protocol error")\n'
_FELL_OFF: Final = (
    "import sys\n"
    'print("NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, name=python, GPU has fallen off the bus.", file=sys.stderr)\n'
    'raise RuntimeError("CUDA error: unspecified launch failure")\n'
)
_STORE_LOST: Final = (
    "import os, shutil\n"
    'store = os.environ["RESILIENT_CHECKPOINTS"]\n'
    "shutil.rmtree(store)\n"
    'open(store, "w").close()\n' + _FELL_OFF
)

_SECOND_OF_TWO: Final = (
    *("--nnodes", "2", "--node-rank", "1", "--master-addr", "localhost", "--master-port", "1"),  # nobody listens there
    *("--pod-patience", "1s"),
)

STORIES: Final = (
    Story((Pod(code=0, script=_TO_STEP_4, told="a training of four steps has done them."),)),
    Story(
        (
            Pod(
                code=114,
                script=_LABELS_MISSING,
                told="an exception in the same step again, after one restart in place that was to tell "
                "a mistake from an accident.",
            ),
        )
    ),
    Story((Pod(code=115, script=_DATA_MISSING, told="a file of the data set is not where the script looks."),)),
    Story(
        (
            Pod(
                code=193,
                script=_PROTOCOL,
                told="an error of the operating system that a restart in place has not cured.",
            ),
            Pod(code=194, script=_PROTOCOL),
            Pod(
                code=116,
                script=_PROTOCOL,
                node="node-b",
                told="the same error in a third pod, after a fresh container (193) and another node (194).",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=126,
                script="",
                arguments=("--nproc-per-node", "1", "--no-python", "--", "./train.py"),
                told="the command is a file without the right to execute it.",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=127,
                script="",
                arguments=("--nproc-per-node", "1", "--no-python", "--", "pyhton3", "train.py"),
                told="the command is misspelled.",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=194,
                script=_FELL_OFF,
                told="the NVIDIA driver says that a GPU has fallen off the bus. The line is printed by the training: "
                "no GPU was hurt.",
            ),
            Pod(
                code=198,
                script=_FELL_OFF,
                told="the next pod of that training came back to the same node, which is on the run's deny list now.",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=195,
                script=_ENDLESS,
                signal=signal.SIGTERM,
                told="SIGTERM, as from `kubectl drain` or a spot interruption, in the middle of a training.",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=196,
                script=_NOT_OURS,
                signal=signal.SIGTERM,
                told="SIGTERM to a script that never imports `resilient`, so that nothing of it can be saved.",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=197,
                script=_TO_STEP_4,
                arguments=(*_SECOND_OF_TWO, "--nproc-per-node", "1", "--", "train.py"),
                told="the second of two pods, whose first one does not come. It waits for 30 minutes by default, here "
                "for a second.",
            ),
        )
    ),
    Story(
        (
            Pod(
                code=199,
                script=_STORE_LOST,
                told="a broken GPU calls for another node (194), but the store is gone and cannot take that down. As "
                "the Job has replaced this pod 21 times uncounted already, this one is to be counted.",
            ),
        ),
        before=(194,) * 21,
    ),
    Story(
        (
            Pod(
                code=137,
                script=_NOT_OURS,
                signal=signal.SIGKILL,
                told="SIGKILL to the supervisor itself, as by the OOM killer of cgroup v2.",
            ),
            Pod(code=0, script="", looks_back=True),
        )
    ),
)
