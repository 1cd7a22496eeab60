# SPDX-License-Identifier: Apache-2.0
"""The random number generators that belong to a rank's state: python, numpy, torch and each CUDA device in use."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import torch

from resilient.errors import CheckpointError

Tree = dict[str, Any]
_KEYS: Final = frozenset({"python", "numpy", "torch", "cuda"})


def capture(devices: Collection[int] = ()) -> Tree:
    """The state of all generators; ``devices`` are the CUDA devices in use."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": {device: torch.cuda.get_rng_state(device) for device in devices},
    }


def restore(tree: Tree) -> None:
    """Put all generators back; a CUDA device that was not in use when the state was captured is left alone."""
    try:
        random.setstate(tree["python"])
        np.random.set_state(tree["numpy"])
        # The tensors may be views of memory that another process owns.
        torch.set_rng_state(tree["torch"].clone())
        for device, state in tree["cuda"].items():
            torch.cuda.set_rng_state(state.clone(), device)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"cannot restore the random number generators: {error}") from error


def derived(tree: Tree, rank: int) -> Tree:
    """Generators for a rank that has none yet, made of another rank's: its own, and the same each time."""
    text = f"{tree['python']}/{tree['torch'].tolist()}/{rank}"
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    devices = [torch.cuda.current_device()] if tree["cuda"] else []
    return {
        "python": random.Random(seed).getstate(),
        "numpy": np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False),
        "torch": torch.Generator().manual_seed(seed).get_state(),
        "cuda": {device: torch.Generator(f"cuda:{device}").manual_seed(seed).get_state() for device in devices},
    }


def differences(tree: object) -> list[str]:
    """What is wrong with a saved state, before anything is restored from it."""
    if not isinstance(tree, dict) or tree.keys() != _KEYS or not isinstance(tree["cuda"], dict):
        return ["run.rng: not the state of the random number generators"]
    visible = range(torch.cuda.device_count())
    missing = [device for device in tree["cuda"] if device not in visible]
    return [f"run.rng.cuda: saved with CUDA device {device!r}, which this rank does not see" for device in missing]


def devices_in_use(holding_state: Collection[int]) -> tuple[int, ...]:
    """CUDA devices whose generators this rank may draw from: the current one, and those that hold its state."""
    if not torch.cuda.is_initialized():
        return ()
    return tuple(sorted({*holding_state, torch.cuda.current_device()}))
