# SPDX-License-Identifier: Apache-2.0
"""Tests of exporting what is spread over ranks: whole, as it was held together, and read once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_run import SavedRun
from test_regroup import STEP, by_hybrid, rows, save, spread, whole_parameters

from resilient.checkpoint.export import read_state
from resilient.checkpoint.survey import read_manifest

NAME = f"1-{STEP}"


@pytest.fixture
def saved(tmp_path: Path) -> SavedRun:
    run = SavedRun(tmp_path)
    run.claim(1)
    return run


def exported(saved: SavedRun, rank: int = 0) -> dict[str, Any]:
    return read_state(saved.store, NAME, read_manifest(saved.store, NAME), rank)


def test_tied_tensors_are_one_tensor(saved: SavedRun) -> None:
    """As they are where nothing is spread: else a reader would train two, and hold both."""

    def tied(rank: int, mesh: Any) -> dict[str, object]:
        one = rows([1.0, 2.0, 3.0], mesh)
        return {"extra": {"words": one, "head": one, "other": rows([1.0, 2.0, 3.0], mesh)}}

    save(saved, 2, tied)
    extra = exported(saved)["extra"]
    assert extra["words"] is extra["head"]
    assert extra["words"].data_ptr() != extra["other"].data_ptr()
    assert extra["other"].tolist() == extra["words"].tolist() == [1.0, 2.0, 3.0]


def test_what_ranks_share_is_read_once(saved: SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of two ranks have two files of tensors, and each rank one of its own."""
    save(saved, 4, lambda rank, mesh: spread(rank, mesh, by_hybrid, 1))
    files: list[str] = []
    read_into = saved.store.read_into

    def counted(name: str, *rest: Any) -> None:
        files.append(name.rpartition("/")[2])
        read_into(name, *rest)

    monkeypatch.setattr(saved.store, "read_into", counted)
    model = exported(saved, 3)["model"]
    assert sorted(files) == sorted(file.file for file in read_manifest(saved.store, NAME).files)
    assert len(files) == 2 + 4
    assert all(torch.equal(model[name], whole) for name, whole in whole_parameters(1).items())
