# SPDX-License-Identifier: Apache-2.0
"""Whoever can testify beside the workers: cgroup, disks, the kernel's log, the devices' driver, the cloud, Kubernetes.

They are asked before an attempt begins and when it has ended. Only the driver and the API
server may take their time; then the evidence waits for them, within a bound. The cloud speaks unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient.cloud.watcher import Announced
from resilient.core.devices import DeviceEvidence, Look, assigned
from resilient.core.events import LeaveAsked, LeaveExplained
from resilient.core.evidence import Evidence, Hang
from resilient.core.pod_report import Report
from resilient.core.pod_status import PodDevice
from resilient.devices.procfs import list_devices
from resilient.devices.vendors import vendor_here, visible
from resilient.link.board import Board
from resilient.supervisor import collect, samples
from resilient.supervisor.device_watch import DeviceWatch
from resilient.supervisor.group import Member
from resilient.supervisor.kernel_log import open_kernel_log
from resilient.supervisor.notice_watch import NoticeWatch
from resilient.supervisor.pod_watch import PodWatch
from resilient.supervisor.scene import Scene

_MOST_NOTICES: Final = 8


class Witnesses:
    """All of them, for one supervisor."""

    def __init__(
        self,
        scene: Scene,
        emit: Callable[[LeaveAsked | LeaveExplained], None],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
    ) -> None:
        self._scene = scene
        self._emit = emit
        self._before: samples.Sample | None = None
        self._kernel = open_kernel_log()
        self._devices = DeviceWatch(scene.variables, watch=watch, unwatch=unwatch, after=after, journal=self._journal)
        self._announced: list[str] = []
        self._notices = NoticeWatch(
            scene.settings.preemption_notices,
            scene.variables,
            heard=self._on_notice,
            unheard=self._on_silence,
            watch=watch,
            unwatch=unwatch,
            after=after,
        )
        self._pod = PodWatch(
            scene.settings.pod_api,
            scene.platform,
            scene.variables,
            unwell=scene.say,
            disrupted=self._on_disruption,
            silent=self._on_no_pod_api,
            journal=self._journal,
            watch=watch,
            unwatch=unwatch,
            after=after,
        )

    @property
    def pids(self) -> set[int]:
        """Of the processes that watch the devices, wait for notices and ask Kubernetes, where there are any."""
        return {pid for pid in (self._devices.pid, self._notices.pid, self._pod.pid) if pid is not None}

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

        def seen(look: Look | None, pod: tuple[PodDevice, ...]) -> None:
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
                    announced=self._announced,
                    pod=pod,
                )
            )

        self._pod.judge(lambda pod: self._devices.look("devices after", lambda look: seen(look, pod)))

    def leaving(self) -> None:
        """Somebody has asked us to leave: Kubernetes may say why, or has said so before."""
        if self._pod.disruption is not None:
            self._emit(LeaveExplained(why=self._pod.disruption))
        else:
            self._pod.leaving()

    def tell(self, report: Report) -> None:
        """Have Kubernetes show what was decided."""
        self._pod.tell(report)

    def close(self, *, timeout_s: float) -> None:
        """Let go of them; what is to be told is, within that time."""
        self._pod.close(timeout_s)
        self._devices.close()
        self._notices.close()
        self._kernel.close()

    def _on_disruption(self, words: str) -> None:
        """It is why the signal comes, and no request to leave by itself."""
        self._announced = [*self._announced, words][-_MOST_NOTICES:]
        self._scene.say(words)
        self._emit(LeaveExplained(why=words))

    def _on_no_pod_api(self, why: str) -> None:
        """Somebody relies on it; training goes on without."""
        self._journal("no_pod_api", {"why": why})
        self._scene.say(f"{why} (training goes on without)")

    def _on_notice(self, announced: Announced) -> None:
        """Leave while there is time; ``--observe`` acts as torchrun would, which hears no notices."""
        notice, within_s = announced.notice, announced.within_s
        self._journal("notice", {"notice": notice, "within_s": within_s})
        words = f"{notice.cloud.value} announced: {notice.what}"
        if notice.leave and not self._scene.settings.observe:
            when = "" if within_s is None else f", {within_s:.0f} s ahead"
            self._emit(LeaveAsked(by=f"a notice of the cloud ({words}{when})", within_s=within_s))
            return
        self._announced = [*self._announced, words][-_MOST_NOTICES:]
        self._scene.say(words)

    def _on_silence(self, why: str) -> None:
        """Somebody relies on notices that do not come: that is said, and costs nothing else."""
        self._journal("no_notices", {"why": why})
        self._scene.say(f"cannot hear the notices of the cloud: {why}")

    def _assigned(self, look: Look | None) -> tuple[tuple[DeviceEvidence, ...], ...]:
        environ = self._scene.variables
        vendor = vendor_here(environ)
        before = self._devices.before
        if look is None and before is None:  # who they are can be known without the driver's library
            look = list_devices()
        return assigned(
            look,
            before,
            self._devices.events,
            self._scene.launch.nproc,
            visible=() if vendor is None else visible(vendor, environ),
            by_bus=environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID",
            shared=self._scene.launch.foreign_launcher is not None,
        )

    def _journal(self, kind: str, fields: Mapping[str, object]) -> None:
        self._scene.journal.write(kind, **fields)
