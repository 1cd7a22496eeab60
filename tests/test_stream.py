# SPDX-License-Identifier: Apache-2.0
"""Tests of leaving batches out of every kind of loader, and of knowing which batch and sample a failure is about."""

import gc
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from resilient.core.batch import Batch
from resilient.errors import SettingsError
from resilient.link.board import DONE, ENTERED, PLACE, STEP, Board, row_base
from resilient.training import rng
from resilient.training.batches import source_of
from resilient.training.error_record import chain_of
from resilient.training.position import Position
from resilient.training.signals import children_unheard
from resilient.training.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
SAMPLES = 24
SKIP = (Batch(epoch=1, first=2), Batch(epoch=0, first=0), Batch(epoch=0, first=3, count=2))
"""In epochs of six batches: one in the middle, the first, and two in a row."""
LEFT = {0: {0, 3, 4}, 1: {2}}


class Noisy(Dataset[Tensor]):
    """Draws where it is loaded."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), torch.rand(()).item()])


class Stretch(IterableDataset[Tensor]):
    """The same numbers each time."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(SAMPLES)


class Without:
    """The batches of a sampler, but for those of ``LEFT``: what a run has that never had them."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        yield from (item for number, item in enumerate(self.inner) if number not in LEFT.get(self.epoch, ()))


def stream_of(loader: Any, skipped: Sequence[Batch] = (), position: Position | None = None, **more: Any) -> Stream:
    start = position or Position(seed=5)
    return Stream(source_of(loader, seed=start.seed, rank=0), start, skipped=skipped, **more)


def take(stream: Stream, count: int) -> list[str]:
    found = [str(stream.next(None)) for _ in range(count)]
    stream.close()
    return found


def shuffled(**more: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=4, shuffle=True, **more)


def test_what_is_left_is_that_of_a_loader_that_never_had_it() -> None:
    """To the last bit, draws in the training process included, over the borders of epochs."""
    torch.manual_seed(1)
    expected = take(stream_of(DataLoader(Noisy(), batch_sampler=Without(shuffled().batch_sampler))), 12)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    said: list[str] = []
    assert take(stream_of(shuffled(), SKIP, say=said.append), 12) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert [line.partition(" (")[0] for line in said] == [
        f"left out batch {number} of epoch {epoch}" for epoch, number in ((0, 0), (0, 3), (0, 4), (1, 2))
    ]
    assert all("(samples " in line for line in said)


def test_in_workers_every_other_batch_draws_as_without_the_skip() -> None:
    """A batch keeps its number, by which its draws are seeded."""
    torch.manual_seed(1)
    whole = take(stream_of(shuffled(num_workers=2)), 18)
    torch.manual_seed(1)
    left = take(stream_of(shuffled(num_workers=2), SKIP), 14)
    assert left == [batch for place, batch in enumerate(whole) if place % 6 not in LEFT.get(place // 6, ())]


def loaders() -> dict[str, Any]:
    return {
        "map": shuffled(),
        "list": [*range(6)],
        "counted": DataLoader(Stretch(), batch_size=4),
        "own": StatefulDataLoader(Noisy(), batch_size=4),
    }


@pytest.mark.parametrize("kind", ["map", "list", "counted", "own"])
def test_every_position_leads_back_to_the_same_batches(kind: str) -> None:
    """Before, behind and between what is left out, on the borders of epochs too."""
    for used in range(10):
        torch.manual_seed(3)
        first = stream_of(loaders()[kind], SKIP)
        for _ in range(used):
            first.next(None)
        position, now = first.position(), rng.capture()
        expected = take(first, 4)
        again = stream_of(loaders()[kind], SKIP, Position.from_tree(position.to_tree()))
        torch.manual_seed(99)
        assert [str(again.next(now)), *take(again, 3)] == expected, used


def test_what_cannot_be_left_out_unfetched_is_fetched_and_dropped() -> None:
    """A loader that no sampler drives is counted through, and that is said."""
    said: list[str] = []
    found = take(stream_of(DataLoader(Stretch(), batch_size=4), SKIP, say=said.append), 8)
    starts = [4, 8, 20, 0, 4, 12, 16, 20]
    assert found == [str(torch.arange(start, start + 4)) for start in starts]
    assert said == [
        f"left out batch {number} of epoch {epoch}, once it had been fetched"
        for epoch, number in ((0, 0), (0, 3), (0, 4), (1, 2))
    ]


def test_an_epoch_of_which_nothing_is_left_is_over() -> None:
    """That is no loader without batches; one that has none is refused all the same."""
    stream = stream_of([1, 2], [Batch(epoch=0, first=0, count=2)])
    assert take(stream, 2) == ["1", "2"]
    assert stream.position().epoch == 1
    with pytest.raises(SettingsError, match="gives no batch"):
        stream_of([], SKIP).next(None)


def test_another_number_of_ranks_deals_it_otherwise_and_that_is_said() -> None:
    """Nothing of the same number is left out in its place; what lies behind is nobody's business."""

    def dealt(ranks: int) -> DataLoader[Any]:
        data = TensorDataset(torch.arange(SAMPLES))
        sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=ranks, rank=0, shuffle=False)
        return DataLoader(data, batch_size=2, sampler=sampler)

    skipped = [Batch(epoch=0, first=0, together=4), Batch(epoch=0, first=4, together=4)]
    said: list[str] = []
    assert len(take(stream_of(dealt(3), skipped, Position(seed=5, before=12), warn=said.append), 2)) == 2
    (line,) = said
    assert line.startswith("batch 4 of epoch 0 is not left out: another number of ranks deals the samples otherwise, ")
    assert take(stream_of(dealt(2), skipped), 1) == [str([torch.tensor([4, 6])])]


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        ([*range(7)], "the data set has 7 samples now, and had 6"),
        (DataLoader(TensorDataset(torch.arange(24)), batch_size=3), "a batch is 3 samples now, and was 4"),
        (DataLoader(TensorDataset(torch.arange(32)), batch_size=4), "the data set has 32 samples now, and had 24"),
        (DataLoader(Stretch(), batch_size=3), "a batch is 3 samples now, and was 4"),
    ],
    ids=["list", "batch size", "data set", "iterable"],
)
def test_a_healthy_batch_is_not_left_out_for_its_number(loader: Any, why: str) -> None:
    """The data set or the batch size was changed since: said once, whoever comes to it again."""
    skip = Batch(epoch=0, first=2, of=6 if isinstance(loader, list) else 24, size=1 if isinstance(loader, list) else 4)
    said: list[str] = []
    stream = stream_of(loader, [skip], say=said.append, warn=said.append)
    assert take(stream, 4) == take(stream_of(loader), 4)
    stream.next(None)  # opens the epoch again
    (line,) = said
    assert line.startswith(f"batch 2 of epoch 0 is not left out: {why}, ")


