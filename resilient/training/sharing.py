# SPDX-License-Identifier: Apache-2.0
"""What the parts of a state share in memory, and would no longer share after a restore.

A saved state knows tensors that are the very same elements, and nothing else: two references to one
list come back as two lists, and overlapping views as tensors of their own. What a module holds may
overlap, because it is restored in place. What ``state_dict`` gives may name one list twice, as
torch's SequentialLR does; only plain data, whose references are the user's own, must not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from resilient.checkpoint.objects import Path, render
from resilient.checkpoint.tensors_sharded import local_of
from resilient.errors import CheckpointError
from resilient.training.state import ContainerPart, ModulePart, OptimizerPart, Part

_MUTABLE: Final = (dict, list, deque, set, np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A tensor of the state."""

    path: Path
    tensor: Tensor
    in_place: bool
    begin: int
    end: int


def refuse_unrestorable(parts: Mapping[str, Part], captured: Mapping[str, object]) -> None:
    """CheckpointError, by path, for what can be saved but would not come back as it is; it contains no circle."""
    seen: dict[int, tuple[Path, bool]] = {}
    storages: dict[tuple[object, int], list[_Place]] = {}
    for name, part in parts.items():
        plain, in_place = isinstance(part, ContainerPart), isinstance(part, ModulePart)
        for path, value in _walk(captured[name], ("state", name)):
            if isinstance(value, Tensor):
                local = local_of(value)
                place = _place(path, local, in_place)
                storages.setdefault((local.device, local.untyped_storage().data_ptr()), []).append(place)
            else:
                first, also_plain = seen.setdefault(id(value), (path, plain))
                if first != path and (plain or also_plain):
                    raise CheckpointError(
                        f"cannot save {render(path)}: it is the same {type(value).__name__} as {render(first)}, and "
                        "they would be two after a restore; do keep it in one place, or put a copy.deepcopy() there"
                    )
    for places in storages.values():
        _refuse_overlap(places)


def unsaved(parts: Mapping[str, Part], captured: Mapping[str, object]) -> str:
    """A sentence for an optimizer that trains what nothing of the state holds, as far as that is seen; empty: none."""
    held = {
        (local.device, local.untyped_storage().data_ptr())
        for name, part in parts.items()
        if not isinstance(part, OptimizerPart)
        for _, value in _walk(captured[name], ())
        if isinstance(value, Tensor) and (local := local_of(value)).numel()
    }
    for name, part in parts.items():
        trained = map(local_of, part.parameters() if isinstance(part, OptimizerPart) else ())
        count = sum((t.device, t.untyped_storage().data_ptr()) not in held for t in trained if t.numel())
        if count:
            return (
                f"state[{name!r}] trains parameters that nothing in the state holds ({count}): they are not saved, "
                "and after a restore its moments belong to other values; do name the model in Run(state=...)"
            )
    return ""


def _walk(value: object, path: Path) -> Iterator[tuple[Path, Any]]:
    """All tensors and all that can change, from the outside in."""
    if isinstance(value, (Tensor, *_MUTABLE)):
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, (list, tuple, deque)):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))


def _place(path: Path, tensor: Tensor, in_place: bool) -> _Place:
    steps = [(int(size), int(stride)) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    if tensor.numel() and any(size > 1 and stride == 0 for size, stride in steps):
        raise CheckpointError(
            f"cannot save {render(path)}: several elements of this expanded tensor are one in memory, so that nothing "
            "could be loaded into it; do keep .contiguous() or .clone() of it"
        )
    begin = int(tensor.storage_offset()) * tensor.element_size()
    last = sum((size - 1) * stride for size, stride in steps)
    end = begin + (last + 1) * tensor.element_size() if tensor.numel() else begin
    return _Place(path=path, tensor=tensor, in_place=in_place, begin=begin, end=end)


def _refuse_overlap(places: list[_Place]) -> None:
    if all(place.in_place for place in places):
        return
    ordered = sorted((place for place in places if place.end > place.begin), key=lambda place: place.begin)
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if other.begin >= one.end:
                break
            if not (one.in_place and other.in_place) and not _same(one.tensor, other.tensor) and _meet(one, other):
                first, second = sorted((one, other), key=places.index)
                raise CheckpointError(
                    f"cannot save {render(second.path)}: it shares a part of its memory with {render(first.path)}, and "
                    "they would be apart after a restore; do keep one of them and make the other from it, or clone() it"
                )


def _reading(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they are the very same elements of their storage: such tensors are saved as one."""
    return _reading(one) == _reading(other)


def _meet(one: _Place, other: _Place) -> bool:
    """Whether views of one storage whose bounds overlap have an element in common; columns of a matrix have none."""
    size = one.tensor.element_size()
    if size != other.tensor.element_size():
        return True
    origin = min(one.begin, other.begin)
    taken = torch.zeros((max(one.end, other.end) - origin) // size, dtype=torch.bool, device="cpu")

    def part(place: _Place) -> Tensor:
        return taken.as_strided(place.tensor.shape, place.tensor.stride(), (place.begin - origin) // size)

    part(one).fill_(True)
    return bool(part(other).any())
