# SPDX-License-Identifier: Apache-2.0
"""A state taken apart into tensors and text, and put together again.

Owns which tensors can be saved and what they are called. The text has each tensor replaced by its
name; a name is the path to the tensor, ``state.model.fc.weight``. Tied tensors, which are the same
elements of one storage, are kept once and are one tensor again afterwards. Nothing is copied here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from resilient.checkpoint.objects import Path, decode, encode, render
from resilient.checkpoint.objects_reader import Unpacker
from resilient.checkpoint.untrusted import Json, can_exist, list_of, text_of
from resilient.errors import CheckpointError

# What the safetensors format has had from its beginning, whatever version is installed here.
FORMAT_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# What it lacks, or only newer versions can read: the bytes, under the dtype's own name.
RAW_DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.complex64,
        torch.complex128,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
        torch.float4_e2m1fn_x2,
    )
}

_SAVED: Final = frozenset([*FORMAT_DTYPES.values(), *RAW_DTYPES.values()])
_ALL_DTYPES: Final = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
_PLAIN: Final = frozenset([torch.Tensor, torch.nn.Parameter])
_ODD: Final = re.compile(r"[^\w.\-]", re.ASCII)
_NAME_CHARS: Final = 200
_RESERVED: Final = "__metadata__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A state in the two forms that an image holds."""

    tensors: Mapping[str, torch.Tensor]
    """By name; detached, on their device, sharing memory with what they were taken from."""
    aliases: Mapping[str, str]
    """Names of further tensors that are tied to one in ``tensors``."""
    objects: str
    """Everything else, with names where the tensors were."""
    behind: Collection[str] = ()
    """Names of the tensors that change nowhere but in an optimizer's step."""
    steady: Collection[str] = ()
    """Names of these and of all parameters: what ranks may have alike."""


@dataclass(frozen=True, slots=True)
class TensorName:
    """Stands for a tensor in ``skeleton``."""

    name: str


class Known:
    """Tensors that were found fit to be saved: they need no second look while they stay where they are.

    Large models have thousands, and training waits while a state is taken apart.
    """

    def __init__(self) -> None:
        self.entries: dict[int, _Entry] = {}


def flatten(tree: object, *, path: Path = ("state",), known: Known | None = None, behind: Collection[int] = ()) -> Flat:
    """Take a state apart; CheckpointError names the path of what cannot be saved exactly.

    ``known`` is filled for the next time. ``behind`` holds ids of tensors that change nowhere but in an optimizer's
    step, as parameters do.
    """
    collected = _Collector(known.entries if known else {}, behind)
    objects = encode(tree, path=path, packer=collected.pack)
    if known is not None:
        known.entries = collected.entries
    return Flat(
        tensors=collected.tensors,
        aliases=collected.aliases,
        objects=objects,
        behind=collected.names_behind,
        steady=collected.names_steady,
    )


def unflatten(flat: Flat) -> object:
    """Put a state together of the tensors of ``flat`` themselves, not of copies."""
    unused = set(flat.tensors) | set(flat.aliases)

    def tensor(body: Json) -> torch.Tensor:
        name = text_of(body)
        if name not in unused:
            raise _nonsense(f"the tensor {name[:80]!r} is missing, or there twice")
        unused.discard(name)
        return tensor_of(flat, name)

    tree = decode(flat.objects, unpackers={**_UNPACKERS, "tensor": tensor})
    if unused:
        raise _nonsense(f"the tensor {min(unused)[:80]!r} belongs nowhere")
    return tree


def copied(flat: Flat) -> Flat:
    """The same state in memory of its own; what a live optimizer is given must not lie in an arena."""
    tensors = {name: tensor.clone() for name, tensor in flat.tensors.items()}
    return Flat(tensors=tensors, aliases=flat.aliases, objects=flat.objects)


def skeleton(flat: Flat) -> object:
    """Put a state together with a ``TensorName`` in the place of each tensor."""
    return decode(flat.objects, unpackers={**_UNPACKERS, "tensor": lambda body: TensorName(text_of(body))})


def tensor_of(flat: Flat, name: str) -> torch.Tensor:
    """Look up a tensor under its own name or that of one it is tied to."""
    tensor = flat.tensors.get(flat.aliases.get(name, name))
    if tensor is None:
        raise _nonsense(f"the tensor {name[:80]!r} is missing")
    return tensor


