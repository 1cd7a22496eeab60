# SPDX-License-Identifier: Apache-2.0
"""Tests of what is copied behind the training, and of what makes it wait instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resilient.checkpoint.tensors import flatten
from resilient.training import steady
from resilient.training.state import parts_of

State = dict[str, object]


def trained(*optimizers: torch.optim.Optimizer) -> None:
    """One step of each, so that it has state."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def names(state: State) -> tuple[set[str], set[str]]:
    """What is copied behind the training, and what at once."""
    parts = parts_of(state)
    tree = {name: part.capture() for name, part in parts.items()}
    flat = flatten(tree, path=(), behind=steady.behind(parts))
    return set(flat.behind), set(flat.tensors) - set(flat.behind)


def test_parameters_and_moments_wait_for_nothing_and_buffers_do() -> None:
    """A forward changes running statistics, and nothing else."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False))
    optimizer = torch.optim.AdamW(model.parameters())
    trained(optimizer)
    behind, at_once = names({"model": model, "optimizer": optimizer})
    assert behind == {"model.0.weight", *(f"optimizer.state.0.{key}" for key in ("step", "exp_avg", "exp_avg_sq"))}
    assert at_once == {f"model.1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}


def test_each_of_several_optimizers_counts() -> None:
    """Also one whose parameters are in no module of the state."""
    free = nn.Parameter(torch.ones(2))
    model = nn.Linear(2, 2, bias=False)
    one, two = torch.optim.SGD(model.parameters(), momentum=0.9), torch.optim.Adagrad([free])
    trained(one, two)
    behind, at_once = names({"model": model, "one": one, "two": two, "free": {"it": free}})
    assert behind == {
        "model.weight", "one.state.0.momentum_buffer", "two.state.0.step", "two.state.0.sum", "free.it"
    }  # fmt: skip
    assert at_once == set()


def test_tied_parameters_are_behind_once_and_those_of_no_optimizer_are_not() -> None:
    """A tied one lies in the image under its first name; a frozen one may be somebody's who changes it by hand."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    model["c"] = nn.Linear(2, 2, bias=False).requires_grad_(False)
    optimizer = torch.optim.SGD(model["a"].parameters())
    assert names({"model": model, "o": optimizer}) == ({"model.a.weight"}, {"model.c.weight"})


def test_an_average_is_copied_at_once() -> None:
    """It is updated beside the optimizer, often in ways that raise no version."""
    model = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    behind, at_once = names({"model": model, "o": optimizer, "ema": AveragedModel(model)})
    assert behind == {"model.weight"}
    assert at_once == {"ema.module.weight", "ema.n_averaged"}


def test_what_has_no_version_is_copied_at_once() -> None:
    """Nobody would notice a change of an inference tensor."""
    model = nn.Linear(2, 2, bias=False)
    with torch.inference_mode():
        made = nn.Parameter(torch.ones(2), requires_grad=False)
    assert made.is_inference()
    optimizer = torch.optim.SGD([model.weight, made])
    assert names({"model": model, "o": optimizer, "made": {"it": made}}) == ({"model.weight"}, {"made.it"})


def test_a_module_that_clones_what_it_gives_is_copied_at_once() -> None:
    """Plain tensors, whoever made them, may be somebody's who changes them."""

    class Cloning(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {key: value.clone() for key, value in super().state_dict(*args, **kwargs).items()}

    assert names({"model": Cloning(2, 2)}) == (set(), {"model.weight", "model.bias"})


def linear() -> nn.Module:
    return nn.Linear(2, 2)


OBJECTIONS: dict[str, tuple[Callable[[], State], str]] = {
    "sgd": (lambda: {"o": torch.optim.SGD(linear().parameters())}, ""),
    "adam": (lambda: {"m": linear(), "o": torch.optim.AdamW(linear().parameters())}, ""),
    "nothing": (lambda: {}, "no torch.optim.Optimizer"),
    "no optimizer": (lambda: {"m": linear()}, "no torch.optim.Optimizer"),
    "capturable": (lambda: {"o": torch.optim.Adam(linear().parameters(), capturable=True)}, "captured graph"),
    "capturable group": (
        lambda: {"o": torch.optim.Adam([{"params": list(linear().parameters()), "capturable": True}])},
        "captured graph",
    ),
    "embedding": (lambda: {"m": nn.Embedding(3, 2), "o": torch.optim.SGD(linear().parameters())}, ""),
    "max_norm": (
        lambda: {"m": nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), "o": torch.optim.SGD(linear().parameters())},
        "max_norm",
    ),
    "bag": (
        lambda: {"m": nn.EmbeddingBag(3, 2, max_norm=1.0), "o": torch.optim.SGD(linear().parameters())},
        "max_norm",
    ),
}


@pytest.mark.parametrize("kind", OBJECTIONS)
def test_what_makes_the_training_wait_is_said(kind: str) -> None:
    """Each reason names what it is in the script; an ordinary training has none."""
    state, words = OBJECTIONS[kind]
    found = steady.objection(parts_of(state()))
    assert words in found
    assert bool(found) == bool(words)
