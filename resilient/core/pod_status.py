# SPDX-License-Identifier: Apache-2.0
"""What the API server says of the own pod: how the kubelet finds its devices, and whether somebody makes it go.

Pure: an answer in, words out. What comes over the network is untrusted: what has not the form that Kubernetes
documents is left out, and nothing of it is longer than is needed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final


class PodAccess(str, enum.Enum):
    """What the pod's service account is used for."""

    READ = "read"
    """The own pod's status, as evidence."""
    WRITE = "write"
    """That, and the verdict as an annotation of the own pod and as Events."""


class Health(str, enum.Enum):
    """Of a device, as its plugin or driver has told the kubelet (KEP-4680)."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    UNKNOWN = "Unknown"
    """The plugin has gone, or says something that we do not know: neither good nor bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDevice:
    """One device of the pod's."""

    resource: str
    """Of which it is one: ``nvidia.com/gpu``, or ``claim:NAME/REQUEST``."""
    name: str
    """As its plugin calls it: mostly a UUID or a PCI address."""
    health: Health
    before: Health | None = None
    """When it was asked for the last time before this attempt ended; ``None`` where that is not known."""

    @property
    def turned(self) -> bool:
        """It was well then, and is not now."""
        return self.health is Health.UNHEALTHY and self.before is Health.HEALTHY

    def __str__(self) -> str:
        return f"{self.resource} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """What is of use of one answer."""

    uid: str | None = None
    devices: tuple[PodDevice, ...] = ()
    disruption: str | None = None
    """Why the pod is to go, by its condition DisruptionTarget: a word such as EvictionByEvictionAPI."""


DISRUPTION: Final = "DisruptionTarget"
_REASONS: Final[Mapping[str, str]] = {
    "PreemptionByScheduler": "a pod of a higher priority takes its place",
    "DeletionByTaintManager": "its node has got a taint that it does not tolerate",
    "DeletionByDeviceTaintManager": "one of its devices has got a taint that it does not tolerate",
    "EvictionByEvictionAPI": "somebody evicts it, as kubectl drain and autoscalers do",
    "DeletionByPodGC": "its node is gone, or out of service",
    "TerminationByKubelet": "the kubelet ends it: the node runs short of something, shuts down, or needs room",
}
"""https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions"""

# What is shown, and compared with names of devices: no spaces, no line ends, nothing that ends a quotation.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/=-]{0,253}[A-Za-z0-9])?")
_REASON: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_MOST_CONTAINERS: Final = 64
_MOST_DEVICES: Final = 256


def read_pod(data: object) -> PodStatus:
    """The status of a Pod as the API server gives it; ``ValueError`` where it is no Pod."""
    if not isinstance(data, Mapping) or data.get("kind") != "Pod":
        raise ValueError("it is no Pod")
    status = data.get("status")
    return PodStatus(
        uid=_named(_inside(data, "metadata", "uid")),
        devices=tuple(dict.fromkeys(_devices(status)))[:_MOST_DEVICES],
        disruption=_disruption(status),
    )


def since(status: PodStatus, before: Mapping[str, Health]) -> tuple[PodDevice, ...]:
    """Its devices, each with what was known of it before."""
    return tuple(
        PodDevice(resource=one.resource, name=one.name, health=one.health, before=before.get(str(one)))
        for one in status.devices
    )


def healths(status: PodStatus) -> dict[str, Health]:
    """What is known of each device, for the next time."""
    return {str(device): device.health for device in status.devices}


def newly_unwell(status: PodStatus, before: PodStatus) -> tuple[PodDevice, ...]:
    """Those that are unhealthy, and were not known to be."""
    known = healths(before)
    unwell = (device for device in status.devices if device.health is Health.UNHEALTHY)
    return tuple(device for device in unwell if known.get(str(device)) is not Health.UNHEALTHY)


def disruption_words(reason: str) -> str:
    """The same for people."""
    meaning = _REASONS.get(reason)
    return f"Kubernetes: {reason}" + (f", {meaning}" if meaning else "")


def _devices(status: object) -> Iterator[PodDevice]:
    for container in _items(_inside(status, "containerStatuses"))[:_MOST_CONTAINERS]:
        for resource in _items(_inside(container, "allocatedResourcesStatus"))[:_MOST_DEVICES]:
            called = _named(_inside(resource, "name"))
            for entry in _items(_inside(resource, "resources"))[:_MOST_DEVICES]:
                name = _named(_inside(entry, "resourceID"))
                if called is not None and name is not None:
                    yield PodDevice(resource=called, name=name, health=_health(_inside(entry, "health")))


def _health(value: object) -> Health:
    try:
        return Health(value)
    except ValueError:
        return Health.UNKNOWN


def _disruption(status: object) -> str | None:
    for condition in _items(_inside(status, "conditions"))[:_MOST_CONTAINERS]:
        if _inside(condition, "type") == DISRUPTION and _inside(condition, "status") == "True":
            reason = _inside(condition, "reason")
            return reason if isinstance(reason, str) and _REASON.fullmatch(reason) else DISRUPTION
    return None


def _inside(data: object, *path: str) -> object:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _items(data: object) -> list[Any]:
    return data if isinstance(data, list) else []


def _named(value: object) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None