class Broken(Dataset[int]):
    """One sample cannot be read, in one of several ways."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        if index == 18 and self.how == "raises":
            raise ValueError("cannot decode")
        if index == 18 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return "text" if index == 18 and self.how == "of another type" else index


def fail(loader: Any, board: Board) -> tuple[Stream, list[str]]:
    """The messages of the exception that a loader ends with, in the second step of a batch each."""
    stream = stream_of(loader, board=(board, 0))
    words, base = board.words, row_base(0)
    words[base + PLACE] = STEP
    for step in range(10):
        words[base + ENTERED], words[base + DONE] = step + 1, step
        stream.where.begin_step()
        try:
            stream.next(None)
        except Exception as error:
            return stream, [str(member) for member in chain_of(error)]
    raise AssertionError("nothing failed")


@pytest.mark.parametrize(
    ("how", "workers", "sample"),
    [
        ("raises", 0, 18),
        ("raises", 2, 18),
        ("of another type", 0, None),
        ("of another type", 2, None),
        ("dies", 2, 18),
    ],
)
def test_a_failure_to_read_names_its_batch_and_sample(how: str, workers: int, sample: int | None) -> None:
    """Also of a worker process, which runs ahead, and of one that died without a word."""
    board = Board.create(1)
    list(DataLoader(Broken("not"), num_workers=1))  # with the first that has workers torch sets its handler
    with children_unheard():  # the loader's own check finds a dead worker; torch's handler would raise anywhere in here
        stream, messages = fail(DataLoader(Broken(how), batch_size=4, num_workers=workers), board)
        told = stream.told(messages)
        if how == "dies":  # it may as well show first by the pipe that broke
            assert stream.told(["[Errno 104] Connection reset by peer"]) == told
        stream.close()
        gc.collect()  # a traceback holds the iterator, which holds its workers
    assert told is not None
    assert (told.epoch, told.first, told.count, told.sample, told.of) == (0, 4, 1, sample, 40), messages
    assert told.samples == (16, 17, 18, 19)
    assert told.fetching
    assert told.exact


def test_a_failure_of_the_step_is_of_its_batch_although_workers_read_ahead_and_have_ended() -> None:
    """They end with the script, before its last words: what they had read last is nobody's fault."""
    board = Board.create(1)
    stream = stream_of(DataLoader(Broken("not"), batch_size=4, num_workers=2), board=(board, 0))
    words, base = board.words, row_base(0)
    words[base + PLACE] = STEP
    for step in range(2):
        words[base + ENTERED], words[base + DONE] = step + 1, step
        stream.where.begin_step()
        stream.next(None)
    stream.close()
    gc.collect()
    assert str(stream.told(["this one is bad"])) == "batch 1 of epoch 0 (samples 4 to 7)"


