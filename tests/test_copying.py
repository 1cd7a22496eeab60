# SPDX-License-Identifier: Apache-2.0
"""Tests of copying behind the training: the bits of the moment when it began, or none."""

import ctypes
import queue
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from trees import raw

from resilient.training.copying import Batch, Copying, copy_now

SOURCES: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.arange(6.0).reshape(2, 3),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "part": lambda: torch.arange(20.0)[3:17:2],
    "channels_last": lambda: torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "conjugate": lambda: torch.tensor([1 + 2j, -3j]).conj(),
    "negative": lambda: torch.tensor([1 + 2j, -3j]).conj().imag,
    "empty": lambda: torch.empty(0, 3),
    "scalar": lambda: torch.tensor(-0.0),
    "bfloat16": lambda: torch.rand(5).bfloat16(),
    "nan": lambda: torch.tensor([0x7FC00001, -1, 0x7F800001], dtype=torch.int32).view(torch.float32),
    "bool": lambda: torch.tensor([True, False, True]),
    "float8": lambda: torch.rand(5).to(torch.float8_e4m3fn),
}


def place_for(source: Tensor) -> Tensor:
    """Contiguous memory of the same kind, with other bits in it."""
    memory = bytearray(b"\xa5" * max(1, source.numel() * source.element_size()))
    found = torch.frombuffer(memory, dtype=torch.uint8)[: source.numel() * source.element_size()]
    return found.view(source.dtype).reshape(source.shape)


