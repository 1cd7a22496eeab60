# SPDX-License-Identifier: Apache-2.0
"""Whoever can testify beside the workers: the cgroup, the disks, the kernel's log, the driver of the devices.

They are asked before an attempt begins and when it has ended. Only the driver may take
its time; then the evidence waits for it, within a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from resilient.core.devices import DeviceEvidence, Look, assigned
from resilient.core.evidence import Evidence, Hang
from resilient.devices.procfs import list_devices
from resilient.link.board import Board
from resilient.supervisor import collect, samples
from resilient.supervisor.device_watch import DeviceWatch
from resilient.supervisor.group import Member
from resilient.supervisor.kernel_log import open_kernel_log
from resilient.supervisor.scene import Scene


class Witnesses:
    """All of them, for one supervisor."""

    def __init__(
        self,
        scene: Scene,
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
    ) -> None:
        self._scene = scene
        self._before: samples.Sample | None = None
        self._kernel = open_kernel_log()
        self._devices = DeviceWatch(scene.variables, watch=watch, unwatch=unwatch, after=after, journal=self._journal)

    @property
    def pid(self) -> int | None:
        """Of the process that watches the devices, where there is one."""
        return self._devices.pid

    def begin(self) -> None:
        """Note how things stand before the workers start."""
        self._before = samples.sample(disk=self._scene.journal_dir)
        self._kernel.begin()
        self._devices.begin()

    def listen(self) -> None:
        """Hear what would be forgotten until the attempt has ended."""
        self._kernel.listen()

    def gather(
        self,
        members: Sequence[Member],
        board: Board,
        then: Callable[[Evidence], None],
        *,
        hang: Hang | None,
        not_started: str | None,
    ) -> None:
        """Tell ``then`` all that is known of an attempt whose workers have all ended."""

        def seen(look: Look | None) -> None:
            if look is not None:
                self._journal("devices", {"when": "after", "look": look})
            self._kernel.listen()
            if self._kernel.lines:
                self._journal("kernel_log", {"lines": self._kernel.lines})
            then(
                collect.evidence(
                    members,
                    board,
                    self._scene.redactor,
                    hang=hang,
                    before=self._before,
                    after=samples.sample(disk=self._scene.journal_dir),
                    not_started=not_started,
                    devices=self._assigned(look)[: len(members)],
                    kernel=self._kernel.lines,
                )
            )

        self._devices.look("devices after", seen)

    def close(self) -> None:
        """Let go of them."""
        self._devices.close()
        self._kernel.close()

    def _assigned(self, look: Look | None) -> tuple[tuple[DeviceEvidence, ...], ...]:
        environ = self._scene.variables
        before = self._devices.before
        if look is None and before is None:  # who they are can be known without the driver's library
            look = list_devices()
        return assigned(
            look,
            before,
            self._devices.events,
            self._scene.launch.nproc,
            visible=environ.get("CUDA_VISIBLE_DEVICES"),
            by_bus=environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID",
            shared=self._scene.launch.foreign_launcher is not None,
        )

    def _journal(self, kind: str, fields: Mapping[str, object]) -> None:
        self._scene.journal.write(kind, **fields)
