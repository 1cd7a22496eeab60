# SPDX-License-Identifier: Apache-2.0
"""Looking twice at a few elements of many tensors: what was written to them in between shows, whoever wrote it.

Version counters know nothing of what is written through ``.data``, a raw pointer or numpy. Such a write mostly goes
through whole tensors (weights are clipped, scaled, averaged), and then a few elements tell; one that touches few
elements may go by unseen. Looking is one gather by addresses, of as many elements for any number of tensors; which ones
is drawn beforehand, while the training goes on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ELEMENTS: Final = 256
"""Each look takes so many: of more tensors than that some, other ones each time."""
_BYTES: Final = 8
"""Of an element: a sign and a factor of two show in its last bytes only, a small change in its first."""


class Samples:
    """Of tensors in host memory, whose addresses stay what they are."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        sampled = [tensor for tensor in tensors if tensor.numel()]
        self._starts = np.array([tensor.data_ptr() for tensor in sampled], dtype=np.int64)
        self._counts = np.array([_elements_in_a_row(tensor) for tensor in sampled], dtype=np.int64)
        self._sizes = np.array([tensor.element_size() for tensor in sampled], dtype=np.int64)
        self._random = np.random.default_rng(0)
        self._memory = np.empty(0, dtype=np.uint8)
        if sampled:
            self._base = int(self._starts.min())
            size = int((self._starts + self._counts * self._sizes).max()) - self._base
            # Nothing is read of what lies between them.
            self._memory = np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(self._base)), dtype=np.uint8)
            self._drawn = self._places()

    def look(self) -> Callable[[], bool]:
        """Look at some elements; the second look tells whether they are the same, where all still lie as they lay."""
        if not len(self._starts):
            return lambda: True
        places = self._drawn
        found = self._memory.take(places)
        return lambda: np.array_equal(found, self._memory.take(places))

    def draw(self) -> None:
        """Have the next look take other elements."""
        if len(self._starts):
            self._drawn = self._places()

    def _places(self) -> NDArray[np.int64]:
        """Where the bytes of the chosen elements lie: of each tensor, unless there are more tensors than elements."""
        chosen = np.resize(self._random.permutation(len(self._starts)), ELEMENTS)
        sizes = self._sizes[chosen]
        elements = (self._random.random(ELEMENTS) * self._counts[chosen]).astype(np.int64)
        begin = self._starts[chosen] - self._base + elements * sizes
        spread = np.arange(_BYTES, dtype=np.int64) * sizes[:, np.newaxis] // _BYTES
        places: NDArray[np.int64] = begin[:, np.newaxis] + spread
        return places


def _elements_in_a_row(tensor: Tensor) -> int:
    """How many there are from its address on, without another tensor's between them; at least the first."""
    if tensor.is_contiguous():
        return tensor.numel()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() if last + 1 == tensor.numel() else 1
