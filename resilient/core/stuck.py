# SPDX-License-Identifier: Apache-2.0
"""Which rank holds up the others, judged from where each of them stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping


def holding_up(frames: Mapping[int, str | None], waiting: Collection[int]) -> int | None:
    """The one rank that holds up the others: it stands elsewhere than they, or alone waits for nobody.

    ``waiting`` are the ranks that stand in a collective or in the backward pass, where gradients are exchanged.
    """
    alone = odd_one_out(frames)
    if alone is None:
        busy = [rank for rank in frames if rank not in waiting]
        alone = busy[0] if len(busy) == 1 and len(frames) > 1 else None
    return alone


def odd_one_out(frames: Mapping[int, str | None]) -> int | None:
    """The one rank that stands elsewhere than all its peers, or ``None`` where nobody can be named.

    ``frames`` holds the innermost frame of every rank that was asked for it, ``None`` for
    one that did not answer: that one is elsewhere too (stopped, or held in the kernel).
    Of two ranks that answered differently either may be the one to blame.
    """
    silent = [rank for rank, frame in frames.items() if frame is None]
    counts = Counter(frame for frame in frames.values() if frame is not None)
    if silent:
        return silent[0] if len(silent) == 1 and len(counts) == 1 else None
    alone = [rank for rank, frame in frames.items() if frame is not None and counts[frame] == 1]
    return alone[0] if len(alone) == 1 and len(counts) == 2 else None
