# SPDX-License-Identifier: Apache-2.0
"""A state taken apart into tensors and text, and put together again.

Owns which tensors can be saved and what they are called. The text has each tensor replaced by its
name; a name is the path to the tensor, ``state.model.fc.weight``. Tied tensors, which are the same
elements of one storage, are kept once and are one tensor again afterwards. Of a DTensor the local
tensor is kept, and in the text how it is sharded. Nothing is copied here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn.parameter import is_lazy

from resilient.checkpoint.objects import Path, decode, encode, render
from resilient.checkpoint.objects_reader import Unpacker
from resilient.checkpoint.tensors_sharded import Shard, Sharding, flaw, is_dtensor, local_of, sharding_of
from resilient.checkpoint.untrusted import Json, can_exist, list_of, text_of
from resilient.core.grammar import type_of
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
    wrapped: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The DTensors that some of ``tensors`` are local tensors of: it is their version that an optimizer raises."""


def flatten(tree: object, *, path: Path = ("state",), behind: Collection[int] = ()) -> Flat:
    """Take a state apart; CheckpointError names the path of what cannot be saved exactly.

    ``behind`` holds ids of tensors that change nowhere but in an optimizer's step, as parameters do.
    """
    gathering = Gathering(behind=behind)
    return gathering.flat(gathering.encode(tree, path))


def unflatten(flat: Flat) -> object:
    """Put a state together of the tensors of ``flat`` themselves, not of copies; for a DTensor there is a Shard."""
    unused = set(flat.tensors) | set(flat.aliases)

    def tensor(body: Json) -> torch.Tensor:
        name = text_of(body)
        if name not in unused:
            raise _nonsense(f"the tensor {name[:80]!r} is missing, or there twice")
        unused.discard(name)
        return tensor_of(flat, name)

    def shard(body: Json) -> Shard:
        name, sharding = list_of(body, 2)
        return Shard(local=tensor(name), sharding=Sharding.from_json(sharding))

    tree = decode(flat.objects, unpackers={**_UNPACKERS, "tensor": tensor, "DTensor": shard})
    if unused:
        raise _nonsense(f"the tensor {min(unused)[:80]!r} belongs nowhere")
    return tree


def tensor_of(flat: Flat, name: str) -> torch.Tensor:
    """Look up a tensor under its own name or that of one it is tied to."""
    tensor = flat.tensors.get(flat.aliases.get(name, name))
    if tensor is None:
        raise _nonsense(f"the tensor {name[:80]!r} is missing")
    return tensor


def _nonsense(why: str) -> CheckpointError:
    return CheckpointError(f"cannot read the objects of a checkpoint: {why}; do use another checkpoint")


