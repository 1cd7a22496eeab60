# SPDX-License-Identifier: Apache-2.0
"""The metadata services, asked over real HTTP, and the process that asks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from metadata_server import Service, serving
from test_notices import document

from resilient.cloud.clouds import WATCHES
from resilient.cloud.metadata import Metadata, NoAnswer
from resilient.cloud.watcher import FROM_WATCHER, Announced, Unheard, serve
from resilient.core.cloud import Cloud
from resilient.link.channel import Channel

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TOKEN = "/latest/api/token"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
NAME = "/metadata/instance/compute/name"
EVENTS = "/metadata/scheduledevents"
TERMINATE = '{"action": "terminate", "time": "2017-09-18T12:00:00Z"}'


@contextmanager
def hearing(service: Service, cloud: Cloud) -> Iterator[Channel[Announced | Unheard]]:
    """What a supervisor hears; the process is a thread here."""
    ours, theirs = socket.socketpair()
    with serving(service) as address, ours, theirs:
        watches = WATCHES[cloud](Metadata(address))
        thread = threading.Thread(target=serve, args=(Channel(theirs, {}), watches), kwargs={"retry_s": 0.01})
        thread.start()
        yield Channel(ours, FROM_WATCHER)
        ours.close()
        thread.join()
        with service.changed:  # whoever waits for a change is told that it is over
            service.version += 1
            service.changed.notify_all()


def said(channel: Channel[Announced | Unheard]) -> str:
    message = channel.receive()
    return message.notice.what if isinstance(message, Announced) else message.why


def test_a_spot_instance_is_told_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By IMDSv2, with no proxy; the recommendation before it is heard too, and each thing once."""
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:9")
    monkeypatch.setattr("resilient.cloud.clouds.Aws.pause_s", 0.01)
    service = Service()
    with hearing(service, Cloud.AWS) as channel:
        service.until_asked(REBALANCE)
        service.say(REBALANCE, '{"noticeTime": "2017-09-18T12:00:00Z"}')
        assert said(channel) == "the spot instance has a raised risk of being interrupted"
        service.say(ACTION, TERMINATE)
        heard = channel.receive()
        assert isinstance(heard, Announced)
        assert (heard.notice.leave, heard.within_s) == (True, 5.0), "that day is long past"
        service.until_asked(ACTION, service.asked.count(ACTION) + 3)
        assert channel.drain() == []
        assert service.tokens == ["token-0"]


def test_a_token_that_has_run_out_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lasts for six hours, and trainings for days."""
    monkeypatch.setattr("resilient.cloud.clouds.Aws.pause_s", 0.01)
    service = Service()
    with hearing(service, Cloud.AWS) as channel:
        service.until_asked(ACTION, 2)
        service.token()
        assert "HTTP status 401" in said(channel)
        service.until_asked(TOKEN, 2)
        service.say(ACTION, TERMINATE)
        assert said(channel) == "the spot instance is going to be terminated"


def test_google_is_waited_for_and_not_asked_again_and_again() -> None:
    """One question for each key and each change."""
    service = Service()
    service.answers = {PREEMPTED: "FALSE", MAINTENANCE: "NONE"}
    with hearing(service, Cloud.GCP) as channel:
        service.until_asked(PREEMPTED, 2)
        service.until_asked(MAINTENANCE, 2)
        service.say(MAINTENANCE, "MIGRATE_ON_HOST_MAINTENANCE")
        assert said(channel) == "the machine is going to be migrated to another host"
        service.say(PREEMPTED, "TRUE")
        heard = channel.receive()
        assert isinstance(heard, Announced)
        assert (heard.notice.leave, heard.within_s) == (True, 30.0)
        assert service.asked.count(PREEMPTED) <= 4


@pytest.mark.parametrize("cloud", WATCHES)
def test_no_service_is_asked_again_without_a_pause(cloud: Cloud) -> None:
    """One that answers at once, although it was asked to wait for a change, would cost a processor."""
    assert all(watch.pause_s > 0 for watch in WATCHES[cloud](Metadata()))


def test_an_eviction_of_this_machine_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure tells of all machines of a group."""
    monkeypatch.setattr("resilient.cloud.clouds.Azure.pause_s", 0.01)
    service = Service()
    service.answers = {NAME: "BackEnd_IN_0", EVENTS: document({"Resources": ["Other"]})}
    with hearing(service, Cloud.AZURE) as channel:
        service.until_asked(EVENTS, 2)
        service.say(EVENTS, document({}))
        assert said(channel) == "the spot machine is going to be evicted"
        assert service.asked.count(NAME) == 1


@pytest.mark.parametrize(
    ("cloud", "path", "text", "why"),
    [
        (Cloud.GCP, PREEMPTED, "<html>", "preempted is neither TRUE nor FALSE"),
        (Cloud.GCP, PREEMPTED, None, "no such value"),
        (Cloud.AZURE, EVENTS, "[]", "it is no JSON object"),
        (Cloud.AWS, ACTION, '{"action": "dance"}', "its action is none that is documented"),
    ],
)
def test_that_nothing_is_heard_is_said_once(cloud: Cloud, path: str, text: str | None, why: str) -> None:
    """And it is asked again, until there is an answer."""
    service = Service()
    service.answers = {NAME: "m", MAINTENANCE: "NONE"}
    if text is not None:
        service.answers[path] = text
    with hearing(service, cloud) as channel:
        assert why in said(channel)
        service.until_asked(path, 4)
        assert channel.drain() == []


def test_nothing_is_followed_and_nothing_is_read_without_end() -> None:
    """What is asked stays on the link, and an answer has a bound."""
    service = Service()
    service.answers[NAME] = "x" * (1 << 20)
    service.status[EVENTS] = 302
    with serving(service) as address:
        metadata = Metadata(address)
        headers = {"Metadata": "true"}
        assert metadata.ask(NAME + "?api-version=1", headers).text == "x" * (1 << 16)
        with pytest.raises(NoAnswer, match="HTTP status 302"):
            metadata.ask(EVENTS, headers)
    with pytest.raises(NoAnswer, match="refused"):
        metadata.ask(EVENTS, headers)


def test_a_service_that_accepts_and_says_nothing_is_given_up() -> None:
    """As one behind a firewall that drops the answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NoAnswer, match="timed out"):
        Metadata(silent.getsockname()).ask("/", {}, timeout_s=0.05)
