# SPDX-License-Identifier: Apache-2.0
"""Rules about how the kubelet finds the devices of the pod, where we may ask the API server for it.

A device plugin's word, not the driver's own: it says that something is wrong, seldom what, and may come after the
failure that it explains. A device that was well when it was asked for the last time outweighs whatever its worker
printed; one that was known to be unwell before is a reason only where nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from resilient.core.causes import Action, Cause, Confidence
from resilient.core.devices import DeviceId
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.pod_status import Health, PodDevice
from resilient.core.rule import AllOf, Condition, Family, Rule, row
from resilient.core.symptoms import Symptoms

KEP: Final = (
    "https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/4680-add-resource-health-to-pod-status"
)
_UUID: Final = re.compile(r"(?:GPU|MIG)-[0-9A-Fa-f-]{36}")
_BUS: Final = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_SHARED: Final = "::"
"""NVIDIA's plugin numbers the shares of a device that several containers use: ``GPU-...::3``."""


@dataclass(frozen=True, slots=True)
class Reported:
    """The kubelet says of a device of the rank that it is unhealthy, and the test holds for it."""

    test: Callable[[PodDevice], bool]

    def __call__(self, symptoms: Symptoms) -> str | None:
        """Give the words, and which device it is."""
        for device in symptoms.evidence.pod_devices:
            if device.health is Health.UNHEALTHY and self.test(device):
                mine = _of_rank(device, symptoms)
                if mine is not None:
                    return f"{Health.UNHEALTHY.value} among {device.resource} ({mine})"
        return None


def _failed_by_itself(symptoms: Symptoms) -> str | None:
    """A device that was unwell before says nothing of a worker that we stopped, or that has done its work."""
    return None if symptoms.rank.stopped or symptoms.code == 0 else ""


def _of_rank(device: PodDevice, symptoms: Symptoms) -> DeviceId | str | None:
    """The rank's device that is meant; where nobody can tell whose it is, it is everybody's."""
    for evidence in symptoms.rank.devices:
        if is_called(device.name, evidence.device.id, evidence.device.instances):
            return evidence.device.id
    known = any(rank.devices for rank in symptoms.evidence.ranks)
    if known and _tells(device.name):  # it is another rank's, or nobody's
        return None
    return device.name


def is_called(name: str, device: DeviceId, instances: tuple[str, ...] = ()) -> bool:
    """Whether a plugin means this device, or a part of it, by that name."""
    bare = name.partition(_SHARED)[0]
    return bare in (device.uuid, *instances) or (device.bus is not None and _short_bus(bare) == _short_bus(device.bus))


def _short_bus(bus: str) -> str:
    """Drivers write domains of four digits and of eight."""
    return bus.lower()[-len("0000:00:00.0") :]


def _tells(name: str) -> bool:
    """Whether the name is one by which a driver knows the device as well."""
    bare = name.partition(_SHARED)[0]
    return bool(_UUID.fullmatch(bare) or _BUS.fullmatch(bare))


def _example(before: Health | None) -> Evidence:
    uuid = "GPU-5f1c2d3e-0000-1111-2222-333344445555"
    device = PodDevice(resource="nvidia.com/gpu", name=uuid, health=Health.UNHEALTHY, before=before)
    return Evidence(ranks=(RankEvidence(rank=0, exit_code=1, order=0),), pod_devices=(device,))


def _kubelet(name: str, why: str, when: Condition, before: Health | None, *, device_grade: bool) -> Rule:
    return row(
        name,
        Cause.DEVICE_FAULT,
        Action.RESCHEDULE,
        f"{why}: {{seen}}",
        when,
        _example(before),
        KEP,
        family=Family.KUBELET,
        confidence=Confidence.MEDIUM,
        device_grade=device_grade,
    )


KUBELET_RULES: Final = (
    _kubelet(
        "kubelet-unhealthy",
        "the kubelet has found a device of rank {rank} unhealthy since it was last asked",
        Reported(lambda device: device.turned),
        Health.HEALTHY,
        device_grade=True,
    ),
)
LATE_KUBELET_RULES: Final = (
    _kubelet(
        "kubelet-unhealthy-before",
        "nothing else says why, and the kubelet finds a device of rank {rank} unhealthy",
        AllOf((_failed_by_itself, Reported(lambda device: True))),
        None,
        device_grade=False,
    ),
)
