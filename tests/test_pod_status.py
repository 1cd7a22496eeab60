# SPDX-License-Identifier: Apache-2.0
"""What is read of the own pod, what rules make of it, and what is written about it: without any server."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.causes import Action, Cause, Verdict
from resilient.core.classify import classify
from resilient.core.devices import Device, DeviceEvidence, State
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence
from resilient.core.pod_report import BURST, NOTE_BYTES, SAME_S, Report, Sieve, fitting, reason_of
from resilient.core.pod_status import Health, PodDevice, disruption_words, read_pod
from resilient.core.suspicion import suspects_device

UUIDS = tuple(f"GPU-{number}f1c2d3e-0000-1111-2222-333344445555" for number in range(2))
KEYS = ("metadata", "uid", "status", "containerStatuses", "allocatedResourcesStatus", "resources", "name", "resourceID")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from((*KEYS, "conditions")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_is_in_an_answer_nothing_else_happens(data: object) -> None:
    """It is a pod with some status, whose parts are names, or it is none."""
    status = read_pod({"kind": "Pod", "status": data, "metadata": data})
    assert all(device.health in Health for device in status.devices)
    with pytest.raises(ValueError, match="no Pod"):
        read_pod(data)


def entry(name: object, health: object = "Unhealthy") -> dict[str, object]:
    return {"resourceID": name, "health": health}


def of(*entries: dict[str, object], conditions: object = None) -> dict[str, object]:
    resources = [{"name": "nvidia.com/gpu", "resources": list(entries)}]
    status = {"containerStatuses": [{"allocatedResourcesStatus": resources}], "conditions": conditions}
    return {"kind": "Pod", "metadata": {"uid": "u"}, "status": status}


def test_names_that_are_none_are_left_out() -> None:
    """They are shown, and compared with names of devices."""
    odd = ["", "a b", 'x\n{"why":1}', "\x1b[31m", "x" * 256, 7, None, "[rank0]"]
    status = read_pod(of(*map(entry, odd), entry("0000:05:00.0"), entry("0000:05:00.0"), entry("vendor.com/x=gpu0", 1)))
    assert [(device.name, device.health) for device in status.devices] == [
        ("0000:05:00.0", Health.UNHEALTHY),
        ("vendor.com/x=gpu0", Health.UNKNOWN),
    ]
    assert len(read_pod(of(*(entry(f"g{number}") for number in range(1000)))).devices) == 256


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}, "TerminationByKubelet"),
        ({"type": "DisruptionTarget", "status": "True", "reason": "OfSomeLaterRelease"}, "OfSomeLaterRelease"),
        ({"type": "DisruptionTarget", "status": "True", "reason": "a\nb"}, "DisruptionTarget"),
        ({"type": "DisruptionTarget", "status": "True"}, "DisruptionTarget"),
        ({"type": "DisruptionTarget", "status": "False", "reason": "EvictionByEvictionAPI"}, None),
        ({"type": "Ready", "status": "True", "reason": "EvictionByEvictionAPI"}, None),
    ],
)
def test_why_the_pod_is_to_go(condition: dict[str, str], reason: str | None) -> None:
    """By the condition that says so and is true; a reason that nobody knows is shown as it is."""
    status = read_pod(of(conditions=[condition]))
    assert status.disruption == reason
    if reason is not None:
        assert disruption_words(reason).startswith(f"Kubernetes: {reason}")


def gpu(name: str, health: Health = Health.UNHEALTHY, before: Health | None = Health.HEALTHY) -> PodDevice:
    return PodDevice(resource="nvidia.com/gpu", name=name, health=health, before=before)


def judged(*devices: PodDevice, error: str = "", uuids: tuple[str, ...] = UUIDS) -> Verdict:
    """Rank 1 fails first, by an exception where one is named; rank 0 is stopped. Each has the GPU of its number."""
    record = ErrorRecord(chain=(ErrorLink(type=error, message="x"),)) if error else None
    ranks = tuple(RankEvidence(rank=rank, exit_code=1, order=1 - rank, stopped=rank == 0) for rank in range(2))
    known = [
        (DeviceEvidence(device=Device(index=at, uuid=uuid, state=State.ANSWERS)),) for at, uuid in enumerate(uuids)
    ]
    mine = tuple(replace(rank, devices=each) for rank, each in zip(ranks, known, strict=True)) if uuids else ranks
    return classify(Evidence(ranks=(mine[0], replace(mine[1], error=record)), pod_devices=devices))


def test_a_device_that_turned_unhealthy_is_to_blame() -> None:
    """Whatever the workers printed, and whichever of them was seen to end first."""
    verdict = judged(gpu(UUIDS[0]), error="KeyError")
    assert (verdict.rule, verdict.culprit, verdict.cause) == ("kubelet-unhealthy", 0, Cause.DEVICE_FAULT)
    assert (verdict.action, verdict.device_grade) == (Action.RESCHEDULE, True)
    assert verdict.device is not None
    assert verdict.device.uuid == UUIDS[0]
    assert suspects_device(verdict)


@pytest.mark.parametrize("name", [f"{UUIDS[1]}::3", UUIDS[1]])
def test_a_share_of_a_device_is_the_device(name: str) -> None:
    """NVIDIA's plugin numbers what it gives to several containers."""
    assert judged(gpu(name)).culprit == 1


