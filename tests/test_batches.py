# SPDX-License-Identifier: Apache-2.0
"""Tests of the position in the data: which loaders have one, and what happens in their workers."""

import os
import random
import select
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    TensorDataset,
    get_worker_info,
)

from resilient.errors import CheckpointError, SettingsError
from resilient.training import batches, rng
from resilient.training.batches import Position, source_of
from resilient.training.position import APART
from resilient.training.shares import regrouped
from resilient.training.stream import Stream


def stream_of(loader: Any, position: Position | None = None) -> Stream:
    start = position or Position(seed=5)
    return Stream(source_of(loader, seed=start.seed, rank=0), start)


def take(stream: Stream, count: int) -> list[Any]:
    return [stream.next(None) for _ in range(count)]


ONE = TensorDataset(torch.ones(1))


class Own(DataLoader[Any]):
    """Iterates in a way that nobody else knows."""

    def __iter__(self) -> Any:
        return iter([1])


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        (Own(ONE), "Own iterates in its own way"),
        (DataLoader(ONE, num_workers=1, in_order=False), "in_order=False"),
        (iter([1]), "an iterator can be used once"),
        ((number for number in [1]), "an iterator can be used once"),
        ({1: 2}, "no position"),
        (3, "no position"),
        ("text", "no position"),
    ],
)
def test_what_has_no_position_is_refused_with_a_reason(loader: Any, why: str) -> None:
    """Better no training than one that cannot be resumed exactly."""
    with pytest.raises(SettingsError, match=why):
        source_of(loader, seed=1, rank=0)


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.ones(3)), batch_size=4, drop_last=True)])
def test_a_loader_without_batches_ends_with_a_reason(loader: Any) -> None:
    """An endless loop over nothing would look like a hang."""
    with pytest.raises(SettingsError, match="gives no batch"):
        stream_of(loader).next(None)


def test_the_undisturbed_order_is_that_of_the_plain_loader() -> None:
    """Supervision changes no result: the same seed gives the same batches as without it, epoch after epoch."""
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=3, shuffle=True)
    torch.manual_seed(1)
    plain = [batch[0].tolist() for _ in range(3) for batch in loader]
    torch.manual_seed(1)
    assert [batch[0].tolist() for batch in take(stream_of(loader), 12)] == plain


@pytest.mark.parametrize("used", range(11))
def test_every_position_leads_back_to_the_same_batches(used: int) -> None:
    """After any number of batches, also on the border of an epoch, a new loader goes on with the next one."""

    def make() -> DataLoader[Any]:
        data = TensorDataset(torch.arange(10))
        return DataLoader(data, batch_size=3, sampler=RandomSampler(data, replacement=True))

    torch.manual_seed(3)
    first = stream_of(make())
    take(first, used)
    position, now = first.position(), rng.capture()
    expected = take(first, 5)
    torch.manual_seed(99)
    again = stream_of(make(), Position.from_tree(position.to_tree()))
    found = [again.next(now), *take(again, 4)]
    assert str(found) == str(expected)


def test_skipped_batches_are_not_fetched() -> None:
    """Finding the position costs indices, not data."""
    fetched = []

    class Watched(Dataset[int]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            fetched.append(index)
            return index

    start = {"rng": rng.capture(), "generators": []}
    stream_of(DataLoader(Watched(), batch_size=2), Position(seed=1, used=3, start=start)).next(rng.capture())
    assert fetched == [6, 7]


def test_a_shorter_data_set_is_found() -> None:
    """A position beyond the end of the epoch is an error, not an empty epoch."""
    start = {"rng": rng.capture(), "generators": []}
    stream = stream_of(DataLoader(TensorDataset(torch.ones(4))), Position(seed=1, used=5, start=start))
    with pytest.raises(CheckpointError, match="epoch 0 has 4 batches where 5 were used"):
        stream.next(rng.capture())


def test_samplers_are_told_the_epoch() -> None:
    """DistributedSampler shuffles by it, and nobody else can know it after a resume."""
    data = TensorDataset(torch.arange(8))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=0)
    found = [batch[0].tolist() for batch in take(stream_of(DataLoader(data, batch_size=4, sampler=sampler)), 3)]
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected.append(list(sampler))
    assert found == expected


class Facts(Dataset[Tensor]):
    """Says what it finds in the process it runs in."""

    hint = 7

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        found = get_worker_info()
        hint = found.dataset.hint if found else 0  # type: ignore[attr-defined]  # the data set of this test has it
        return torch.tensor([os.getpid(), hint, random.random(), np.random.rand(), torch.rand(()).item()]).double()


