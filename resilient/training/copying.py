# SPDX-License-Identifier: Apache-2.0
"""Copying tensors into a slot behind the training.

``start`` returns at once. Until the copy is done the sources must not change, so whatever changes them
waits at the ``fence`` first: on the host for tensors in its memory; on a device only the device's own
stream waits. Whether a source was changed all the same is seen from its version counter, which every
in-place operation raises, and from its storage. Writes through ``.data`` or a raw pointer raise no counter:
in host memory a sample of the elements shows them unless they touch few, on devices nothing does. What is
done to a DTensor raises its own counter and not that of the local tensor that is copied, so that is watched
besides; ``torch._foreach_`` raises neither.

Devices other than CUDA have no such streams here: their tensors are copied at once by the caller.
"""

from __future__ import annotations

import ctypes
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from resilient.training.samples import Samples

Copies = Sequence[tuple[Tensor, Tensor]]
"""Sources and their targets of the same shape and dtype; targets are in host memory, pinned for CUDA."""
_VERSION: Final = operator.attrgetter("_version")
_LOOK_S: Final = 0.1
"""There is no event for the end of the interpreter that a thread could wait for."""


class Batch:
    """Copies sorted out: for as many snapshots as they stay the same."""

    def __init__(self, copies: Copies, wrappers: Sequence[Tensor] = ()) -> None:
        """``wrappers``: the DTensors whose local tensors are among the sources."""
        self.host = [(source, target) for source, target in copies if source.device.type == "cpu"]
        self.devices = _by_device(copies)
        of_devices = (source for group in self.devices.values() for source, _ in group)
        self._sources = [*(source for source, _ in self.host), *of_devices]
        self._versioned = [*self._sources, *wrappers]
        self.addresses = self._places()
        """Of all sources, those in host memory first."""
        self.samples = Samples([source for source, _ in self.host])

    def versions(self) -> list[int]:
        """Of all sources: raised by whatever writes to one."""
        return [*map(_VERSION, self._versioned)]

    def lie_still(self) -> bool:
        """Whether no source was resized or moved."""
        return self._places() == self.addresses

    def _places(self) -> list[int]:
        return [*map(Tensor.data_ptr, self._sources)]


class Copying:
    """One copy that goes on behind the training. Construct and start it where the sources were last written."""

    def __init__(self, batch: Batch, *, now: Copies = ()) -> None:
        """The sources of ``batch`` lie where they lay when it was made.

        ``now``: further copies from devices, which nothing that is queued later may change before they are done.
        """
        self._batch = batch
        self._now = _by_device(now)
        self._versions = batch.versions()
        self._same = batch.samples.look()
        self._events: dict[torch.device, torch.cuda.Event] = {}
        self._owner = threading.get_ident()
        self._lock = threading.Lock()
        self._copied = threading.Event()
        self._judged = threading.Event()
        self._holds = False

    def start(self) -> None:
        """Queue what devices copy; each device's stream goes on with what was queued before and after."""
        for device in self._batch.devices.keys() | self._now.keys():
            current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                _queue(self._now.get(device, ()), side)
                current.wait_event(side.record_event())
                _queue(self._batch.devices.get(device, ()), side)
                self._events[device] = side.record_event()

    def run(self, then: Callable[[], object] = lambda: None) -> bool:
        """Copy what lies in host memory, wait for devices and fence; False if a source was changed meanwhile.

        ``then`` is done once all is copied, without waiting for the fence.
        """
        complete = False
        try:
            addresses = self._batch.addresses  # those on devices follow
            for (source, target), address in zip(self._batch.host, addresses, strict=False):
                if source.data_ptr() != address:
                    break  # its memory may be gone
                _copy(source, target)
            else:
                complete = True
        finally:
            self._copied.set()
        self._batch.samples.draw()
        for event in self._events.values():
            event.synchronize()
        if complete:
            then()
        self._await_fence()
        return complete and self._holds  # what has moved away may have come back

    @property
    def is_copied(self) -> bool:
        """Whether the host has nothing to wait for."""
        return self._copied.is_set()

    def fence(self) -> None:
        """From here on sources may change: wait until what was copied of them is what they were. To be called by the
        thread that changes them: an operation raises the version only when it ends."""
        self._copied.wait()
        self._judge()
        for device, event in self._events.items():
            torch.cuda.current_stream(device).wait_event(event)

    def _await_fence(self) -> None:
        if threading.get_ident() == self._owner:
            self._judge()
        while not self._judged.wait(_LOOK_S):
            if not threading.main_thread().is_alive():  # the interpreter ends: nobody changes anything any more
                self._judge()

    def _judge(self) -> None:
        with self._lock:
            if not self._judged.is_set():
                is_unchanged = self._batch.versions() == self._versions and self._batch.lie_still()
                self._holds = is_unchanged and self._same()
                self._judged.set()


def copy_now(copies: Copies) -> None:
    """Copy while the training waits."""
    for source, target in copies:
        target.copy_(source)


def _by_device(copies: Copies) -> dict[torch.device, list[tuple[Tensor, Tensor]]]:
    groups: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for source, target in copies:
        if source.device.type == "cuda":
            groups.setdefault(source.device, []).append((source, target))
    return groups


def _queue(copies: Copies, stream: torch.cuda.Stream) -> None:
    for source, target in copies:
        source.record_stream(stream)  # its memory is not given away before the copy is done
        target.copy_(source, non_blocking=True)


def _copy(source: Tensor, target: Tensor) -> None:
    """One thread, and without the interpreter's lock: the training has the others."""
    if source.is_contiguous() and not source.is_conj() and not source.is_neg():
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.numel() * source.element_size())
    else:
        target.copy_(source)
