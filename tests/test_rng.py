# SPDX-License-Identifier: Apache-2.0
"""Tests of the generators: all of them come back, and garbage is refused before anything is changed."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from resilient.checkpoint import tensors
from resilient.errors import CheckpointError
from resilient.training import rng


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_every_generator_goes_on_where_it_was() -> None:
    """After a round trip through an image's encoding, the same draws come again."""
    draw()  # leaves half a pair of normal draws in the generators that keep one
    tree: Any = tensors.unflatten(tensors.flatten(rng.capture(), path=()))
    assert rng.differences(tree) == []
    expected = draw()
    rng.restore(tree)
    assert draw() == expected


@pytest.mark.parametrize("tree", [None, {}, {"python": 1, "numpy": 2, "torch": 3, "cuda": 4}])
def test_what_is_no_state_of_generators_is_found(tree: object) -> None:
    """The check comes before anything is restored."""
    assert rng.differences(tree) == ["run.rng: not the state of the random number generators"]


def test_a_device_that_is_not_there_is_found() -> None:
    """A state that was saved on more devices than are visible cannot be restored exactly."""
    assert "CUDA device 99" in rng.differences({**rng.capture(), "cuda": {99: torch.zeros(1)}})[0]


def test_nonsense_within_a_state_is_a_checkpoint_error() -> None:
    """What only the generator itself can judge is still named as the checkpoint's fault."""
    with pytest.raises(CheckpointError, match="cannot restore the random number generators"):
        rng.restore({**rng.capture(), "torch": torch.zeros(3, dtype=torch.uint8)})
