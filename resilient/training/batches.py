# SPDX-License-Identifier: Apache-2.0
"""Where a run's batches come from, and how the position in them is found again.

A position is an epoch, the number of batches used of it, and the state that the
generators had when the epoch's sampler began. To go on from it the sampler is run
again from that state, what was used is skipped without being fetched, and the
generators are put to where they were at the snapshot. The state is taken when the
sampler is first asked, not when the iterator is made: persistent workers draw a
base seed for the first iterator of a process only.

A batch that is left out keeps its number: the sampler gives it, and nobody fetches it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, IterableDataset

from resilient.core.grammar import type_of
from resilient.errors import CheckpointError, SettingsError
from resilient.training import rng
from resilient.training.iterables import CountedSource, OwnSource, batch_size, keeps_position
from resilient.training.position import Failed, Position, Source, Tree, differences
from resilient.training.seeding import Numbered, Reading, SeededData, Workers
from resilient.training.shares import rest_of, together

__all__ = ["Position", "differences", "source_of"]

_GONE: Final = object()
_KNOWN: Final = 16
"""Batches whose samples can be named, beside those that are fetched ahead."""


def source_of(loader: Any, *, seed: int, rank: int) -> Source:
    """The source behind what the user gave; refused where the position could not be found again."""
    if isinstance(loader, DataLoader):
        _refuse(loader)
    if keeps_position(loader) and hasattr(loader, "__iter__"):
        return OwnSource(loader, loader, _with_epochs(_samplers(loader)))
    if isinstance(loader, DataLoader):
        if isinstance(loader.dataset, IterableDataset):
            if keeps_position(loader.dataset) and not loader.num_workers:
                return OwnSource(loader, loader.dataset, [])
            return CountedSource(loader, warn=rank == 0)
        return LoaderSource(loader, f"{seed}/{rank}")
    if isinstance(loader, Mapping | str | bytes) or not (hasattr(loader, "__getitem__") and hasattr(loader, "__len__")):
        what = "an iterator can be used once" if isinstance(loader, Iterator) else "it has no position to return to"
        raise SettingsError(
            f"cannot resume {type_of(loader)}: {what}; give run.batches a DataLoader, a list of "
            "batches, or a loader with state_dict and load_state_dict"
        )
    return SequenceSource(loader)


class SequenceSource(Source):
    """Batches that are there already; each is the one sample of its number."""

    exact = True
    size = 1

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches
        self.of = len(batches)

    def open(self, position: Position, now: Tree | None, out: frozenset[int]) -> Iterator[Any]:
        position.must_be(own=False)
        if now is not None:
            rng.restore(now)
        return (self._batches[index] for index in range(position.used, len(self._batches)) if index not in out)

    def samples(self, number: int) -> tuple[int, ...]:
        return (number,)

    def found(self) -> Tree:
        return {"start": None, "own": None}

    def close(self) -> None:
        """Nothing is held."""


class LoaderSource(Source):
    """A map-style DataLoader: a clone of it that has our sampler around its own."""

    exact = True

    def __init__(self, loader: DataLoader[Any], seed: str) -> None:
        single = loader.batch_sampler is None
        inner = loader.sampler if single else loader.batch_sampler
        self._samplers = _samplers(loader)
        self._order = Order(inner, _generators(loader, self._samplers), lambda before: rest_of(loader, before))
        self._before = 0
        self.together = together(loader)
        self.of = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
        self.size = 1 if single else batch_size(loader)
        self._order.keep(loader.num_workers * (loader.prefetch_factor or 1))
        self._reading = Reading(loader)
        self._workers = Workers(loader)
        order: dict[str, Any] = (
            {"batch_size": None, "sampler": self._order} if single else {"batch_sampler": self._order}
        )
        if loader.pin_memory_device:
            order["pin_memory_device"] = loader.pin_memory_device
        self._loader: DataLoader[Any] = DataLoader(
            SeededData(loader.dataset, seed, self._reading),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=self._workers.start,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            **order,
        )

    def open(self, position: Position, now: Tree | None, out: frozenset[int]) -> Iterator[Any]:
        position.must_be(own=False)
        self._before = position.before
        self._reading.begin()
        for sampler in _with_epochs(self._samplers):
            sampler.set_epoch(position.epoch)
        if position.start is None and now is not None:
            rng.restore(now)  # nothing to skip: the iterator's own draws belong to what comes
            now = None
        self._order.prepare(position, now, out)
        with self._workers.beginning():
            iterator = iter(self._loader)
        if now is not None and self._loader.num_workers:
            rng.restore(now)  # the workers' base seed was drawn
        return iterator

    def found(self) -> Tree:
        return {"start": self._order.start, "own": None, "together": self.together}

    def samples(self, number: int) -> tuple[int, ...]:
        return self._order.samples(number)

    def failed(self, messages: Sequence[str], *, fetching: bool) -> Failed | None:
        found = self._reading.failed(messages, fetching=fetching)
        return None if found is None else Failed(number=found[0] - self._before, sample=found[1])

    def close(self) -> None:
        self._workers.end()


class Order:
    """The user's sampler, from a position on, each item with its number."""

    def __init__(self, inner: Any, generators: list[torch.Generator], rest: Callable[[int], Any]) -> None:
        """``rest``: what is left to this rank of an epoch of which others have used so many samples."""
        self._inner = inner
        self._rest = rest
        self._generators = generators
        self._position: Position | None = None
        self._now: Tree | None = None
        self._out: frozenset[int] = frozenset()
        self._known: deque[tuple[int, Any]] = deque(maxlen=_KNOWN)
        """What the sampler has given last, with the number of each."""
        self.start: Tree | None = None

    def keep(self, ahead: int) -> None:
        """So many batches are fetched ahead of the one that is given out."""
        self._known = deque(maxlen=ahead + _KNOWN)

    def prepare(self, position: Position, now: Tree | None, out: frozenset[int]) -> None:
        """Say where the next iteration is to begin, and what it leaves out."""
        self._position = position
        self._now = now
        self._out = out
        self._known.clear()
        self.start = None

    def samples(self, number: int) -> tuple[int, ...]:
        """Indices of the samples of a batch, where it was among the last, and they are numbers."""
        item = next((item for known, item in self._known if known == number), ())
        indices = item if isinstance(item, (list, tuple)) else (item,)
        return tuple(indices) if all(type(index) is int and index >= 0 for index in indices) else ()

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Numbered]:
        # Runs when first asked; DataLoader makes one iterator too many when it has workers.
        position = self._position
        assert position is not None, "prepare comes first"
        self._begin(position)
        items = iter(self._rest(position.before) if position.before else self._inner)
        for number in range(position.used):
            if next(items, _GONE) is _GONE:
                raise CheckpointError(
                    f"cannot resume the data: epoch {position.epoch} has {number} batches where {position.used} were "
                    "used; give the data set, batch size and sampler that it was saved with"
                )
        if self._now is not None:
            rng.restore(self._now)
        for number, item in enumerate(items, position.used):
            self._known.append((number, item))
            if number in self._out:
                continue
            yield Numbered(position.epoch, position.before + number, item)  # what is seeded by it is not seeded again

    def _begin(self, position: Position) -> None:
        if position.start is None:
            states = [generator.get_state() for generator in self._generators]
            self.start = {"rng": rng.capture(), "generators": states}
            return
        self.start = position.start
        if len(position.start["generators"]) != len(self._generators):
            raise CheckpointError("cannot resume the data: the loader has other generators than it was saved with")
        rng.restore(position.start["rng"])
        for generator, state in zip(self._generators, position.start["generators"], strict=True):
            generator.set_state(state.clone())


def _refuse(loader: DataLoader[Any]) -> None:
    why = None
    if type(loader).__iter__ is not DataLoader.__iter__ and not keeps_position(loader):
        why = f"{type(loader).__name__} iterates in its own way; use a plain DataLoader, or give it state_dict"
    elif loader.num_workers and not getattr(loader, "in_order", True):
        why = "in_order=False gives batches out in another order each time; leave it out"
    if why:
        raise SettingsError(f"cannot resume this DataLoader: {why}")


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    found: list[Any] = []
    for owner in (loader, loader.batch_sampler):
        for name in ("batch_sampler", "sampler"):
            sampler = getattr(owner, name, None)
            if sampler is not None and all(sampler is not known for known in found):
                found.append(sampler)
    return found


def _generators(loader: DataLoader[Any], samplers: list[Any]) -> list[torch.Generator]:
    found: list[torch.Generator] = []
    for owner in (loader, *samplers):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not known for known in found):
            found.append(generator)
    return found


def _with_epochs(samplers: list[Any]) -> list[Any]:
    return [sampler for sampler in samplers if callable(getattr(sampler, "set_epoch", None))]
