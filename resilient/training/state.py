# SPDX-License-Identifier: Apache-2.0
"""The parts of a training's state: how each kind is captured, checked and put back.

A part never keeps a tensor that it was given: what is loaded may be a view of
memory that is written over by the next snapshot. Parts that are loaded with one
memo share what they shared when they were saved, as far as that is known of tensors.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from resilient.checkpoint.tensors_sharded import is_dtensor, local_of, sharding_of
from resilient.core.grammar import type_of
from resilient.errors import SettingsError
from resilient.training.sharded import Block

_ON_HOST: Final = "step"
"""Key of the state that stays on the host, unless the optimizer is capturable or fused."""


Memo: TypeAlias = dict[int, Any]
"""What each saved object, by its id, came back as; like that of :func:`copy.deepcopy`."""


class Part(Protocol):
    """One entry of ``Run(state=...)``."""

    def capture(self) -> object:
        """Its state as a tree of tensors and objects, not copied."""

    def differences(self, saved: Any) -> list[str]:
        """Why ``saved`` cannot be loaded; empty when it can. Changes nothing."""

    def load(self, saved: Any, memo: Memo | None = None) -> None:
        """Put ``saved`` in place; what ``memo`` knows already becomes the same object again."""


def parts_of(state: Mapping[str, object]) -> dict[str, Part]:
    """The parts of ``Run(state=...)``; anything that cannot be put back later is refused now."""
    if not isinstance(state, Mapping):
        raise SettingsError(f"cannot use state: it is {type_of(state)}; do Run(state={{'model': model}})")
    parts = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name:
            raise SettingsError(f"cannot use state[{name!r}]: keys are names; use a string that is not empty")
        part = _part(name, value)
        if part is not None:
            parts[name] = part
    return parts


def in_load_order(parts: Mapping[str, Part]) -> list[tuple[str, Part]]:
    """Those first whose tensors lie where they lie: what is tied to them is then tied to the live ones."""
    places = {ModulePart: 0, OptimizerPart: 1}
    return sorted(parts.items(), key=lambda item: places.get(type(item[1]), 2))


def _part(name: str, value: object) -> Part | None:
    if isinstance(value, type):
        raise SettingsError(f"cannot use state[{name!r}]: {value.__name__} is a class; pass an object of it")
    if isinstance(value, nn.Module):
        return ModulePart(value)
    if isinstance(value, Optimizer):
        return OptimizerPart(value)
    if isinstance(value, DataLoader):
        return None  # `run.batches` keeps its position, also that of one with a state_dict
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return StatefulPart(value)
    if isinstance(value, (dict, list)):
        return ContainerPart(value)
    raise SettingsError(
        f"cannot use state[{name!r}]: {type_of(value)} could be saved but not put back in place; "
        "pass something with state_dict and load_state_dict, a dict, or a list"
    )


class ModulePart:
    """A module; inside DDP or ``torch.compile`` the bare one, so that wrapping it is free to change."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def module(self) -> nn.Module:
        """The bare module."""
        module = self._module
        while True:
            if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
                module = module.module
            elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
                module = cast(nn.Module, module._orig_mod)
            else:
                return module

    def capture(self) -> dict[str, Any]:
        module = self.module
        if type(module).state_dict is not nn.Module.state_dict:
            return dict(module.state_dict())  # the user's own, which takes what it takes
        # The parameters themselves: what was found out about them is known at the next snapshot.
        return dict(module.state_dict(keep_vars=True))

    def differences(self, saved: Any) -> list[str]:
        live = self.capture()
        if not isinstance(saved, dict):
            return ["not a module's state"]
        found = [f"{key}: in the model, not in what was saved" for key in live.keys() - saved.keys()]
        found += [f"{key}: saved, but not in the model" for key in saved.keys() - live.keys()]
        for key in live.keys() & saved.keys():
            if _form(live[key]) != _form(saved[key]):
                found.append(f"{key}: saved as {_form(saved[key])}, the model has {_form(live[key])}")
        return sorted(found)

    def load(self, saved: Any, memo: Memo | None = None) -> None:
        memo = {} if memo is None else memo
        module, before = self.module, self.capture()
        state = OrderedDict(
            (k, value if isinstance(value, Tensor) else owned(value, memo)) for k, value in saved.items()
        )
        # A saved state is of the same code, so of the versions that the modules have now.
        state._metadata = getattr(module.state_dict(), "_metadata", {})  # type: ignore[attr-defined]  # torch's own word
        module.load_state_dict(state)
        lent = {value.untyped_storage().data_ptr() for value in saved.values() if isinstance(value, Tensor)}
        live = (local_of(value) for value in self.capture().values() if isinstance(value, Tensor))
        if any(value.untyped_storage().data_ptr() in lent for value in live if value.numel()):
            # A module of the user's keeps what it is given instead of copying it.
            _place_beside(before, saved, memo)
            module.load_state_dict(OrderedDict((key, owned(value, memo)) for key, value in state.items()))
        for key, value in self.capture().items():
            if isinstance(value, Tensor) and isinstance(saved.get(key), (Tensor, Block)):
                memo[_key(saved[key])] = value.detach()


