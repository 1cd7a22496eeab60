# SPDX-License-Identifier: Apache-2.0
"""DDP whose sums have the same bits in every process.

A floating-point sum depends on its order. A ring adds the parts of a buffer in
an order that depends on where they lie in it, and DDP lays its buckets out anew
after the first backward pass of each process. So from three ranks on the first
step after a resume is summed in another order than the same step of a run that
was not interrupted (seen on gloo with 3 and 4 ranks; two addends have no order).
Here what is summed together depends on the module and ``bucket_cap_mb`` alone:
whatever buckets DDP makes, their gradients go into the same groups in the same
order. The groups are the buckets that DDP makes when gradients come about in the
reverse order of registration, as they mostly do; then a group is summed where it
lies, and else in a buffer of its own.

No ``from __future__ import annotations``: DDP compares the hook's annotations.
"""

import itertools
from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future, collect_all
from torch.nn.parallel import DistributedDataParallel

from resilient.errors import SettingsError

D = TypeVar("D", bound=DistributedDataParallel)
_FIRST_BYTES: Final = 1 << 20
"""DDP's own limit for its first bucket, so that summing begins early."""


def exact_ddp(network: D) -> D:
    """Make a DistributedDataParallel sum gradients in an order that depends on its module alone; returns it.

    A run that is stopped and resumed then has the bits of one that was not, on any number of ranks, as far as kernels
    and collectives are repeatable. Call it on a new one: ``network = resilient.exact_ddp(DistributedDataParallel(m))``.
    It registers DDP's communication hook, of which there is one, so another (compression, ``mixed_precision=``) cannot
    be used with it. Gradients are divided by the number of ranks, those that have left a ``join`` too. Where gradients
    do not come about in the reverse order of registration, it costs memory for a copy of these.

    Raises SettingsError for what is no DDP, has a hook or gradients already, or makes sparse gradients.
    """
    if not isinstance(network, DistributedDataParallel):
        raise SettingsError(
            f"cannot make {type(network).__name__} exact: it is no DistributedDataParallel; wrap the model in one first"
        )
    parameters = list(network.module.parameters())
    if any(parameter.grad is not None for parameter in parameters):
        raise SettingsError(
            "cannot make this DDP exact: it has gradients, which may have been summed in another order; "
            "call resilient.exact_ddp before the first backward pass, or zero_grad before it"
        )
    for name, module in network.module.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:  # how DDP finds them too
            raise SettingsError(
                f"cannot make this DDP exact: the gradients of {name or 'its module'} are sparse; use sparse=False, or "
                "DistributedDataParallel(..., find_unused_parameters=True), which keeps its order by itself"
            )
    first = _FIRST_BYTES if network.bucket_bytes_cap_default else network.bucket_bytes_cap
    state = FixedOrder(network.process_group, parameters, (first, network.bucket_bytes_cap))
    try:
        network.register_comm_hook(state, sum_in_fixed_order)
    except RuntimeError as error:
        raise SettingsError(
            f"cannot make this DDP exact: it has a communication hook already, or cannot have one ({error}); "
            "leave out one of the two"
        ) from error
    return network


class Extent(NamedTuple):
    """What the grouping of a parameter depends on."""

    kind: Hashable
    """Data type and device; one collective sums one kind."""
    size: int
    """In bytes."""


def grouped(extents: Sequence[Extent], limits: tuple[int, int]) -> list[list[int]]:
    """Which gradients are summed together, by index, in reverse order.

    Of each kind the first group is closed when it has ``limits[0]`` bytes or more, the others at ``limits[1]``: so DDP
    fills its buckets (compute_bucket_assignment_by_size in torch's reducer.cpp).
    """
    groups: list[list[int]] = []
    open_groups: dict[Hashable, tuple[list[int], int]] = {}
    limit_of: dict[Hashable, int] = {}
    for index in reversed(range(len(extents))):
        kind, size = extents[index]
        members, filled = open_groups.pop(kind, ([], 0))
        if not members:
            groups.append(members)
        members.append(index)
        if filled + size < limit_of.get(kind, limits[0]):
            open_groups[kind] = members, filled + size
        else:
            limit_of[kind] = limits[1]
    return groups


class Place(NamedTuple):
    """Where a gradient lies."""

    buffer: Tensor
    """Of a bucket."""
    start: int
    """In elements, like the size."""
    size: int


def lies_together(places: Sequence[Place]) -> bool:
    """Whether each begins where the one before it ends."""
    return all(
        after.buffer is before.buffer and after.start == before.start + before.size
        for before, after in itertools.pairwise(places)
    )


