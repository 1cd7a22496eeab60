# SPDX-License-Identifier: Apache-2.0
"""Whose device is whose, and what its driver's word is worth against everything else that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resilient.core import wire
from resilient.core.causes import Action, Cause
from resilient.core.classify import classify
from resilient.core.devices import NO_RECOVERY, Device, DeviceEvent, DeviceEvidence, Look, State, assigned
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence

FINE = Device(index=0, state=State.ANSWERS, recovery=NO_RECOVERY, uncorrected=0, rows_failed=False, watched=True)


def gpu(index: int, **changes: object) -> Device:
    """A healthy GPU, but for the changes."""
    whole = replace(
        FINE, index=index, uuid=f"GPU-{index}f000000-0000-0000-0000-000000000000", bus=f"0000:{index}8:00.0"
    )
    return replace(whole, name="H100", **changes)  # type: ignore[arg-type]  # fields of all types


FOUR = Look(devices=tuple(gpu(index) for index in range(4)))


def whose(ranks: int, *, look: Look = FOUR, visible: str | None = None, **options: bool) -> list[list[int]]:
    """The indexes of the devices of each rank."""
    given = {"by_bus": False, "shared": False} | options
    lists = () if visible is None else tuple(visible.split("|"))
    return [
        [evidence.device.index for evidence in theirs]
        for theirs in assigned(look, None, [], ranks, visible=lists, by_bus=given["by_bus"], shared=given["shared"])
    ]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [[0], [1]]),
        ("2,3", [[2], [3]]),
        ("3, 1", [[3], [1]]),
        ("GPU-2f,GPU-0f000000-0000", [[2], [0]]),
        ("1", [[1], []]),
        ("1,-1,2", [[1], []]),
        ("1,9", [[1], []]),
        ("GPU-,0", [[], []]),
        ("", [[], []]),
        ("2,3,1|1,0", [[3], [2]]),
        ("2,3|2", [[], []]),
    ],
)
def test_ranks_have_the_devices_that_a_framework_gives_them(visible: str | None, expected: list[list[int]]) -> None:
    """Rank r of a node uses the r-th visible device; a list ends at its first entry that is none, and is within the one
    before."""
    assert whose(2, visible=visible) == expected


def test_one_worker_may_use_all_devices_and_a_launcher_starts_more() -> None:
    """Where we do not give out devices, every visible one is at stake."""
    assert whose(1) == [[0, 1, 2, 3]]
    assert whose(1, visible="2") == [[2]]
    assert whose(2, visible="0,1", shared=True) == [[0, 1], [0, 1]]


def test_numbers_of_unlike_devices_say_nothing() -> None:
    """CUDA counts the fastest first unless it is told to go by PCI address; a UUID means one device in any order."""
    unlike = Look(devices=(gpu(0), replace(gpu(1), name="A2")))
    assert whose(2, look=unlike) == [[0, 1], [0, 1]]
    assert whose(2, look=unlike, by_bus=True) == [[0], [1]]
    assert whose(2, look=unlike, visible="GPU-1f,GPU-0f") == [[1], [0]]


def test_a_part_of_a_device_leads_to_it() -> None:
    """Under MIG what is visible is a part."""
    divided = replace(gpu(1), divided=True, instances=("MIG-1234-5678",))
    look = Look(devices=(gpu(0), divided))
    assert whose(1, look=look, visible="MIG-1234-5678") == [[1]]


def test_events_and_the_state_before_go_with_their_device() -> None:
    """Each device has its own."""
    event = DeviceEvent(index=1, kind="xid", number=79, monotonic_s=5.0)
    before = Look(devices=(gpu(0, uncorrected=1), gpu(1, uncorrected=2)))
    theirs = assigned(FOUR, before, [event], 2, visible=(), by_bus=False, shared=False)
    assert theirs[0] == (DeviceEvidence(device=gpu(0), before=before.devices[0]),)
    assert theirs[1] == (DeviceEvidence(device=gpu(1), before=before.devices[1], events=(event,)),)


def test_a_driver_that_does_not_answer_leaves_what_it_reported() -> None:
    """Nothing is known of how the device is now; that it reported an Xid is."""
    event = DeviceEvent(index=1, kind="xid", number=79, monotonic_s=5.0)
    theirs = assigned(None, FOUR, [event], 2, visible=(), by_bus=False, shared=False)
    left = theirs[1][0]
    assert (left.device.state, left.device.recovery, left.device.uuid) == (State.UNKNOWN, None, gpu(1).uuid)
    assert left.events == (event,)
    assert assigned(None, None, [event], 2, visible=(), by_bus=False, shared=False) == ((), ())


def failed(*ranks: tuple[str, DeviceEvidence]) -> Evidence:
    """Workers that died of an exception each, one after the other, with their devices."""
    return Evidence(
        ranks=tuple(
            RankEvidence(
                rank=number,
                exit_code=1,
                order=number,
                error=ErrorRecord(chain=(ErrorLink(type="ValueError", message=message),)),
                devices=(device,),
            )
            for number, (message, device) in enumerate(ranks)
        )
    )


def seen(device: Device, *numbers: int, before: Device | None = None) -> DeviceEvidence:
    """A device that was fine before."""
    events = tuple(DeviceEvent(index=device.index, kind="xid", number=n, monotonic_s=1.0) for n in numbers)
    return DeviceEvidence(device=device, before=before or gpu(device.index), events=events)


@pytest.mark.parametrize(
    ("device", "rule"),
    [
        (seen(gpu(1, state=State.LOST)), "device-lost"),
        (seen(gpu(1, state=State.NEEDS_RESET)), "device-needs-reset"),
        (seen(gpu(1, recovery="node reboot")), "device-recovery"),
        (seen(gpu(1, rows_failed=True)), "device-rows-failed"),
        (seen(gpu(1, recovery=None, uncorrected=1)), "device-ecc"),
        (seen(gpu(1), 79), "xid-off-the-bus"),
        (seen(gpu(1), 31, 48), "xid-ecc"),
        (seen(gpu(1, recovery="GPU reset", uncorrected=4), 95), "device-recovery"),
    ],
)
def test_the_drivers_word_beats_every_text(device: DeviceEvidence, rule: str) -> None:
    """Rank 0 died first and of an exception of the script's; the GPU of rank 1 is why, and is named."""
    verdict = classify(failed(("bad shape", seen(gpu(0))), ("bad shape", device)))
    assert (verdict.rule, verdict.culprit, verdict.device_grade) == (rule, 1, True)
    assert (verdict.action, verdict.cause) == (Action.RESCHEDULE, Cause.DEVICE_FAULT)
    assert "rank 1" in verdict.why
    assert "(GPU-1f000000-0000-0000-0000-000000000000, PCI 0000:18:00.0)" in verdict.why


