# SPDX-License-Identifier: Apache-2.0
"""The two images of a rank's snapshot.

The first holds parameters and optimizer state and nothing else: it is copied behind the next
forward and backward, and data-parallel ranks have it bit by bit the same, so that it is saved
once. The second is the rank's own: buffers, generators, position in the data, and every object,
with the names of the tensors that lie in the first. Each is a safetensors file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from resilient.checkpoint import image
from resilient.checkpoint.tensors import Flat
from resilient.errors import CheckpointError
from resilient.link.board import on_page

Copies = list[tuple[torch.Tensor, torch.Tensor]]
"""Each source with the place that it is to be copied to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The plan of a slot."""

    tensors: image.Layout
    own: image.Layout

    @property
    def own_offset(self) -> int:
        """Where the rank's own image begins."""
        return on_page(self.tensors.size_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes of both, with what lies between them."""
        return self.own_offset + self.own.size_bytes


def split(flat: Flat) -> tuple[Flat, Flat]:
    """Parameters and what optimizers keep, and the rest with all objects."""
    first = {name: tensor for name, tensor in flat.tensors.items() if name in flat.steady}
    rest = {name: tensor for name, tensor in flat.tensors.items() if name not in flat.steady}
    return Flat(tensors=first, aliases={}, objects="", behind=flat.behind), Flat(
        tensors=rest, aliases=flat.aliases, objects=flat.objects
    )


def plan(tensors: Flat, own: Flat, previous: Pair | None) -> Pair:
    """Lay out both images, where those of ``previous`` are if that is possible."""
    if previous is None:
        return Pair(tensors=image.plan(tensors), own=image.plan(own))
    return Pair(tensors=image.plan(tensors, previous.tensors), own=image.plan(own, previous.own))


class Places:
    """Where the tensors of the first image lie in one slot, as long as neither its layout nor its memory changes."""

    def __init__(self) -> None:
        self._layout: image.Layout | None = None
        self._memory: object = None
        self._found: dict[str, torch.Tensor] = {}

    def of(self, layout: image.Layout, view: memoryview) -> dict[str, torch.Tensor]:
        """Large models have thousands of tensors, and training waits for this."""
        if self._layout is not layout or self._memory is not view.obj:
            self._layout, self._memory = layout, view.obj
            self._found = image.places(layout, view)
        return self._found


def targets(tensors: Flat, own: Flat, pair: Pair, view: memoryview, known: Places) -> tuple[Copies, Copies]:
    """Write both headers; what is then to be copied, into the first image and into the second."""
    first, second = view[: pair.tensors.size_bytes], view[pair.own_offset : pair.size_bytes]
    return (
        image.targets(tensors, pair.tensors, first, known.of(pair.tensors, first)),
        image.targets(own, pair.own, second),
    )


def read(tensors: memoryview, own: memoryview) -> Flat:
    """The state in two images; its tensors are views of their memory."""
    first, second = image.read(tensors), image.read(own)
    names = first.tensors.keys() | second.tensors.keys()
    if first.aliases or first.objects or first.tensors.keys() & second.tensors.keys():
        raise CheckpointError("cannot read images: they are not two of one snapshot; do use another checkpoint")
    if not (names.isdisjoint(second.aliases) and names >= set(second.aliases.values())):
        raise CheckpointError(
            "cannot read images: their metadata speaks of tensors that are not there; do use another checkpoint"
        )
    return Flat(tensors={**first.tensors, **second.tensors}, aliases=second.aliases, objects=second.objects)
