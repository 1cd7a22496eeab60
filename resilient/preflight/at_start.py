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
from resilient.core.exit_codes import ExitCode
from resilient.core.preflight import Grade, Report
from resilient.devices.vendors import vendor_here
from resilient.preflight.checkup import Checkup, Ports
from resilient.preflight.doctor import ALONE, Subject, handed_out, quick_errands, report, temporary_of, torch_errands
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
        )
        self._has_devices = vendor_here(scene.variables) is not None
        self._checkup: Checkup | None = None
        self._outcome: ev.Examined | None = None
        self._wanted = False
        self._send(self._quick(), scene.variables)  # at once: the store is still to be opened meanwhile

    @property
    def pids(self) -> frozenset[int]:
        return self._checkup.pids if self._checkup is not None else frozenset()

    def examine(self, *, suspect: bool) -> None:
        """Answer ``Examined``; ``suspect``: a device may be to blame for a failure, so have it compute as well."""
        self._wanted = True
        if suspect:
            self.close()
            compute = {_COMPUTE: torch_errands(self._subject)[_COMPUTE]} if self._has_devices else {}
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
        if not self._has_devices:
            del errands["devices"]
        return errands

    def _send(self, errands: Mapping[str, Errand], environ: Mapping[str, str]) -> None:
        began = time.monotonic()
        self._outcome = None

        def back(measured: Mapping[str, object]) -> None:
            self._came_back(report(measured, self._subject, self._scene.variables), time.monotonic() - began)

        self._checkup = Checkup(errands, environ, self._ports, back)
        self._checkup.begin()

    def _came_back(self, found: Report, seconds: float) -> None:
        told = [finding for finding in found.findings if finding.grade in (Grade.WARN, Grade.FAIL)]
        self._scene.journal.write(
            "preflight",
            seconds=round(seconds, 3),
            looked_at=[finding.check for finding in found.findings if finding.grade is not Grade.SKIP],
            findings=[{**dataclasses.asdict(finding), "grade": finding.grade.value} for finding in told],
        )
        for finding in told:
            self._scene.say(f"preflight: {finding.looks_at}: {finding.found}; {finding.do}")
        bad = [finding for finding in found.failures if finding.refusal == ExitCode.NODE_REFUSED]
        if bad:
            why = "; ".join(f"{finding.looks_at}: {finding.found}" for finding in bad)
            self._outcome = ev.Examined(refusal=f"this node failed its preflight: {why}", do=bad[0].do)
        else:
            self._outcome = ev.Examined()
        self._answer()

    def _answer(self) -> None:
        if self._wanted and self._outcome is not None:
            self._wanted = False
            self._emit(self._outcome)
