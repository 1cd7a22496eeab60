# SPDX-License-Identifier: Apache-2.0
"""Which tensors nothing but an optimizer's step changes, and where that cannot be relied on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from torch import nn
from torch.optim import Optimizer

from resilient.training.state import ModulePart, OptimizerPart, Part


def behind(parts: Mapping[str, Part]) -> set[int]:
    """Ids of what may be copied while the next forward and backward go on: the parameters of optimizers, and what these
    keep for them. Everything else may change at any time: buffers, and parameters that somebody changes by hand."""
    optimizers = [part.optimizer for part in parts.values() if isinstance(part, OptimizerPart)]
    kept = {id(v) for optimizer in optimizers for values in optimizer.state.values() for v in values.values()}
    return kept | {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def objection(parts: Mapping[str, Part]) -> str:
    """Why these parts have to be copied while the training waits; empty where they need not."""
    optimizers = [part.optimizer for part in parts.values() if isinstance(part, OptimizerPart)]
    modules = [part.module for part in parts.values() if isinstance(part, ModulePart)]
    return next((why for found, why in _OBJECTIONS if found(optimizers, modules)), "")


def _captured(optimizers: Collection[Optimizer], modules: Collection[nn.Module]) -> bool:
    return any(group.get("capturable") for optimizer in optimizers for group in optimizer.param_groups)


def _renormalises(optimizers: Collection[Optimizer], modules: Collection[nn.Module]) -> bool:
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    return any(
        isinstance(module, embeddings) and module.max_norm is not None for top in modules for module in top.modules()
    )


_OBJECTIONS: Final[tuple[tuple[Callable[[Collection[Optimizer], Collection[nn.Module]], bool], str], ...]] = (
    (lambda optimizers, modules: not optimizers, "there is no torch.optim.Optimizer in the state to wait for the copy"),
    (_captured, "an optimizer is capturable: the step of a captured graph waits for nobody"),
    (_renormalises, "an Embedding has max_norm, and so changes its weights in forward"),
)