class OptimizerPart:
    """A torch optimizer; a fresh one has no state yet, so saved state is checked against its parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def capture(self) -> object:
        return self.optimizer.state_dict()

    def parameters(self) -> list[Tensor]:
        """Those that it changes, in the order in which its state numbers them."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def differences(self, saved: Any) -> list[str]:
        groups = saved.get("param_groups") if isinstance(saved, dict) else None
        if not isinstance(groups, list) or not isinstance(saved.get("state"), dict):
            return ["not an optimizer's state"]
        live = self.optimizer.param_groups
        if [_group_size(group) for group in groups] != [len(group["params"]) for group in live]:
            return ["saved with other parameter groups than the optimizer has"]
        missing = sorted({key for group in groups for key in self.optimizer.defaults.keys() - group.keys()})
        if missing:
            return [f"param_groups: saved without {missing[0]!r}; was it another kind of optimizer?"]
        return self._shape_differences(saved["state"])

    def _shape_differences(self, state: dict[Any, Any]) -> list[str]:
        parameters = self.parameters()
        found: list[str] = []
        # LBFGS keeps what belongs to all of them with the first.
        is_per_parameter = self._is_torchs_own() and not isinstance(self.optimizer, LBFGS)
        for index, values in state.items():
            if not isinstance(index, int) or not 0 <= index < len(parameters) or not isinstance(values, dict):
                return [f"state[{index!r}]: not the state of one of the {len(parameters)} parameters"]
            for key, value in values.items():
                if is_per_parameter and (why := _misfit(value, parameters[index])):
                    found.append(f"state[{index}].{key}: {why}")
        return found

    def _is_torchs_own(self) -> bool:
        """Others may keep state of any shape for a parameter."""
        return type(self.optimizer).__module__.startswith("torch.optim")

    def prepare(self, saved: Any, memo: Memo) -> list[tuple[Tensor, Tensor]]:
        """Give what has to lie beside the parameters its memory, ahead of ``load``; nothing live is touched.

        What is to be copied there, each source with its target, is left to the caller: before ``load``.
        """
        copies: list[tuple[Tensor, Tensor]] = []
        parameters = self.parameters()
        for index, values in saved["state"].items():
            for key, value in values.items():
                if isinstance(value, (Tensor, Block)) and key != _ON_HOST and _key(value) not in memo:
                    source, fresh = _made_like(parameters[index], value, memo)
                    copies.append((source, fresh))
        return copies

    def load(self, saved: Any, memo: Memo | None = None) -> None:
        memo = {} if memo is None else memo
        parameters = self.parameters()
        state = {
            index: {key: _beside(parameters[index], key, value, memo) for key, value in values.items()}
            for index, values in saved["state"].items()
        }
        for group, known in zip(self.optimizer.param_groups, saved["param_groups"], strict=True):
            _place_beside(group, known, memo)
        rest = {key: owned(value, memo) for key, value in saved.items() if key != "state"}
        self.optimizer.load_state_dict({**rest, "state": state})
        for group, fresh in zip(self.optimizer.param_groups, rest["param_groups"], strict=True):
            # They were copied once more: a learning rate that is a tensor may be held elsewhere as well.
            for key, value in fresh.items():
                if (
                    isinstance(value, Tensor)
                    and isinstance(group.get(key), Tensor)
                    and group[key].device == value.device
                ):
                    group[key] = value
        for index, values in state.items():
            live = self.optimizer.state[parameters[index]]
            for key, value in values.items():
                # It was cast to the parameter's dtype: float32 moments of bfloat16 parameters would lose their bits.
                if key != _ON_HOST and isinstance(value, Tensor) and isinstance(live.get(key), Tensor):
                    live[key] = value


