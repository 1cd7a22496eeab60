# SPDX-License-Identifier: Apache-2.0
"""Rules about what an exception carries that collects those of all ranks: torch's CheckpointException.

Only rows. What the ranks raised is judged like any exception, by the rules of storage, state and the rest; these are
for what is left of it. Who plans a checkpoint neither reads nor writes, and plans the same the next time.
"""

from __future__ import annotations

import re
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence
from resilient.core.rule import AllOf, Family, exception_rule, log_rule, raised, raised_anywhere
from resilient.core.rules_cut import CutOff

DCP: Final = "https://github.com/pytorch/pytorch/blob/main/torch/distributed/checkpoint/"

_CARRIER: Final = "CheckpointException"
_COLLECTED: Final = (
    ErrorLink(type=f"torch.distributed.checkpoint.api.{_CARRIER}", message=f"{_CARRIER} ranks:dict_keys([0, 1])"),
    ErrorLink(type="AssertionError", message="md is None"),
)

CARRIED_RULES: Final = (
    exception_rule(
        "checkpoint-planning",
        Cause.FRAMEWORK_BUG,
        Action.STOP,
        "an assertion failed on rank {rank} while a checkpoint was saved or loaded, and no read or write did",
        AllOf((raised_anywhere(_CARRIER), raised("AssertionError"))),
        Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0, error=ErrorRecord(chain=_COLLECTED)),)),
        DCP + "api.py",
        Confidence.MEDIUM,
    ),
    log_rule(
        "cut-off-planning",
        Cause.FRAMEWORK_BUG,
        Action.STOP,
        "ranks failed while a checkpoint was planned, in a traceback whose last line is missing",
        # Readers and writers are other files.
        CutOff(
            re.compile(r"[/\\]checkpoint[/\\](?:state_dict_(?:loader|saver)|(?:default_)?planner(?:_helpers)?)\.py$"),
            carrier=_CARRIER,
        ),
        "torch.distributed.checkpoint.api.CheckpointException: CheckpointException ranks:dict_keys([0, 1])\n"
        "Traceback (most recent call last): (RANK 0)\n"
        '  File "/usr/lib/python3/site-packages/torch/distributed/checkpoint/default_planner.py", line 7, in f',
        DCP + "state_dict_loader.py",
        confidence=Confidence.LOW,
        family=Family.EXCEPTION,
    ),
)
