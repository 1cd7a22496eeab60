# SPDX-License-Identifier: Apache-2.0
"""The own pod at a real API server of its own, over TLS: what is read and written, and every way in which it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kube_api import GPU, IDENTITY, POD, UID, Answer, Server, pod, serving
from kubernetes import client

from resilient import settings
from resilient.core.pod_report import ANNOTATION, Report
from resilient.core.pod_status import Health
from resilient.kubernetes import own_pod
from resilient.kubernetes.own_pod import OwnPod, configuration
from resilient.kubernetes.pod_watcher import NotDone

ME = settings.platform(IDENTITY)
REPORT = Report(annotation='{"why":"x"}', reason="CodeFault", note="exit code 114: x; y", warning=True, last=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def mine(server: Server) -> OwnPod:
    return OwnPod(ME, lambda: configuration(server.inside, server.service_account))


def refusal(do: Callable[[], object]) -> NotDone:
    with pytest.raises(NotDone) as refused:
        do()
    assert str(refused.value).startswith("cannot ")
    assert "; " in str(refused.value)
    return refused.value


def test_the_status_is_read(server: Server, mine: OwnPod) -> None:
    """Devices with their health, and why the pod is to go."""
    server.api.pod = pod(
        (GPU, "Unhealthy"), ("GPU-2", "Healthy"), ("GPU-3", "Odd"), disruption="DeletionByTaintManager"
    )
    status = mine.read()
    assert (status.uid, status.disruption) == (UID, "DeletionByTaintManager")
    assert [(one.resource, one.name, one.health) for one in status.devices] == [
        ("nvidia.com/gpu", GPU, Health.UNHEALTHY),
        ("nvidia.com/gpu", "GPU-2", Health.HEALTHY),
        ("nvidia.com/gpu", "GPU-3", Health.UNKNOWN),
    ]


def test_the_verdict_is_written(server: Server, mine: OwnPod) -> None:
    """One annotation beside those of others, and one Event however often it is sent."""
    mine.annotate(REPORT.annotation)
    event = mine.event(REPORT)
    mine.emit(event)
    mine.emit(event)
    assert server.api.annotations == {ANNOTATION: '{"why":"x"}'}
    [written] = server.api.events
    assert (written["reason"], written["action"], written["type"]) == ("CodeFault", "Exit", "Warning")
    assert written["regarding"]["uid"] == UID


def test_a_kubeconfig_will_do(server: Server) -> None:
    """For whoever runs it beside a cluster."""
    assert OwnPod(ME, lambda: configuration(server.outside)).read().uid == UID


def test_another_pod_of_the_name_is_left_alone(server: Server, mine: OwnPod) -> None:
    """It was made anew, with the name and without us."""
    server.api.pod = pod(uid="another")
    assert "is another pod by now" in str(refusal(mine.read))
    assert refusal(lambda: mine.annotate("x")).again_s == 0.0
    assert server.api.annotations == {}


HUGE = b'{"kind": "Pod", "metadata": {"name": "' + b"x" * own_pod.MOST_BYTES + b'"}}'


@pytest.mark.parametrize(
    ("answer", "again_s", "words"),
    [
        (
            Answer(status=403, message="pods is forbidden"),
            None,
            "403 (pods is forbidden); grant its service account get",
        ),
        (Answer(status=404, message=f"{POD} not found"), None, "see whether RESILIENT_POD and RESILIENT_NAMESPACE"),
        (Answer(status=409), 0.0, "HTTP status 409"),
        (Answer(status=422, message="denied"), None, "(denied); see which admission policy refuses it"),
        (Answer(status=429, headers={"Retry-After": "7"}), 7.0, "HTTP status 429"),
        (Answer(status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), 0.0, "HTTP status 429"),
        (Answer(status=500, message="etcd"), 0.0, "HTTP status 500 (etcd)"),
        (Answer(status=503, headers={"Retry-After": "1"}), 1.0, "HTTP status 503"),
        (Answer(status=302, headers={"Location": "https://elsewhere.example/"}), None, "HTTP status 302"),
        (Answer(status=500, body=HUGE), 0.0, "HTTP status 500; "),
        (Answer(status=200, body=HUGE), 0.0, "over 4 MiB"),
        (Answer(status=200, body=b""), 0.0, "empty"),
        (Answer(status=200, body=b"<html>"), 0.0, "not JSON"),
        (Answer(status=200, body=b"[" * 100_000), 0.0, "not JSON"),
        (Answer(status=200, body=b'{"kind": "Secret"}'), 0.0, "no Pod"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else None,
)
def test_what_is_no_answer(server: Server, mine: OwnPod, answer: Answer, again_s: float | None, words: str) -> None:
    """Each says why and what to do, and whether it may be tried again; the next one is an answer."""
    server.api.next["GET"].append(answer)
    refused = refusal(mine.read)
    assert (refused.again_s, words in str(refused)) == (again_s, True), str(refused)
    assert len(str(refused)) < 500
    assert mine.read().uid == UID


def test_a_server_that_hangs_is_left(server: Server, mine: OwnPod, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time-out, which each request has."""
    monkeypatch.setattr(own_pod, "READ_S", 0.1)
    server.api.next["GET"].append(Answer(status=0))
    refused = refusal(mine.read)
    assert (refused.again_s, "does not answer within" in str(refused)) == (0.0, True)


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    """Refused connections, and whoever has another certificate."""
    nobody = {**server.inside, "KUBERNETES_SERVICE_PORT": "1"}
    lonely = OwnPod(ME, lambda: configuration(nobody, server.service_account))
    assert refusal(lonely.read).again_s == 0.0
    (tmp_path / "other").mkdir()
    with serving(tmp_path / "other") as other:
        mistaken = OwnPod(ME, lambda: configuration(server.inside, other.service_account))
        assert "SSLError" in str(refusal(mistaken.read))
    assert server.api.asked == []


def test_a_token_that_was_changed_is_read_again(server: Server, mine: OwnPod) -> None:
    """The kubelet changes it every hour: the one that was refused is not sent twice."""
    assert mine.read().uid == UID
    server.api.tokens = {"token-2"}
    (server.service_account / "token").write_text("token-2")
    assert refusal(mine.read).again_s == 0.0
    assert mine.read().uid == UID


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Before anything is asked."""
    inside = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    assert "automountServiceAccountToken: true" in str(refusal(lambda: configuration(inside, tmp_path)))
    assert "kubeconfig" in str(refusal(lambda: configuration({"HOME": str(tmp_path)})))
    (tmp_path / "odd").write_text("a: [")
    assert "kubeconfig" in str(refusal(lambda: configuration({"KUBECONFIG": str(tmp_path / "odd")})))
    nameless = replace(ME, pod=None, pod_uid=None)
    said = str(refusal(lambda: OwnPod(nameless, client.Configuration)))
    assert "project metadata.name into RESILIENT_POD and metadata.uid into RESILIENT_POD_UID" in said
