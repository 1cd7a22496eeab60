# SPDX-License-Identifier: Apache-2.0
"""The end of a loop: all that come with one step have a last state, and nobody waits for those who cannot come."""

from __future__ import annotations

import pytest

from resilient.supervisor.loop_end import LoopEnd


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def end(told: list[str]) -> LoopEnd:
    return LoopEnd(2, together=lambda step: told.append(f"together {step}"), apart=lambda: told.append("apart"))


def test_all_ranks_that_come_with_one_step_end_together(end: LoopEnd, told: list[str]) -> None:
    """The first that comes waits; from then on no boundary is left."""
    assert not end.begun
    end.reached(1, 4)
    assert (end.begun, told) == (True, [])
    end.reached(0, 4)
    assert told == ["together 4"]


@pytest.mark.parametrize("left_first", [False, True])
def test_a_rank_that_left_is_not_waited_for(end: LoopEnd, told: list[str], *, left_first: bool) -> None:
    """Whichever of the two is heard of first; and it is said once."""
    if left_first:
        end.left(0)
    end.reached(1, 4)
    end.left(0)
    assert told == ["apart"]


def test_the_next_loop_has_an_end_of_its_own(end: LoopEnd, told: list[str]) -> None:
    """The one before is over once nobody is there any more."""
    assert not end.begin_loop(0)
    end.reached(0, 4)
    end.reached(1, 4)
    assert [end.begin_loop(0), end.begin_loop(1)] == [False, True]
    end.reached(1, 9)
    end.left(0)
    assert told == ["together 4", "apart"]


def test_a_new_attempt_begins_with_nobody_there(end: LoopEnd, told: list[str]) -> None:
    """Who left before is back."""
    end.left(0)
    end.launched()
    end.reached(1, 4)
    assert told == []
    end.reached(0, 4)
    assert told == ["together 4"]
