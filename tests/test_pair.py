# SPDX-License-Identifier: Apache-2.0
"""Two images bring a state back bit for bit, and are refused where they are not two of one snapshot."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from trees import same, states

from resilient.checkpoint import image, pair
from resilient.checkpoint.tensors import Flat, flatten, unflatten
from resilient.errors import CheckpointError
from resilient.link.board import PAGE_BYTES

Images = tuple[memoryview, memoryview]


def tensors_in(tree: object) -> list[Tensor]:
    """Every tensor of a state."""
    if isinstance(tree, Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def write(flat: Flat, previous: pair.Pair | None = None) -> tuple[pair.Pair, Images]:
    """Both images of a state as they lie in a slot."""
    first, own = pair.split(flat)
    plan = pair.plan(first, own, previous)
    view = memoryview(bytearray(plan.size_bytes))
    targets = pair.targets(own, plan, view, pair.Places())
    for source, target in [*targets.behind, *targets.at_once]:
        target.copy_(source)
    return plan, (view[: plan.tensors.size_bytes], view[plan.own_offset :])


def images_of(tree: object, *behind: Tensor) -> Images:
    return write(flatten(tree, behind={id(tensor) for tensor in behind}))[1]


@settings(max_examples=150)
@given(states, st.randoms(use_true_random=False))
def test_states_come_back_from_two_images(state: object, chance: object) -> None:
    """Whichever tensors lie in the first one."""
    behind = [tensor for tensor in tensors_in(state) if chance.random() < 0.5]  # type: ignore[attr-defined]  # hypothesis gives a Random, and says object
    assert same(unflatten(pair.read(*images_of(state, *behind))), unflatten(flatten(state)))


def test_only_the_own_image_says_what_changes_from_step_to_step(tmp_path: Path) -> None:
    """So the first one has the same bytes on all ranks, and both open with plain safetensors."""
    model = nn.Linear(2, 3)
    one = images_of({"model": model.state_dict(keep_vars=True), "step": 1, "buffer": torch.zeros(2)})
    two = images_of({"model": model.state_dict(keep_vars=True), "step": 2, "buffer": torch.ones(2)})
    assert (bytes(one[0]) == bytes(two[0]), bytes(one[1]) == bytes(two[1])) == (True, False)
    for name, view in zip(("tensors", "own"), one, strict=True):
        (tmp_path / name).write_bytes(view)
    assert load_file(tmp_path / "tensors").keys() == {"state.model.weight", "state.model.bias"}
    assert load_file(tmp_path / "own").keys() == {"state.buffer"}


def test_what_is_tied_across_the_images_is_one_tensor_again() -> None:
    """The own image has the names of tensors that lie in the first, in either order."""
    weight, buffer = nn.Parameter(torch.ones(2)), torch.zeros(2)
    tree = {"a": weight, "b": weight, "c": buffer, "d": buffer}
    found = unflatten(pair.read(*images_of(tree)))
    assert isinstance(found, dict)
    assert found["a"] is found["b"]
    assert found["c"] is found["d"]
    detached = {"a": weight.detach(), "b": weight}  # the plain one comes first, and is no parameter
    other = unflatten(pair.read(*images_of(detached)))
    assert isinstance(other, dict)
    assert other["a"] is other["b"]


def test_the_second_image_begins_on_a_page() -> None:
    """Whatever the first one holds: direct access to a disk wants it."""
    for count in (0, 1, PAGE_BYTES - 1, PAGE_BYTES):
        first = nn.Parameter(torch.ones(count, dtype=torch.uint8), requires_grad=False)
        plan, images = write(flatten([first]))
        assert plan.own_offset % PAGE_BYTES == 0
        assert plan.own_offset >= len(images[0])
        assert len(images[1]) == plan.own.size_bytes


def test_the_layout_of_the_step_before_is_kept() -> None:
    """Thousands of tensors are laid out once; only the objects are written again."""
    model = nn.Linear(2, 3)
    first, _ = write(flatten({"model": model.state_dict(keep_vars=True), "step": 1}))
    second, images = write(flatten({"model": model.state_dict(keep_vars=True), "step": 2}), first)
    assert second.tensors is first.tensors
    assert second.size_bytes == first.size_bytes
    assert unflatten(pair.read(*images))["step"] == 2  # type: ignore[index]  # a state is a dict here
    grown, _ = write(flatten({"model": nn.Linear(3, 3).state_dict(keep_vars=True), "step": 2}), second)
    assert grown.tensors is not first.tensors


def test_places_are_looked_up_once_for_each_memory() -> None:
    """They are made anew when the state or the mapping changes, and never point into another slot."""
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    first, own = pair.split(flatten(weights, behind={id(weights[0])}))
    plan, known = pair.plan(first, own, None), pair.Places()
    views = [memoryview(bytearray(plan.size_bytes)) for _ in range(2)]
    found = [pair.targets(own, plan, view, known) for view in (views[0], views[0], views[1])]
    assert [[source.numel() for source, _ in copies] for copies in (found[0].behind, found[0].at_once)] == [[3], [2]]
    assert found[0].behind is found[1].behind
    found[2].behind[0][1].fill_(7)
    assert not any(views[0][plan.tensors.header_bytes : plan.tensors.size_bytes])
    again = pair.plan(pair.split(flatten(weights))[0], own, plan)
    assert again.tensors is plan.tensors
    assert pair.targets(own, again, views[1], known).behind == []


def parts(tree: object) -> tuple[Flat, Flat]:
    return pair.split(flatten(tree))


def bytes_of(flat: Flat) -> memoryview:
    layout = image.plan(flat)
    buffer = memoryview(bytearray(layout.size_bytes))
    image.write(flat, layout, buffer)
    return buffer


def test_images_that_do_not_belong_together_are_refused() -> None:
    """Two of different snapshots, two of one kind, in the wrong order, or with names in both."""
    weight = nn.Parameter(torch.ones(2))
    first, own = parts({"w": weight, "tied": weight, "n": torch.ones(1)})
    assert pair.read(bytes_of(first), bytes_of(own)).aliases == {"state.tied": "state.w"}
    other_first, other_own = parts({"other": nn.Parameter(torch.ones(2)), "n": torch.ones(1)})
    both = replace(own, tensors={**own.tensors, "state.w": weight.detach()})
    hidden = replace(own, aliases={"state.w": "state.n"})
    nowhere = replace(own, aliases={"state.tied": "state.gone"})
    wrong = [(own, first), (first, first), (own, own), (other_first, own), (first, both), (first, hidden)]
    for one, two in [*wrong, (first, nowhere), (replace(first, aliases={"state.x": "state.w"}), own)]:
        with pytest.raises(CheckpointError):
            unflatten(pair.read(bytes_of(one), bytes_of(two)))
    with pytest.raises(CheckpointError):
        unflatten(pair.read(bytes_of(first), bytes_of(other_own)))
