# SPDX-License-Identifier: Apache-2.0
"""Tests of taking a state apart again and again: a glance gives what a close look gives, or says it does not."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from trees import same

from resilient.checkpoint.tensors import Flat, unflatten
from resilient.errors import CheckpointError
from resilient.training.inventory import Inventory
from resilient.training.state import parts_of
from resilient.training.witness import witness_of


class Training:
    """A state with everything that can change in it."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 3, bias=False)
        self.model = nn.Sequential(self.inner, nn.BatchNorm1d(4), self.outer)
        self.model.register_buffer("cache", torch.zeros(2), persistent=False)
        self.head = nn.Linear(3, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.optimizer.add_param_group({"params": [*self.head.parameters()], "lr": 0.5})
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)
        self.extra: dict[str, Any] = {"losses": [0.5], "best": self.inner.weight}
        self.own: dict[str, Any] = {"step": 1, "rng": {"torch": torch.get_rng_state()}, "data": None}
        self.step()

    def state(self) -> dict[str, object]:
        names = ("extra", "model", "head", "optimizer", "scheduler")
        return {name: getattr(self, name) for name in names}

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.head(self.model(torch.randn(5, 3))).square().mean().backward()
        self.optimizer.step()

    def inventory(self) -> Inventory:
        return Inventory(parts_of(self.state()), lambda: self.own)


def tree(flats: tuple[Flat, Flat]) -> object:
    """The state that was taken apart."""
    first, own = flats
    return unflatten(Flat(tensors={**first.tensors, **own.tensors}, aliases=own.aliases, objects=own.objects))


def addresses(flats: tuple[Flat, Flat]) -> list[dict[str, int]]:
    return [{name: tensor.data_ptr() for name, tensor in flat.tensors.items()} for flat in flats]


def grow(training: Training) -> None:
    training.model.append(nn.Linear(3, 3))
    training.optimizer.add_param_group({"params": [*training.model[-1].parameters()]})


def replace_moment(training: Training) -> None:
    state = training.optimizer.state[training.inner.weight]
    state["exp_avg"] = state["exp_avg"] * 2


def swap_parameters(training: Training) -> None:
    params = training.optimizer.param_groups[0]["params"]
    params[0], params[1] = params[1], params[0]


SEEN_AT_A_GLANCE: dict[str, Callable[[Training], object]] = {
    "nothing": lambda t: None,
    "a step": Training.step,
    "the schedule": lambda t: t.scheduler.step(),
    "a learning rate by hand": lambda t: t.optimizer.param_groups[1].update(lr=0.125),
    "a learning rate that is a tensor": lambda t: t.optimizer.param_groups[1].update(lr=torch.tensor(0.125)),
    "plain data": lambda t: t.extra["losses"].append(0.25),
    "plain data, a parameter": lambda t: t.extra.update(best=t.outer.weight),
    "plain data, a new parameter": lambda t: t.extra.update(best=nn.Parameter(torch.ones(2))),
    "the own part": lambda t: t.own.update(step=7, rng={"torch": torch.ones(3, dtype=torch.uint8)}),
    "a larger model": grow,
    "a smaller model": lambda t: t.model.pop(2),
    "another module in a place": lambda t: t.model.__setitem__(2, nn.Linear(4, 3, bias=False)),
    "a parameter": lambda t: setattr(t.head, "weight", nn.Parameter(torch.ones(1, 3))),
    "a parameter gone": lambda t: setattr(t.head, "bias", None),
    "a parameter elsewhere": lambda t: setattr(t.head.weight, "data", torch.ones(1, 3)),
    "a buffer": lambda t: setattr(t.model[1], "running_mean", torch.ones(4)),
    "a buffer more": lambda t: t.head.register_buffer("more", torch.ones(4)),
    "a buffer that is kept no more": lambda t: t.model[1]._non_persistent_buffers_set.add("running_mean"),
    "a buffer that is not kept": lambda t: setattr(t.model, "cache", torch.ones(9)),
    "frozen": lambda t: t.head.weight.requires_grad_(False),
    "another parameter on the same memory": lambda t: setattr(t.outer, "weight", nn.Parameter(t.outer.weight.data)),
    "a moment": replace_moment,
    "a count": lambda t: t.optimizer.state[t.head.bias].update(step=torch.tensor(9.0)),
    "a moment more": lambda t: t.optimizer.state[t.head.bias].update(another=torch.ones(1)),
    "a moment gone": lambda t: t.optimizer.state[t.head.bias].pop("exp_avg"),
    "all moments gone": lambda t: t.optimizer.state.clear(),
    "the order of parameters": swap_parameters,
    "the moments loaded": lambda t: t.optimizer.load_state_dict(t.optimizer.state_dict()),
    "a hook that renames": lambda t: t.head.register_state_dict_post_hook(
        lambda module, state, prefix, metadata: state.update(renamed=state.pop("bias"))
    ),
    "a state_dict of its own": lambda t: setattr(t.head, "state_dict", lambda **_: {"w": t.head.weight}),
    "a hook of the optimizer": lambda t: t.optimizer.register_state_dict_post_hook(
        lambda optimizer, state: {**state, "more": 1}
    ),
}


