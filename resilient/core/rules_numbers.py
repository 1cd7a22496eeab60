# SPDX-License-Identifier: Apache-2.0
"""Rules about numbers that are not finite, as an exception tells of them.

Only rows. A NaN comes of the model as a rule, and the same comes again; that of one
rank may be a device's.
"""

from __future__ import annotations

from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.rule import AnyOf, exception_rule, raised, stated

TORCH: Final = "https://docs.pytorch.org/docs/stable/"

NUMBER_RULES: Final = (
    exception_rule(
        "non-finite-on-one-rank",
        Cause.NUMERIC_INSTABILITY,
        # Megatron compares with a second try, in place and on another GPU, before it blames the model.
        Action.INVESTIGATE,
        "rank {rank} met numbers of its own that are not finite, before any other rank had a part in them",
        stated(
            r"found (?:NaN|Inf) in local (?:grad norm|forward loss)"
            r"|\bUnexpected result (?:tensor\()?-?(?:nan|inf)\b.{0,200}\(message='"
        ),
        ("RuntimeError", "Rank 3, node n1, device 3, iteration 40: Unexpected result nan (message='loss')"),
        "https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/rerun_state_machine.py",
        Confidence.MEDIUM,
    ),
    exception_rule(
        "non-finite",
        Cause.NUMERIC_INSTABILITY,
        Action.STOP,
        "rank {rank} met numbers that are not finite",
        AnyOf(
            (
                # Decompositions of matrices that hold no numbers, or hardly any.
                raised("FloatingPointError", "LinAlgError", "_LinAlgError"),
                raised(
                    text=r"(?i)\bnon-?finite\b|\b(?:loss|grad\w*|norm)\b.{0,60}\b(?:nan|inf|infinite)\b"
                    r"|\bnan\b.{0,60}\b(?:values?|loss|grad\w*|norm|weights?|parameters?)\b"
                    # torch.distributions and torch.multinomial
                    r"|found invalid values:\s{1,4}tensor\(\[{1,8}-?(?:nan|inf)\b|either `inf`, `nan` or element < 0"
                ),
            )
        ),
        ("FloatingPointError", "Minimum loss scale reached (0.0001)."),
        TORCH + "notes/amp_examples.html",
        Confidence.MEDIUM,
    ),
)
