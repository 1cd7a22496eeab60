# SPDX-License-Identifier: Apache-2.0
"""What a cloud says of its machine before it takes it away: the answers of its metadata service, read.

Pure: text in, notices out. An answer that is none of the documented ones is a ``ValueError``; words for people are
our own, so that nothing that came over the network is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Final

from resilient.core.cloud import Cloud


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One announcement."""

    cloud: Cloud
    what: str
    leave: bool
    """The machine goes, and with it whatever is not saved; else it is for the record."""
    at_s: float | None = None
    """When, on the wall clock."""
    lead_s: float | None = None
    """How long after the notice, by the cloud's documentation, where it does not say when."""

    def within_s(self, wall_s: float) -> float | None:
        """Seconds from now on; clocks differ, so that it is never in the past nor in the far future."""
        if self.at_s is None:
            return self.lead_s
        return min(max(self.at_s - wall_s, _LEAST_S), _MOST_S)


_LEAST_S: Final = 5.0
_MOST_S: Final = 3600.0

_ACTIONS: Final[Mapping[str, str]] = {
    "terminate": "the spot instance is going to be terminated",
    "stop": "the spot instance is going to be stopped",
    "hibernate": "the spot instance is going to hibernate",
}
_MAINTENANCE: Final[Mapping[str, bool]] = {
    "NONE": False,
    "MIGRATE_ON_HOST_MAINTENANCE": False,
    "TERMINATE_ON_HOST_MAINTENANCE": True,
}
_PREEMPTED_S: Final = 30.0
_MAINTENANCE_S: Final = 60.0
"""The least that Google documents; machines with GPUs are told an hour ahead, but not how much of it is left."""
_EVENTS: Final[Mapping[str, tuple[str, bool]]] = {
    "Preempt": ("the spot machine is going to be evicted", True),
    "Terminate": ("the machine is going to be deleted", True),
    "Redeploy": ("the machine is going to be moved to other hardware", True),
    "Reboot": ("the machine is going to be rebooted", True),
    "Freeze": ("the machine is going to stand still for some seconds", False),
}
_EVENT_S: Final = 30.0
"""The least that Azure documents, for an event that has no time any more: it has begun."""
_MOST_EVENTS: Final = 64


def aws_action(text: str) -> Notice:
    """``spot/instance-action``, which is there only once there is one."""
    data = _object(text)
    what = _ACTIONS.get(str(data.get("action")))
    if what is None:
        raise ValueError("its action is none that is documented")
    return Notice(cloud=Cloud.AWS, what=what, leave=True, at_s=_utc(data.get("time")))


def aws_rebalance(text: str) -> Notice:
    """``events/recommendations/rebalance``: the risk has risen, and nothing is decided."""
    _utc(_object(text).get("noticeTime"))
    return Notice(cloud=Cloud.AWS, what="the spot instance has a raised risk of being interrupted", leave=False)


def gcp_preempted(text: str) -> tuple[Notice, ...]:
    """``instance/preempted``."""
    if text not in ("TRUE", "FALSE"):
        raise ValueError("preempted is neither TRUE nor FALSE")
    what = "the machine is being preempted"
    return (Notice(cloud=Cloud.GCP, what=what, leave=True, lead_s=_PREEMPTED_S),) if text == "TRUE" else ()


def gcp_maintenance(text: str) -> tuple[Notice, ...]:
    """``instance/maintenance-event``."""
    if text not in _MAINTENANCE:
        raise ValueError("maintenance-event is none that is documented")
    if text == "NONE":
        return ()
    if _MAINTENANCE[text]:
        what = "the machine is going to be terminated for maintenance"
        return (Notice(cloud=Cloud.GCP, what=what, leave=True, lead_s=_MAINTENANCE_S),)
    return (Notice(cloud=Cloud.GCP, what="the machine is going to be migrated to another host", leave=False),)


def azure_events(text: str, machine: str) -> tuple[Notice, ...]:
    """``scheduledevents``: those of this machine; the document tells of its whole group."""
    events = _object(text).get("Events")
    if not isinstance(events, list):
        raise ValueError("it has no list of events")
    notices = []
    for event in events[:_MOST_EVENTS]:
        if not isinstance(event, dict) or not isinstance(event.get("Resources"), list):
            raise ValueError("an event names no resources")
        kind = _EVENTS.get(str(event.get("EventType")))
        if kind is None or machine not in event["Resources"]:
            continue
        at_s = _rfc1123(event.get("NotBefore"))
        lead_s = _EVENT_S if at_s is None else None
        notices.append(Notice(cloud=Cloud.AZURE, what=kind[0], leave=kind[1], at_s=at_s, lead_s=lead_s))
    return tuple(notices)


def _object(text: str) -> dict[str, object]:
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def _utc(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("it has no time")
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()


def _rfc1123(value: object) -> float | None:
    """``None`` where the field is empty, as it is once the event has begun."""
    if not isinstance(value, str):
        raise ValueError("an event has no time")
    return parsedate_to_datetime(value).timestamp() if value else None
