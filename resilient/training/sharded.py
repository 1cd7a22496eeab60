# SPDX-License-Identifier: Apache-2.0
"""What a rank has of a saved DTensor, on its way to become a part of the live state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A local tensor that was read, with the live ranks that it belongs on."""

    local: Tensor
    shape: torch.Size
    """Of the whole."""
    form: Callable[[Tensor], Tensor]
    """Makes the DTensor of a local tensor, sharing its memory."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.local.dtype

    def made(self) -> Tensor:
        """The DTensor, in memory of its own."""
        return self.form(self.local.clone())