def copy_of(source: Tensor) -> tuple[Copying, Tensor]:
    target = place_for(source)
    return Copying(Batch([(source, target)])), target


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("behind", [True, False])
def test_every_bit_is_copied(kind: str, behind: bool) -> None:
    """Whatever the strides and the dtype, as contiguous bytes."""
    source = SOURCES[kind]()
    copying, target = copy_of(source)
    if behind:
        copying.start()
        assert not copying.is_copied
        assert copying.run()
        assert copying.is_copied
    else:
        copy_now([(source, target)])
    assert raw(target) == raw(source)


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda source: source.mul_(2),
    "one element": lambda source: source.view(-1)[0].fill_(7),
    "by a view": lambda source: source.t().add_(1),
    "by a detached one": lambda source: source.detach().zero_(),
    "through .data": lambda source: source.data.mul_(2),
    "through numpy": lambda source: np.negative(source.numpy(), out=source.numpy()),
    "through a pointer": lambda source: ctypes.memset(source.data_ptr(), 7, 24),
    "by its base": lambda source: source._base.add_(1),  # type: ignore[union-attr]  # a view has a base
    "storage gone": lambda source: source.untyped_storage().resize_(0),
    "storage grown": lambda source: source.untyped_storage().resize_(1 << 20),
    "storage replaced": lambda source: source.set_(torch.ones(2, 3)),  # type: ignore[call-overload]  # torch's stub lacks this overload
    "resized": lambda source: source.resize_(1000, 1000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_before_it_is_copied_is_noticed(change: str) -> None:
    """By its version or its place; nothing is read from where it lay before."""
    whole = torch.arange(9.0)
    source = whole[:6].view(2, 3) if change == "by its base" else whole[:6].clone().view(2, 3)
    copying, _ = copy_of(source)
    with torch.no_grad():
        CHANGES[change](source)
    assert not copying.run()
    copying.fence()  # it never keeps the training waiting for ever


def test_a_source_that_is_elsewhere_while_it_should_be_copied_is_noticed() -> None:
    """Although it has come back when it is looked at again, as memory that is freed between two uses of it may."""
    source = torch.arange(6.0)
    batch = Batch([(source, place_for(source))])
    copying = Copying(batch)
    (address,) = batch.addresses
    batch.addresses[0] = address + 1
    held: list[bool] = []
    running = threading.Thread(target=lambda: held.append(copying.run(lambda: held.append(True))))
    running.start()
    copying._copied.wait()
    batch.addresses[0] = address
    copying.fence()
    running.join()
    assert held == [False]


def test_a_parameter_is_watched_through_its_detached_self() -> None:
    """What is copied is the detached tensor, and what an optimizer changes is the parameter."""
    parameter = torch.nn.Parameter(torch.ones(3))
    copying, _ = copy_of(parameter.detach())
    torch.optim.SGD([parameter], lr=0.1).zero_grad()
    assert copying.run()
    copying, _ = copy_of(parameter.detach())
    parameter.grad = torch.ones(3)
    torch.optim.SGD([parameter], lr=0.1).step()
    assert not copying.run()


def test_another_tensor_in_the_parameters_place_changes_nothing() -> None:
    """The bits that were there when it began are kept alive and copied."""
    parameter = torch.nn.Parameter(torch.ones(3))
    copying, target = copy_of(parameter.detach())
    parameter.data = torch.zeros(3)
    assert copying.run()
    assert target.tolist() == [1.0] * 3


def test_one_changed_source_of_many_drops_all_of_them() -> None:
    """A snapshot is of one moment or is none."""
    sources = [torch.full((3,), float(number)) for number in range(5)]
    copying = Copying(Batch([(source, place_for(source)) for source in sources]))
    sources[3].add_(1)
    assert not copying.run()


def test_what_changes_after_the_copy_changes_nothing() -> None:
    """The fence opens once the host has copied; then the sources are free."""
    source = torch.arange(6.0)
    copying, target = copy_of(source)
    assert copying.run()
    copying.fence()
    source.zero_()
    assert target.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_what_is_made_of_a_copy_waits_for_no_fence() -> None:
    """Digests are made of what is in place, while the training is still on its way to the optimizer."""
    source = torch.arange(6.0)
    copying, target = copy_of(source)
    made: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    held: queue.SimpleQueue[bool] = queue.SimpleQueue()
    worker = threading.Thread(target=lambda: held.put(copying.run(lambda: made.put(raw(target)))))
    worker.start()
    assert made.get(timeout=60) == raw(source)
    assert held.empty()
    copying.fence()
    assert held.get(timeout=60)
    worker.join()


class Held(Copying):
    """One whose copying begins when the test says so."""

    def __init__(self, source: Tensor, target: Tensor) -> None:
        super().__init__(Batch([(source, target)]))
        self.go = threading.Event()
        self.result: list[bool] = []
        self.thread = threading.Thread(target=self._run_when_told)
        self.thread.start()

    def _run_when_told(self) -> None:
        self.go.wait()
        self.result.append(self.run())


def test_the_fence_holds_until_all_is_copied() -> None:
    """Whoever would change a source waits; the change comes after the copy and is not in it."""
    source = torch.zeros(1 << 16)
    held = Held(source, target := place_for(source))
    entered, changed = threading.Event(), threading.Event()

    def train() -> None:
        entered.set()
        held.fence()
        source.add_(1)
        changed.set()

    training = threading.Thread(target=train)
    training.start()
    entered.wait()
    assert not changed.wait(0.1)
    assert not held.is_copied
    held.go.set()
    for thread in (training, held.thread):
        thread.join()
    assert held.result == [True]
    assert changed.is_set()
    assert not target.any()


def test_a_copy_that_fails_opens_the_fence() -> None:
    """Training goes on whatever becomes of a snapshot."""
    copying = Copying(Batch([(torch.ones(2, 3).t(), torch.ones(5))]))
    with pytest.raises(RuntimeError):
        copying.run()
    copying.fence()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "transposed", "conjugate", "bfloat16", "empty"])
def test_devices_copy_by_themselves(kind: str) -> None:
    """In the order of their streams: what is queued behind the fence changes nothing of the copy."""
    source = SOURCES[kind]().cuda()
    expected = raw(source.cpu())
    target = torch.empty(source.shape, dtype=source.dtype).pin_memory()
    copying = Copying(Batch([(source, target)]))
    held: list[bool] = []
    copying.start()
    worker = threading.Thread(target=lambda: held.append(copying.run()))
    worker.start()
    copying.fence()
    source.zero_()
    worker.join()
    assert held == [True]
    assert raw(target) == expected


@pytest.mark.gpu
def test_a_change_on_a_device_before_the_fence_is_noticed() -> None:
    """By the version, which the host raises when it queues the change."""
    source = torch.ones(1000).cuda()
    copying = Copying(Batch([(source, torch.empty(1000).pin_memory())]))
    copying.start()
    source.add_(1)
    copying.fence()
    assert not copying.run()
