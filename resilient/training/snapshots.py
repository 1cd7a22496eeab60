# SPDX-License-Identifier: Apache-2.0
"""Taking a snapshot: the state of a rank as an image in memory that outlives the worker."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from resilient.checkpoint import digest, image, tensors
from resilient.checkpoint.arena import Slot
from resilient.link.attach import Attachment
from resilient.link.board import SlotRecord
from resilient.link.messages import NotTaken, Taken
from resilient.supervisor.samples import memory_available


class Snapshots:
    """The two slots of this rank, and how its state gets into them."""

    def __init__(self, attachment: Attachment, capture: Callable[[], dict[str, Any]]) -> None:
        self._attachment = attachment
        self._capture = capture
        self._layout: image.Layout | None = None
        self._warned = False
        self.slots: Sequence[Slot] = [Slot.from_fd(fd) for fd in attachment.slot_fds]
        self.attempt = 0

    def take(self, step: int, slot: int) -> bool:
        """Take the state after ``step`` into a slot, and tell the host; training goes on where that fails."""
        begun = time.monotonic()
        try:
            self._take(step, slot)
        except Exception as error:  # state_dict is the user's code, and a missed snapshot must not end the training
            self._say_not_taken(step, slot, f"{type(error).__name__}: {error}")
            return False
        self._attachment.send(Taken(step=step, slot=slot, stall_s=time.monotonic() - begun))
        return True

    def _take(self, step: int, slot: int) -> None:
        index, board = self._attachment.index, self._attachment.board
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a stream of the user's may still be writing
        flat = tensors.flatten(self._capture(), path=())
        self._layout = layout = image.plan(flat, self._layout)
        arena = self.slots[slot]
        arena.reserve(layout.size_bytes, memory_available())
        view = arena.view(layout.size_bytes)
        board.void(index, slot)
        image.write(flat, layout, view)
        record = SlotRecord(
            slot=slot, attempt=self.attempt, step=step, size=layout.size_bytes, digest=digest.digest(view)
        )
        board.publish(index, record)

    def _say_not_taken(self, step: int, slot: int, why: str) -> None:
        self._attachment.send(NotTaken(step=step, slot=slot, why=why[:4096]))
        if not self._warned:
            self._warned = True
            warnings.warn(f"cannot take a snapshot of step {step}: {why}; training goes on without it", stacklevel=2)
