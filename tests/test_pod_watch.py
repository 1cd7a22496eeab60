# SPDX-License-Identifier: Apache-2.0
"""The process that asks the API server, and whoever listens to it: real ones, with a server over TLS."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from kube_api import GPU, IDENTITY, LIMIT_S, Answer, Server, pod, serving
from supervised import ROOT

from resilient import retry, settings
from resilient.core.pod_report import Report
from resilient.core.pod_status import Health, PodAccess, PodDevice
from resilient.kubernetes.pod_watcher import NotDone, again_s
from resilient.supervisor import pod_watch
from resilient.supervisor.pod_watch import PodWatch


def report(word: str, *, last: bool = False) -> Report:
    return Report(annotation=f'{{"why":"{word}"}}', reason="CodeFault", note=word, warning=True, last=last)


class Loop:
    """As much of a supervisor's loop as a watch needs; its clock stands still, so that nothing is given up."""

    def __init__(self, asked: PodAccess | None, environ: Mapping[str, str], **identity: str) -> None:
        self.actions: dict[int, Callable[[], None]] = {}
        self.timers: dict[str, Callable[[], None]] = {}
        self.unwell: list[str] = []
        self.disrupted: list[str] = []
        self.silent: list[str] = []
        self.journal: list[str] = []
        self.judged: list[tuple[PodDevice, ...]] = []
        self.watch = PodWatch(
            asked,
            settings.platform(identity or IDENTITY),
            {"PATH": os.defpath, "PYTHONPATH": str(ROOT), **environ},
            unwell=self.unwell.append,
            disrupted=self.disrupted.append,
            silent=self.silent.append,
            journal=lambda kind, fields: self.journal.append(kind),
            watch=self.actions.__setitem__,
            unwatch=self.actions.__delitem__,
            after=lambda name, seconds, action: self.timers.__setitem__(name, action),
        )

    def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            ready = select.select(list(self.actions), [], [], LIMIT_S)[0]
            assert ready, "nothing was said"
            for fd in ready:
                self.actions[fd]()

    def judge(self) -> tuple[PodDevice, ...]:
        self.watch.judge(self.judged.append)
        self.until(lambda: bool(self.judged))
        return self.judged.pop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def started() -> Iterator[Callable[..., Loop]]:
    loops: list[Loop] = []

    def start(asked: PodAccess | None, environ: Mapping[str, str], **identity: str) -> Loop:
        loops.append(Loop(asked, environ, **identity))
        return loops[-1]

    yield start
    for loop in loops:
        loop.watch.close(0.0)


Start = Callable[..., Loop]


def test_nobody_asked_and_nothing_is_started(started: Start) -> None:
    """That is the default: no process, no request, not a word; whoever waits is told at once."""
    loop = started(None, {})
    assert (loop.watch.pid, loop.judge(), loop.silent) == (None, (), [])


def test_a_pod_that_does_not_know_its_name_asks_nothing(started: Start) -> None:
    """What is to be projected is said, once, and no process is started."""
    loop = started(PodAccess.WRITE, {}, RESILIENT_POD="x")
    assert loop.watch.pid is None
    assert loop.silent == [
        "cannot tell which pod this is: RESILIENT_NAMESPACE and RESILIENT_POD_UID are not set; "
        "project metadata.namespace into RESILIENT_NAMESPACE and metadata.uid into RESILIENT_POD_UID"
    ]


def test_a_device_that_turned_is_told_from_one_that_was_unwell(server: Server, started: Start) -> None:
    """Against the last time that it was asked: the kubelet may have been late."""
    server.api.pod = pod((GPU, "Healthy"))
    loop = started(PodAccess.READ, server.outside)
    loop.until(lambda: "pod" in loop.journal)
    server.api.pod = pod((GPU, "Unhealthy"))
    [first], [second] = loop.judge(), loop.judge()
    assert (first.before, first.health, first.turned) == (Health.HEALTHY, Health.UNHEALTHY, True)
    assert (second.before, second.turned) == (Health.UNHEALTHY, False)
    assert loop.unwell == [f"the kubelet finds a device unhealthy: nvidia.com/gpu {GPU}"]
    loop.watch.tell(report("x"))
    loop.judge()
    assert set(server.api.asked) == {"GET"}, "it may only read"
    assert loop.silent == []