class Group:
    """Gradients that are summed in one collective."""

    def __init__(self, members: list[Tensor]) -> None:
        self.members = members
        self._arrived: dict[Tensor, Place] = {}
        self._buffer: Tensor | None = None
        """Kept while it is needed: fresh memory for each step would cost more than the copies do."""
        self.summed: Future[Any] | None = None
        """Set when the sum was asked for."""

    def begin(self) -> None:
        """A backward pass is to come."""
        self._arrived = {}
        self.summed = None

    def take(self, member: Tensor, place: Place, ranks: dist.ProcessGroup) -> None:
        """One gradient is there; the last one starts the sum."""
        self._arrived[member] = place
        if len(self._arrived) < len(self.members):
            return
        places = [self._arrived[member] for member in self.members]
        size = sum(place.size for place in places)
        if lies_together(places):
            self._buffer = None
            first = places[0]
            self.summed = _sum(first.buffer.narrow(0, first.start, size), ranks)
            return
        if self._buffer is None:
            self._buffer = places[0].buffer.new_empty(size)
        self.summed = _sum_copied(self._buffer, places, ranks)


class Bucket:
    """A bucket of DDP that waits for the groups which its gradients are in."""

    def __init__(self, buffer: Tensor, parameters: list[Tensor]) -> None:
        self._buffer = buffer
        self.parameters = parameters
        self._error: Exception | None = None
        self._gate: Future[Tensor] = Future() if buffer.device.type == "cpu" else Future(devices=[buffer.device])
        # Not set_exception of the gate: DDP waits in C++, where only what a callback raises is an error.
        self.future: Future[Tensor] = self._gate.then(self._answer)

    def wait_for(self, sums: list[Future[Any]]) -> None:
        """Be done when these are."""
        collect_all(sums).add_done_callback(self._open)

    def _open(self, done: Future[Any]) -> None:
        try:
            for summed in done.value():
                summed.wait()  # where there are streams, the present one waits
        except Exception as error:
            self._error = error
        self._gate.set_result(self._buffer)

    def _answer(self, gate: Future[Tensor]) -> Tensor:
        if self._error is not None:
            raise self._error
        return self._buffer


class FixedOrder:
    """The state of the hook: the groups, and how far the present backward pass is."""

    def __init__(self, ranks: dist.ProcessGroup, parameters: list[Tensor], limits: tuple[int, int]) -> None:
        self._ranks = ranks
        self._order = {parameter: number for number, parameter in enumerate(parameters)}
        self._limits = limits
        self._groups: list[Group] = []
        self._group_of: dict[Tensor, Group] = {}
        self._waiting: list[Bucket] = []
        self._arrived: list[tuple[Tensor, Place]] = []
        """Taken by no group yet: in the first backward pass, which shows what DDP is to sum."""

    def reduce(self, bucket: Any) -> Future[Tensor]:
        """Take in the gradients of a bucket of DDP, and sum all groups that are complete."""
        if bucket.index() == 0:  # also after a backward pass that broke off
            self._begin()
        buffer, parameters = bucket.buffer(), bucket.parameters()
        buffer.mul_(1.0 / self._ranks.size())  # before the sum, as DDP does
        start = 0
        for parameter in parameters:
            size = parameter.numel()
            self._arrived.append((parameter, Place(buffer, start, size)))
            start += size
        waiting = Bucket(buffer, parameters)
        self._waiting.append(waiting)
        if bucket.is_last() and not self._groups:
            self._plan()
        if self._groups:
            self._advance()
        return waiting.future

    def _begin(self) -> None:
        self._waiting, self._arrived = [], []
        for group in self._groups:
            group.begin()

    def _plan(self) -> None:
        members = sorted((parameter for parameter, _ in self._arrived), key=self._order.__getitem__)
        extents = [Extent((p.dtype, p.device), p.numel() * p.element_size()) for p in members]
        self._groups = [Group([members[index] for index in group]) for group in grouped(extents, self._limits)]
        self._group_of = {member: group for group in self._groups for member in group.members}

    def _advance(self) -> None:
        for parameter, place in self._arrived:
            self._group_of[parameter].take(parameter, place, self._ranks)
        self._arrived = []
        still: list[Bucket] = []
        for bucket in self._waiting:
            groups = dict.fromkeys(self._group_of[parameter] for parameter in bucket.parameters)
            sums = [group.summed for group in groups if group.summed is not None]
            if len(sums) < len(groups):
                still.append(bucket)
            else:
                bucket.wait_for(sums)
        self._waiting = still


def sum_in_fixed_order(
    state: FixedOrder,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch's types lack it
) -> torch.futures.Future[torch.Tensor]:
    """DDP's communication hook."""
    return state.reduce(bucket)


def _sum(buffer: Tensor, ranks: dist.ProcessGroup) -> Future[Any]:
    summed: Future[Any] = dist.all_reduce(buffer, group=ranks, async_op=True).get_future()
    return summed


def _sum_copied(buffer: Tensor, places: Sequence[Place], ranks: dist.ProcessGroup) -> Future[Any]:
    """Sum what does not lie together, and put it back."""
    gradients = [place.buffer.narrow(0, place.start, place.size) for place in places]
    torch.cat(gradients, out=buffer)

    def put_back(done: Future[Any]) -> None:
        done.value()  # raises what the collective did
        torch.split_with_sizes_copy(buffer, [place.size for place in places], out=gradients)

    return _sum(buffer, ranks).then(put_back)
