# SPDX-License-Identifier: Apache-2.0
"""How often to save: the period that loses least to saving and to failures together.

Words: ``mttf_s`` is the mean time to failure, ``cost_s`` what one save costs the training,
``recovery_s`` how long a failure keeps it from running (down, and restoring). A period is from
one save to the next, the save included. All in seconds.
"""

from __future__ import annotations

import math
from typing import Final

PRIOR_MTTF_S: Final = 3.1 * 3600
"""Of Llama 3: 419 unexpected interruptions in 54 days (arXiv:2407.21783, section 3.3.4). A run that is smaller will
fail less often; expecting more failures costs it little, as saving is cheap, and it corrects the guess itself."""
PRIOR_FAILURES: Final = 1.0
"""What the prior counts for: as if it had been seen this often."""


def young(mttf_s: float, cost_s: float) -> float:
    """Young, CACM 17(9), 1974: the time between saves of lowest expected loss, to first order."""
    return math.sqrt(2 * mttf_s * cost_s) + cost_s


def daly(mttf_s: float, cost_s: float, recovery_s: float) -> float:
    """Daly, FGCS 22(3), 2006, first order: a failure may also come while the run recovers."""
    return math.sqrt(2 * (mttf_s + recovery_s) * cost_s) + cost_s


def aupy(mttf_s: float, cost_s: float, recovery_s: float) -> float:
    """Aupy, Robert, Vivien, Zaidouni, "Checkpointing algorithms and fault prediction" (JPDC 74(2), 2014), equation of
    the period without prediction. Closest to the optimum of the three when failures are frequent."""
    # Where a run recovers for as long as it runs, only saving all the time helps.
    return max(cost_s, math.sqrt(2 * max(0.0, mttf_s - recovery_s) * cost_s))


def mttf(failures: int, ran_s: float) -> float:
    """Mean of the failure rate's posterior, as a time: a Gamma prior, so many failures seen in so many seconds."""
    return (PRIOR_FAILURES * PRIOR_MTTF_S + ran_s) / (PRIOR_FAILURES + failures)
