# SPDX-License-Identifier: Apache-2.0
"""Scenes of too little memory, and of the workers of a DataLoader, which feel it first."""

import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path

import cgroups
import torch
from namespaces import make_shared_memory_tiny
from torch.utils.data import DataLoader, Dataset

from resilient.supervisor.samples import sample

GROUP_BYTES = 512 << 20
"""More than torch needs to be there, and a hundredth of what the scenes take."""


class Numbers(Dataset[torch.Tensor]):
    """Samples, one of which ends the process that fetches it."""

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 5:
            self._end()
        return torch.ones(1 << 20)


def loader_killed(rank: int, folder: Path) -> None:
    list(DataLoader(Numbers(lambda: os.kill(os.getpid(), signal.SIGKILL)), num_workers=1))


def loader_crashed(rank: int, folder: Path) -> None:
    list(DataLoader(Numbers(lambda: os.kill(os.getpid(), signal.SIGSEGV)), num_workers=1))


def loader_without_shared_memory(rank: int, folder: Path) -> None:
    make_shared_memory_tiny()
    list(DataLoader(Numbers(lambda: None), num_workers=2))


def shared_memory_full(rank: int, folder: Path) -> None:
    """What a write into a mapped file of a full file system does: SIGBUS, and not a word."""
    make_shared_memory_tiny()
    with open("/dev/shm/mapped", "wb+") as file:
        file.truncate(64 << 20)
        mapped = mmap.mmap(file.fileno(), 0)
    try:
        Path("/dev/shm/full").write_bytes(b"x" * (2 << 20))
    except OSError:
        (folder / "shm_used_fraction").write_text(str(sample().shm_used_fraction))
    mapped[0] = 1


def eat() -> None:
    """Take memory for as long as there is some."""
    kept = []
    while True:
        kept.append(b"x" * (16 << 20))


def out_of_memory(rank: int, folder: Path) -> None:
    """The OOM killer of a container, which here is a group of its own."""
    cgroups.enter(folder, GROUP_BYTES)
    eat()


def loader_out_of_memory(rank: int, folder: Path) -> None:
    """It takes the largest process, which is the worker of a DataLoader."""
    cgroups.enter(folder, GROUP_BYTES)
    list(DataLoader(Numbers(eat), num_workers=1))


def no_host_memory(rank: int, folder: Path) -> None:
    torch.empty(1 << 50)


SCENES = {
    "loader_killed": (loader_killed, 1),
    "loader_crashed": (loader_crashed, 1),
    "loader_without_shared_memory": (loader_without_shared_memory, 1),
    "shared_memory_full": (shared_memory_full, 1),
    "out_of_memory": (out_of_memory, 1),
    "loader_out_of_memory": (loader_out_of_memory, 1),
    "no_host_memory": (no_host_memory, 1),
}
