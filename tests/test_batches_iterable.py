# SPDX-License-Identifier: Apache-2.0
"""Tests of loaders that no sampler drives: their own position, or counted skipping."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_image import image_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from resilient.checkpoint import image, tensors
from resilient.errors import CheckpointError, SettingsError
from resilient.training import rng
from resilient.training.batches import Position, differences, source_of
from resilient.training.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it

SIZE = 8


def draw() -> float:
    return random.random() + np.random.rand() + torch.rand(()).item()


class Counting(IterableDataset[Tensor]):
    """Numbers, each with noise, and a shuffled beginning; workers share them."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        found = get_worker_info()
        begin, stride = (found.id, found.num_workers) if found else (0, 1)
        for number in torch.randperm(SIZE).tolist()[begin::stride]:
            self.fetched.append(number)
            yield torch.tensor([number, draw(), os.getpid()]).double()


class Keeping(IterableDataset[Tensor]):
    """Says where it is."""

    def __init__(self) -> None:
        self.at = 0
        self.fetched: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < SIZE:
            self.at += 1
            self.fetched.append(self.at)
            yield torch.tensor([self.at, draw(), 0]).double()
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Indexed(Dataset[Tensor]):
    """Map-style, with noise that is drawn where it is loaded."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, 0 if get_worker_info() else draw(), 0]).double()


def stateful(**options: Any) -> StatefulDataLoader[Any]:
    return StatefulDataLoader(Indexed(), batch_size=2, shuffle=True, **options)


LOADERS: dict[str, Callable[[], Any]] = {
    "counted": lambda: DataLoader(Counting(), batch_size=2),
    "counted, unbatched": lambda: DataLoader(Counting(), batch_size=None),
    "counted, generator": lambda: DataLoader(Counting(), batch_size=2, generator=torch.Generator().manual_seed(1)),
    "counted, workers": lambda: DataLoader(Counting(), batch_size=2, num_workers=2),
    "data set keeps": lambda: DataLoader(Keeping(), batch_size=2),
    "stateful": stateful,
    "stateful, workers": lambda: stateful(num_workers=2),
    "stateful, persistent": lambda: stateful(num_workers=2, persistent_workers=True),
    "stateful, iterable": lambda: StatefulDataLoader(Keeping(), batch_size=2),
}


def stream_of(loader: Any, position: Position | None = None, rank: int = 0) -> Stream:
    start = position or Position(seed=5)
    return Stream(source_of(loader, seed=start.seed, rank=rank), start)


def trained(stream: Stream, count: int, now: Any = None) -> list[list[float]]:
    """What so many steps find: the batch, all but the process that it came from, and a draw of their own."""
    found = []
    for _ in range(count):
        batch = stream.next(now)
        now = None
        found.append([*batch.reshape(-1, 3)[:, :2].flatten().tolist(), draw()])
    return found


def saved(position: Position) -> Position:
    """As it comes back from an image."""
    tree: Any = tensors.unflatten(image.read(image_of(position.to_tree())))
    assert differences(tree) == []
    return Position.from_tree(tree)


@pytest.mark.parametrize("used", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("kind", LOADERS)
def test_every_position_leads_back_to_the_same_batches(kind: str, used: int) -> None:
    """In an epoch, on its border and in the next one; and the training's own draws go on as well."""
    torch.manual_seed(3)
    first = stream_of(LOADERS[kind]())
    trained(first, used)
    position, now = saved(first.position()), rng.capture()
    expected = trained(first, 5)
    first.close()
    torch.manual_seed(3)  # as a script does; a StatefulDataLoader draws the seed of its first epoch when it is made
    loader = LOADERS[kind]()
    torch.manual_seed(99)
    again = stream_of(loader, position)
    assert trained(again, 5, now) == expected
    again.close()


def test_skipping_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """When the loader is given, on one rank only, and when it was done."""
    stream_of(DataLoader(Counting()), rank=1)
    assert capsys.readouterr().err == ""
    stream = stream_of(DataLoader(Counting()))
    assert "a resume will fetch again, and drop, all that the epoch has used" in capsys.readouterr().err
    for _ in range(3):
        stream.next(None)
    data = Counting()
    stream_of(DataLoader(data), stream.position()).next(rng.capture())
    assert len(data.fetched) == 4
    assert "fetched 3 used batches again, in " in capsys.readouterr().err


def test_a_position_of_its_own_is_found_without_fetching(capsys: pytest.CaptureFixture[str]) -> None:
    """That is what it is for."""
    stream = stream_of(DataLoader(Keeping(), batch_size=2))
    for _ in range(3):
        stream.next(None)
    data = Keeping()
    stream_of(DataLoader(data, batch_size=2), stream.position()).next(rng.capture())
    assert data.fetched == [7, 8]
    assert capsys.readouterr().err == ""


def test_persistent_workers_that_cannot_be_counted_through_are_refused() -> None:
    """From the second epoch on their draws depend on what was drawn before."""
    with pytest.raises(SettingsError, match="use persistent_workers=False"):
        stream_of(DataLoader(Counting(), num_workers=1, persistent_workers=True))


def test_a_shorter_data_set_is_found() -> None:
    """A position beyond the end of the epoch is an error, not an empty epoch."""
    start = {"rng": rng.capture(), "generators": []}
    stream = stream_of(DataLoader(Counting()), Position(seed=1, used=9, start=start))
    with pytest.raises(CheckpointError, match="epoch 0 has 8 batches where 9 were used"):
        stream.next(rng.capture())


def test_another_generator_is_found() -> None:
    """It would shuffle otherwise."""
    start = {"rng": rng.capture(), "generators": []}
    loader = DataLoader(Counting(), generator=torch.Generator())
    with pytest.raises(CheckpointError, match="other generators"):
        stream_of(loader, Position(seed=1, used=1, start=start)).next(rng.capture())


@pytest.mark.parametrize("kind", ["counted", "stateful", "list", "map-style"])
def test_another_kind_of_loader_is_refused(kind: str) -> None:
    """A position that only the other one understands."""
    loader = {"list": [1, 2], "map-style": DataLoader(Indexed())}.get(kind) or LOADERS[kind]()
    own = None if kind == "stateful" else {"at": 1}
    stream = stream_of(loader, Position(seed=1, used=1, own=own))
    with pytest.raises(CheckpointError, match=r"saved with a loader that (keeps|does not keep) its own position"):
        stream.next(rng.capture())


def test_samplers_are_told_the_epoch() -> None:
    """Those of a loader that keeps its position too."""
    sampler: DistributedSampler[Any] = DistributedSampler(Indexed(), num_replicas=2, rank=0)
    stream = stream_of(StatefulDataLoader(Indexed(), batch_size=4, sampler=sampler))
    found = [stream.next(None)[:, 0].tolist() for _ in range(2)]
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected.append([float(index) for index in sampler])
    assert found == expected


def test_workers_ignore_the_platforms_sigterm() -> None:
    """Those of iterable data sets too: the data keeps coming."""
    stream = stream_of(DataLoader(Counting(), num_workers=1, prefetch_factor=1))
    pid = int(stream.next(None)[0, 2])
    for _ in range(3):
        os.kill(pid, signal.SIGTERM)
        assert int(stream.next(None)[0, 2]) == pid
    stream.close()
