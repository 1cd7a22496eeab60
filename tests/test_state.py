# SPDX-License-Identifier: Apache-2.0
"""Tests of the parts of a state: captured, checked, and put back as one's own."""

from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from torch import nn

from resilient.errors import SettingsError
from resilient.training.state import ContainerPart, ModulePart, OptimizerPart, owned, parts_of


def trained(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Linear(3, 2).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.rand(4, 3, dtype=dtype)).sum().backward()
        optimizer.step()
    return model, optimizer


def test_optimizer_state_comes_back_in_its_own_dtype() -> None:
    """float32 moments of bfloat16 parameters keep every bit, though load_state_dict casts them."""
    model, optimizer = trained(torch.bfloat16)
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-7
    saved = owned(OptimizerPart(optimizer).capture())
    fresh = torch.optim.AdamW(model.parameters())
    part = OptimizerPart(fresh)
    assert part.differences(saved) == []
    part.load(saved)
    for parameter in model.parameters():
        assert fresh.state[parameter]["exp_avg"].dtype == torch.float32
        assert torch.equal(fresh.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
        assert torch.equal(fresh.state[parameter]["exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])
        assert torch.equal(fresh.state[parameter]["step"], optimizer.state[parameter]["step"])


def addresses(value: Any) -> set[int]:
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, deque)) else ()
    return set().union(*map(addresses, items)) if items else set()


def on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape)
    if isinstance(value, dict):
        return type(value)({key: on_host(item) for key, item in value.items()})
    return [on_host(item) for item in value] if isinstance(value, list) else value


class Hoarder(nn.Module):
    """A module that keeps what load_state_dict gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(2))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.kept = state_dict[prefix + "kept"]


class Tensors:
    """State of the user's own that keeps what it is given."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"deep": [deque([torch.ones(2)], maxlen=3)], "named": OrderedDict(a=torch.ones(1))}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_no_live_tensor_shares_memory_with_what_was_loaded() -> None:
    """The memory of a snapshot is written over by the next one."""
    model, optimizer = trained()
    live: dict[str, Any] = {"m": model, "o": optimizer, "h": Hoarder(), "t": Tensors(), "d": {"x": torch.ones(2)}}
    parts = parts_of(live)
    saved = {name: owned(part.capture()) for name, part in parts.items()}
    for name, part in parts.items():
        part.load(saved[name])
        assert not addresses(saved[name]) & addresses(part.capture()), name
    assert isinstance(live["t"].state["deep"][0], deque)
    assert live["t"].state["deep"][0].maxlen == 3


@pytest.mark.parametrize("fused", [True, False])
def test_channels_last_goes_on_with_the_same_bits(fused: bool) -> None:
    """Fused optimizers go through parameter and moments in the order of memory: both have to be laid out alike."""

    def trained_again(resumed: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Conv2d(3, 4, 3)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
        for step in range(4):
            if resumed and step == 2:
                saved = owned(OptimizerPart(optimizer).capture())
                for values in saved["state"].values():
                    values.update({key: value.contiguous() for key, value in values.items()})  # as an image has it
                optimizer = torch.optim.Adam(model.parameters(), lr=0.5, fused=fused)
                OptimizerPart(optimizer).load(saved)
            optimizer.zero_grad()
            model(torch.rand(2, 3, 5, 5)).square().sum().backward()
            optimizer.step()
        return list(model.parameters())

    assert all(map(torch.equal, trained_again(resumed=True), trained_again(resumed=False)))


def test_tensors_come_back_on_their_devices() -> None:
    """A snapshot lies in host memory; each of its tensors goes where the live one is that it takes the place of."""
    there = torch.device("meta")  # one that every machine has
    model, stateful, hoarder = nn.Linear(1, 1), Tensors(), Hoarder()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=there)
    stateful.state["named"]["a"] = torch.ones(1, device=there)
    hoarder.kept = torch.ones(2, device=there)
    plain: dict[str, Any] = {"average": [torch.ones(2, device=there)], "host": torch.ones(2)}
    for part in parts_of({"o": optimizer, "t": stateful, "h": hoarder, "d": plain}).values():
        part.load(on_host(part.capture()))
    assert optimizer.param_groups[0]["lr"].device == stateful.state["named"]["a"].device == there
    assert hoarder.kept.device == plain["average"][0].device == there
    assert plain["host"].device.type == "cpu"


def test_containers_are_restored_in_place() -> None:
    """Whoever holds the dict or list sees what was saved."""
    counts, seen = {"a": 1}, [1, 2]
    parts = parts_of({"counts": counts, "seen": seen})
    parts["counts"].load({"b": 2})
    parts["seen"].load([3])
    assert (counts, seen) == ({"b": 2}, [3])
    assert parts["seen"].differences({"b": 2}) == ["saved as a dict, now a list"]


