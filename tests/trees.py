# SPDX-License-Identifier: Apache-2.0
"""Random states, and equality down to the bit."""

import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Hashable, Iterable

import numpy as np
import torch
from hypothesis import strategies as st

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
]  # fmt: skip

ATTRIBUTES = ("default_factory", "_metadata", "maxlen")


def raw(tensor: torch.Tensor) -> bytes:
    """The elements as bytes, in order, whatever the strides."""
    elements = bytearray(tensor.numel() * tensor.itemsize)
    if elements:
        torch.frombuffer(elements, dtype=tensor.dtype).reshape(tensor.shape).copy_(tensor.detach())
    return bytes(elements)


def same(left: object, right: object) -> bool:
    """Whether two states are the same in type, order and every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return (left.dtype, left.shape, raw(left)) == (right.dtype, right.shape, raw(right))
    if isinstance(left, (np.ndarray, np.generic)) and isinstance(right, (np.ndarray, np.generic)):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("<d", left) == struct.pack("<d", right) or (left != left and right != right)
    if any(getattr(left, name, None) != getattr(right, name, None) for name in ATTRIBUTES):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return _all_same(left.keys(), right.keys()) and _all_same(left.values(), right.values())
    if isinstance(left, (set, frozenset)) and isinstance(right, (set, frozenset)):
        return _all_same(sorted(left, key=repr), sorted(right, key=repr))
    if isinstance(left, (list, tuple, deque)) and isinstance(right, (list, tuple, deque)):
        return _all_same(left, right)
    return bool(left == right)


def _all_same(left: Iterable[object], right: Iterable[object]) -> bool:
    lefts, rights = list(left), list(right)
    return len(lefts) == len(rights) and all(map(same, lefts, rights))


@st.composite
def numpy_values(draw: st.DrawFn) -> object:
    """Arrays, and scalars, of every dtype of plain numbers and either byte order."""
    kind = draw(st.sampled_from(["?", "i1", "u1", *"i2 i4 i8 u2 u4 u8 f2 f4 f8 c8 c16".split()]))  # noqa: SIM905  # a list of quoted words is harder to read
    dtype = np.dtype(kind).newbyteorder(draw(st.sampled_from("<>")))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    array = np.frombuffer(bytes(byte & 1 for byte in data) if kind == "?" else data, dtype=dtype).reshape(shape)
    return array.flat[0] if array.size and draw(st.booleans()) else array


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of every dtype that can be saved: empty, scalar, transposed, spread out, or a parameter."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    tensor = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    if draw(st.booleans()):
        tensor = tensor.t() if tensor.dim() == 2 else tensor.unsqueeze(-1).expand(*shape, 2)
    return torch.nn.Parameter(tensor) if dtype.is_floating_point and draw(st.booleans()) else tensor


texts = st.text(st.characters(), max_size=4) | st.text("$\ud800\udc00a", max_size=4)
numbers = st.booleans() | st.integers() | st.integers(1 << 62, 1 << 70) | st.floats()
scalars: st.SearchStrategy[Hashable] = st.none() | numbers | texts | st.binary(max_size=4)
keys: st.SearchStrategy[Hashable] = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars, max_size=2)


def _containers(items: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    mappings = st.dictionaries(texts | keys, items, max_size=4)
    lists = st.lists(items, max_size=4)
    return (
        lists
        | mappings
        | st.dictionaries(texts, items, max_size=4)
        | lists.map(tuple)
        | mappings.map(lambda found: OrderedDict(found))
        | mappings.map(lambda found: defaultdict(list, found))
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
        | st.tuples(lists, st.none() | st.integers(0, 3)).map(lambda made: deque(*made))
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=3)
    )


objects: st.SearchStrategy[object] = st.recursive(scalars | numpy_values(), _containers, max_leaves=12)
states: st.SearchStrategy[object] = st.recursive(
    scalars | numpy_values() | tensors() | st.sampled_from([torch.float32, torch.Size([2, 3]), torch.Size([])]),
    _containers,
    max_leaves=12,
)