class Gathering:
    """Takes several trees apart as one state: a name is given once, and what is tied anywhere in it is kept once."""

    def __init__(self, *, behind: Collection[int] = (), after: Gathering | None = None) -> None:
        """``behind`` is that of :func:`flatten`; ``after`` has the trees of the same state that came before."""
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        self.names_behind: set[str] = set()
        self.names_steady: set[str] = set()
        self._behind = behind
        self._after = after
        self._seen: dict[tuple[object, ...], str] = {}
        self._wrapped: dict[str, torch.Tensor] = {}
        self._shardings: dict[object, Json] = {}
        self._live: list[torch.Tensor] = []
        self._addresses: list[int] = []
        self._detached: list[torch.Tensor] = []

    def encode(self, tree: object, path: Path) -> str:
        """The text of a tree, its tensors replaced by names; CheckpointError names the path of what cannot be saved."""
        return encode(tree, path=path, packer=self._pack)

    def flat(self, objects: str) -> Flat:
        """What was taken apart here, without what came before; ``objects`` is the text of all."""
        return Flat(
            tensors=self.tensors,
            aliases=self.aliases,
            objects=objects,
            behind=self.names_behind,
            steady=self.names_steady,
            wrapped=self._wrapped,
        )

    def lie_where_they_lay(self) -> bool:
        """Whether every tensor has its memory where it had it; a fraction of a microsecond each."""
        return self._addresses == [*map(torch.Tensor.data_ptr, self._locals())]

    def has_views(self) -> bool:
        """Whether different tensors have elements in one storage, those of what came before included."""
        seen = [*self._seen, *(self._after._seen if self._after is not None else ())]
        return len({identity[:2] for identity in seen}) < len(seen)

    def are_as_they_were(self) -> bool:
        """Whether they are read as they were as well: shape, strides and dtype can be changed in place."""
        locals_ = self._locals()
        return self.lie_where_they_lay() and all(map(_is_read_alike, locals_, self._detached))

    def _locals(self) -> list[torch.Tensor]:
        return [getattr(tensor, "_local_tensor", tensor) for tensor in self._live] if self._wrapped else self._live

    def _pack(self, value: object, path: Path) -> tuple[str, Json] | None:
        if is_dtensor(value):
            return "DTensor", self._add_sharded(value, path)
        if isinstance(value, torch.Tensor):
            return "tensor", self._add(value, value, path)
        if isinstance(value, torch.dtype):
            return "dtype", str(value).removeprefix("torch.")
        if type(value) is torch.Size:
            return "Size", list(value)
        return None

    def _add_sharded(self, tensor: Any, path: Path) -> Json:
        local = local_of(tensor)
        alike = (id(tensor.device_mesh), tensor.placements, tensor.shape, local.shape)  # as a parameter's moments are
        if alike not in self._shardings:
            if why := flaw(tensor):
                raise CheckpointError(f"cannot save {render(path)}: {why}")
            self._shardings[alike] = sharding_of(tensor).to_json()
        return [self._add(tensor, local, path), self._shardings[alike]]

    def _add(self, tensor: torch.Tensor, local: torch.Tensor, path: Path) -> str:
        """``local``: its memory on this rank; itself, if it is no DTensor."""
        if why := _flaw(local):
            raise CheckpointError(f"cannot save {render(path)}: {why}")
        name = self._free_name(_ODD.sub("_", ".".join(map(str, path)))[:_NAME_CHARS] or "tensor")
        first = self._first_of(local, name)
        if first != name:
            self.aliases[name] = first
            return name
        detached = local.detach()
        self.tensors[name] = detached
        if local is not tensor:
            self._wrapped[name] = tensor
        self._live.append(tensor)  # kept, so that its id stays its own
        self._addresses.append(local.data_ptr())
        self._detached.append(detached)
        if id(tensor) in self._behind and _can_wait(local):
            self.names_behind.add(name)
        if id(tensor) in self._behind or isinstance(tensor, torch.nn.Parameter):
            self.names_steady.add(name)
        return name

    def _first_of(self, tensor: torch.Tensor, name: str) -> str:
        """The name under which the same elements came by first."""
        if not tensor.numel():
            return name  # it has no elements and is tied to nothing
        identity = _identity(tensor)
        known = self._after._seen.get(identity) if self._after is not None else None
        return known or self._seen.setdefault(identity, name)

    def _is_taken(self, name: str) -> bool:
        return name in self.tensors or name in self.aliases or (self._after is not None and self._after._is_taken(name))

    def _free_name(self, plain: str) -> str:
        name, count = plain, 1
        while name == _RESERVED or self._is_taken(name):
            count += 1
            name = f"{plain}~{count}"
        return name


def _can_wait(tensor: torch.Tensor) -> bool:
    """It has a version counter, and lies where it can be copied from while the training goes on."""
    return (tensor.is_cpu or tensor.is_cuda) and not tensor.is_inference()


def _is_read_alike(tensor: torch.Tensor, then: torch.Tensor) -> bool:
    return (
        then.shape == tensor.shape
        and then.stride() == tensor.stride()
        and then.dtype is tensor.dtype
        and then.is_conj() == tensor.is_conj()
        and then.is_neg() == tensor.is_neg()
    )


def _flaw(tensor: torch.Tensor) -> str | None:
    """Say why the bytes of a tensor would not bring it back, and what to do."""
    kind = type(tensor)
    if kind.__module__.startswith("torch.distributed"):
        return f"{type_of(tensor)} is a part of something that other ranks have; do save DTensors or plain tensors"
    if tensor.is_nested:
        return "it is a nested tensor; do save its components"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}; do save its indices and values, or to_dense() of it"
    if tensor.is_quantized:
        return "it is quantized; do save int_repr() of it with scale and zero point"
    if tensor.is_meta:
        return "it is on the meta device and has no values; do give the module its parameters first"
    if is_lazy(tensor):
        return "it has no shape yet; do run a batch through its module first"
    if kind not in _PLAIN:
        return f"{type_of(tensor)} is more than its values; do save the plain tensors that it is made of"
    if not can_exist((*tensor.shape, 1)):
        return f"it has {tensor.dim()} dimensions, too many or too large; do reshape it"
    if tensor.dtype not in _SAVED:
        return f"a checkpoint does not hold {tensor.dtype}; do convert it to another dtype"
    return None


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """What is the same for tied tensors only, while they live; it begins with their storage."""
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
