# SPDX-License-Identifier: Apache-2.0
"""States come apart into named tensors and text, and whole again; what would not is refused."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from trees import DTYPES, raw, same, states

from resilient.checkpoint.tensors import Flat, Gathering, flatten, tensor_of, unflatten
from resilient.errors import CheckpointError


@settings(max_examples=200)
@given(states)
def test_states_come_back(state: object) -> None:
    """Taking apart and putting together changes no type, order or bit, but makes parameters tensors."""
    back = unflatten(flatten(state))
    assert same(back, unflatten(flatten(back)))
    assert flatten(back).objects == flatten(state).objects


CHANGES: dict[str, Callable[[torch.Tensor], object]] = {
    "transposed": lambda tensor: tensor.t_(),
    "smaller": lambda tensor: tensor.resize_(2, 2),
    "a dimension more": lambda tensor: tensor.unsqueeze_(0),
    "moved": lambda tensor: setattr(tensor, "data", tensor.data.clone()),
    "beginning later": lambda tensor: tensor.set_(tensor.untyped_storage(), 1, (2,), (2,)),
    "of another dtype": lambda tensor: setattr(tensor, "data", tensor.data.view(torch.int64)),
    "conjugate": lambda tensor: setattr(tensor, "data", tensor.data.conj()),
    "emptied": lambda tensor: tensor.untyped_storage().resize_(0),
    "with other bits": lambda tensor: tensor.mul_(2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_gathering_tells_whether_its_tensors_are_read_as_they_were(change: str) -> None:
    """A tensor that stays the same object, at the same place, can still be read in another way; its bits may change."""
    tensor = (torch.arange(6.0) * (1 + 1j)).reshape(2, 3)
    gathering = Gathering()
    gathering.encode({"it": tensor, "same": tensor, "other": torch.ones(2)}, ("state",))
    assert gathering.are_as_they_were()
    CHANGES[change](tensor)
    assert gathering.are_as_they_were() == (change == "with other bits")
    assert gathering.lie_where_they_lay() == (change not in ("moved", "beginning later", "emptied"))


def test_trees_that_are_gathered_one_after_the_other_are_one_state() -> None:
    """Names are given once, and what is tied to a tensor of an earlier tree is kept there."""
    weight = torch.ones(2)
    one = Gathering()
    assert (
        one.encode({"a b": weight, "a_b": torch.zeros(2)}, ("x",))
        == '{"a b":{"$tensor":"x.a_b"},"a_b":{"$tensor":"x.a_b~2"}}'
    )
    two = Gathering(after=one)
    assert two.encode([weight, torch.ones(1)], ("x", "a?b")) == '[{"$tensor":"x.a_b.0"},{"$tensor":"x.a_b.1"}]'
    assert two.encode({"a.b": torch.ones(1)}, ("x",)) == '{"a.b":{"$tensor":"x.a.b"}}'
    assert two.encode({"a%b": torch.ones(1)}, ("x",)) == '{"a%b":{"$tensor":"x.a_b~3"}}'
    assert (set(two.tensors), two.aliases) == ({"x.a_b.1", "x.a.b", "x.a_b~3"}, {"x.a_b.0": "x.a_b"})


def test_names_are_paths() -> None:
    """A person, and any other tool, can tell which tensor is which."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    flat = flatten({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": (torch.get_rng_state(),)})
    assert {
        "state.model.0.weight", "state.model.1.num_batches_tracked", "state.optimizer.state.0.exp_avg",
        "state.optimizer.param_groups.0.lr", "state.rng.0",
    } <= set(flat.tensors)  # fmt: skip
    assert same(unflatten(flat), {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": (torch.get_rng_state(),)
    })  # fmt: skip


def test_a_restored_state_can_be_loaded() -> None:
    """torch's own load_state_dict takes what comes back, versions of modules included."""
    model = torch.nn.BatchNorm1d(2)
    back = unflatten(flatten(model.state_dict()))
    assert isinstance(back, OrderedDict)
    assert vars(back)["_metadata"] == vars(model.state_dict())["_metadata"]
    torch.nn.BatchNorm1d(2).load_state_dict(back)


def test_nothing_is_copied_and_nothing_keeps_the_graph() -> None:
    """A flat state is as cheap as its text: the tensors are the live ones, without their gradients."""
    weight = torch.nn.Parameter(torch.ones(3))
    flat = flatten({"w": weight, "y": weight * 2})
    assert flat.tensors["state.w"].data_ptr() == weight.data_ptr()
    assert not any(tensor.requires_grad for tensor in flat.tensors.values())


def test_hostile_keys_make_plain_and_different_names() -> None:
    """Keys are data; names are for people, files and shells."""
    keys: list[object] = [
        "../../etc", "a b", "a/b", "a\nb", "\ud800", "a.b", "", "x" * 500, "x" * 500 + "y", 1, "1", None,
        "None", False, 1.5,
        (1, 2), b"1", 10**5000, frozenset({"a", "b"}),
    ]  # fmt: skip
    state = {key: torch.tensor(index) for index, key in enumerate(keys)}
    flat = flatten({"m": state})
    assert len(flat.tensors) == len(keys)
    assert all(re.fullmatch(r"state\.m\.[\w.\-]{0,200}(~\d+)?", name, re.ASCII) for name in flat.tensors)
    assert same(unflatten(flat), {"m": state})


