# SPDX-License-Identifier: Apache-2.0
"""The preflight of ``resilient run``: quick before the first attempt, with torch after a suspicion.

It runs beside the supervisor's loop and never refuses for anything but the node: what is
wrong with settings shows by itself, and other things are for a person to read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Final

from resilient.core import events as ev
from resilient.core.checks_deny_list import DENY_LIST
from resilient.core.denials import concerning, is_valid
from resilient.core.devices import Look, visible_devices
from resilient.core.exit_codes import ExitCode
from resilient.core.measured import DenyListFacts
from resilient.core.preflight import Grade, Report
from resilient.devices.procfs import list_devices
from resilient.devices.vendors import vendor_here, visible
from resilient.preflight.checkup import Checkup, Ports
from resilient.preflight.doctor import (
    ALONE,
    Subject,
    deny_list_errands,
    handed_out,
    quick_errands,
    report,
    temporary_of,
    torch_errands,
)
from resilient.preflight.errand import Errand
from resilient.supervisor.scene import Scene

_COMPUTE: Final = "torch"


class Preflight:
    """At most one examination at a time, whose outcome becomes an event."""

    def __init__(
        self,
        scene: Scene,
        emit: Callable[[ev.Event], None],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
    ) -> None:
        self._scene = scene
        self._ports = Ports(watch=watch, unwatch=unwatch, after=after)
        self._emit = emit
        self._subject = Subject(
            journal=str(scene.journal_dir),
            temporary=temporary_of(scene.variables),
            ranks=scene.launch.nproc,
            devices=handed_out(scene.variables),
            node=scene.platform.node,
            deny_list=scene.settings.deny_list,
        )
        self._vendor = vendor_here(scene.variables)
        self._checkup: Checkup | None = None
        self._outcome: ev.Examined | None = None
        self._wanted = False
        errands = {**self._quick(), **deny_list_errands(self._subject)}
        self._send(errands, scene.variables)  # at once: the store is still to be opened meanwhile

    @property
    def pids(self) -> frozenset[int]:
        return self._checkup.pids if self._checkup is not None else frozenset()

    def examine(self, *, suspect: bool) -> None:
        """Answer ``Examined``; ``suspect``: a device may be to blame for a failure, so have it compute as well."""
        self._wanted = True
        if suspect:
            self.close()
            compute = {_COMPUTE: torch_errands(self._subject)[_COMPUTE]} if self._vendor is not None else {}
            self._send({**self._quick(), **compute}, {**self._scene.variables, **ALONE})
        else:
            self._answer()

    def close(self) -> None:
        """End what is still out."""
        if self._checkup is not None:
            self._checkup.close()
            self._checkup = None

    def _quick(self) -> dict[str, Errand]:
        errands = quick_errands(self._subject)
        if self._vendor is None:
            del errands["devices"]
        return errands

    def _send(self, errands: Mapping[str, Errand], environ: Mapping[str, str]) -> None:
        began = time.monotonic()
        self._outcome = None

        def back(measured: Mapping[str, object]) -> None:
            found = report(measured, self._subject, self._scene.variables)
            self._came_back(found, self._outcome_of(measured), time.monotonic() - began)

        self._checkup = Checkup(errands, environ, self._ports, back)
        self._checkup.begin()

    def _outcome_of(self, measured: Mapping[str, object]) -> ev.Examined:
        """Without a refusal: which devices there are, and what the platform's list says of them and of this node."""
        look = measured.get("devices")
        if not isinstance(look, Look):  # who they are can be known without the driver's library
            look = list_devices() or Look(devices=())
        lists = () if self._vendor is None else visible(self._vendor, self._scene.variables)
        here = visible_devices(look.devices, lists)
        uuids = tuple(uuid for device in here for uuid in (device.uuid, *device.instances) if uuid is not None)
        listed = measured.get("deny-list")
        denials = listed.denials if isinstance(listed, DenyListFacts) else ()
        valid = [denial for denial in denials if is_valid(denial, time.time())]
        return ev.Examined(devices=uuids, listed=concerning(valid, self._subject.node, uuids))

    def _came_back(self, found: Report, outcome: ev.Examined, seconds: float) -> None:
        told = [finding for finding in found.findings if finding.grade in (Grade.WARN, Grade.FAIL)]
        self._scene.journal.write(
            "preflight",
            seconds=round(seconds, 3),
            looked_at=[finding.check for finding in found.findings if finding.grade is not Grade.SKIP],
            findings=[{**dataclasses.asdict(finding), "grade": finding.grade.value} for finding in told],
        )
        for finding in told:
            self._scene.say(f"preflight: {finding.looks_at}: {finding.found}; {finding.do}")
        # What a deny list says is weighed by the state machine, which knows how often it has refused already.
        failures = [finding for finding in found.failures if finding.check != DENY_LIST]
        bad = [finding for finding in failures if finding.refusal == ExitCode.NODE_REFUSED]
        if bad:
            why = "; ".join(f"{finding.looks_at}: {finding.found}" for finding in bad)
            outcome = dataclasses.replace(outcome, refusal=f"this node failed its preflight: {why}", do=bad[0].do)
        self._outcome = outcome
        self._answer()

    def _answer(self) -> None:
        if self._wanted and self._outcome is not None:
            self._wanted = False
            self._emit(self._outcome)
