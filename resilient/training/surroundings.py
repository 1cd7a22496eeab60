# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of the surroundings in which a state was made: facts to compare, not state."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any, Final

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


_BACKENDS: Final[Any] = torch.backends
_SETTINGS: Final[Mapping[str, Callable[[], object]]] = {
    "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "cudnn_deterministic": lambda: _BACKENDS.cudnn.deterministic,
    "cudnn_benchmark": lambda: _BACKENDS.cudnn.benchmark,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "cuda_matmul_fp32": lambda: _BACKENDS.cuda.matmul.fp32_precision,
    "cudnn_conv_fp32": lambda: _BACKENDS.cudnn.conv.fp32_precision,
    "cudnn_rnn_fp32": lambda: _BACKENDS.cudnn.rnn.fp32_precision,
    "threads": torch.get_num_threads,
}


def determinism(cublas_workspace: str | None = None) -> Mapping[str, str]:
    """The settings that decide whether the same work has the same bits; ``CUBLAS_WORKSPACE_CONFIG`` is given."""
    found = {name: _asked(ask) for name, ask in _SETTINGS.items()}
    found["cublas_workspace"] = cublas_workspace
    return {name: value for name, value in found.items() if value is not None}


def _asked(ask: Callable[[], object]) -> str | None:
    """``None`` where this torch has no such setting, or does not say: once a script has set a precision by one of its
    two ways, asking by the other one raises."""
    try:
        return str(ask())
    except (AttributeError, RuntimeError):
        return None
