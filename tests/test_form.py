# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of another model is told apart from one of this model at another time."""

from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch

from resilient.checkpoint.form import compare
from resilient.checkpoint.tensors import Flat, flatten
from resilient.errors import CheckpointError


def training(*, width: int = 3, steps: int = 0) -> dict[str, object]:
    """The state of a small training after some steps."""
    model = torch.nn.Linear(2, width)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])],
        milestones=[1],
    )
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


def test_a_later_state_of_the_same_training_fits() -> None:
    """A new optimizer has no state yet, and a scheduler has counted."""
    assert compare(flatten(training(steps=3)), flatten(training())) == []
    assert compare(flatten(training()), flatten(training())) == []


def test_another_model_does_not_fit() -> None:
    """Each tensor that differs is named, with both shapes."""
    differences = compare(flatten(training(width=4)), flatten(training()))
    assert "state['model']['weight']: shape (4, 2) in the checkpoint, (3, 2) now" in differences
    assert "state['model']['bias']: shape (4,) in the checkpoint, (3,) now" in differences


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (1, 0.5), (True, 0), (np.float64(1), 2), (None, 3), ("x", None), (torch.ones(1), None), ([1, 2, 3], [9]),
        ([1], []), ((1, 2), [1, 2]), (deque([1, 2]), deque([1])), ({"a": 1}, {}), (OrderedDict(a=1), {"a": 2}),
        ({"a"}, {"b", "c"}), (Counter("ab"), Counter("cd")), (np.zeros(3), np.zeros(2)), ([{"a": 1}], []),
        (torch.Size([1]), torch.Size([2, 3])),
    ],
)  # fmt: skip
def test_values_are_not_form(saved: object, live: object) -> None:
    """What a training changes as it goes must not keep it from going on."""
    assert compare(flatten({"x": saved}), flatten({"x": live})) == []


@pytest.mark.parametrize(
    ("saved", "live", "says"),
    [
        (torch.ones(2), torch.ones(3), "shape (2,) in the checkpoint, (3,) now"),
        (torch.ones(2), torch.ones(2).double(), "torch.float32 in the checkpoint, torch.float64 now"),
        (torch.ones(1), 0.5, "tensor in the checkpoint, number now"),
        (0.5, torch.ones(1), "number in the checkpoint, tensor now"),
        (None, torch.ones(1), "NoneType in the checkpoint, tensor now"),
        ("x", 1, "str in the checkpoint, number now"),
        (b"x", "x", "bytes in the checkpoint, str now"),
        ([1], {"a": 1}, "list in the checkpoint, dict now"),
        ({"a": 1}, Counter("a"), "dict in the checkpoint, Counter now"),
        ([{"a": 1}], [{"a": 1}, {"a": 2}], "1 items in the checkpoint, 2 now"),
        (np.zeros(1), np.zeros(1, np.int64), "array of float64 in the checkpoint, of int64 now"),
    ],
)
def test_form_is_told_apart(saved: object, live: object, says: str) -> None:
    """One sentence for one difference, with its path."""
    assert compare(flatten({"x": [saved]}), flatten({"x": [live]})) == [f"state['x'][0]: {says}"]


def test_missing_and_surplus_keys_are_named() -> None:
    """Both ways, and in mappings whose keys are no strings."""
    saved, live = {"a": 1, "old": 1, "in": {0: 1, 5: 1}}, {"a": 1, "new": 1, "in": {0: 1, 6: 1}}
    assert set(compare(flatten(saved), flatten(live))) == {
        "state['old']: only in the checkpoint",
        "state['new']: not in the checkpoint",
        "state['in'][5]: only in the checkpoint",
        "state['in'][6]: not in the checkpoint",
    }


def test_tying_two_tensors_afterwards_is_a_difference() -> None:
    """Of two saved values only one could be loaded; the other way round nothing is lost."""
    one = torch.ones(2)
    apart, tied = flatten({"a": one, "b": one.clone()}), flatten({"a": one, "b": one})
    assert compare(apart, tied) == ["state['b']: a tensor of its own in the checkpoint, tied to state.a now"]
    assert compare(tied, apart) == []


def test_a_checkpoint_that_lacks_a_tensor_is_refused() -> None:
    """Its text speaks of a tensor that is not there."""
    broken = Flat(tensors={}, aliases={}, objects='{"$tensor":"state"}')
    with pytest.raises(CheckpointError, match="the tensor 'state' is missing"):
        compare(broken, flatten(torch.ones(1)))
