# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of the surroundings in which a state was made: facts to compare, not state."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import numpy
import torch


def versions(ours: str) -> Mapping[str, str]:
    """Versions of what the bits of a state depend on."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "resilient": ours,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }
    return {name: str(version) for name, version in found.items() if version is not None}


def determinism() -> Mapping[str, str]:
    """The settings of torch that decide whether the same work has the same bits."""
    return {
        "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "cudnn_deterministic": str(torch.backends.cudnn.deterministic),
        "cudnn_benchmark": str(torch.backends.cudnn.benchmark),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": str(torch.get_num_threads()),
    }
