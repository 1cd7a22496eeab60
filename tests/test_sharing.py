# SPDX-License-Identifier: Apache-2.0
"""Tests of what parts of a state share: one object again after a restore, or refused when the Run is built."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from host import Host
from test_image import image_of
from torch import nn

import resilient
from resilient.checkpoint import image, tensors
from resilient.errors import CheckpointError
from resilient.link.messages import Hello
from resilient.training import restore
from resilient.training.sharing import refuse_unrestorable, unsaved
from resilient.training.state import parts_of


def restored(saved: Mapping[str, object], live: Mapping[str, object]) -> None:
    """Load what is saved of one state into another."""
    captured = {name: part.capture() for name, part in parts_of(saved).items()}
    state: Any = tensors.unflatten(image.read(image_of(captured)))
    candidate = restore.Candidate(name="memory", step=1, state=state, rng={}, data=None)
    restore.load(candidate, parts_of(live))


def test_one_tensor_comes_back_as_one_object() -> None:
    """Under two keys of one part, and in two parts, it is the same tensor again."""
    one = torch.ones(3)
    extra: dict[str, Any] = {}
    other: list[Any] = []
    restored({"extra": {"v1": one, "v2": one}, "other": [one]}, {"extra": extra, "other": other})
    assert extra["v1"] is extra["v2"] is other[0]
    assert torch.equal(extra["v1"], one)


def trained() -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def shared_with(model: nn.Linear, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "weight": model.weight,
        "moment": optimizer.state[model.weight]["exp_avg"],
        "lr": optimizer.param_groups[0]["lr"],
    }


def test_what_is_tied_to_a_live_tensor_is_tied_to_it_again() -> None:
    """A weight, a moment and a learning rate held elsewhere too, in whatever order the parts are named."""
    model, optimizer = trained()
    fresh, fresh_optimizer = trained()
    extra: dict[str, Any] = {}
    restored(
        {"extra": shared_with(model, optimizer), "o": optimizer, "m": model},
        {"extra": extra, "o": fresh_optimizer, "m": fresh},
    )
    assert torch.equal(fresh.weight, model.weight)
    for key, value in shared_with(fresh, fresh_optimizer).items():
        assert extra[key].data_ptr() == value.data_ptr(), key


class Custom:
    """Gives its model's state as it likes."""

    def __init__(self, model: nn.Module, *, copies: bool) -> None:
        self.model = model
        self.copies = copies

    def state_dict(self) -> dict[str, Any]:
        return {key: value.clone() if self.copies else value for key, value in self.model.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state)


def test_an_optimizer_whose_parameters_nothing_holds_is_told_of() -> None:
    """By its name, and how many there are; what holds them may be anything that gives them as they are."""
    model, optimizer = trained()

    def told(**state: object) -> str:
        parts = parts_of(state)
        return unsaved(parts, {name: part.capture() for name, part in parts.items()})

    assert re.match(r"state\['o'\] trains .* \(2\)", told(o=optimizer))
    assert re.match(r"state\['o'\] trains .* \(1\)", told(o=optimizer, weights={"weight": model.weight}))
    assert re.match(r"state\['o'\] trains .* \(2\)", told(o=optimizer, model=Custom(model, copies=True)))
    for state in (model, nn.DataParallel(model), Custom(model, copies=False), {"all": [*model.parameters()]}):
        assert told(o=optimizer, model=state) == ""


def check(state: Mapping[str, object]) -> None:
    parts = parts_of(state)
    refuse_unrestorable(parts, {name: part.capture() for name, part in parts.items()})


LIST = [1]
BASE = torch.arange(6.0)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"extra": {"a": LIST, "b": LIST}}, r"state\['extra'\]\['b'\]: it is the same list as state\['extra'\]\['a'\]"),
        ({"one": [LIST], "two": {"x": (LIST,)}}, r"state\['two'\]\['x'\]\[0\]: it is the same list as state\['one'\]"),
        ({"one": [LIST], "two": LIST}, r"state\['two'\]: it is the same list as state\['one'\]\[0\]"),
        ({"extra": [x := np.ones(2), x]}, r"state\['extra'\]\[1\]: it is the same ndarray"),
        ({"extra": {"a": BASE, "b": BASE[:2]}}, r"state\['extra'\]\['b'\]: it shares a part .*\['extra'\]\['a'\]"),
        ({"extra": [BASE[2:], BASE[:3]]}, r"state\['extra'\]\[1\]: it shares a part of its memory"),
        ({"extra": [BASE, BASE.view(2, 3)]}, r"state\['extra'\]\[1\]: it shares a part of its memory"),
        ({"m": (m := nn.Linear(2, 2)), "extra": [m.weight[0]]}, r"state\['extra'\]\[0\]: .* state\['m'\]\['weight'\]"),
        ({"extra": {"b": torch.ones(1).expand(3)}}, r"state\['extra'\]\['b'\]: .*expanded.*; do keep .contiguous\(\)"),
    ],
)
def test_what_would_come_apart_is_refused(state: dict[str, Any], says: str) -> None:
    """The saved form does not know these, so the path is named, and what to do."""
    with pytest.raises(CheckpointError, match=f"cannot save {says}") as caught:
        check(state)
    assert "; do keep" in str(caught.value)


def refused() -> None:
    try:
        resilient.Run(state={"extra": {"a": LIST, "b": LIST}})
    except CheckpointError as error:
        raise SystemExit(42 if "state['extra']['b']" in str(error) else 1) from None


def test_it_is_refused_when_the_run_is_built() -> None:
    """Not at the first restore, which is too late."""
    with Host() as host:
        host.launch(refused)
        with pytest.raises(AssertionError, match="the workers ended"):
            host.hear(Hello)
        assert host.wait() == [42]


class Views(nn.Module):
    """A buffer that is a view of a parameter; both are restored in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("view", self.weight.detach()[:2])


def sequential() -> object:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    kinds = [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, kinds, milestones=[2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"m": Views()},
        lambda: {"s": sequential()},
        lambda: {"extra": [BASE[:3], BASE[3:], BASE.view(3, 2)[:0]]},
        lambda: {"extra": [BASE.view(3, 2)[:, 0], BASE.view(3, 2)[:, 1]]},
        lambda: {"extra": [BASE, BASE.view(6), (1, 2), (1, 2)]},
        lambda: dict(zip("mo", trained(), strict=True)),
    ],
)
def test_what_comes_back_as_it_is_is_not_refused(make: Callable[[], dict[str, Any]]) -> None:
    """In place, apart within one storage, tied, or named twice by what torch's own state_dict gives."""
    check(make())
