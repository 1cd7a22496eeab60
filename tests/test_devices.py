# SPDX-License-Identifier: Apache-2.0
"""What NVML answers becomes words about devices; what it does not answer stays unknown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest
from nvml import GPU_IS_LOST, NOT_SUPPORTED, RESET_REQUIRED, Gpu, Pynvml, h100

from resilient.core.devices import NO_RECOVERY, Device, DeviceEvent, State
from resilient.devices import nvml as ours
from resilient.devices.nvml import open_nvml
from resilient.devices.protocol import Unavailable
from resilient.devices.vendors import vendor_here, visible

UUID = "GPU-00000000-1111-2222-3333-444444444444"


def only(*gpus: Gpu, **library: Any) -> Device:
    """The first device of a look."""
    return open_nvml(Pynvml(*gpus, **library)).look().devices[0]


def test_a_healthy_gpu_is_read_whole() -> None:
    """Every field of a look is filled in where the driver answers everything."""
    look = open_nvml(Pynvml(h100(0), h100(1))).look()
    assert (look.driver, look.runtime) == ("570.86.15", "12.8")
    assert [device.bus for device in look.devices] == ["0000:18:00.0", "0000:19:00.0"]
    assert look.devices[0] == Device(
        index=0,
        uuid=UUID,
        bus="0000:18:00.0",
        name="NVIDIA H100 80GB HBM3",
        divided=False,
        state=State.ANSWERS,
        recovery=NO_RECOVERY,
        uncorrected=0,
        rows_pending=False,
        rows_failed=False,
        slowed=(),
        memory_free=70 << 30,
        memory_total=80 << 30,
        lanes=16,
        lanes_possible=16,
        links_up=18,
        links=18,
        watched=True,
    )


@pytest.mark.parametrize(
    ("number", "words"), [(1, "GPU reset"), (2, "node reboot"), (4, "drain and reset"), (42, "recovery action 42")]
)
def test_a_recovery_action_is_named(number: int, words: str) -> None:
    """A number that a later driver brings is no reason to call the GPU fine."""
    assert only(h100(0, nvmlDeviceGetFieldValues=number)).recovery == words


@pytest.mark.parametrize("code", ["3", "2", "999"])
def test_a_field_that_the_driver_does_not_know_is_unknown(code: str) -> None:
    """Drivers before r570 refuse field 230 alone: the GPU still answers, and needs nobody knows what."""
    device = only(h100(0, nvmlDeviceGetFieldValues=code))
    assert device.recovery is None
    assert (device.state, device.uncorrected) == (State.ANSWERS, 0)


def test_a_board_without_ecc_says_so_by_silence() -> None:
    """A consumer board supports a few questions only; each of the others is unknown on its own."""
    few = {"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetSupportedEventTypes"}
    gpu = h100(0)
    gpu.refused = dict.fromkeys(gpu.answers.keys() - few, NOT_SUPPORTED)
    device = only(gpu)
    assert device.state is State.ANSWERS
    assert device.slowed == ()
    unknown = (device.uncorrected, device.rows_failed, device.rows_pending, device.recovery, device.links, device.lanes)
    assert unknown == (None,) * 6


def test_a_gpu_that_answers_nothing_is_unknown_not_fine() -> None:
    """Without permission there is a GPU and nothing to say of it."""
    gpu = h100(0)
    gpu.refused = dict.fromkeys((*gpu.answers, "nvmlDeviceRegisterEvents"), 4)
    device = only(gpu)
    assert (device.state, device.watched, device.recovery) == (State.UNKNOWN, False, None)


@pytest.mark.parametrize(("code", "state"), [(GPU_IS_LOST, State.LOST), (RESET_REQUIRED, State.NEEDS_RESET)])
def test_a_gpu_that_is_lost_later_keeps_its_name(code: int, state: State) -> None:
    """What it was called is remembered from before; a lost board cannot say it any more."""
    gpu = h100(0)
    devices = open_nvml(Pynvml(gpu))
    gpu.refused = {"nvmlDeviceGetMemoryInfo": code, "nvmlDeviceGetUUID": code}
    device = devices.look().devices[0]
    assert (device.state, device.uuid, device.bus) == (state, UUID, "0000:18:00.0")


def test_a_gpu_that_is_lost_from_the_start_is_there() -> None:
    """It is counted by the driver, so it is one of the look's devices."""
    lost = h100(0)
    lost.lost = True
    first, second = open_nvml(Pynvml(lost, h100(1))).look().devices
    assert (first.state, first.uuid, first.watched) == (State.LOST, None, False)
    assert second.state is State.ANSWERS


