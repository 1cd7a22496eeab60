# SPDX-License-Identifier: Apache-2.0
"""Tests of reading a candidate: from a real store, and refused for whatever does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resilient.checkpoint import digest, image, tensors
from resilient.checkpoint.layout import FileRecord, Manifest, checkpoint_path, rank_file
from resilient.checkpoint.store import open_store
from resilient.checkpoint.vault import Image, Vault
from resilient.errors import CheckpointError
from resilient.training import restore, rng
from resilient.training.state import parts_of


def image_of(model: nn.Module, **own: Any) -> bytearray:
    run = {"step": 4, "rng": rng.capture(), "data": None, **own}
    flat = tensors.flatten({"state": {"model": dict(model.state_dict())}, "run": run}, path=())
    layout = image.plan(flat)
    buffer = bytearray(layout.size_bytes)
    image.write(flat, layout, memoryview(buffer))
    return buffer


def save(url: Path, data: bytearray, ranks: int) -> str:
    vault = Vault(open_store(str(url)), clock=lambda: 1.0)
    files = tuple(
        FileRecord(rank=rank, file=rank_file(rank), size=len(data), digest=digest.digest(data)) for rank in range(ranks)
    )
    manifest = Manifest(
        run=vault.identify(make=True).id,
        submission="s",
        attempt=1,
        step=4,
        began_from=None,
        world_size=ranks,
        files=files,
        created_s=1.0,
        versions={},
        determinism={},
    )
    images = [Image(rank=f.rank, size=f.size, digest=f.digest, chunks=lambda: iter([bytes(data)])) for f in files]
    return vault.save(manifest, images, lambda: None)


def test_a_checkpoint_is_read_verified_and_loaded(tmp_path: Path) -> None:
    """From the store into the model, bit by bit."""
    saved, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    name = save(tmp_path, image_of(saved), ranks=2)
    view = restore.read_durable(str(tmp_path), name, rank=1, world_size=2)
    parts = parts_of({"model": fresh})
    restore.load(restore.check(name, view, parts, step=4), parts)
    assert torch.equal(saved.weight, fresh.weight)


def test_another_number_of_ranks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Nothing is guessed about how the states of four ranks make those of two."""
    name = save(tmp_path, image_of(nn.Linear(3, 2)), ranks=4)
    with pytest.raises(CheckpointError, match=r"saved by 4 ranks, this run has 2 ranks; start with --nproc-per-node 4"):
        restore.read_durable(str(tmp_path), name, rank=0, world_size=2)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """Every byte counts."""
    name = save(tmp_path, image_of(nn.Linear(3, 2)), ranks=1)
    file = tmp_path / checkpoint_path(name, rank_file(0))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="digest"):
        restore.read_durable(str(tmp_path), name, rank=0, world_size=1)


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
def test_what_does_not_fit_is_named(state: dict[str, object], own: dict[str, Any], why: str) -> None:
    """All of it is checked before anything is written."""
    view = memoryview(image_of(nn.Linear(3, 2), **own))
    with pytest.raises(CheckpointError, match=why):
        restore.check("1-4", view, parts_of(state), step=4)
