# SPDX-License-Identifier: Apache-2.0
"""torch.distributed.checkpoint on our storage in real gloo groups: other numbers of ranks, failures of one of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from supervised import LIMIT_S
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

import resilient.dcp

RANKS = Path(__file__).with_name("dcp_ranks.py")
SAVED_BY = {"two": 2, "four": 4, "one": 1}
RESHARDED = [("two", 4), ("four", 2), ("four", 1), ("one", 3)]
UNTIL_COMMITTED = ["before writing", "written", "before the commit"]


def started(directory: Path, *arguments: str) -> dict[str, Any]:
    """What the ranks of all worlds found."""
    environ = {**os.environ, "PYTHONPATH": str(RANKS.parents[1]), "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-all"}
    command = [sys.executable, str(RANKS), str(directory), *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert not ended.returncode, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])  # type: ignore[no-any-return]  # json gives Any


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def found(directory: Path) -> dict[str, Any]:
    return started(directory)


@pytest.mark.parametrize(("name", "ranks"), RESHARDED)
def test_every_full_tensor_has_its_bits_on_another_number_of_ranks(
    found: dict[str, Any], name: str, ranks: int
) -> None:
    """FSDP2 with AdamW, tensor parallelism, both together, DTensors in rows, columns and copies, objects.

    The checkpoints of 4 ranks and of 1 were made of what these had loaded.
    """
    saved = [rank["prints"] for rank in found["two"]]
    loaded = [rank["prints"] for rank in found[f"{name} to {ranks}"]]
    assert len(loaded) == ranks
    assert saved[0]
    assert all(prints == saved[0] for prints in (*saved, *loaded))
    kinds = {print_[:13] for print_ in saved[0].values()}
    assert {"torch.complex", "torch.bfloat1", "torch.float32", "(1, None)"} <= kinds
    assert any("optimizer.state.up.weight.exp_avg" in key for key in saved[0])


@pytest.mark.parametrize(("name", "ranks"), RESHARDED)
def test_a_rank_takes_what_it_has_saved_and_a_new_one_is_told(found: dict[str, Any], name: str, ranks: int) -> None:
    """With more ranks DCP refuses on all of them, and changes nothing, until the new ones leave the key out."""
    saved = SAVED_BY[name]
    for rank, result in enumerate(found[f"{name} to {ranks}"]):
        assert result["own"] == ([10 + rank] * 2 if rank < saved else None)
        if ranks > saved:
            assert f"{saved}: RuntimeError: Missing key in checkpoint state_dict: rank-{saved}/own" in result["missing"]
            assert result["missing"].endswith("unchanged: True")
        else:
            assert result["missing"] is None


def test_a_disk_that_fills_up_on_one_rank_stops_all(found: dict[str, Any]) -> None:
    """Nothing is committed, every rank is told by whom and why, and the next save there leaves nothing of it."""
    for rank in found["refuse"]:
        assert rank["full"].startswith("1: Full: cannot write ")
        assert [name.split("-")[1] for name in rank["left"]] == ["0"], "the rank that failed frees its space"
        assert "no checkpoint was committed there" in rank["nothing"]
        assert rank["directories"] == 2


def test_what_could_mix_two_saves_is_refused_on_every_rank(found: dict[str, Any]) -> None:
    """A path that is taken, disks that are not shared, and saves of which nobody knows whether all ranks are done."""
    for rank in found["refuse"]:
        assert rank["again"].startswith("0: CheckpointError: cannot save to ")
        assert "none is ever overwritten" in rank["again"]
        assert "is not seen by the rank that commits" in rank["apart"]
        assert rank["alone"].startswith("cannot save without collectives")


def test_damage_that_one_rank_reads_leaves_every_rank_unchanged(found: dict[str, Any]) -> None:
    """DCP loads in place: the other rank, whose own file is whole, must not have begun."""
    for rank in found["refuse"]:
        assert rank["flipped"].startswith("1: Corrupt: cannot load ")
        assert rank["unchanged"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_files_swapped_between_ranks_are_refused(found: dict[str, Any], directory: Path, tmp_path: Path) -> None:
    """Each has the size of the other, and would load."""
    assert found["remember"]
    shutil.copytree(directory / "cached-2", tmp_path / "swapped")
    files = [next((tmp_path / "swapped").glob(f"*/rank-{rank}-0.safetensors")) for rank in (0, 1)]
    first, second = (file.read_bytes() for file in files)
    assert len(first) == len(second)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    with pytest.raises(CheckpointException, match="digest differs"):
        dcp_load({"rows": torch.zeros(10)}, storage_reader=resilient.dcp.Reader(tmp_path / "swapped"))


def test_cached_plans_and_threads_save_what_they_are_given(found: dict[str, Any]) -> None:
    """A plan from the cache of DCP is written to the new path, not to the one that it was made for."""
    assert [rank["numbers"] for rank in found["remember"]] == [[0, 1, 2, 2]] * 2


@pytest.mark.slow
def test_a_save_in_a_process_is_a_checkpoint(tmp_path: Path) -> None:
    """The writer is pickled and used in processes of DCP's own."""
    assert [rank["numbers"] for rank in started(tmp_path, "process")["process"]] == [[7], [7]]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("stage", [*UNTIL_COMMITTED, "committed"])
def test_a_rank_killed_in_the_middle_of_a_save_leaves_all_or_nothing(
    found: dict[str, Any], directory: Path, stage: str
) -> None:
    """The survivor is told; the checkpoint is there if and only if its manifest is; earlier ones are untouched."""
    told = [rank["told"] for rank in found[stage] if rank is not None]
    assert told == [True]
    state: dict[str, Any] = {"rows": torch.zeros(10, dtype=torch.int64), "number": 0}
    if stage in UNTIL_COMMITTED:
        with pytest.raises(CheckpointException, match="no checkpoint was committed there"):
            dcp_load(state, storage_reader=resilient.dcp.Reader(directory / stage))
    earlier = directory / ("cached-1" if stage in UNTIL_COMMITTED else stage)
    dcp_load(state, storage_reader=resilient.dcp.Reader(earlier))
    assert state["number"] == 1
    assert state["rows"].tolist() == [1] * 10
