# SPDX-License-Identifier: Apache-2.0
"""When the next snapshot is due, and which of them goes to the store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.cadence import OVERHEAD_CAP, SHORTEST_S, Cadence, Every, target, wants_store

NEVER = Every(steps=1 << 40)


@pytest.mark.parametrize(("entered", "step"), [(0, 100), (1, 100), (99, 100), (100, 100), (101, 200)])
def test_a_number_of_steps_means_its_multiples(entered: int, step: int) -> None:
    """``every=100`` is 100, 200 and so on, wherever the run was resumed; a step that is entered can still be named."""
    cadence = Cadence(durable=Every(steps=100), memory=NEVER, has_store=True)
    assert target(cadence, entered, now=0.0) == step
    assert wants_store(cadence, step, now=0.0)
    assert not wants_store(cadence, step + 1, now=1e9)


def test_a_duration_names_the_next_boundary_once_it_is_over() -> None:
    """And begins anew with what was saved."""
    cadence = Cadence(durable=Every(seconds=300.0), memory=NEVER, has_store=True, saved_at=1000.0)
    assert target(cadence, 5, now=1299.0) == NEVER.steps
    assert target(cadence, 5, now=1300.0) == 5
    assert wants_store(cadence, 5, now=1300.0)
    after = cadence.took(1300.0, 0.1, saving=True)
    assert not wants_store(after, 6, now=1500.0)
    assert wants_store(after, 6, now=1600.0)
    assert wants_store(cadence.took(1300.0, 0.1, saving=False), 6, now=1500.0), "memory alone saves nothing"


def test_without_a_store_nothing_is_for_it() -> None:
    """Snapshots are taken all the same."""
    cadence = Cadence(durable=Every(steps=2), memory=Every(steps=3))
    assert not wants_store(cadence, 2, now=0.0)
    assert target(cadence, 1, now=0.0) == 3


def test_the_earlier_of_both_cadences_is_named() -> None:
    """Memory every three steps, the store every four."""
    cadence = Cadence(durable=Every(steps=4), memory=Every(steps=3), has_store=True)
    assert [target(cadence, entered, now=0.0) for entered in range(1, 10)] == [3, 3, 3, 4, 6, 6, 8, 8, 9]


def test_nothing_is_due_right_after_a_snapshot() -> None:
    """A duration of nothing is not a snapshot at every look."""
    cadence = Cadence(durable=Every(seconds=300.0), memory=Every(seconds=0.0), taken_at=10.0)
    assert target(cadence, 7, now=10.0 + SHORTEST_S / 2) is None
    assert target(cadence, 7, now=10.0 + SHORTEST_S) == 7


@given(stall_s=st.floats(0.0, 1000.0), after_s=st.floats(0.0, 1e5))
def test_the_automatic_cadence_keeps_below_its_cap(stall_s: float, after_s: float) -> None:
    """A snapshot is due only when its cost is a small share of the time since the one before."""
    cadence = replace(Cadence(durable=NEVER), stall_s=stall_s)
    if target(cadence, 3, now=after_s) is not None:
        assert stall_s <= after_s * OVERHEAD_CAP * (1 + 1e-9)
    else:
        assert after_s < max(SHORTEST_S, stall_s / OVERHEAD_CAP)


def test_a_dear_snapshot_is_measured() -> None:
    """Three seconds of standing still are allowed every eighty-odd seconds."""
    cadence = Cadence(durable=NEVER).took(100.0, 3.0, saving=False)
    assert target(cadence, 3, now=185.0) is None
    assert target(cadence, 3, now=186.0) == 3


@given(
    every=st.builds(Every, steps=st.integers(1, 1000)) | st.builds(Every, seconds=st.floats(0, 1e4)),
    entered=st.integers(0, 10_000),
    now=st.floats(0, 1e6),
)
def test_no_boundary_is_named_that_somebody_has_passed(every: Every, entered: int, now: float) -> None:
    """The highest step entered can still be finished by all; an earlier one cannot."""
    step = target(Cadence(durable=every, memory=every, has_store=True), entered, now)
    assert step is None or step >= entered