def test_ecc_rows_and_throttling() -> None:
    """Counts and flags come through; being held at the power limit is how a busy board works."""
    device = only(
        h100(
            0,
            nvmlDeviceGetTotalEccErrors=7,
            nvmlDeviceGetRemappedRows=(1, 2, 1, 1),
            nvmlDeviceGetCurrentClocksEventReasons=0x4 | 0x8 | 0x40,
        )
    )
    assert (device.uncorrected, device.rows_pending, device.rows_failed) == (7, True, True)
    assert device.slowed == ("hardware slowdown", "hardware thermal slowdown")


def test_the_old_name_of_a_function_is_used_where_the_new_one_fails() -> None:
    """Clock event reasons were called throttle reasons before r535, in the binding and in the library."""
    old = {"nvmlDeviceGetCurrentClocksThrottleReasons": 0x80}
    assert only(h100(0, **old), absent=("nvmlDeviceGetCurrentClocksEventReasons",)).slowed == ("power brake",)
    gpu = h100(0, **old)
    gpu.refused = {"nvmlDeviceGetCurrentClocksEventReasons": 13}
    assert only(gpu).slowed == ("power brake",)


def test_a_divided_gpu_names_its_parts() -> None:
    """Under MIG a process is given a part; its UUID leads to the board that fails."""
    device = only(h100(0, nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=7))
    assert device.divided
    assert device.instances == (f"MIG-0-{UUID}", f"MIG-1-{UUID}")
    assert device.watched, "without privilege events of the whole board can still be had"


def test_xid_events_name_their_gpu() -> None:
    """An event comes with the index of its board and the Xid; 999 means that NVML knows none."""
    first, second = h100(0), h100(1)
    library = Pynvml(first, second)
    devices = open_nvml(library)
    assert library.registered == {0: 0xE80A, 1: 0xE80A}, "what is of use and supported"
    library.happen(second, 0x8, 79)
    library.happen(first, 0x8, 999)
    library.happen(first, 0x8000)
    seen = [devices.wait(0.1), devices.wait(0.1), devices.wait(0.1)]
    told = [(event.index, event.kind, event.number) for event in seen if isinstance(event, DeviceEvent)]
    assert told == [(1, "xid", 79), (0, "xid", None), (0, "recovery", None)]
    assert devices.wait(0.1) is None


def test_an_event_of_a_lost_gpu_still_has_its_index() -> None:
    """The board cannot say its UUID any more; the driver's own number for it is left."""
    gpu = h100(1)
    library = Pynvml(h100(0), gpu)
    devices = open_nvml(library)
    gpu.lost = True
    library.happen(gpu, 0x8, 79)
    event = devices.wait(0.1)
    assert event is not None
    assert (event.index, event.number) == (1, 79)


@pytest.mark.parametrize("code", [GPU_IS_LOST, 999])
def test_a_wait_that_fails_ends_the_waiting(code: int) -> None:
    """It would fail again at once, for ever."""
    library = Pynvml(h100(0))
    devices = open_nvml(library)
    library.events.append(code)
    with pytest.raises(Unavailable, match="cannot wait for events any longer: "):
        devices.wait(0.1)