def _nonsense(why: str) -> CheckpointError:
    return CheckpointError(f"cannot read the objects of a checkpoint: {why}; do use another checkpoint")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor, kept so that its id stays its own."""

    tensor: torch.Tensor
    address: int
    path: Path
    plain_name: str
    detached: torch.Tensor
    identity: tuple[object, ...] | None
    """``None``: it has no elements and is tied to nothing."""
    can_wait: bool
    """It has a version counter, and lies where it can be copied from while the training goes on."""
    is_parameter: bool


class _Collector:
    """Gathers the tensors that come by while the rest is encoded."""

    def __init__(self, known: Mapping[int, _Entry], behind: Collection[int]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        self.entries: dict[int, _Entry] = {}
        self.names_behind: set[str] = set()
        self.names_steady: set[str] = set()
        self._known = known
        self._behind = behind
        self._seen: dict[tuple[object, ...], str] = {}

    def pack(self, value: object, path: Path) -> tuple[str, Json] | None:
        if isinstance(value, torch.Tensor):
            return "tensor", self._add(value, path)
        if isinstance(value, torch.dtype):
            return "dtype", str(value).removeprefix("torch.")
        if type(value) is torch.Size:
            return "Size", list(value)
        return None

    def _add(self, tensor: torch.Tensor, path: Path) -> str:
        entry = self._known.get(id(tensor))
        if entry is None or entry.path != path or not _is_as_it_was(tensor, entry):
            entry = _look_at(tensor, path)
        self.entries[id(tensor)] = entry
        name = self._free_name(entry.plain_name)
        first = name if entry.identity is None else self._seen.setdefault(entry.identity, name)
        if first != name:
            self.aliases[name] = first
            return name
        self.tensors[name] = entry.detached
        if entry.can_wait and id(tensor) in self._behind:
            self.names_behind.add(name)
        if entry.is_parameter or id(tensor) in self._behind:
            self.names_steady.add(name)
        return name

    def _free_name(self, plain: str) -> str:
        name, count = plain, 1
        while name in self.tensors or name in self.aliases or name == _RESERVED:
            count += 1
            name = f"{plain}~{count}"
        return name


def _is_as_it_was(tensor: torch.Tensor, entry: _Entry) -> bool:
    """Whether a tensor lies where it lay and is read as it was: both can be changed in place."""
    then = entry.detached
    return (
        entry.tensor is tensor
        and entry.address == tensor.data_ptr()
        and then.shape == tensor.shape
        and then.stride() == tensor.stride()
        and then.dtype is tensor.dtype
        and then.is_conj() == tensor.is_conj()
        and then.is_neg() == tensor.is_neg()
    )


def _look_at(tensor: torch.Tensor, path: Path) -> _Entry:
    if flaw := _flaw(tensor):
        raise CheckpointError(f"cannot save {render(path)}: {flaw}")
    return _Entry(
        tensor,
        tensor.data_ptr(),
        path,
        _ODD.sub("_", ".".join(map(str, path)))[:_NAME_CHARS] or "tensor",
        tensor.detach(),
        _identity(tensor) if tensor.numel() else None,
        (tensor.is_cpu or tensor.is_cuda) and not tensor.is_inference(),
        isinstance(tensor, torch.nn.Parameter),
    )


def _flaw(tensor: torch.Tensor) -> str | None:
    """Say why the bytes of a tensor would not bring it back, and what to do."""
    kind = type(tensor)
    if kind.__module__.startswith("torch.distributed"):
        return (
            f"a {kind.__name__} is one shard of a tensor, and sharded states are not supported yet; "
            "do save full_tensor() of it"
        )
    if tensor.is_nested:
        return "it is a nested tensor; do save its components"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}; do save its indices and values, or to_dense() of it"
    if tensor.is_quantized:
        return "it is quantized; do save int_repr() of it with scale and zero point"
    if tensor.is_meta:
        return "it is on the meta device and has no values; do give the module its parameters first"
    if kind not in _PLAIN:
        return f"a {kind.__name__} is more than its values; do save the plain tensors that it is made of"
    if not can_exist((*tensor.shape, 1)):
        return f"it has {tensor.dim()} dimensions, too many or too large; do reshape it"
    if tensor.dtype not in _SAVED:
        return f"a checkpoint does not hold {tensor.dtype}; do convert it to another dtype"
    return None


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """What is the same for tied tensors only, while they live."""
    return (
        tensor.device,
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _dtype(body: Json) -> torch.dtype:
    if (name := text_of(body)) not in _ALL_DTYPES:
        raise ValueError(f"torch has no dtype {name[:40]!r}")
    return _ALL_DTYPES[name]


def _size(body: Json) -> torch.Size:
    sizes = [size for size in list_of(body) if type(size) is int and -(1 << 63) <= size < 1 << 63]
    if len(sizes) != len(list_of(body)):
        raise ValueError("no torch.Size where one belongs")
    return torch.Size(sizes)


_UNPACKERS: Final[Mapping[str, Unpacker]] = {"dtype": _dtype, "Size": _size}
