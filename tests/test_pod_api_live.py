# SPDX-License-Identifier: Apache-2.0
"""Real supervisors beside a real API server: what it shows of them, what they learn of it, and that nobody waits."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_api import GPU, Answer, Server, pod, serving
from supervised import HEAD, Folder, until_entry

from resilient.core.pod_report import ANNOTATION

_UNTIL_TOLD = (
    HEAD
    + """
import time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("waits", flush=True)
while not (HERE / "go").exists():
    time.sleep(0.01)
"""
)
WAITS = _UNTIL_TOLD + "os.kill(os.getpid(), signal.SIGKILL)\n"
FAILS = _UNTIL_TOLD + "raise ValueError('token=' + 'x' * 30)\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_every_verdict_is_shown_where_people_look(server: Server, folder: Folder) -> None:
    """The restart in place, which no status shows, and the exit; the annotation is the termination message."""
    with folder.start("--pod-api", "write", folder.script(FAILS), **server.outside) as running:
        until_entry(running, "pod")
        (folder.path / "go").touch()
        ended = running.wait()
    assert ended.code == 114, ended.stderr
    assert server.api.reasons == ["RestartInPlace", "CodeFault"]
    assert json.loads(server.api.annotations[ANNOTATION]) == ended.termination
    notes = [event["note"] for event in server.api.events]
    assert "restart all workers in place" in notes[0]
    assert notes[1] == f"exit code 114: {ended.termination['why']}; {ended.termination['do']}"
    assert "[redacted]" in notes[1]
    assert ended.entries("no_pod_api") == []


def test_an_api_server_that_hangs_costs_nothing(server: Server, folder: Folder) -> None:
    """It has answered nothing yet when the run is over, which ends as it would have."""
    server.api.always = {method: Answer(status=0) for method in ("GET", "PATCH", "POST")}
    with folder.start("--pod-api", "write", folder.script(FAILS), **server.outside) as running:
        server.api.until(lambda: server.api.hanging > 0)
        (folder.path / "go").touch()
        ended = running.wait()
    assert (ended.code, ended.rules) == (114, ["user-value-error"] * 2), ended.stderr
    assert server.api.annotations == {}


def test_a_device_that_the_kubelet_finds_unhealthy_moves_the_pod(server: Server, folder: Folder) -> None:
    """A worker that was killed without a word, and a device that was well when it started."""
    server.api.pod = pod((GPU, "Healthy"))
    with folder.start("--pod-api", "read", folder.script(WAITS), **server.outside) as running:
        running.until("waits")
        until_entry(running, "pod")
        with server.api.changed:
            server.api.pod = pod((GPU, "Unhealthy"))
        (folder.path / "go").touch()
        ended = running.wait()
    assert (ended.code, ended.rules) == (194, ["kubelet-unhealthy"]), ended.stderr
    assert ended.termination["device"] == GPU
    assert GPU in folder.ask("explain", running.journal).stdout
    assert set(server.api.asked) == {"GET"}


def test_why_sigterm_came_is_told(server: Server, folder: Folder) -> None:
    """Kubernetes says it in a condition of the pod's."""
    server.api.pod = pod(disruption="PreemptionByScheduler")
    with folder.start("--pod-api", "write", folder.script(WAITS), **server.outside) as running:
        running.until("waits")
        running.signal(signal.SIGTERM)
        running.until("PreemptionByScheduler")
        (folder.path / "go").touch()
        ended = running.wait()
    assert ended.code == 196, ended.stderr
    because = (
        "asked to leave by SIGTERM (Kubernetes: PreemptionByScheduler, a pod of a higher priority takes its place); "
    )
    assert ended.termination["why"].startswith(because)
    assert because[1:] in folder.ask("explain", running.journal).stdout
    assert server.api.reasons == ["PreemptedUnsaved"]