@pytest.mark.parametrize("change", SEEN_AT_A_GLANCE)
def test_a_glance_gives_what_a_new_look_gives(change: str) -> None:
    """The same tree, of the same tensors in the same image, whatever was changed since the state was last taken."""
    training = Training()
    inventory = training.inventory()
    for _ in range(2):
        inventory.take(closely=False)
    SEEN_AT_A_GLANCE[change](training)
    glanced, looked = inventory.take(closely=False), training.inventory().take(closely=True)
    assert inventory.is_as_taken()
    assert json.loads(glanced[1].objects) == json.loads(looked[1].objects)
    assert addresses(glanced) == addresses(looked)
    assert same(tree(glanced), tree(looked))
    assert (set(glanced[0].behind), glanced[1].aliases) == (set(looked[0].behind), looked[1].aliases)


IN_PLACE: dict[str, Callable[[Training], object]] = {
    "another shape": lambda t: setattr(t.head.weight, "data", t.head.weight.data.view(3, 1)),
    "other strides": lambda t: setattr(t.inner.weight, "data", t.inner.weight.data.view(3, 4).t()),
    "another dtype": lambda t: setattr(t.head.weight, "data", t.head.weight.data.view(torch.int32)),
}


@pytest.mark.parametrize("change", [*IN_PLACE, "of a moment"])
def test_what_no_glance_sees_is_found_before_the_snapshot_counts(change: str) -> None:
    """Whoever takes a close look at once gets it right; the next glance does as well."""

    def act(training: Training) -> None:
        if change in IN_PLACE:
            training.head.weight.requires_grad_(False)
            training.inner.weight.requires_grad_(False)
            IN_PLACE[change](training)
        else:
            training.optimizer.state[training.head.weight]["exp_avg"].unsqueeze_(0)

    for closely in (True, False):
        training = Training()
        inventory = training.inventory()
        inventory.take(closely=False)
        act(training)
        if not closely:
            inventory.take(closely=False)
            assert not inventory.is_as_taken()
        taken = inventory.take(closely=closely)
        assert inventory.is_as_taken()
        assert same(tree(taken), tree(training.inventory().take(closely=True)))


def test_the_first_image_stays_the_very_same_while_nothing_of_it_moves() -> None:
    """What follows from it, layout and copies, is then known as well."""
    training = Training()
    inventory = training.inventory()
    first, own = inventory.take(closely=False)
    assert own.aliases == {"state.extra.best": "state.model.0.weight"}
    training.step()
    training.scheduler.step()
    training.extra["losses"].append(1.0)
    assert inventory.take(closely=False)[0] is first
    training.optimizer.state.clear()
    assert inventory.take(closely=False)[0] is not first


class Custom(nn.Linear):
    """Saves what it likes."""

    def get_extra_state(self) -> int:
        return 7

    def set_extra_state(self, state: int) -> None:
        """It is always the same."""


def test_only_what_torch_itself_captures_has_a_witness() -> None:
    """Anything else is captured anew each time."""
    linear = nn.Linear(2, 2)
    with_witness = {
        "model": linear,
        "average": AveragedModel(linear),
        "adam": torch.optim.AdamW(linear.parameters()),
        "momentum": torch.optim.SGD(linear.parameters(), momentum=0.9),
    }
    without = {"custom": nn.Sequential(Custom(2, 2)), "searching": torch.optim.LBFGS(linear.parameters()), "plain": {}}

    def loss() -> torch.Tensor:
        found: torch.Tensor = linear(torch.ones(1, 2)).square().sum()
        found.backward()
        return found

    without["searching"].step(loss)  # type: ignore[attr-defined]  # of the two kinds in the dict only this one steps
    for state, has in ((with_witness, True), (without, False)):
        for name, part in parts_of(state).items():
            assert (witness_of(part) is not None) == has, name


def test_a_hook_that_prepares_a_module_is_called_before_each_glance() -> None:
    """FSDP2 puts its sharded parameters in place so."""
    model, whole = nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2))
    shard = model.weight
    inventory = Inventory(parts_of({"model": nn.Sequential(model)}), dict)

    def put_shard_back(module: nn.Module, prefix: str, keep_vars: bool) -> None:
        assert (module, prefix, keep_vars) == (model, "0.", True)
        model.weight = shard

    model.register_state_dict_pre_hook(put_shard_back)
    first, _ = inventory.take(closely=False)
    model.weight = whole
    assert inventory.take(closely=False)[0] is first
    assert model.weight is shard


def test_what_begins_to_overlap_is_refused_as_long_as_it_does() -> None:
    """Moments that an optimizer makes as views of one buffer, which it keeps as well, would come back apart."""
    training = Training()
    inventory = training.inventory()
    inventory.take(closely=False)
    state = training.optimizer.state[training.outer.weight]
    state["all"] = torch.zeros(24)
    kept = state["exp_avg"]
    state["exp_avg"] = state["all"][:12].view_as(training.outer.weight)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"'all'\].* shares a part of its memory with .*'exp_avg'\]"):
            inventory.take(closely=False)
    state["exp_avg"] = kept
    inventory.take(closely=False)