def test_a_gpu_without_xid_events_is_not_watched() -> None:
    """That no Xid came from it means nothing."""
    refusing = h100(0)
    refusing.refused = {"nvmlDeviceRegisterEvents": NOT_SUPPORTED}
    silent = h100(1, nvmlDeviceGetSupportedEventTypes=0x1)
    devices = open_nvml(Pynvml(refusing, silent))
    assert [device.watched for device in devices.look().devices] == [False, False]
    with pytest.raises(Unavailable, match="no GPU lets this process register"):
        devices.wait(0.1)


@pytest.mark.parametrize(
    ("code", "words"), [(12, "Library Not Found"), (9, "Driver Not Loaded"), (18, "NVML/RM version mismatch")]
)
def test_a_driver_that_cannot_be_asked_says_why(code: int, words: str) -> None:
    """The message names NVML's own words."""
    with pytest.raises(Unavailable, match=f"cannot ask the NVIDIA driver: .*{words}"):
        open_nvml(Pynvml(init=code))


def test_a_missing_binding_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional, so the message says how to get it."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match=r"nvidia-ml-py is not installed; install resilient-training\[gpu\]"):
        open_nvml()


def test_closing_lets_go() -> None:
    """NVML counts its users."""
    library = Pynvml(h100(0))
    devices = open_nvml(library)
    assert library.open
    devices.close()
    assert not library.open


def test_the_numbers_are_those_of_the_binding() -> None:
    """nvml.h is not read by Python; the installed binding is asked whether we have its numbers."""
    assert pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION == ours.RECOVERY_FIELD
    assert (pynvml.NVML_ERROR_TIMEOUT, pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED) == (10, 15, 16)
    assert pynvml.nvmlEventTypeXidCriticalError == 0x8
    assert pynvml.nvmlEventTypeGpuRecoveryAction == 0x8000
    assert all(callable(getattr(pynvml, name)) for name in h100(0).answers)


def nodes(folder: Path, *names: str) -> Path:
    """A directory with these names in it."""
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "visible", "here"),
    [
        ((), None, False),
        (("nvidiactl", "nvidia-uvm", "null"), None, False),
        (("nvidia0",), None, True),
        (("nvidia0",), "", True),
        ((), "", False),
        ((), "-1", False),
        ((), "NoDevFiles", False),
        ((), "0,1", True),
        ((), "GPU-8f", True),
    ],
)
def test_devices_are_looked_for_only_where_there_are_some(
    tmp_path: Path, names: tuple[str, ...], visible: str | None, here: bool
) -> None:
    """A machine without a device node, on which nobody asks for one, has no vendor: nothing is loaded or started."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    vendor = vendor_here(environ, nodes(tmp_path, *names))
    assert (vendor is not None) == here


@pytest.mark.parametrize(
    ("names", "environ", "name", "lists"),
    [
        (("kfd",), {"CUDA_VISIBLE_DEVICES": "0,1"}, "AMD", ("0,1",)),
        (("kfd",), {"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, "AMD", ("2,3", "1")),
        (("kfd",), {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "9"}, "AMD", ("1",)),
        ((), {"ROCR_VISIBLE_DEVICES": "0"}, "AMD", ("0",)),
        ((), {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": ""}, "NVIDIA", ("0",)),
        (("kfd", "nvidia0"), {}, "NVIDIA", ()),
    ],
)
def test_the_devices_that_are_there_say_whose_they_are(
    tmp_path: Path, names: tuple[str, ...], environ: dict[str, str], name: str, lists: tuple[str, ...]
) -> None:
    """ROCm listens to CUDA's variable too, so that it alone says nothing where AMD's driver is."""
    vendor = vendor_here(environ, nodes(tmp_path, *names))
    assert vendor is not None
    assert (vendor.name, visible(vendor, environ)) == (name, lists)


def test_looking_for_devices_loads_no_library() -> None:
    """The rows of the table hold functions, which load their library when they are called."""
    code = "import sys, resilient.devices.vendors; print(bool({'pynvml', 'amdsmi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
