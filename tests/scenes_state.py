# SPDX-License-Identifier: Apache-2.0
"""Scenes of checkpoints that are damaged, missing, of something else, or cannot be written."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from namespaces import make_shared_memory_tiny
from safetensors.torch import load_file, save_file
from scenes_peers import join
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def damaged_checkpoint(rank: int, folder: Path) -> None:
    torch.save({"weight": torch.ones(1000)}, folder / "last.pt")
    os.truncate(folder / "last.pt", 2000)
    torch.load(folder / "last.pt")


def damaged_safetensors(rank: int, folder: Path) -> None:
    save_file({"weight": torch.ones(1000)}, folder / "last.safetensors")
    os.truncate(folder / "last.safetensors", 2000)
    load_file(folder / "last.safetensors")


def unfit_checkpoint(rank: int, folder: Path) -> None:
    torch.nn.Linear(3, 4).load_state_dict(torch.nn.Linear(3, 5).state_dict())


def dcp_without_a_checkpoint(rank: int, folder: Path) -> None:
    load({"weight": torch.ones(3)}, checkpoint_id=str(folder / "nothing"))


def dcp_with_a_damaged_file(rank: int, folder: Path) -> None:
    save({"weight": torch.ones(1000)}, checkpoint_id=str(folder / "saved"))
    next((folder / "saved").glob("*.distcp")).write_bytes(b"nonsense")
    load({"weight": torch.ones(1000)}, checkpoint_id=str(folder / "saved"))


def dcp_damaged_for_one_rank(rank: int, folder: Path) -> None:
    """All ranks raise what one of them met."""
    join(rank, folder)
    save({f"weight-{rank}": torch.ones(1000)}, checkpoint_id=str(folder / "saved"))
    if rank == 1:
        for path in (folder / "saved").glob("__1_*.distcp"):
            path.write_bytes(b"nonsense")
    dist.barrier()
    load({f"weight-{rank}": torch.ones(1000)}, checkpoint_id=str(folder / "saved"))


def dcp_of_another_model(rank: int, folder: Path) -> None:
    save({"weight": torch.ones(10)}, checkpoint_id=str(folder / "saved"))
    load({"weight": torch.ones(11)}, checkpoint_id=str(folder / "saved"))


def dcp_without_a_key(rank: int, folder: Path) -> None:
    save({"weight": torch.ones(10)}, checkpoint_id=str(folder / "saved"))
    load({"weight": torch.ones(10), "bias": torch.ones(1)}, checkpoint_id=str(folder / "saved"))


def dcp_on_a_full_disk(rank: int, folder: Path) -> None:
    make_shared_memory_tiny()  # a disk like any other
    save({"weight": torch.ones(4 << 20)}, checkpoint_id="/dev/shm/saved")


def disk_full(rank: int, folder: Path) -> None:
    make_shared_memory_tiny()
    torch.save({"weight": torch.ones(4 << 20)}, "/dev/shm/last.pt")


SCENES = {
    "damaged_checkpoint": (damaged_checkpoint, 1),
    "damaged_safetensors": (damaged_safetensors, 1),
    "unfit_checkpoint": (unfit_checkpoint, 1),
    "dcp_without_a_checkpoint": (dcp_without_a_checkpoint, 1),
    "dcp_with_a_damaged_file": (dcp_with_a_damaged_file, 1),
    "dcp_damaged_for_one_rank": (dcp_damaged_for_one_rank, 2),
    "dcp_of_another_model": (dcp_of_another_model, 1),
    "dcp_without_a_key": (dcp_without_a_key, 1),
    "dcp_on_a_full_disk": (dcp_on_a_full_disk, 1),
    "disk_full": (disk_full, 1),
}
