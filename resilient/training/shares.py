# SPDX-License-Identifier: Apache-2.0
"""The rule by which an epoch goes on with another number of ranks.

``DistributedSampler`` deals one order of the data set, that of seed and epoch, to the ranks in turn: rank r of n takes
places r, r + n, r + 2n and so on (torch/utils/data/distributed.py). Ranks are in step, so what they have used
together is always a beginning of that order, whatever their number and batch size. The position that does not depend on
them is how many samples that is; the rest of the order is dealt to the new ranks in the same way. No sample is lost or
repeated, but for what the sampler itself does at the end of an epoch: it repeats samples from the beginning of the
order, fewer than there are ranks, so that all have equally many; or, with ``drop_last``, leaves as many out.

An order that a rank's own generators make (``shuffle=True`` without a DistributedSampler) is known to that rank alone,
and an iterable data set has none: these cannot go on with another number of ranks. Where all ranks had the very same
position, as under tensor parallelism, where all take the same batches, each goes on with it, and that is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset
from torch.utils.data.sampler import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from resilient.core.grammar import type_of
from resilient.errors import CheckpointError
from resilient.training.iterables import say
from resilient.training.position import ALIKE, Position


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


def dealt_by(loader: object) -> DistributedSampler[Any]:
    """The sampler of a loader whose epoch can go on with another number of ranks.

    Raises CheckpointError that says why where it cannot.
    """
    why = None
    if not isinstance(loader, DataLoader):
        why = f"the order of {type_of(loader)} is its own"
    elif type(loader).__iter__ is not DataLoader.__iter__:
        why = f"{type(loader).__name__} iterates in its own way"
    elif type(loader.sampler) is not DistributedSampler:
        why = f"its order is that of {type_of(loader.sampler)}, which each rank has for itself"
    elif loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        why = f"{type(loader.batch_sampler).__name__} makes batches of its own"
    if why is not None:
        raise CheckpointError(
            f"cannot go on in the middle of an epoch with another number of ranks: {why}; use a DataLoader with a "
            "DistributedSampler, or the number of ranks that it was saved with"
        )
    sampler: DistributedSampler[Any] = loader.sampler  # type: ignore[attr-defined]  # it was looked at above
    return sampler


def rest_of(loader: DataLoader[Any], used: int) -> Sequence[int] | BatchSampler:
    """In the place of a loader's sampler: what this rank takes of the epoch once ``used`` samples of it are done, by
    all ranks together; in batches as the loader makes them."""
    sampler = dealt_by(loader)
    length = len(sampler.dataset)  # type: ignore[arg-type]  # DistributedSampler takes its length as well
    order = order_of(length, seed=sampler.seed, epoch=sampler.epoch, shuffle=sampler.shuffle)
    ranks = sampler.num_replicas
    share = share_of(order, used, rank=sampler.rank, ranks=ranks, drop_last=sampler.drop_last)
    return share if loader.batch_size is None else BatchSampler(share, loader.batch_size, loader.drop_last)


def together(loader: DataLoader[Any]) -> int:
    """Samples that one batch of every replica makes up; 0 where no DistributedSampler deals them."""
    try:
        return (loader.batch_size or 1) * int(dealt_by(loader).num_replicas)
    except CheckpointError:
        return 0


def regrouped(position: Position, loader: object, *, warn: bool) -> Position:
    """A position of another number of ranks as one of this number; CheckpointError where the epoch cannot go on."""
    if not position.of_others:
        return position
    if not position.used and not position.before:
        return replace(position, of_others="", start=None, own=None)  # at the beginning of an epoch
    if position.of_others == ALIKE and not position.before and not position.together and _is_plain(loader):
        if warn:
            say(
                f"each rank goes on after {position.used} batches of the epoch, as there is no DistributedSampler: if "
                "ranks take different samples, some are lost or repeated now that their number is another one"
            )
        return replace(position, of_others="")
    dealt_by(loader)
    if position.used and not position.together:
        raise CheckpointError(
            "cannot go on in the middle of an epoch with another number of ranks: it was saved with a loader without "
            "DistributedSampler; use that loader, and the number of ranks that it was saved with"
        )
    # It may go beyond the data set by what the sampler repeats at its end.
    before = position.before + position.used * position.together
    return replace(position, before=before, used=0, start=None, own=None, of_others="")


def _is_plain(loader: object) -> bool:
    """Whether it is a list of batches, or a DataLoader of torch's own that gives equal ranks equal batches."""
    if not isinstance(loader, DataLoader):
        return isinstance(loader, Sequence)
    own = type(loader).__iter__ is DataLoader.__iter__ and not isinstance(loader.dataset, IterableDataset)
    return own and type(loader.batch_sampler) in (BatchSampler, type(None)) and type(loader.sampler) in _LOCAL


_LOCAL: Final = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)