def test_a_wrapped_module_is_saved_bare() -> None:
    """Wrapping in DataParallel or torch.compile, or no longer, changes no name."""
    model = nn.Linear(2, 2)
    names = set(model.state_dict())
    assert set(ModulePart(nn.DataParallel(model)).capture()) == names
    compiled: Any = torch.compile(model, backend="eager")
    assert set(ModulePart(compiled).capture()) == names


@pytest.mark.parametrize("value", [3, "text", None, print, nn.Linear, (1, 2), object()])
def test_what_cannot_be_put_back_is_refused_by_name(value: object) -> None:
    """A value that would be saved and never restored is no state."""
    with pytest.raises(SettingsError, match=r"cannot use state\['x'\]"):
        parts_of({"x": value})


def test_a_refusal_is_english() -> None:
    """The article goes by what follows it."""
    with pytest.raises(SettingsError, match=r": an object could be saved"):
        parts_of({"x": object()})
    with pytest.raises(SettingsError, match=r": a str could be saved"):
        parts_of({"x": "text"})


@pytest.mark.parametrize("state", [[1], {1: {}}, {"": {}}])
def test_a_state_without_names_is_refused(state: Any) -> None:
    """Names lead from the file to the object."""
    with pytest.raises(SettingsError, match="cannot use state"):
        parts_of(state)


def test_a_fresh_optimizer_accepts_state_that_fits_its_parameters_only() -> None:
    """It has no state to compare with, so shapes are held against its parameters; nothing is changed."""
    _, optimizer = trained()
    saved = owned(OptimizerPart(optimizer).capture())
    fits = OptimizerPart(torch.optim.AdamW(nn.Linear(3, 2).parameters()))
    other_shape = OptimizerPart(torch.optim.AdamW(nn.Linear(4, 2).parameters()))
    other_groups = OptimizerPart(torch.optim.AdamW(nn.Linear(3, 2, bias=False).parameters()))
    other_kind = OptimizerPart(torch.optim.SGD(nn.Linear(3, 2).parameters()))
    assert fits.differences(saved) == []
    assert "state[0].exp_avg: shape (2, 3) for a parameter of (2, 4)" in other_shape.differences(saved)
    assert other_groups.differences(saved) == ["saved with other parameter groups than the optimizer has"]
    assert "another kind of optimizer" in other_kind.differences(saved)[0]
    saved["state"][7] = {}
    assert fits.differences(saved) == ["state[7]: not the state of one of the 2 parameters"]


def test_a_module_names_each_difference() -> None:
    """Missing, superfluous and other tensors are all listed."""
    saved = {"weight": torch.ones(2, 3), "extra": torch.ones(1)}
    assert ModulePart(nn.Linear(3, 2).half()).differences(saved) == [
        "bias: in the model, not in what was saved",
        "extra: saved, but not in the model",
        "weight: saved as torch.float32 (2, 3), the model has torch.float16 (2, 3)",
    ]


def test_another_scheduler_is_refused() -> None:
    """Schedulers take any dict as their state, so the fields are compared."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    one = parts_of({"s": torch.optim.lr_scheduler.StepLR(optimizer, 3)})["s"]
    other = parts_of({"s": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)})["s"]
    assert one.differences(one.capture()) == []
    assert "another kind" in one.differences(other.capture())[0]


def weights(seed: int) -> tuple[dict[str, Any], torch.optim.Optimizer]:
    """A training whose parameters are in no module."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (torch.nn.Parameter(torch.rand(3, generator=generator)) for _ in range(2))
    return {"weight": weight, "more": [bias], "again": weight}, torch.optim.SGD([weight, bias], lr=0.1)


def test_parameters_in_plain_data_stay_those_that_the_optimizer_has() -> None:
    """Others in their place would be restored, and never trained again."""
    saved, _ = weights(1)
    live, optimizer = weights(2)
    before = list(optimizer.param_groups[0]["params"])
    part = ContainerPart(live)
    assert part.differences(saved) == []
    part.load({key: detached(value) for key, value in saved.items()})

    assert all(one is other for one, other in zip([live["weight"], live["more"][0]], before, strict=True))
    assert torch.equal(live["weight"], saved["weight"])
    assert torch.equal(live["more"][0], saved["more"][0])
    other, _ = weights(3)
    other["more"] = [torch.ones(4)]
    assert part.differences(other) == ["saved with torch.float32 (4,) where there is a parameter of torch.float32 (3,)"]


def test_a_parameter_of_a_module_that_plain_data_has_as_well_stays_itself() -> None:
    """Whoever computes with it there trains the module."""
    module, saved = nn.Linear(2, 2), nn.Linear(2, 2)
    live: dict[str, Any] = {"tied": module.weight}
    memo: dict[int, Any] = {}
    state = {key: value.detach() for key, value in saved.state_dict().items()}
    ModulePart(module).load(state, memo)
    ContainerPart(live).load({"tied": state["weight"]}, memo)
    assert live["tied"] is module.weight
    assert torch.equal(module.weight, saved.weight)


def detached(value: Any) -> Any:
    return [one.detach() for one in value] if isinstance(value, list) else value.detach()