def test_draws_in_workers_depend_on_the_batch_only() -> None:
    """The same seed, epoch and batch give the same draws in whatever worker, on another rank others."""
    one = stream_of(DataLoader(Facts(), batch_size=2, num_workers=1))
    two = stream_of(DataLoader(Facts(), batch_size=2, num_workers=2, persistent_workers=True))
    other = Stream(source_of(DataLoader(Facts(), batch_size=2, num_workers=1), seed=5, rank=1), Position(seed=5))
    first, second, third = take(one, 6), take(two, 6), take(other, 6)
    draws = [torch.cat(found)[:, 2:] for found in (first, second, third)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(set(torch.cat(first)[:, 2].tolist())) == 12
    assert set(torch.cat(second)[:, 1].tolist()) == {7.0}
    for stream in (one, two, other):
        stream.close()


def test_persistent_workers_live_through_epochs() -> None:
    """They are what they are asked for: the same processes in every epoch."""
    stream = stream_of(DataLoader(Facts(), batch_size=2, num_workers=1, persistent_workers=True))
    assert len(set(torch.cat(take(stream, 9))[:, 0].tolist())) == 1
    stream.close()


def test_workers_ignore_the_platforms_sigterm_and_obey_their_owners() -> None:
    """A signal to every process of the container leaves the data coming; at the end it ends the workers."""
    stream = stream_of(DataLoader(Facts(), batch_size=1, num_workers=1, prefetch_factor=1, persistent_workers=True))
    pid = int(stream.next(None)[0, 0])
    if not (forked := os.fork()):  # a child of the training's has the loop as well, and may leave it
        stream.close()
        os._exit(0)
    os.waitpid(forked, 0)
    for _ in range(20):
        os.kill(pid, signal.SIGTERM)
        assert int(stream.next(None)[0, 0]) == pid
    pidfd = os.pidfd_open(pid)
    stream.close()
    os.kill(pid, signal.SIGTERM)
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


def dealt(rank: int, ranks: int, **more: Any) -> DataLoader[Any]:
    data = TensorDataset(torch.arange(23))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=ranks, rank=rank, seed=4)
    return DataLoader(data, batch_size=2, sampler=sampler, **more)


@pytest.mark.parametrize("more", [{}, {"num_workers": 1}], ids=["here", "worker"])
def test_the_rest_of_an_epoch_goes_on_where_others_were(more: dict[str, Any]) -> None:
    """Two ranks took twelve samples; three take the rest, are interrupted in it, and begin the next epoch whole."""
    before, after = 2, 3
    streams = [stream_of(dealt(rank, before)) for rank in range(before)]
    first = [number for stream in streams for (batch,) in take(stream, 3) for number in batch.tolist()]
    saved = replace(streams[0].position(), of_others=APART)
    assert (saved.used, saved.together, saved.before) == (3, 4, 0)
    rest, epochs = [], []
    for rank in range(after):
        stream = stream_of(dealt(rank, after, **more), regrouped(saved, dealt(rank, after), warn=False))
        rest += take(stream, 1)[0][0].tolist()
        stream.close()
        again = stream_of(dealt(rank, after, **more), stream.position())
        rest += take(again, 1)[0][0].tolist()
        epochs.append(take(again, 1)[0][0].tolist())
        position = again.position()
        assert (position.epoch, position.used, position.before, position.together) == (1, 1, 0, 6)
        again.close()
    assert set(first + rest) == set(range(23))
    assert len(first + rest) == 24, "the sampler repeats one, so that ranks are even"
    assert epochs == [
        take(stream_of(dealt(r, after), Position(seed=5, epoch=1)), 1)[0][0].tolist() for r in range(after)
    ]


def test_an_epoch_that_others_have_used_up_is_over() -> None:
    """Its rest is empty, and that is no loader without batches."""
    stream = stream_of(dealt(0, 2), Position(seed=5, before=24))
    assert take(stream, 1)[0][0].tolist() == take(stream_of(dealt(0, 2), Position(seed=5, epoch=1)), 1)[0][0].tolist()
    assert (stream.position().epoch, stream.position().before) == (1, 0)


@pytest.mark.parametrize(
    "tree",
    [
        3,
        {},
        {"seed": 1, "epoch": 0, "used": 0, "start": None},
        {"seed": 1, "epoch": -1, "used": 0, "start": None, "own": None},
        {"seed": 1, "epoch": True, "used": 0, "start": None, "own": None},
        {"seed": 1, "epoch": 0, "used": 0, "start": None, "own": None, "more": 1},
        {**Position(seed=1).to_tree(), "before": -1},
        {**Position(seed=1).to_tree(), "together": None},
        {**Position(seed=1).to_tree(), "of_others": "perhaps"},
    ],
)
def test_what_is_no_position_is_found(tree: object) -> None:
    """What is read back is checked before it is used."""
    assert batches.differences(tree) == ["run.data: not a position"]
    assert batches.differences(replace(Position(seed=1), used=2).to_tree()) == []
    assert batches.differences({"seed": 1, "epoch": 0, "used": 0, "start": None, "own": None}) == [], "an older one"
