# SPDX-License-Identifier: Apache-2.0
"""Taking a snapshot: the state of a rank as two images in memory that outlive the worker.

At the boundary of a step everything is laid out, and what may change at any time is copied.
Parameters and optimizer state follow behind the next forward and backward, and the first
optimizer to step waits until they are copied. The digests are made as soon as they are, and
the host may begin to write the slot to the store; when that step has found nothing changed,
it counts as whole.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from resilient.checkpoint import digest, pair
from resilient.checkpoint.arena import NoRoom
from resilient.checkpoint.tensors import Flat
from resilient.link.attach import Attachment
from resilient.link.board import SPILL, Extent, SlotRecord
from resilient.link.messages import Copied, Note, NotTaken, Taken
from resilient.supervisor.samples import memory_available
from resilient.training import spill, steady
from resilient.training.arenas import Arenas, Preparing
from resilient.training.copying import Batch, Copying, copy_now
from resilient.training.inventory import Inventory
from resilient.training.state import Part

Fence = list[Callable[[], None] | None]
"""One element: what has to be called before parameters may change, while something is being copied."""
_MOVED: Final = "the memory of the state, or its shape, was changed"
_CHANGED: Final = "a parameter or the state of an optimizer was changed before the optimizer's step"


class Snapshots:
    """How the state of this rank gets into its slots."""

    def __init__(
        self, attachment: Attachment, parts: Mapping[str, Part], own: Callable[[], dict[str, Any]], fence: Fence
    ) -> None:
        """``own`` gives what is the rank's own, apart from the user's names."""
        self._attachment = attachment
        self._parts = parts
        self._inventory = Inventory(parts, own)
        self._fence = fence
        self._plan: pair.Pair | None = None
        self._batches: dict[int, tuple[pair.Copies, Batch]] = {}
        """By slot, with what it was made of."""
        self._waits = ""
        """Why the training waits for its copies; empty where it does not."""
        self._looks = 0
        """How often that was looked at."""
        self._moved = False
        """The last snapshot was dropped for a change of its memory."""
        self._behind: threading.Thread | None = None
        self._hooked = False
        self._warned = False
        board = attachment.board
        self.arenas = Arenas(
            attachment.slot_fds,
            ranks=board.rows,
            say=self._say,
            free_bytes=lambda: memory_available(inherited=board.inherited_bytes),
        )
        self._places = [pair.Places() for _ in self.arenas.slots]
        self.attempt = 0
        self.metrics: dict[str, float] = {}
        """The last value of each metric that the script has given."""

    def take(self, step: int, slot: int, *, last: bool = False) -> bool:
        """Take the state after ``step`` into a slot, and tell the host; training goes on where that fails.

        The ``last`` one is whole on return, others may become so later. False where it was not even begun.
        """
        begun = time.monotonic()
        self.finish()
        try:
            taking = self._lay_out(step, slot, last)
        except Preparing as preparing:
            self._attachment.send(NotTaken(step=step, slot=slot, why=str(preparing), soon=True))
            return False
        except Exception as error:  # state_dict is the user's code, and a missed snapshot must not end the training
            self._say_not_taken(step, slot, error)
            return False
        taking.stall_s = time.monotonic() - begun
        if taking.copying is None:
            return self._complete(taking)
        self._fence[0] = lambda: self._wait(taking)
        behind = threading.Thread(target=self._complete, args=(taking,), name="resilient-snapshot")
        try:
            behind.start()
        except RuntimeError:  # no thread is to be had: the container's limit of processes counts them
            self._fence[0] = None
            return self._complete(taking)
        self._behind = behind
        return True

    def finish(self) -> None:
        """Wait until nothing is copied any more."""
        if (fence := self._fence[0]) is not None:
            fence()
        if self._behind is not None:
            self._behind.join()
            self._behind = None
        self._fence[0] = None

    def _lay_out(self, step: int, slot: int, last: bool) -> _Taking:
        index, board = self._attachment.index, self._attachment.board
        closely = last or slot == SPILL or bool(self._waits)
        first, own = self._inventory.take(closely=closely)
        waits = self._must_wait() or closely
        self._plan = plan = pair.plan(first, own, self._plan)
        self.arenas.make_room(slot, plan.size_bytes, at_once=last)
        board.void(index, slot)
        if waits and torch.cuda.is_initialized():
            for device in {
                tensor.device for flat in (first, own) for tensor in flat.tensors.values() if tensor.is_cuda
            }:
                torch.cuda.synchronize(device)  # a stream of the user's may still be writing
        if slot == SPILL:
            extents = spill.write(self.arenas.slots[slot].fd, first, own, plan)
            return _Taking(step=step, slot=slot, extents=extents, metrics=dict(self.metrics))
        view = self.arenas.view(slot, plan.size_bytes, pinned=torch.cuda.is_initialized())
        targets = pair.targets(own, plan, view, self._places[slot])
        views = (view[: plan.tensors.size_bytes], view[plan.own_offset :])
        taking = _Taking(step=step, slot=slot, views=views, metrics=dict(self.metrics))
        if waits:
            copy_now([*targets.at_once, *targets.behind])
            return taking
        copy_now([copy for copy in targets.at_once if copy[0].device.type != "cuda"])
        on_devices = [copy for copy in targets.at_once if copy[0].device.type == "cuda"]
        taking.copying = Copying(self._batch_of(slot, targets.behind, first), now=on_devices)
        taking.copying.start()
        return taking

    def _batch_of(self, slot: int, copies: pair.Copies, first: Flat) -> Batch:
        known = self._batches.get(slot)
        if known is None or known[0] is not copies:
            wrappers = [tensor for name, tensor in first.wrapped.items() if name in first.behind]
            self._batches[slot] = known = (copies, Batch(copies, wrappers))
        return known[1]

    def _must_wait(self) -> bool:
        if self._looks != self._inventory.looks and self._waits not in (_CHANGED, _MOVED):
            self._looks, before = self._inventory.looks, self._waits
            self._waits = steady.objection(self._parts)
            if self._waits and self._waits != before:
                self._say(f"snapshots are copied at once, while the training waits: {self._waits}")
        if not self._waits and not self._hooked:
            self._hooked = True
            # Compiled into a step it would be traced, and compiled again for each snapshot.
            register_optimizer_step_pre_hook(torch.compiler.disable(self._before_step))
        return bool(self._waits)

    def _before_step(self, *_: object) -> None:
        """Any optimizer of this process is about to change what it likes."""
        if (fence := self._fence[0]) is not None:
            fence()

    def _wait(self, taking: _Taking) -> None:
        """The fence: nothing that is being copied is changed before it is copied."""
        assert taking.copying is not None, "only copies behind the training have a fence"
        begun = time.monotonic()
        taking.copying.fence()
        taking.stall_s += time.monotonic() - begun
        self._fence[0] = None

    def _complete(self, taking: _Taking) -> bool:
        """Copy what is left, seal, publish. Behind the training this runs on a thread of its own."""
        try:
            if taking.copying is not None and not self._copied(taking.copying, taking):
                return False
            self._attachment.board.publish(self._attachment.index, self._seal(taking))
        except Exception as error:  # as above
            self._say_not_taken(taking.step, taking.slot, error)
            return False
        taken = Taken(step=taking.step, slot=taking.slot, stall_s=taking.stall_s, metrics=taking.metrics)
        self._attachment.send(taken)
        return True

    def _copied(self, copying: Copying, taking: _Taking) -> bool:
        """Copy behind the training; False if it is dropped, which is said."""
        still = copying.run(lambda: self._announce(taking))
        alike = self._inventory.is_as_taken()
        moved_before, self._moved = self._moved, not alike
        if still and alike:
            return True
        why = _CHANGED if alike else _MOVED
        if alike or moved_before:  # a model grows once; where memory is changed in each step none would ever be whole
            self._waits = why
            self._say(f"the snapshot of step {taking.step} is dropped, later ones are copied at once: {why}")
        self._attachment.send(NotTaken(step=taking.step, slot=taking.slot, why=why, soon=True))
        return False

    def _announce(self, taking: _Taking) -> None:
        """All is copied: the host may begin to write it, for nothing if it is dropped in the end."""
        self._attachment.board.publish(self._attachment.index, self._seal(taking), judged=False)
        self._attachment.send(Copied(step=taking.step, slot=taking.slot, metrics=taking.metrics))

    def _seal(self, taking: _Taking) -> SlotRecord:
        first, own = taking.extents or taking.measure()
        return SlotRecord(slot=taking.slot, attempt=self.attempt, step=taking.step, tensors=first, own=own)

    def _say(self, text: str) -> None:
        self._attachment.send(Note(text=text[:4096]))

    def _say_not_taken(self, step: int, slot: int, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"[:4096]
        self._attachment.send(NotTaken(step=step, slot=slot, why=why, full=isinstance(error, NoRoom)))
        if not self._warned and not (isinstance(error, NoRoom) and slot != SPILL):
            self._warned = True
            with contextlib.suppress(Warning):  # a filter of the script's may make errors of all warnings
                text = f"cannot take a snapshot of step {step}: {why}; training goes on without it"
                warnings.warn(text, stacklevel=2)


@dataclass(slots=True, kw_only=True)
class _Taking:
    """One snapshot on its way into its slot."""

    step: int
    slot: int
    views: Sequence[memoryview] = ()
    """Both images in memory."""
    extents: tuple[Extent, Extent] | None = None
    """Of both images, once they are whole."""
    copying: Copying | None = None
    """``None`` where all is copied already."""
    metrics: Mapping[str, float]
    stall_s: float = 0.0
    """For which the training has waited so far."""

    def measure(self) -> tuple[Extent, Extent]:
        """Make the digests."""
        first, own = (Extent(size=len(view), digest=digest.digest(view)) for view in self.views)
        self.extents = first, own
        return self.extents