@pytest.mark.parametrize(
    "device",
    [
        seen(gpu(1)),
        seen(gpu(1, rows_pending=True)),
        seen(gpu(1, slowed=("hardware thermal slowdown",))),
        seen(gpu(1, uncorrected=3), before=gpu(1, uncorrected=3)),
        seen(gpu(1, rows_failed=True), before=gpu(1, rows_failed=True)),
        seen(gpu(1, recovery=None, uncorrected=None, rows_failed=None, state=State.UNKNOWN)),
        seen(gpu(1, uncorrected=3), before=gpu(1, uncorrected=None)),
    ],
)
def test_what_was_so_before_or_is_unknown_is_no_verdict(device: DeviceEvidence) -> None:
    """A worn board on which the training ran for days did not make the script raise; neither did silence."""
    verdict = classify(failed(("bad shape", seen(gpu(0))), ("bad shape", device)))
    assert not verdict.device_grade
    assert verdict.cause is Cause.USER_CODE


def test_a_contained_error_needs_a_new_process_only() -> None:
    """The driver counts an error and asks for nothing: the next process may use the GPU."""
    for device in (seen(gpu(0, uncorrected=1)), seen(gpu(0, uncorrected=1), 94)):
        verdict = classify(failed(("CUDA went away", device)))
        assert (verdict.cause, verdict.action) == (Cause.DEVICE_FAULT, Action.RESTART_IN_PLACE)
        assert not verdict.device_grade


def test_an_xid_that_programs_cause_stays_behind_what_the_program_said() -> None:
    """Xid 13 and 31 follow an illegal access of the script's as well as a bad board."""
    assert classify(failed(("bad shape", seen(gpu(0), 31)))).rule != "xid-program"
    silent = replace(failed(("", seen(gpu(0), 31))).ranks[0], error=None, exit_code=None, signal=6)
    verdict = classify(Evidence(ranks=(silent,)))
    assert (verdict.rule, verdict.device_grade) == ("xid-program", False)


def test_the_gpu_that_needs_a_reset_is_blamed_before_its_peers() -> None:
    """All boards of a fabric report its fault, and the healthy ones first; one of them needs to be repaired."""
    verdict = classify(
        failed(("a", seen(gpu(0), 74)), ("b", seen(gpu(1), 74)), ("c", seen(gpu(2, recovery="GPU reset"), 74)))
    )
    assert (verdict.rule, verdict.culprit) == ("device-recovery", 2)


def test_the_same_fault_of_another_board_has_the_same_fingerprint() -> None:
    """Budgets are kept per fault, wherever it strikes."""
    prints = {classify(failed(("", seen(gpu(index), 79)))).fingerprint for index in range(3)}
    assert len(prints) == 1


def test_evidence_of_devices_survives_the_wire() -> None:
    """It is journalled, and read again by whoever explains it."""
    evidence = failed(("x", seen(gpu(1, slowed=("power brake",), instances=("MIG-1",)), 79)))
    assert wire.from_data(wire.to_data(evidence), Evidence) == evidence