class StatefulPart:
    """Anything else with ``state_dict`` and ``load_state_dict``: scheduler, scaler, sampler, the user's own."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def capture(self) -> object:
        return self._value.state_dict()

    def differences(self, saved: Any) -> list[str]:
        # What the user's own classes keep may grow and change; of torch's schedulers the names are fixed.
        if not isinstance(self._value, LRScheduler):
            return []
        live = self.capture()
        if isinstance(saved, dict) and isinstance(live, dict) and saved.keys() == live.keys():
            return []
        return ["saved with other fields than the scheduler has; was it another kind of scheduler?"]

    def load(self, saved: Any, memo: Memo | None = None) -> None:
        memo = {} if memo is None else memo
        _place_beside(self.capture(), saved, memo)
        self._value.load_state_dict(owned(saved, memo))


class ContainerPart:
    """A dict or list of plain data, restored in place: whoever holds it sees what was saved."""

    def __init__(self, value: dict[Any, Any] | list[Any]) -> None:
        self._value = value

    def capture(self) -> object:
        return self._value

    def differences(self, saved: Any) -> list[str]:
        same = isinstance(saved, dict) == isinstance(self._value, dict) and isinstance(saved, (dict, list))
        if not same:
            return [f"saved as {type_of(saved)}, now {type_of(self._value)}"]
        unlike = ((live, one) for live, one in _trained(self._value, saved) if _form(live) != _form(one))
        return [f"saved with {_form(one)} where there is a parameter of {_form(live)}" for live, one in unlike]

    def load(self, saved: Any, memo: Memo | None = None) -> None:
        memo = {} if memo is None else memo
        for live, one in _trained(self._value, saved):
            known = memo.get(_key(one))
            if known is None:
                local_of(live.detach()).copy_(one.local if isinstance(one, Block) else one)
            if known is None or local_of(known).data_ptr() == local_of(live).data_ptr():
                memo[_key(one)] = live  # an optimizer has it, too
        _place_beside(self._value, saved, memo)
        fresh = owned(saved, memo)
        self._value.clear()
        if isinstance(self._value, dict):
            self._value.update(fresh)
        else:
            self._value.extend(fresh)


def owned(value: Any, memo: Memo | None = None) -> Any:
    """``value`` with every tensor in it replaced by a copy of one's own; what is one object there stays one."""
    memo = {} if memo is None else memo
    if _key(value) in memo:
        return memo[_key(value)]
    if isinstance(value, Tensor):
        return _noted(value, value.clone(), memo)
    if isinstance(value, Block):
        return _noted(value, value.made(), memo)
    if isinstance(value, (dict, list, deque)):
        fresh = _noted(value, copy.copy(value), memo)  # keeps the kind of container
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            fresh[key] = owned(item, memo)
        return fresh
    return tuple(owned(item, memo) for item in value) if type(value) is tuple else copy.deepcopy(value, memo)


def _noted(value: Any, fresh: Any, memo: Memo) -> Any:
    """``fresh``, remembered; ``value`` is kept as long as the memo, so that its id is not given away."""
    memo[_key(value)] = fresh
    memo.setdefault(id(memo), []).append(value)
    return fresh


