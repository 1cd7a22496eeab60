# SPDX-License-Identifier: Apache-2.0
"""Tests of the rule for another number of ranks in the middle of an epoch, by enumerating."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from resilient.errors import CheckpointError
from resilient.training.position import ALIKE, APART, Position
from resilient.training.shares import (
    dealt_by,
    order_of,
    regrouped,
    rest_of,
    share_of,
    together,
)

LENGTHS = range(1, 14)
COUNTS = (1, 2, 3, 4, 5)


def data_of(length: int) -> Dataset[Any]:
    return TensorDataset(torch.arange(length))


def sampler_of(length: int, rank: int, ranks: int, drop_last: bool = False) -> DistributedSampler[Any]:
    sampler: DistributedSampler[Any] = DistributedSampler(
        data_of(length), num_replicas=ranks, rank=rank, seed=3, drop_last=drop_last
    )
    sampler.set_epoch(2)
    return sampler


def used_by(batches: int, *, ranks: int, batch_size: int = 1, before: int = 0) -> int:
    """Samples that are done after so many batches on each rank, when others had done ``before``."""
    loader = DataLoader(data_of(1), batch_size, sampler=sampler_of(1, 0, ranks))
    position = Position(seed=1, used=batches, before=before, together=together(loader), of_others=APART)
    return regrouped(position, loader, warn=False).before


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_whole_epoch_is_dealt_as_the_sampler_deals_it(drop_last: bool) -> None:
    """With nothing used, the rule is DistributedSampler's own."""
    for length, ranks in itertools.product(LENGTHS, COUNTS):
        if drop_last and length < ranks:
            continue  # DistributedSampler itself cannot
        for rank in range(ranks):
            sampler = sampler_of(length, rank, ranks, drop_last)
            one_by_one = DataLoader(sampler.dataset, batch_size=None, sampler=sampler)
            assert rest_of(one_by_one, 0) == list(sampler)


@pytest.mark.parametrize("drop_last", [False, True])
def test_no_sample_is_lost_or_repeated_by_a_change(drop_last: bool) -> None:
    """Any length, two numbers of ranks and batches before: each sample once, but for the end of the epoch."""
    for length, before, after, batch_size in itertools.product(LENGTHS, COUNTS, COUNTS, (1, 2)):
        order = order_of(length, seed=3, epoch=2, shuffle=True)
        for batches in range(length // (before * batch_size) + 1):
            shares = [list(sampler_of(length, rank, before))[: batches * batch_size] for rank in range(before)]
            used = used_by(batches, batch_size=batch_size, ranks=before)
            first = [sample for share in shares for sample in share]
            assert sorted(first) == sorted(order[:used])
            rest = [share_of(order, used, rank=r, ranks=after, drop_last=drop_last) for r in range(after)]
            assert len({len(share) for share in rest}) == 1
            second = [sample for share in rest for sample in share]
            over = len(first) + len(second) - length
            assert abs(over) < after
            if drop_last:
                assert over <= 0
                assert len(set(first + second)) == len(first) + len(second)
            else:
                assert over >= 0
                assert set(first + second) == set(range(length))


def test_a_change_after_a_change_is_counted_on() -> None:
    """Three numbers of ranks in one epoch."""
    order = order_of(24, seed=3, epoch=2, shuffle=True)
    used, seen = 0, []
    for ranks, batches in ((2, 2), (3, 1), (1, 14)):
        for rank in range(ranks):
            seen += share_of(order, used, rank=rank, ranks=ranks, drop_last=False)[:batches]
        used = used_by(batches, ranks=ranks, before=used)
    assert used == 21
    assert sorted(seen) == sorted(order[:21])


def test_an_epoch_that_was_used_up_has_no_rest() -> None:
    """Also where the sampler's repetitions were counted."""
    assert [share_of([2, 0, 1], used, rank=0, ranks=2, drop_last=False) for used in (3, 4)] == [[], []]


class Whole(IterableDataset[int]):
    """Has no order."""

    def __iter__(self) -> Iterator[int]:
        return iter([1])


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        ([1, 2], "the order of a list is its own"),
        (DataLoader(data_of(3), shuffle=True), "that of a RandomSampler"),
        (DataLoader(Whole()), "that of a _InfiniteConstantSampler"),
        (DataLoader(data_of(3), batch_sampler=[[0], [1, 2]]), "that of a SequentialSampler"),
    ],
)
def test_other_orders_are_refused_with_a_reason(loader: object, why: str) -> None:
    """Better none than one in which samples are lost."""
    with pytest.raises(CheckpointError, match=why):
        dealt_by(loader)


