# SPDX-License-Identifier: Apache-2.0
"""Scenes of a GPU: they are played where torch sees one."""

from pathlib import Path
from typing import Any

import torch


def device_assert(rank: int, folder: Path) -> None:
    """A label that the model has no class for."""
    scores = torch.randn(4, 10, device="cuda")
    torch.nn.functional.cross_entropy(scores, torch.full((4,), 77, device="cuda")).item()


class _Far:
    """A tensor of the user's own making that reaches far beyond the memory that it has."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "data": (memory.data_ptr(), False),
            "shape": (1 << 40,),
            "typestr": "|u1",
            "version": 2,
        }


def illegal_access(rank: int, folder: Path) -> None:
    """What a kernel with a wrong index does."""
    memory = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    far = torch.as_tensor(_Far(memory), device="cuda")
    far[1 << 39 : (1 << 39) + 4096].sum().item()


def no_device_memory(rank: int, folder: Path) -> None:
    torch.empty(1 << 45, dtype=torch.uint8, device="cuda")


SCENES = {
    "device_assert": (device_assert, 1),
    "illegal_access": (illegal_access, 1),
    "no_device_memory": (no_device_memory, 1),
}
