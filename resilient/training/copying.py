# SPDX-License-Identifier: Apache-2.0
"""Copying tensors into a slot behind the training.

``start`` returns at once. Until the copy is done the sources must not change, so whatever changes them
waits at the ``fence`` first: on the host for tensors in its memory; on a device only the device's own
stream waits. Whether a source was changed all the same is seen from its version counter, which every
in-place operation raises, and from its storage. Known blind spots are writes that raise no counter:
through ``.data`` or a raw pointer.

Devices other than CUDA have no such streams here: their tensors are copied at once by the caller.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

Copies = Sequence[tuple[Tensor, Tensor]]
"""Sources and their targets of the same shape and dtype; targets are in host memory, pinned for CUDA."""


class Copying:
    """One copy that goes on behind the training. Construct and start it where the sources were last written."""

    def __init__(self, copies: Copies, *, now: Copies = ()) -> None:
        """``now``: further copies from devices, which nothing that is queued later may change before they are done."""
        self._host = [(source, target) for source, target in copies if source.device.type == "cpu"]
        self._devices = _by_device(copies)
        self._now = _by_device(now)
        self._on_devices = [copy for group in self._devices.values() for copy in group]
        self._host_marks = _marks(self._host)
        self._device_marks = _marks(self._on_devices)
        self._events: dict[torch.device, torch.cuda.Event] = {}
        self._lock = threading.Lock()
        self._copied = threading.Event()
        self._host_holds = False
        self._device_holds: bool | None = None

    def start(self) -> None:
        """Queue what devices copy; each device's stream goes on with what was queued before and after."""
        for device in self._devices.keys() | self._now.keys():
            current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                _queue(self._now.get(device, ()), side)
                current.wait_event(side.record_event())
                _queue(self._devices.get(device, ()), side)
                self._events[device] = side.record_event()

    def run(self) -> bool:
        """Copy what lies in host memory and wait for the devices; False if a source was changed meanwhile."""
        try:
            for (source, target), mark in zip(self._host, self._host_marks, strict=True):
                if _mark(source) != mark:
                    break  # its memory may be gone
                _copy(source, target)
            self._host_holds = _marks(self._host) == self._host_marks
        finally:
            self._copied.set()
        for event in self._events.values():
            event.synchronize()
        self._judge_devices()
        return self._host_holds and self._device_holds is True

    @property
    def is_copied(self) -> bool:
        """Whether the host has nothing to wait for."""
        return self._copied.is_set()

    def fence(self) -> None:
        """From here on sources may change: wait until what was copied of them is what they were."""
        self._copied.wait()
        self._judge_devices()
        for device, event in self._events.items():
            torch.cuda.current_stream(device).wait_event(event)

    def _judge_devices(self) -> None:
        """At the fence or once all is copied, whichever comes first: what changes later changes nothing any more."""
        with self._lock:
            if self._device_holds is None:
                self._device_holds = _marks(self._on_devices) == self._device_marks


def _marks(copies: Copies) -> list[tuple[int, int]]:
    """Version and place of every source: equal as long as none was written to, resized or moved."""
    return [_mark(source) for source, _ in copies]


def _mark(source: Tensor) -> tuple[int, int]:
    return source._version, source.data_ptr()


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
