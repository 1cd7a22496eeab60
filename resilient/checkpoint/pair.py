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

    first: Flat
    """What the first image was planned for."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What is to be copied into a slot."""

    behind: Copies
    """Into the first image, while the training goes on; the very same list as long as nothing of it has changed."""
    at_once: Copies
    """Into both images."""


def split(flat: Flat) -> tuple[Flat, Flat]:
    """Parameters and what optimizers keep, and the rest with all objects."""
    first = {name: tensor for name, tensor in flat.tensors.items() if name in flat.steady}
    rest = {name: tensor for name, tensor in flat.tensors.items() if name not in flat.steady}
    return Flat(tensors=first, aliases={}, objects="", behind=flat.behind, wrapped=flat.wrapped), Flat(
        tensors=rest, aliases=flat.aliases, objects=flat.objects
    )


def plan(tensors: Flat, own: Flat, previous: Pair | None) -> Pair:
    """Lay out both images, where those of ``previous`` are if that is possible."""
    if previous is None:
        return Pair(first=tensors, tensors=image.plan(tensors), own=image.plan(own))
    same = previous.first is tensors
    first = previous.tensors if same else image.plan(tensors, previous.tensors)
    return Pair(first=tensors, tensors=first, own=image.plan(own, previous.own))


class Places:
    """Where the tensors of the first image go in one slot, as long as they, its layout and its memory stay the same.

    Large models have thousands of tensors, and training waits for this.
    """

    def __init__(self) -> None:
        self._known: tuple[object, object, object] | None = None
        self._behind: Copies = []
        self._at_once: Copies = []

    def of(self, pair: Pair, view: memoryview) -> tuple[Copies, Copies]:
        """What is copied behind the training, and what at once; the header is written."""
        known = (pair.first, pair.tensors, view.obj)
        if self._known is not None and all(a is b for a, b in zip(self._known, known, strict=True)):
            image.write_header(pair.tensors, view)
            return self._behind, self._at_once
        copies = dict(zip(pair.first.tensors, image.targets(pair.first, pair.tensors, view), strict=True))
        self._behind = [copy for name, copy in copies.items() if name in pair.first.behind]
        self._at_once = [copy for name, copy in copies.items() if name not in pair.first.behind]
        self._known = known
        return self._behind, self._at_once


def targets(own: Flat, pair: Pair, view: memoryview, places: Places) -> Targets:
    """Write both headers; what is then to be copied."""
    behind, at_once = places.of(pair, view[: pair.tensors.size_bytes])
    rest = image.targets(own, pair.own, view[pair.own_offset : pair.size_bytes])
    return Targets(behind=behind, at_once=at_once + rest)


def read(tensors: memoryview, own: memoryview) -> Flat:
    """The state in two images; its tensors are views of their memory."""
    return joined(image.read(tensors), image.read(own))


def joined(first: Flat, second: Flat) -> Flat:
    """The state of two images that were read."""
    names = first.tensors.keys() | second.tensors.keys()
    if first.aliases or first.objects or first.tensors.keys() & second.tensors.keys():
        raise CheckpointError("cannot read images: they are not two of one snapshot; do use another checkpoint")
    if not (names.isdisjoint(second.aliases) and names >= set(second.aliases.values())):
        raise CheckpointError(
            "cannot read images: their metadata speaks of tensors that are not there; do use another checkpoint"
        )
    return Flat(tensors={**first.tensors, **second.tensors}, aliases=second.aliases, objects=second.objects)
