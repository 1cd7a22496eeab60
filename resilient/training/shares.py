# SPDX-License-Identifier: Apache-2.0
"""The rule by which an epoch goes on with another number of ranks.

``DistributedSampler`` deals one order of the data set, that of seed and epoch, to the ranks in turn: rank r of n takes
places r, r + n, r + 2n and so on (torch/utils/data/distributed.py). Ranks are in step, so what they have used
together is always a beginning of that order, whatever their number and batch size. The position that does not depend on
them is how many samples that is; the rest of the order is dealt to the new ranks in the same way. No sample is lost or
repeated, but for what the sampler itself does at the end of an epoch: it repeats samples from the beginning of the
order, fewer than there are ranks, so that all have equally many; or, with ``drop_last``, leaves as many out.

An order that a rank's own generators make (``shuffle=True`` without a DistributedSampler) is known to that rank alone,
and an iterable data set has none: these cannot go on with another number of ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from resilient.errors import CheckpointError


def samples_used(batches: int, *, batch_size: int, ranks: int, before: int = 0) -> int:
    """Samples of the epoch that all ranks have used together, after so many batches on each.

    ``before`` is what other numbers of ranks had used of the epoch. It may go beyond the data set by what the sampler
    repeats at its end.
    """
    return before + batches * batch_size * ranks


def order_of(length: int, *, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """The order that DistributedSampler deals from: it depends on neither rank nor number of ranks."""
    if not shuffle:
        return list(range(length))
    generator = torch.Generator()
    generator.manual_seed(seed + epoch)
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


def share_of(order: Sequence[int], used: int, *, rank: int, ranks: int, drop_last: bool) -> list[int]:
    """What one of the ranks takes of the rest of an order, of which ``used`` samples are done; equally many on each."""
    rest = list(order[used:])
    if drop_last:
        # As DistributedSampler does: nothing is left out where all come out even.
        rest = rest[: len(rest) // ranks * ranks]
    elif rest:
        missing = -len(rest) % ranks
        rest.extend(itertools.islice(itertools.cycle(order), missing))
    return rest[rank::ranks]


class RestOfEpoch(Sampler[int]):
    """What this rank takes of a DistributedSampler's epoch once ``used`` samples of it are done, by all ranks together.

    ``used`` counts for the epoch in which this is made; after ``set_epoch`` to another it is the sampler itself.
    """

    def __init__(self, sampler: DistributedSampler[Any], used: int) -> None:
        self._sampler = sampler
        self._used = used
        self._epoch = sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler."""
        self._sampler.set_epoch(epoch)

    def _share(self) -> list[int]:
        sampler = self._sampler
        if sampler.epoch != self._epoch:
            return list(sampler)
        length = len(sampler.dataset)  # type: ignore[arg-type]  # DistributedSampler takes its length as well
        order = order_of(length, seed=sampler.seed, epoch=sampler.epoch, shuffle=sampler.shuffle)
        return share_of(order, self._used, rank=sampler.rank, ranks=sampler.num_replicas, drop_last=sampler.drop_last)

    def __iter__(self) -> Iterator[int]:
        return iter(self._share())

    def __len__(self) -> int:
        return len(self._share())


def dealt_by(loader: object) -> DistributedSampler[Any]:
    """The sampler of a loader whose epoch can go on with another number of ranks.

    Raises CheckpointError that says why where it cannot.
    """
    why = None
    if not isinstance(loader, DataLoader):
        why = f"the order of a {type(loader).__name__} is its own"
    elif type(loader).__iter__ is not DataLoader.__iter__:
        why = f"{type(loader).__name__} iterates in its own way"
    elif type(loader.sampler) is not DistributedSampler:
        why = f"its order is that of a {type(loader.sampler).__name__}, which each rank has for itself"
    elif loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        why = f"{type(loader.batch_sampler).__name__} makes batches of its own"
    if why is not None:
        raise CheckpointError(
            f"cannot go on in the middle of an epoch with another number of ranks: {why}; use a DataLoader with a "
            "DistributedSampler, or the number of ranks that it was saved with"
        )
    sampler: DistributedSampler[Any] = loader.sampler  # type: ignore[attr-defined]
    return sampler