def _key(value: object) -> int:
    """What is one in memory is one object again; blocks are made for each mention of it."""
    return id(value.local) if isinstance(value, Block) else id(value)


def _form(value: object) -> str:
    if not isinstance(value, (Tensor, Block)):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)}{' as a DTensor' if _is_sharded(value) else ''}"


def _is_sharded(value: Tensor | Block) -> bool:
    return isinstance(value, Block) or is_dtensor(value)


def _misfit(saved: object, parameter: Tensor) -> str | None:
    """Why saved state cannot belong to a parameter."""
    if not isinstance(saved, (Tensor, Block)):
        return None
    if not _fits(saved.shape, parameter.shape):
        return f"shape {tuple(saved.shape)} for a parameter of {tuple(parameter.shape)}"
    if is_dtensor(parameter) and not _is_sharded(saved) and saved.shape == parameter.shape != ():
        return f"saved as a plain tensor, now for a parameter that is {sharding_of(parameter)}"
    return None


def _group_size(group: object) -> int:
    members = group.get("params") if isinstance(group, dict) else None
    return len(members) if isinstance(members, list) else -1


def _fits(saved: torch.Size, parameter: torch.Size) -> bool:
    """Whether state of one shape can belong to a parameter: of its shape, or reduced along some dimensions."""
    return len(saved) != len(parameter) or all(a in (1, b) for a, b in zip(saved, parameter, strict=True))


def _beside(parameter: Tensor, key: str, value: Any, memo: Memo) -> Any:
    """A copy of one's own, in its own dtype, where the optimizer wants it."""
    if not isinstance(value, (Tensor, Block)) or key == _ON_HOST:
        return owned(value, memo)
    known = memo.get(_key(value))
    if isinstance(known, Tensor) and known.device == parameter.device:
        return known
    source, fresh = _made_like(parameter, value, memo)
    fresh.copy_(source)
    return memo[_key(value)]


def _made_like(live: Tensor, saved: Tensor | Block, memo: Memo) -> tuple[Tensor, Tensor]:
    """What is to be copied, and where to: memory for what was saved, on the device of ``live``, remembered.

    An image knows no strides. Where both have one shape it is laid out as ``live`` is, as torch's optimizers lay out
    what they keep for a parameter: fused ones go through the memory of both in step, whatever the strides.
    """
    source, there = (saved.local if isinstance(saved, Block) else saved), local_of(live)
    model = there if there.shape == source.shape else source
    fresh = torch.empty_like(model, dtype=source.dtype, device=there.device, requires_grad=False)
    _noted(saved, saved.form(fresh) if isinstance(saved, Block) else fresh, memo)
    return source, fresh


def _trained(live: object, saved: object) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter that plain data holds, with what was saved in its place; others have to stay the same object too,
    but who else holds a tensor that nobody trains is not known."""
    if isinstance(live, Tensor) and live.requires_grad and live.is_leaf:
        yield live, saved
    elif isinstance(saved, dict) and isinstance(live, dict):
        for key in saved.keys() & live.keys():
            yield from _trained(live[key], saved[key])
    elif isinstance(saved, (list, tuple, deque)) and isinstance(live, (list, tuple, deque)):
        for one, other in zip(live, saved, strict=False):
            yield from _trained(one, other)


def _place_beside(live: object, saved: object, memo: Memo) -> None:
    """Have each saved tensor come back on the device, and laid out, as the one that is now in its place."""
    if isinstance(saved, (Tensor, Block)):
        if isinstance(live, Tensor) and _key(saved) not in memo:
            source, fresh = _made_like(live, saved, memo)
            fresh.copy_(source)
    elif isinstance(saved, dict) and isinstance(live, dict):
        for key in saved.keys() & live.keys():
            _place_beside(live[key], saved[key], memo)
    elif isinstance(saved, (list, tuple, deque)) and isinstance(live, (list, tuple, deque)):
        for one, other in zip(live, saved, strict=False):
            _place_beside(one, other, memo)