def test_whose_it_is_nobody_can_tell() -> None:
    """Where no driver could be asked, or a plugin has names of its own, it is everybody's; else it is nobody's."""
    assert judged(gpu(UUIDS[0]), uuids=()).rule == "kubelet-unhealthy"
    assert judged(gpu("tpu-7")).rule == "kubelet-unhealthy"
    assert judged(gpu("GPU-9f1c2d3e-0000-1111-2222-333344445555")).rule != "kubelet-unhealthy"


def test_a_device_that_was_unwell_before_explains_only_what_nothing_else_does() -> None:
    """An error of the code is one all the same; what is unknown explains nothing at all."""
    before = gpu(UUIDS[1], before=Health.UNHEALTHY)
    assert judged(before).rule == judged(gpu(UUIDS[1], before=None)).rule == "kubelet-unhealthy-before"
    assert not judged(before).device_grade
    assert judged(before, error="KeyError").cause is Cause.USER_CODE
    assert judged(gpu(UUIDS[0], before=Health.UNHEALTHY), error="KeyError").culprit == 1
    for health in (Health.UNKNOWN, Health.HEALTHY):
        assert not judged(gpu(UUIDS[1], health)).rule.startswith("kubelet")


def report(note: str, *, last: bool = False) -> Report:
    return Report(annotation="{}", reason="CodeFault", note=note, warning=True, last=last)


def test_events_are_bounded_and_never_said_twice() -> None:
    """A burst, then one a minute; the last one always, and the same again only after a while."""
    sieve, count = Sieve(), 0
    for number in range(100):
        sieve, admitted = sieve.admit(report(str(number)), 1000.0)
        count += admitted
    assert count == BURST
    assert not sieve.admit(report("new"), 1059.0)[1]
    sieve, admitted = sieve.admit(report("new"), 1060.0)
    assert admitted
    sieve, admitted = sieve.admit(report("end", last=True), 1061.0)
    assert admitted
    assert not sieve.admit(report("end", last=True), 1060.0 + SAME_S)[1]
    assert sieve.admit(report("end", last=True), 1061.0 + SAME_S)[1]


def test_a_note_fits() -> None:
    """In bytes, on one line, and not cut within a character."""
    assert fitting("a\n  b") == "a b"
    assert fitting("x" * NOTE_BYTES) == "x" * NOTE_BYTES
    cut = fitting("é" * NOTE_BYTES)
    assert len(cut.encode()) <= NOTE_BYTES
    assert cut.endswith("é...")


def test_reasons_are_words() -> None:
    """As kubectl shows them."""
    assert reason_of("preempted_unsaved") == "PreemptedUnsaved"
