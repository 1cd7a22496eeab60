# SPDX-License-Identifier: Apache-2.0
"""Tests of the rule for another number of ranks in the middle of an epoch, by enumerating."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from resilient.errors import CheckpointError
from resilient.training.shares import RestOfEpoch, dealt_by, order_of, samples_used, share_of

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


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_whole_epoch_is_dealt_as_the_sampler_deals_it(drop_last: bool) -> None:
    """With nothing used, the rule is DistributedSampler's own."""
    for length, ranks in itertools.product(LENGTHS, COUNTS):
        if drop_last and length < ranks:
            continue  # DistributedSampler itself cannot
        for rank in range(ranks):
            sampler = sampler_of(length, rank, ranks, drop_last)
            assert list(RestOfEpoch(sampler, 0)) == list(sampler)
            assert len(RestOfEpoch(sampler, 0)) == len(sampler)


@pytest.mark.parametrize("drop_last", [False, True])
def test_no_sample_is_lost_or_repeated_by_a_change(drop_last: bool) -> None:
    """Any length, two numbers of ranks and batches before: each sample once, but for the end of the epoch."""
    for length, before, after, batch_size in itertools.product(LENGTHS, COUNTS, COUNTS, (1, 2)):
        order = order_of(length, seed=3, epoch=2, shuffle=True)
        for batches in range(length // (before * batch_size) + 1):
            shares = [list(sampler_of(length, rank, before))[: batches * batch_size] for rank in range(before)]
            used = samples_used(batches, batch_size=batch_size, ranks=before)
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
        used = samples_used(batches, batch_size=1, ranks=ranks, before=used)
    assert used == 21
    assert sorted(seen) == sorted(order[:21])


def test_an_epoch_that_was_used_up_has_no_rest() -> None:
    """Also where the sampler's repetitions were counted."""
    assert [share_of([2, 0, 1], used, rank=0, ranks=2, drop_last=False) for used in (3, 4)] == [[], []]


def test_the_next_epoch_is_whole() -> None:
    """What was used counts for its own epoch."""
    sampler = sampler_of(10, 1, 2)
    rest = RestOfEpoch(sampler, 6)
    assert len(list(rest)) == 2
    rest.set_epoch(3)
    assert list(rest) == list(sampler)
    assert len(rest) == 5


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
