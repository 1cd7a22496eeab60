# SPDX-License-Identifier: Apache-2.0
"""Tests of looking twice at a few elements: what was written in between shows, and nothing else does."""

from collections.abc import Callable

import pytest
import torch
from test_copying import SOURCES
from torch import Tensor

from resilient.training.samples import ELEMENTS, Samples

WRITES: dict[str, Callable[[Tensor], object]] = {
    "sign": lambda data: data.neg_(),
    "factor of two": lambda data: data.mul_(0.5),
    "small change": lambda data: data.mul_(1.01),
    "zeros": lambda data: data.zero_(),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_a_write_to_a_whole_tensor_shows(write: str, dtype: torch.dtype) -> None:
    """Among many, whatever it does to the bytes of an element."""
    tensors = [torch.rand(100).to(dtype) + 1 for _ in range(ELEMENTS // 8)]
    samples = Samples(tensors)
    assert samples.look()()
    same = samples.look()
    WRITES[write](tensors[7].data)
    assert not same()


@pytest.mark.parametrize("kind", SOURCES)
def test_what_lies_between_elements_is_not_looked_at(kind: str) -> None:
    """Others may write there: a view of a buffer is saved by itself."""
    source = SOURCES[kind]()
    samples = Samples([source])
    same = []
    for _ in range(4):
        same.append(samples.look())
        samples.draw()
    whole = torch.empty(0, dtype=torch.uint8).set_(source.untyped_storage())
    mine = torch.zeros(len(whole), dtype=torch.bool)
    first = source.storage_offset() * source.element_size()
    elements = torch.arange(len(whole)).as_strided(source.shape, [s * source.element_size() for s in source.stride()])
    for byte in range(source.element_size()):
        mine[elements.reshape(-1) + first + byte] = True
    whole[~mine] ^= 255
    assert all(look() for look in same)


def test_more_tensors_than_elements_are_looked_at_by_turns() -> None:
    """What is changed again and again is found in the end; a look costs no more for them."""
    tensors = [torch.zeros(4) for _ in range(3 * ELEMENTS)]
    samples = Samples(tensors)

    def is_missed() -> bool:
        same = samples.look()
        tensors[5].data.add_(1)
        samples.draw()
        return same()

    assert any(not is_missed() for _ in range(64))


def test_nothing_is_as_it_was() -> None:
    """No tensors, or none with elements."""
    assert Samples([]).look()()
    assert Samples([torch.empty(0, 3)]).look()()


def test_the_generators_of_the_script_are_left_alone() -> None:
    """It draws which elements it takes from one of its own."""
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Samples([torch.ones(3)]).look()
    assert torch.equal(torch.rand(1), expected)
