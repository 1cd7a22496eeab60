# SPDX-License-Identifier: Apache-2.0
"""When the next snapshot is due, and which of them goes to the store."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.cadence import OVERHEAD_CAP, SAVING_SHARE, SHORTEST_S, Cadence, Every, target, wants_store
from resilient.core.interval import PRIOR_MTTF_S, aupy

NEVER = Every(steps=1 << 40)


@pytest.mark.parametrize(("entered", "step"), [(0, 100), (1, 100), (99, 100), (100, 100), (101, 200)])
def test_a_number_of_steps_means_its_multiples(entered: int, step: int) -> None:
    """``every=100`` is 100, 200 and so on, wherever the run was resumed; a step that is entered can still be named."""
    cadence = Cadence(durable=Every(steps=100), memory=NEVER, has_store=True)
    assert target(cadence, entered, now=0.0) == step
    assert wants_store(cadence, step, now=0.0)
    assert not wants_store(replace(cadence, saved_step=step - 100), step - 1, now=1e9)
    assert not wants_store(cadence.took(step, 1.0, 0.1, saving=True), step + 1, now=1e9)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9))
def test_no_multiple_goes_by_without_a_save(durable: int, memory: int, steps_of_a_snapshot: int) -> None:
    """Where a snapshot for memory is under way as one passes, the next snapshot is for the store."""
    cadence = Cadence(durable=Every(steps=durable), memory=Every(steps=memory), has_store=True)
    entered, saved = 1, [0]
    while entered < 200:
        step = target(cadence, entered, now=0.0)
        assert step is not None
        saving = wants_store(cadence, step, now=0.0)
        saved += [step] if saving else []
        cadence = cadence.took(step, 0.0, 0.0, saving=saving)
        entered = step + steps_of_a_snapshot
    # One goes by at most while the next snapshot becomes due, and one more while it is taken.
    assert all(after - before < 2 * durable + memory + steps_of_a_snapshot for before, after in pairwise(saved))


def test_a_duration_names_the_next_boundary_once_it_is_over() -> None:
    """And begins anew with what was saved."""
    cadence = Cadence(durable=Every(seconds=300.0), memory=NEVER, has_store=True, saved_at=1000.0)
    assert target(cadence, 5, now=1299.0) == NEVER.steps
    assert target(cadence, 5, now=1300.0) == 5
    assert wants_store(cadence, 5, now=1300.0)
    after = cadence.took(5, 1300.0, 0.1, saving=True)
    assert not wants_store(after, 6, now=1500.0)
    assert wants_store(after, 6, now=1600.0)
    assert wants_store(cadence.took(5, 1300.0, 0.1, saving=False), 6, now=1500.0), "memory alone saves nothing"


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


@given(
    stall_s=st.floats(0.0, 1000.0),
    save_s=st.floats(0.0, 1000.0),
    failures=st.integers(0, 10_000),
    after_s=st.floats(0.0, 1e6),
)
def test_an_automatic_cadence_keeps_below_its_cap(stall_s: float, save_s: float, failures: int, after_s: float) -> None:
    """However often the run fails, saving is due only when it costs a small share of the time since the one before."""
    cadence = Cadence(durable=None, has_store=True, stall_s=stall_s, save_s=save_s, failures=failures)
    cost_s = stall_s + SAVING_SHARE * save_s
    if target(cadence, 3, now=after_s) is not None:
        assert stall_s <= after_s * OVERHEAD_CAP * (1 + 1e-9)
    if wants_store(cadence, 3, now=after_s):
        assert cost_s <= after_s * OVERHEAD_CAP * (1 + 1e-9)
        assert save_s <= after_s, "one save would begin before the one before has ended"


def test_an_automatic_cadence_is_the_period_of_least_loss() -> None:
    """A stall of 5 ms pays every 10 to 11 s at first, and a save of a minute every six."""
    cadence = Cadence(durable=None, has_store=True, stall_s=0.005, save_s=60.0)
    assert cadence.memory_s == pytest.approx(aupy(PRIOR_MTTF_S, 0.005, 0.0))
    assert 10.0 < cadence.memory_s < 11.0
    assert 360.0 < cadence.durable_s < 372.0
    assert target(cadence, 3, now=10.0) is None
    assert target(cadence, 3, now=11.0) == 3


def test_an_automatic_cadence_learns_from_failures_and_from_their_absence() -> None:
    """Many of them bring the next snapshot forward, a long time without puts it off."""
    cadence = Cadence(durable=None, stall_s=0.01)
    assert replace(cadence, failures=9).memory_s < 0.5 * cadence.memory_s
    assert cadence.took(9, 40 * 3600.0, 0.01, saving=False).memory_s > 3 * cadence.memory_s


@given(
    every=st.builds(Every, steps=st.integers(1, 1000)) | st.builds(Every, seconds=st.floats(0, 1e4)),
    entered=st.integers(0, 10_000),
    now=st.floats(0, 1e6),
)
def test_no_boundary_is_named_that_somebody_has_passed(every: Every, entered: int, now: float) -> None:
    """The highest step entered can still be finished by all; an earlier one cannot."""
    step = target(Cadence(durable=every, memory=every, has_store=True), entered, now)
    assert step is None or step >= entered
