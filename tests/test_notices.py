# SPDX-License-Identifier: Apache-2.0
"""What clouds announce: their documented answers, read, and nothing else believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.cloud.clouds import cloud_here
from resilient.core import notices, wire
from resilient.core.cloud import Cloud
from resilient.core.notices import Notice

NOON = 1_505_736_000.0  # 2017-09-18T12:00:00Z
EVENT = {
    "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
    "EventType": "Preempt",
    "ResourceType": "VirtualMachine",
    "Resources": ["FrontEnd_IN_0", "BackEnd_IN_0"],
    "EventStatus": "Scheduled",
    "NotBefore": "Mon, 18 Sep 2017 12:00:00 GMT",
    "Description": "",
    "EventSource": "Platform",
    "DurationInSeconds": -1,
}


def document(*events: dict[str, Any]) -> str:
    return json.dumps({"DocumentIncarnation": 2, "Events": [EVENT | event for event in events]})


def test_an_interruption_has_its_time() -> None:
    """Two minutes ahead, as AWS does it."""
    notice = notices.aws_action('{"action": "terminate", "time": "2017-09-18T12:00:00Z"}')
    assert (notice.leave, notice.at_s) == (True, NOON)
    assert notice.what == "the spot instance is going to be terminated"
    assert notice.within_s(NOON - 118.0) == 118.0


def test_clocks_that_differ_leave_some_time_and_not_too_much() -> None:
    """A time that has passed by our clock is not over by theirs; one in another year is no year to go on."""
    notice = notices.aws_action('{"action": "stop", "time": "2017-09-18T12:00:00Z"}')
    assert notice.within_s(NOON + 50.0) == 5.0
    assert notice.within_s(0.0) == 3600.0


def test_a_raised_risk_is_for_the_record() -> None:
    """Nothing is decided yet."""
    assert not notices.aws_rebalance('{"noticeTime": "2017-09-18T12:00:00Z"}').leave


@pytest.mark.parametrize(
    ("text", "expected"),
    [("NONE", []), ("MIGRATE_ON_HOST_MAINTENANCE", [False]), ("TERMINATE_ON_HOST_MAINTENANCE", [True])],
)
def test_maintenance_is_told_by_one_word(text: str, expected: list[bool]) -> None:
    """A machine that is migrated stands still for a moment; one that cannot be is terminated."""
    assert [notice.leave for notice in notices.gcp_maintenance(text)] == expected


def test_a_preemption_leaves_half_a_minute() -> None:
    """Google says that it is so, and documents for how long."""
    [notice] = notices.gcp_preempted("TRUE")
    assert (notice.leave, notice.within_s(NOON)) == (True, 30.0)
    assert notices.gcp_preempted("FALSE") == ()


@pytest.mark.parametrize(
    ("event", "leaves"),
    [
        ({}, [True]),
        ({"EventType": "Terminate"}, [True]),
        ({"EventType": "Freeze"}, [False]),
        ({"EventType": "New"}, []),
    ],
)
def test_events_of_this_machine_count(event: dict[str, Any], leaves: list[bool]) -> None:
    """The document is one for all machines of a group."""
    text = document(event, {"Resources": ["Other_0"]})
    assert [notice.leave for notice in notices.azure_events(text, "BackEnd_IN_0")] == leaves
    assert notices.azure_events(text, "BackEnd") == ()


def test_an_event_that_has_begun_has_no_time_any_more() -> None:
    """Then the documented least is what is left."""
    [scheduled, begun] = notices.azure_events(document({}, {"NotBefore": "", "EventStatus": "Started"}), "BackEnd_IN_0")
    assert (scheduled.at_s, scheduled.lead_s) == (NOON, None)
    assert (begun.at_s, begun.within_s(NOON)) == (None, 30.0)


READERS = (
    notices.aws_action,
    notices.aws_rebalance,
    notices.gcp_preempted,
    notices.gcp_maintenance,
    lambda text: notices.azure_events(text, "m"),
)


@pytest.mark.parametrize("read", READERS)
@given(
    st.one_of(
        st.text(max_size=200),
        st.just("[" * 100_000),
        st.sampled_from(["{}", "[]", "null", '{"action":"x"}', '{"action":"stop","time":7}', '{"Events":[7]}']),
        st.sampled_from(['{"noticeTime":"9999-99-99T00:00:00Z"}', '{"Events":[{"Resources":["m"]}]}', "<html>"]),
        st.just('{"Events":[{"EventType":"Preempt","Resources":["m"],"NotBefore":"Mon, 99 Foo"}]}'),
    )
)
def test_whatever_else_comes_is_refused_by_one_error(read: Any, text: str) -> None:
    """A captive portal answers too."""
    try:
        found = read(text)
    except ValueError:
        return
    assert found == () or text in ("TRUE", "FALSE", "NONE")


@pytest.mark.parametrize(
    ("files", "cloud"),
    [
        ({"sys_vendor": "Amazon EC2\n"}, Cloud.AWS),
        ({"sys_vendor": "Google\n", "chassis_asset_tag": "\n"}, Cloud.GCP),
        (
            {"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n"},
            Cloud.AZURE,
        ),
        ({"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": "8831-8731-1795-3885-2578-4321-21\n"}, None),
        ({"sys_vendor": "QEMU\n"}, None),
        ({}, None),
    ],
)
def test_the_firmware_says_whose_machine_it_is(tmp_path: Path, files: dict[str, str], cloud: Cloud | None) -> None:
    """Hyper-V at home is no Azure; what cannot be read is no cloud."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cloud_here(Cloud.AUTO, tmp_path) is cloud
    assert cloud_here(Cloud.GCP, tmp_path) is Cloud.GCP


def test_a_notice_survives_the_wire() -> None:
    """It goes from the process that heard it to the supervisor, and into the journal."""
    notice = Notice(cloud=Cloud.AZURE, what="x", leave=True, at_s=1.5)
    assert wire.from_data(wire.to_data(notice), Notice) == notice
