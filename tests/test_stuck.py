# SPDX-License-Identifier: Apache-2.0
"""The rank that is stuck elsewhere than its peers."""

from __future__ import annotations

import pytest

from resilient.core.stuck import holding_up, odd_one_out

WAIT = "train.py:50 in backward"
LOAD = "data.py:7 in fetch"


@pytest.mark.parametrize(
    ("frames", "odd"),
    [
        ({0: WAIT, 1: WAIT, 2: LOAD, 3: WAIT}, 2),
        ({0: LOAD, 1: WAIT, 2: WAIT}, 0),
        ({0: WAIT, 1: None, 2: WAIT}, 1),
        ({0: WAIT, 1: None}, 1),
    ],
)
def test_the_one_that_stands_elsewhere_is_named(frames: dict[int, str | None], odd: int) -> None:
    """All others agree, so the one that does not holds them up; no answer is elsewhere too."""
    assert odd_one_out(frames) == odd


@pytest.mark.parametrize(
    "frames",
    [
        {},
        {0: LOAD},
        {0: None},
        {0: WAIT, 1: LOAD},
        {0: WAIT, 1: WAIT, 2: WAIT},
        {0: WAIT, 1: WAIT, 2: LOAD, 3: LOAD},
        {0: WAIT, 1: WAIT, 2: LOAD, 3: "other.py:1 in f"},
        {0: None, 1: None, 2: WAIT},
        {0: None, 1: None},
        {0: WAIT, 1: LOAD, 2: None},
        {0: WAIT, 1: WAIT, 2: LOAD, 3: None},
    ],
)
def test_nobody_is_blamed_by_guesswork(frames: dict[int, str | None]) -> None:
    """Without one rank against a unanimous rest there is no name."""
    assert odd_one_out(frames) is None


@pytest.mark.parametrize(
    ("frames", "waiting", "rank"),
    [
        ({0: WAIT, 1: LOAD}, [0], 1),
        ({0: WAIT, 1: "train.py:60 in barrier", 2: LOAD, 3: WAIT}, [0, 1, 3], 2),
        ({0: WAIT, 1: WAIT, 2: LOAD}, [], 2),
        ({0: WAIT, 1: LOAD}, [0, 1], None),
        ({0: WAIT, 1: LOAD}, [], None),
        ({0: WAIT, 1: LOAD, 2: None}, [0], None),
        ({0: LOAD}, [], None),
    ],
)
def test_who_alone_waits_for_nobody_holds_up_the_others(
    frames: dict[int, str | None], waiting: list[int], rank: int | None
) -> None:
    """Of two ranks that stand at different places, the one in a collective is not to blame."""
    assert holding_up(frames, waiting) == rank
