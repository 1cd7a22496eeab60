# SPDX-License-Identifier: Apache-2.0
"""Seeing at a glance that a part of the state would be captured as it was the last time.

Walking a model and its optimizer costs microseconds for each of thousands of tensors, while the training
waits. What they are made of hardly ever changes: so its dicts, and what is in them, are remembered,
and compared by identity. Whatever makes a state in another way than torch's own ``state_dict`` has no witness,
and is captured anew each time; so it is too where torch keeps its dicts elsewhere than it did.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sized
from itertools import chain
from typing import Any, Final, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from resilient.training.state import ModulePart, OptimizerPart, Part

_Seen: TypeAlias = tuple[list[Collection[object]], Iterable[Iterable[object]], Iterable[Sized]]
"""Containers, the values of those among them that have values, and what may change but not grow."""
_Look: TypeAlias = Callable[[], _Seen]
_NAMES: Final = ("_parameters", "_modules", "_buffers", "_non_persistent_buffers_set", "_state_dict_pre_hooks")
_TABLES: Final = operator.attrgetter(*_NAMES, "_state_dict_hooks")
_UNCHANGING: Final = (Tensor, type(None), bool, int, float, str)
"""What has another identity when it has another value; tensors are compared by their versions elsewhere."""


class Witness:
    """Remembers what a state was read from."""

    def __init__(self, look: _Look) -> None:
        self._look = look
        containers, values, sized = look()
        self._lengths = [*map(len, chain(containers, sized))]
        self._members = [*_members(containers, values)]

    def holds(self) -> bool:
        """Whether the same objects are in the same places."""
        containers, values, sized = self._look()
        if [*map(len, chain(containers, sized))] != self._lengths:
            return False
        return all(map(operator.is_, _members(containers, values), self._members))


def witness_of(part: Part) -> Witness | None:
    """For a module or optimizer whose ``state_dict`` is torch's own; of the latter without its ``param_groups``."""
    try:
        if isinstance(part, ModulePart):
            return _of_module(part)
        return _of_optimizer(part.optimizer) if isinstance(part, OptimizerPart) else None
    except (AttributeError, TypeError):
        return None


def _members(containers: Iterable[Collection[object]], values: Iterable[Iterable[object]]) -> Iterable[object]:
    return chain(chain.from_iterable(containers), chain.from_iterable(values))


def _of_module(part: ModulePart) -> Witness | None:
    named = [*part.module.named_modules(remove_duplicate=False)]
    modules = [module for _, module in named]
    if not all(map(_saves_as_torch_does, modules)):
        return None
    # Persistent buffers only: others may be new ones in each forward.
    buffered = [module for module in modules if module._buffers.keys() - module._non_persistent_buffers_set]
    hooks = [
        (hook, module, f"{name}." if name else "")
        for name, module in named
        for hook in module._state_dict_pre_hooks.values()
    ]

    def look() -> _Seen:
        for hook, module, prefix in hooks:
            hook(module, prefix, True)  # FSDP2's puts the sharded parameters in place
        containers = [*chain.from_iterable(map(_TABLES, modules))]
        parameters = chain.from_iterable((module._parameters.values(), module._modules.values()) for module in modules)
        values = chain(parameters, (module._buffers.values() for module in buffered), ((part.module,),))
        return containers, values, map(vars, modules)  # a state_dict of an object's own is one more attribute

    return Witness(look)


def _saves_as_torch_does(module: nn.Module) -> bool:
    kind = type(module)
    return (
        kind.state_dict is nn.Module.state_dict
        and kind._save_to_state_dict is nn.Module._save_to_state_dict
        and kind.get_extra_state is nn.Module.get_extra_state
        and not module._state_dict_hooks
        and vars(module).keys().isdisjoint(("state_dict", "_save_to_state_dict", "get_extra_state"))
    )


def _of_optimizer(optimizer: Optimizer) -> Witness | None:
    values = chain.from_iterable(state.values() for state in optimizer.state.values())
    if type(optimizer).state_dict is not Optimizer.state_dict or "state_dict" in vars(optimizer):
        return None
    if _hooks_of(optimizer) != [{}, {}] or not all(isinstance(value, _UNCHANGING) for value in values):
        return None

    def look() -> _Seen:
        groups, state = optimizer.param_groups, optimizer.state
        lists = [group["params"] for group in groups]
        kept: list[dict[str, Any]] = [*state.values()]
        return [groups, *lists, state, *kept, *_hooks_of(optimizer)], map(dict.values, kept), [vars(optimizer)]

    return Witness(look)


def _hooks_of(optimizer: Optimizer) -> list[Collection[object]]:
    return [optimizer._optimizer_state_dict_pre_hooks, optimizer._optimizer_state_dict_post_hooks]