def test_why_the_pod_is_to_go_is_looked_for_until_it_is_said(server: Server, started: Start) -> None:
    """The condition may come after the signal; it is said once."""
    loop = started(PodAccess.READ, server.outside)
    loop.until(lambda: "pod" in loop.journal)
    before = len(server.api.asked)
    loop.watch.leaving()
    server.api.until(lambda: len(server.api.asked) > before)
    with server.api.changed:
        server.api.pod = pod(disruption="EvictionByEvictionAPI")
    loop.until(lambda: bool(loop.disrupted))
    words = "Kubernetes: EvictionByEvictionAPI, somebody evicts it, as kubectl drain and autoscalers do"
    assert loop.disrupted == [words]
    assert loop.watch.disruption == words


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last report is waited for as long as it takes on a busy machine."""
    monkeypatch.setattr(pod_watch, "LAST_S", LIMIT_S)


@pytest.mark.usefixtures("patient")
def test_what_is_forbidden_is_said_once_and_left(server: Server, started: Start) -> None:
    """The other permissions are used all the same, and the last report is waited for."""
    server.api.always = {"GET": Answer(status=403, message="no"), "POST": Answer(status=403, message="no")}
    loop = started(PodAccess.WRITE, server.outside)
    loop.until(lambda: len(loop.silent) == 1)
    for word in ("one", "two"):
        loop.watch.tell(report(word))
        server.api.until(lambda word=word: word in str(server.api.annotations))  # type: ignore[misc]  # mypy: default
    assert loop.judge() == ()
    loop.watch.tell(report("three", last=True))
    loop.watch.close(LIMIT_S)
    assert "three" in str(server.api.annotations)
    assert server.api.asked.count("GET") == server.api.asked.count("POST") == 1
    assert [said.partition(":")[0] for said in loop.silent] == ["cannot read the own pod", "cannot write an Event"]
    assert all("grant its service account" in said for said in loop.silent)


@pytest.mark.usefixtures("patient")
def test_the_same_is_written_once(server: Server, started: Start) -> None:
    """A conflict and an answer that got lost are tried again, with the same Event."""
    server.api.next["PATCH"].append(Answer(status=409))
    server.api.next["POST"].append(Answer(status=500))
    loop = started(PodAccess.WRITE, server.outside)
    loop.until(lambda: "pod" in loop.journal)
    for word in ("one", "one", "two"):
        loop.watch.tell(report(word))
    loop.watch.close(LIMIT_S)
    assert [event["note"] for event in server.api.events] == ["one", "two"]
    assert "two" in str(server.api.annotations)
    assert loop.silent == []


@pytest.mark.usefixtures("patient")
def test_whoever_is_silent_is_not_waited_for(server: Server, started: Start) -> None:
    """Neither at a failure nor at the exit."""
    server.api.next["GET"].append(Answer(status=500))
    server.api.always = {"GET": Answer(status=0), "PATCH": Answer(status=0)}
    loop = started(PodAccess.WRITE, server.outside)
    server.api.until(lambda: server.api.hanging == 1)
    for fd in select.select(list(loop.actions), [], [], LIMIT_S)[0]:  # the first try has failed
        loop.actions[fd]()
    loop.watch.judge(loop.judged.append)
    assert loop.judged == [()]
    loop.watch.tell(report("x", last=True))
    server.api.until(lambda: server.api.hanging == 2)
    process = Path(f"/proc/{loop.watch.pid}")
    assert process.exists()
    loop.watch.close(LIMIT_S)
    assert not process.exists()


def test_a_look_that_comes_too_late_is_not_waited_for_again(server: Server, started: Start) -> None:
    """The evidence goes on without it, and the next does not wait at all."""
    loop = started(PodAccess.READ, server.outside)
    loop.until(lambda: "pod" in loop.journal)
    server.api.always["GET"] = Answer(status=0)
    loop.watch.judge(loop.judged.append)
    assert loop.judged == []
    loop.timers["pod look"]()
    loop.watch.judge(loop.judged.append)
    assert loop.judged == [(), ()]
    assert loop.silent == ["the API server did not answer within 2 s"]


def test_a_process_that_dies_is_said_and_started_again(server: Server, started: Start) -> None:
    """Whoever waits for it waits no longer."""
    loop = started(PodAccess.READ, server.outside)
    loop.until(lambda: "pod" in loop.journal)
    server.api.always["GET"] = Answer(status=0)
    loop.watch.judge(loop.judged.append)
    assert loop.watch.pid is not None
    os.kill(loop.watch.pid, signal.SIGKILL)
    loop.until(lambda: bool(loop.judged))
    assert "the process that asks the API server ended" in loop.silent[0]
    assert loop.actions == {}
    loop.timers["pod api"]()
    assert len(loop.actions) == 1


def test_the_server_says_how_long_it_wants_to_be_left_alone() -> None:
    """Never sooner, with jitter beyond; what would take longer than the patience is given up at once."""
    slept: list[float] = []
    answers = [NotDone("busy", again_s=7.0), NotDone("conflict", again_s=0.0)]

    def ask() -> str:
        if answers:
            raise answers.pop(0)
        return "done"

    failed: list[bool] = []
    policy = retry.pod_api(threading.Event(), again_s, lambda: failed.append(True)).copy(sleep=slept.append)
    assert policy(ask) == "done"
    assert 7.0 <= slept[0] <= 8.0
    assert 0.0 <= slept[1] <= 2.0
    answers.append(NotDone("busy", again_s=3600.0))
    with pytest.raises(NotDone):
        policy(ask)
    answers.append(NotDone("forbidden", again_s=None))
    with pytest.raises(NotDone):
        policy(ask)
    assert len(slept) == len(failed) == 2
