# SPDX-License-Identifier: Apache-2.0
"""Tests of reading a candidate from its slot: verified, and refused for whatever does not fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from resilient.checkpoint import digest, image, pair, tensors
from resilient.checkpoint.arena import Slot
from resilient.errors import CheckpointError
from resilient.link.board import Extent, SlotRecord
from resilient.training import restore, rng, steady
from resilient.training.state import Part, parts_of


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot.create("test")
    yield slot
    slot.close()


def put(slot: Slot, parts: dict[str, Part], **own: Any) -> SlotRecord:
    """The state of some parts in a slot, as a worker leaves it there."""
    run = {"step": 4, "rng": rng.capture(), "data": None, **own}
    tree = {"state": {name: part.capture() for name, part in parts.items()}, "run": run}
    first, second = pair.split(tensors.flatten(tree, path=(), behind=steady.behind(parts)))
    plan = pair.plan(first, second, None)
    slot.reserve(plan.size_bytes)
    view = slot.view(plan.size_bytes)
    images = view[: plan.tensors.size_bytes], view[plan.own_offset :]
    for flat, layout, buffer in ((first, plan.tensors, images[0]), (second, plan.own, images[1])):
        image.write(flat, layout, buffer)
    extents = [Extent(size=len(part), digest=digest.digest(part)) for part in images]
    return SlotRecord(slot=0, attempt=1, step=4, tensors=extents[0], own=extents[1])


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with a buffer and an optimizer with moments."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_a_snapshot_is_read_verified_and_loaded(slot: Slot) -> None:
    """From the slot into model and optimizer, bit by bit; nothing that is loaded stays in the slot's memory."""
    model, optimizer = trained()
    record = put(slot, parts_of({"model": model, "optimizer": optimizer}))
    fresh, other = trained(steps=0)
    parts = parts_of({"model": fresh, "optimizer": other})
    candidate = restore.read("memory", record, slot, parts, ranks=1)
    assert (candidate.step, candidate.size_bytes) == (4, record.size)
    restore.load(candidate, parts)
    slot.view(record.size)[:] = bytes(record.size)
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(other.state_dict()["state"][index][key], value)


@pytest.mark.parametrize("at", ["tensors", "own", "moments"])
def test_a_changed_byte_is_refused(slot: Slot, at: str) -> None:
    """In either image, also where it lands in memory that was made ready for the optimizer; nothing live is touched."""
    model, optimizer = trained()
    parts = parts_of({"model": model, "optimizer": optimizer})
    record = put(slot, parts)
    before = [value.clone() for value in model.state_dict().values()]
    offset = {"tensors": record.tensors.size - 1, "own": record.size - 1, "moments": record.tensors.size // 2 + 8}[at]
    slot.view(record.size)[offset] ^= 1
    with pytest.raises(restore.Damaged, match="does not have its digest"):
        restore.read("memory", record, slot, parts, ranks=1)
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_a_header_that_is_torn_is_damage_as_well(slot: Slot) -> None:
    """What cannot even be read counts as damaged if its digest differs, and as foreign if it does not."""
    parts = parts_of({"model": nn.Linear(3, 2)})
    record = put(slot, parts)
    view = slot.view(record.size)
    view[:8] = bytes(8)
    with pytest.raises(restore.Damaged):
        restore.read("memory", record, slot, parts, ranks=1)
    size = record.tensors.size
    sealed = replace(record, tensors=Extent(size=size, digest=digest.digest(view[:size])))
    with pytest.raises(CheckpointError, match="cannot read image"):
        restore.read("memory", sealed, slot, parts, ranks=1)


def test_a_record_of_more_than_the_slot_has_is_refused(slot: Slot) -> None:
    """The board says what lies there; the memory is what it is."""
    parts = parts_of({"model": nn.Linear(3, 2)})
    record = put(slot, parts)
    longer = replace(record, own=Extent(size=record.own.size + (1 << 20), digest=record.own.digest))
    with pytest.raises(CheckpointError, match="not reserved"):
        restore.read("memory", longer, slot, parts, ranks=1)


@pytest.mark.parametrize(
    ("state", "own", "why"),
    [
        ({"model": nn.Linear(3, 2), "ema": {}}, {}, "state.ema: not in what was saved"),
        ({}, {}, "state.model: saved, but not given to Run"),
        ({"model": nn.Linear(3, 3)}, {}, "state.model: bias"),
        ({"model": nn.Linear(3, 2)}, {"step": 5}, "run.step: 5 where 4 belongs"),
        ({"model": nn.Linear(3, 2)}, {"rng": {}}, "run.rng"),
        ({"model": nn.Linear(3, 2)}, {"data": {"seed": 1}}, "run.data"),
    ],
)
def test_what_does_not_fit_is_named(slot: Slot, state: dict[str, object], own: dict[str, Any], why: str) -> None:
    """All of it is checked before anything is written."""
    record = put(slot, parts_of({"model": nn.Linear(3, 2)}), **own)
    with pytest.raises(CheckpointError, match=why):
        restore.read("1-4", record, slot, parts_of(state), ranks=1)