def test_the_board_shows_the_batches_of_a_step() -> None:
    """Several where they are gathered for one, none once it is done, whoever reads it."""
    board = Board.create(1)
    one = Batch(epoch=0, first=0, exact=True, of=6, size=1)
    words, base = board.words, row_base(0)
    assert board.batch(0) is None
    stream = stream_of([*range(6)], SKIP, board=(board, 0))
    words[base + ENTERED], words[base + PLACE] = 1, STEP
    stream.next(None)
    assert board.batch(0) == replace(one, first=1)
    stream.next(None)
    assert board.batch(0) == replace(one, first=1, count=2)
    assert str(stream.told(["an error of the step"])) == "batches 1 to 2 of epoch 0 (samples 1 to 2)"
    words[base + DONE] = 1
    assert board.batch(0) is None
    words[base + ENTERED] = 2
    stream.where.begin_step()
    assert board.batch(0) is None, "it has not asked for one yet"
    stream.next(None)
    assert board.batch(0) == replace(one, first=5)
    stream.next(None)
    assert board.batch(0) == replace(one, epoch=1), "of a step over the border the new epoch's"


class Hiccup(Dataset[int]):
    """Fails once at each of its troubles."""

    def __init__(self) -> None:
        self.troubles = {5, 6}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        if index in self.troubles:
            self.troubles.remove(index)
            raise OSError("away")
        return index


class Hiccups(list[int]):
    """A list of batches that does so."""

    troubles = frozenset({2})

    def __getitem__(self, index: Any) -> Any:
        if index in self.troubles:
            self.troubles = frozenset()
            raise OSError("away")
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", ["loader", "list"])
def test_a_batch_that_could_not_be_fetched_was_not_used(kind: str) -> None:
    """Who catches that and asks again gets it, and neither loses the rest of the epoch nor counts one too few."""
    stream = stream_of(DataLoader(Hiccup(), batch_size=2) if kind == "loader" else Hiccups(range(6)))
    got: list[tuple[str, int]] = []
    failures = 0
    while len(got) < 6:
        try:
            got.append((str(stream.next(None)), stream.position().used))
        except OSError:
            failures += 1
    stream.close()
    batches = [f"tensor([{i}, {i + 1}])" for i in range(0, 12, 2)] if kind == "loader" else [*"012345"]
    assert got == [(batch, number) for number, batch in enumerate(batches, 1)]
    assert failures == (2 if kind == "loader" else 1)