def test_a_distributed_sampler_deals() -> None:
    """With and without batches."""
    sampler = sampler_of(4, 0, 2)
    assert dealt_by(DataLoader(data_of(4), sampler=sampler)) is sampler
    assert dealt_by(DataLoader(data_of(4), sampler=sampler, batch_size=None)) is sampler


# A position of another number of ranks.

SAVED = Position(seed=1, epoch=2, used=3, start={"rng": {}, "generators": []}, together=8, of_others=APART)


def loader_of(ranks: int, batch_size: int | None = 2, **more: Any) -> DataLoader[Any]:
    return DataLoader(data_of(60), batch_size=batch_size, sampler=sampler_of(60, 0, ranks), **more)


def test_a_position_is_counted_in_samples() -> None:
    """Three batches of eight are 24 samples, whoever takes the rest and in whatever batches; twice, if need be."""
    found = regrouped(SAVED, loader_of(4), warn=True)
    assert found == replace(SAVED, before=24, used=0, start=None, of_others="")
    again = regrouped(replace(found, used=2, together=together(loader_of(4)), of_others=ALIKE), loader_of(1), warn=True)
    assert (again.before, again.used) == (24 + 2 * 2 * 4, 0)
    assert regrouped(found, loader_of(1), warn=True) is found, "it is this number's own"


def test_at_the_beginning_of_an_epoch_any_loader_goes_on() -> None:
    """Nothing of it was used; what the loader had kept of the epoch before is of no use to another."""
    for loader in ([1, 2], DataLoader(Whole()), loader_of(3)):
        begun = replace(SAVED, used=0, own={"place": 9})
        assert regrouped(begun, loader, warn=True) == replace(begun, start=None, own=None, of_others="")


@pytest.mark.parametrize("loader", [[1, 2], DataLoader(data_of(6)), DataLoader(data_of(6), shuffle=True)])
def test_ranks_that_took_the_same_batches_go_on_with_them(loader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As under tensor parallelism; that samples may be lost if they did not is said once."""
    alike = replace(SAVED, together=0, of_others=ALIKE)
    for warn in (True, False):
        assert regrouped(alike, loader, warn=warn) == replace(alike, of_others="")
    assert capsys.readouterr().err.count("each rank goes on after 3 batches of the epoch") == 1


@pytest.mark.parametrize(
    ("change", "loader", "why"),
    [
        ({"together": 0}, DataLoader(data_of(6), shuffle=True), "that of a RandomSampler"),
        ({"together": 0, "of_others": ALIKE}, DataLoader(Whole()), "that of a _InfiniteConstantSampler"),
        ({"together": 0, "of_others": ALIKE}, DataLoader(data_of(3), batch_sampler=[[0], [1]]), "of a Sequential"),
        ({"of_others": ALIKE}, [1, 2], "the order of a list is its own"),
        ({"together": 0, "of_others": ALIKE, "before": 4}, [1, 2], "the order of a list is its own"),
        ({"together": 0}, loader_of(4), "saved with a loader without DistributedSampler"),
        ({"together": 0, "of_others": ALIKE}, loader_of(4), "saved with a loader without DistributedSampler"),
    ],
)
def test_an_epoch_that_cannot_go_on_is_refused(change: dict[str, Any], loader: Any, why: str) -> None:
    """With the reason, and what to do."""
    with pytest.raises(CheckpointError, match=f"cannot go on in the middle of an epoch.*{why}.*number of ranks"):
        regrouped(replace(SAVED, **change), loader, warn=False)


def test_together_is_what_all_replicas_take_at_once() -> None:
    """Where nobody says how many there are it is not known."""
    assert together(loader_of(4)) == 8
    assert together(loader_of(3, batch_size=None)) == 3
    assert together(DataLoader(data_of(6), batch_size=2)) == 0


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"), [(2, False, [2, 2, 1]), (2, True, [2, 2]), (None, False, [])]
)
def test_the_rest_comes_in_batches_as_the_loader_makes_them(batch_size: Any, drop_last: bool, sizes: Any) -> None:
    """Or one by one."""
    loader = loader_of(4, batch_size, drop_last=drop_last)
    taken: list[Any] = list(rest_of(loader, 40))
    share = share_of(order_of(60, seed=3, epoch=2, shuffle=True), 40, rank=0, ranks=4, drop_last=False)
    assert [len(batch) for batch in taken] == sizes if sizes else taken == share
    if sizes:
        assert [sample for batch in taken for sample in batch] == share[: sum(sizes)]