@pytest.mark.parametrize("root", [(), ("state",)], ids=["bare", "named"])
def test_a_single_tensor_is_a_state(root: tuple[str, ...]) -> None:
    """Also one that would be called what the format reserves."""
    assert same(unflatten(flatten(torch.ones(2), path=root)), torch.ones(2))
    assert "__metadata__" not in flatten({"__metadata__": torch.ones(2)}, path=root).tensors


def test_tied_tensors_are_kept_once_and_stay_tied() -> None:
    """The same elements are one tensor; another part, shape or reading of the same storage is its own."""
    base = torch.arange(6.0)
    conjugated = torch.ones(2, dtype=torch.complex64)
    square = torch.arange(4.0).reshape(2, 2)
    state = {
        "a": base, "b": base.view(6), "half": base[:3], "rest": base[3:], "square": base.view(2, 3),
        "bits": base.view(torch.int32), "c": conjugated, "d": conjugated.conj(),
        "s": square, "t": square.t(), "e1": torch.empty(0), "e2": torch.empty(0),
    }  # fmt: skip
    flat = flatten(state)
    assert dict(flat.aliases) == {"state.b": "state.a"}
    assert len(flat.tensors) == len(state) - 1
    assert tensor_of(flat, "state.b") is tensor_of(flat, "state.a")
    back = unflatten(flat)
    assert isinstance(back, dict)
    assert back["a"] is back["b"]
    assert same(back, state)


def meta() -> torch.Tensor:
    return torch.ones(2, device="meta")


def sparse() -> torch.Tensor:
    return torch.eye(2).to_sparse()


def compressed() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(2).to_sparse_csr()


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)


def strided_nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])


def uninitialized() -> torch.Tensor:
    return torch.nn.parameter.UninitializedParameter()


def bits() -> torch.Tensor:
    return torch.zeros(2, dtype=torch.uint8).view(torch.bits8)


def deep() -> torch.Tensor:
    return torch.zeros([1] * 64)


class Odd(torch.Tensor):
    """A tensor that may be more than its values."""


def odd() -> torch.Tensor:
    return torch.ones(2).as_subclass(Odd)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (meta, "meta device"), (sparse, "to_dense"), (compressed, "to_dense"), (quantized, "int_repr"),
        (nested, "nested"), (strided_nested, "nested"), (uninitialized, "through its module"), (bits, "bits8"),
        (deep, "64 dimensions"), (odd, "an Odd is more"),
    ],
)  # fmt: skip
def test_tensors_that_bytes_do_not_bring_back_are_refused(make: object, says: str) -> None:
    """Each with its path, and with what to do instead."""
    assert callable(make)
    with pytest.raises(CheckpointError, match=r"^cannot save state\['m'\]\[0\]: .*" + says) as caught:
        flatten({"m": [make()]})
    assert "; do " in str(caught.value)


def test_a_part_of_what_others_have_is_refused() -> None:
    """What torch.distributed makes besides DTensors does not say how it belongs together."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    part = torch.Tensor._make_subclass(AsyncCollectiveTensor, torch.ones(2))
    with pytest.raises(CheckpointError, match=r"state\['m'\]: an AsyncCollectiveTensor is a part of something"):
        flatten({"m": part})


def test_tensors_are_no_keys() -> None:
    """A tensor in a set or as a key is told apart by its address, which does not come back."""
    for state in ({torch.ones(1): 1}, {torch.ones(1)}):
        with pytest.raises(CheckpointError, match=r"torch\.Tensor is not a type"):
            flatten(state)


@pytest.mark.parametrize(
    "objects",
    [
        '{"$tensor":"b"}', '{"$tensor":1}', "[]", '[{"$tensor":"a"},{"$tensor":"a"}]',
        '[{"$tensor":"a"},{"$dtype":"load"}]',
        '[{"$tensor":"a"},{"$dtype":1}]', '[{"$tensor":"a"},{"$Size":[1.5]}]', '[{"$tensor":"a"},{"$Size":[[]]}]',
        '[{"$tensor":"a"},{"$Size":[99999999999999999999]}]',
    ],
)  # fmt: skip
def test_text_that_does_not_fit_the_tensors_is_refused(objects: str) -> None:
    """A tensor is used exactly once, a dtype is one of torch's, and nothing else of torch can be named."""
    with pytest.raises(CheckpointError, match=r"^cannot read the objects of a checkpoint: .+; do "):
        unflatten(Flat(tensors={"a": torch.ones(1)}, aliases={}, objects=objects))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_bits(dtype: torch.dtype) -> None:
    """Also as a value of its own, which is what a mixed-precision setting is."""
    tensor = torch.frombuffer(bytearray([0, 1] * 8), dtype=dtype)
    back = unflatten(flatten([tensor, dtype]))
    assert isinstance(back, list)
    assert (raw(back[0]), back[1]) == (bytes([0, 1] * 8), dtype)
