# SPDX-License-Identifier: Apache-2.0
"""AMD's devices through recorded answers of ``amdsmi``: all of this has met no board."""

from __future__ import annotations

import sys

import pytest
from amd_answers import DRIVER_NOT_LOADED, NO_DATA, NOT_SUPPORTED, Amdsmi, AmdSmiLibraryException, mi300x

from resilient.core.causes import Action, Cause
from resilient.core.classify import classify
from resilient.core.devices import Device, DeviceEvidence, DeviceId, Look, State, assigned
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.kernel_log import about
from resilient.devices.amd import open_amd
from resilient.devices.protocol import Unavailable

PENDING = [{"value": 0, "page_address": 4096, "page_size": 4096, "status": 1}]
FAILED = [{"value": 0, "page_address": 4096, "page_size": 4096, "status": 2}]


def look(*boards: dict[str, object]) -> Look:
    return open_amd(Amdsmi(*boards)).look()


def test_a_healthy_board_says_so() -> None:
    """With all that the rules and the preflight ask for, but for what AMD's driver does not tell."""
    found = look(mi300x(0), mi300x(1))
    assert (found.driver, found.runtime) == ("6.14.14", None)
    assert found.devices[1] == Device(
        index=1,
        uuid="1cff74a1-0000-1000-80d7-2b0a2f3c4d5e",
        bus="0000:15:00.0",
        name="AMD Instinct MI300X",
        state=State.ANSWERS,
        uncorrected=0,
        rows_pending=False,
        rows_failed=False,
        slowed=(),
        memory_total=196592 << 20,
        memory_free=(196592 - 283) << 20,
        lanes=16,
        lanes_possible=16,
        watched=True,
    )


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"amdsmi_get_gpu_bad_page_info": PENDING}, {"rows_pending": True, "rows_failed": False}),
        ({"amdsmi_get_gpu_bad_page_info": FAILED}, {"rows_pending": False, "rows_failed": True}),
        ({"amdsmi_get_gpu_bad_page_info": "No bad pages found."}, {"rows_pending": False, "rows_failed": False}),
        ({"amdsmi_get_gpu_bad_page_info": NOT_SUPPORTED}, {"rows_pending": None, "rows_failed": None}),
        ({"amdsmi_get_violation_status": {"active_hbm_thrm": True}}, {"slowed": ("memory too hot",)}),
        ({"amdsmi_get_violation_status": {"active_hbm_thrm": "N/A"}}, {"slowed": None}),
        ({"amdsmi_get_gpu_total_ecc_count": {"uncorrectable_count": 3}}, {"uncorrected": 3}),
        ({"amdsmi_get_pcie_info": {"pcie_metric": {"pcie_width": "N/A"}}}, {"lanes": None, "lanes_possible": None}),
        ({"amdsmi_get_gpu_asic_info": {"market_name": "N/A"}}, {"name": None}),
    ],
)
def test_each_answer_stands_alone(answers: dict[str, object], expected: dict[str, object]) -> None:
    """What is not supported, or not known, is unknown and never fine."""
    [device] = look(mi300x(0, **answers)).devices
    assert {name: getattr(device, name) for name in expected} == expected


def test_a_board_that_refuses_everything_is_unknown() -> None:
    """The driver says of none that it is lost."""
    [device] = look(dict.fromkeys(mi300x(0), NOT_SUPPORTED)).devices
    assert (device.state, device.uncorrected, device.uuid) == (State.UNKNOWN, None, None)


def test_events_come_one_by_one_with_their_board() -> None:
    """One read is for all boards, and may bring several."""
    library = Amdsmi(mi300x(0), mi300x(1))
    devices = open_amd(library)
    library.reads = [[(1, "GPU_PRE_RESET"), (1, "GPU_POST_RESET")], AmdSmiLibraryException(NO_DATA), []]
    events = [devices.wait(0.0) for _ in range(5)]
    assert [(event.index, event.kind) for event in events if event] == [(1, "reset"), (1, "reset done")]
    assert events[2:] == [None, None, None]
    library.reads = [AmdSmiLibraryException(7)]
    with pytest.raises(Unavailable, match="any longer"):
        devices.wait(0.0)
    devices.close()
    assert (library.open, library.readers) == (False, 0)


def test_without_events_the_looks_are_left() -> None:
    """A driver that does not let us register still answers."""
    devices = open_amd(Amdsmi(mi300x(0), events=False))
    assert not devices.look().devices[0].watched
    with pytest.raises(Unavailable, match="no GPU lets this process register"):
        devices.wait(0.0)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, or the driver behind it."""
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    with pytest.raises(Unavailable, match="comes with ROCm"):
        open_amd()
    with pytest.raises(Unavailable, match="check that this container is given it"):
        open_amd(Amdsmi(init=DRIVER_NOT_LOADED))


def test_memory_errors_of_an_attempt_move_the_job() -> None:
    """As with any make: the count rose while the attempt ran, and nobody says that it was contained."""
    before = look(mi300x(0))
    after = look(mi300x(0, amdsmi_get_gpu_total_ecc_count={"uncorrectable_count": 1}))
    [devices] = assigned(after, before, [], 1, visible=(), by_bus=False, shared=False)
    verdict = classify(Evidence(ranks=(RankEvidence(rank=0, signal=6, order=0, devices=devices),)))
    assert (verdict.rule, verdict.device_grade, verdict.action) == ("device-ecc", True, Action.RESCHEDULE)
    assert verdict.device == after.devices[0].id


def test_a_reset_is_looked_into_and_no_verdict_on_the_board() -> None:
    """A kernel that hangs is reset for its program's bug as well."""
    library = Amdsmi(mi300x(0))
    devices = open_amd(library)
    library.reads = [[(0, "GPU_PRE_RESET")]]
    event = devices.wait(0.0)
    assert event is not None
    told = DeviceEvidence(device=devices.look().devices[0], events=(event,))
    verdict = classify(Evidence(ranks=(RankEvidence(rank=0, signal=6, order=0, devices=(told,)),)))
    assert (verdict.rule, verdict.cause, verdict.device_grade) == ("device-reset", Cause.AMBIGUOUS, False)


def test_the_kernels_lines_belong_to_the_board_with_their_address() -> None:
    """amdgpu names it at the beginning of each line."""
    [mine, other] = look(mi300x(0), mi300x(1)).devices
    line = "amdgpu 0000:15:00.0: amdgpu: uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!"
    assert about([line], [mine]) == ()
    assert about([line], [other]) == (line,)
    rank = RankEvidence(rank=0, exit_code=1, order=0, kernel_log=line, devices=(DeviceEvidence(device=other),))
    verdict = classify(Evidence(ranks=(rank,)))
    assert (verdict.rule, verdict.device) == (
        "amdgpu-uncorrectable",
        DeviceId(uuid=other.uuid, bus="0000:15:00.0", index=1),
    )
