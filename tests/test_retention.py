# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint is tried first, and which are deleted."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from resilient.core.retention import prunable, restore_order


@dataclass(frozen=True)
class C:
    """A checkpoint, as far as retention looks."""

    attempt: int
    step: int
    name: str


def make(*names: str) -> list[C]:
    return [C(int(n.split("-")[0]), int(n.split("-")[1].split(".")[0]), n) for n in names]


def test_a_later_attempt_wins_over_a_later_step() -> None:
    """A pod given up for dead that goes on writing does not win over the one that replaced it."""
    order = restore_order(make("1-100", "1-130", "2-105", "1-120"))
    assert [c.name for c in order] == ["2-105", "1-130", "1-120", "1-100"]


def test_a_later_try_wins_over_an_earlier_one() -> None:
    """Numbers are compared, not letters."""
    assert [c.name for c in restore_order(make("1-5.2", "1-5", "1-5.10"))] == ["1-5.10", "1-5.2", "1-5"]


def test_the_last_ones_are_kept() -> None:
    """What is older than the last ``keep`` goes, the oldest first."""
    assert prunable(make("1-1", "1-3", "1-2", "2-1"), keep=2) == ["1-1", "1-2"]


def test_what_is_in_use_stays_beside_the_kept() -> None:
    """The checkpoint from which the present attempt began is not pruned by a zombie's later ones."""
    assert prunable(make("1-100", "1-110", "1-120", "1-130"), keep=1, in_use=["1-100"]) == ["1-110", "1-120"]


def test_damaged_ones_are_not_counted() -> None:
    """A damaged checkpoint must not push out a good one."""
    assert prunable(make("1-1", "1-2", "1-3", "1-4"), keep=2, damaged=["1-4", "1-2"]) == ["1-2"]


def test_nothing_goes_while_all_are_damaged() -> None:
    """What seems damaged here may be all there is."""
    assert prunable(make("1-1", "1-2"), keep=1, damaged=["1-1", "1-2"]) == []


CHECKPOINTS = st.sets(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=12).map(
    lambda pairs: make(*(f"{a}-{s}" for a, s in sorted(pairs)))
)


@given(CHECKPOINTS, st.integers(-1, 5), st.data())
def test_the_newest_good_one_always_stays(checkpoints: list[C], keep: int, data: st.DataObject) -> None:
    """Whatever is asked, what a restore would take first is never deleted, nor anything in use."""
    names = [c.name for c in checkpoints]
    damaged = data.draw(st.sets(st.sampled_from(names))) if names else set()
    in_use = data.draw(st.sets(st.sampled_from(names))) if names else set()
    doomed = prunable(checkpoints, keep=keep, damaged=damaged, in_use=in_use)
    good = [c.name for c in restore_order(checkpoints) if c.name not in damaged]
    assert not set(good[: max(keep, 1)]) & set(doomed)
    assert not in_use & set(doomed)
    assert set(good[max(keep, 1) :]) - in_use <= set(doomed)
