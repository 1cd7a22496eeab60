# SPDX-License-Identifier: Apache-2.0
"""Loaders that no sampler drives: those that know their own position, and those that must be counted through.

A loader with ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader), and an iterable-style data set
with both, say where they are and go on from there. Any other iterable-style data set is begun again from the state
that the generators had, and what was used is fetched once more and dropped.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import DataLoader

from resilient.errors import CheckpointError, SettingsError
from resilient.training import rng
from resilient.training.position import Position, Source, Tree
from resilient.training.seeding import Workers

_GONE: Final = object()


def keeps_position(thing: object) -> bool:
    """Whether it can say where it is, and go back there."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def batch_size(loader: DataLoader[Any]) -> int:
    """Samples that it puts into a batch, or its batch sampler does; 0 where neither says so."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 0)
    return size if type(size) is int and size > 0 else 0


class OwnSource(Source):
    """A loader that keeps its own position; or one that only wraps, without workers, a data set that does.

    ``keeper`` is who is asked. What its workers draw at random is its own affair.
    """

    def __init__(self, loader: Any, keeper: Any, samplers: list[Any]) -> None:
        self._loader = loader
        self._keeper = keeper
        self._samplers = samplers
        self._workers = Workers(loader) if isinstance(loader, DataLoader) else None
        if self._workers is not None:
            loader.worker_init_fn = self._workers.start

    def open(self, position: Position, now: Tree | None, out: frozenset[int]) -> Iterator[Any]:
        position.must_be(own=True)
        for sampler in self._samplers:
            sampler.set_epoch(position.epoch)
        if position.own is None:
            if now is not None:
                rng.restore(now)  # the draws that begin an epoch belong to what comes
            return self._begin()
        self._keeper.load_state_dict(copy.deepcopy(position.own))
        iterator = self._begin()
        if now is not None:
            rng.restore(now)
        return iterator

    def _begin(self) -> Iterator[Any]:
        if self._workers is None:
            return iter(self._loader)
        with self._workers.beginning():
            return iter(self._loader)

    def found(self) -> Tree:
        return {"start": None, "own": self._keeper.state_dict()}

    def close(self) -> None:
        if self._workers is not None:
            self._workers.end()


class CountedSource(Source):
    """A DataLoader over an iterable-style data set that cannot say where it is: what was used is fetched again."""

    def __init__(self, loader: DataLoader[Any], *, warn: bool) -> None:
        if loader.num_workers and loader.persistent_workers:
            raise SettingsError(
                "cannot resume this DataLoader: its data set is iterable-style without state_dict, and persistent "
                "workers draw random numbers that depend on all epochs before; use persistent_workers=False"
            )
        self._loader = loader
        self.size = batch_size(loader)
        self._workers = Workers(loader)
        loader.worker_init_fn = self._workers.start
        self._start: Tree | None = None
        if warn:
            say(
                f"a resume will fetch again, and drop, all that the epoch has used, because "
                f"{type(loader.dataset).__name__} is iterable-style "
                + ("and has workers" if keeps_position(loader.dataset) else "and has no state_dict")
                + ": it takes as long as the loading did; torchdata's StatefulDataLoader, or a data set with "
                "state_dict and load_state_dict and no workers, need not"
            )

    def open(self, position: Position, now: Tree | None, out: frozenset[int]) -> Iterator[Any]:
        position.must_be(own=False)
        if position.start is not None:
            _put_back(self._loader, position.start)
        elif now is not None:
            rng.restore(now)
            now = None
        generator = self._loader.generator
        self._start = position.start or {
            "rng": rng.capture(),
            "generators": [] if generator is None else [generator.get_state()],
        }
        begun = time.monotonic()
        with self._workers.beginning():
            iterator = iter(self._loader)
        for number in range(position.used):
            if next(iterator, _GONE) is _GONE:
                raise CheckpointError(
                    f"cannot resume the data: epoch {position.epoch} has {number} batches where {position.used} were "
                    "used; give the data set and batch size that it was saved with"
                )
        if position.used:
            say(f"fetched {position.used} used batches again, in {time.monotonic() - begun:.1f} s")
        if now is not None:
            rng.restore(now)
        return iterator

    def found(self) -> Tree:
        return {"start": self._start, "own": None}

    def close(self) -> None:
        self._workers.end()


def _put_back(loader: DataLoader[Any], start: Tree) -> None:
    generators = [] if loader.generator is None else [loader.generator]
    if len(generators) != len(start["generators"]):
        raise CheckpointError("cannot resume the data: the loader has other generators than it was saved with")
    rng.restore(start["rng"])
    for generator, state in zip(generators, start["generators"], strict=True):
        generator.set_state(state.clone())


def say(text: str) -> None:
    """To whoever reads the log of the training."""
    sys.stderr.write(f"resilient: {text}\n")
