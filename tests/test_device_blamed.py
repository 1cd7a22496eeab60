# SPDX-License-Identifier: Apache-2.0
"""Which device a verdict names: what a deny list and the termination message are given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from recorder import recording

from resilient.core import events as ev
from resilient.core.causes import Verdict
from resilient.core.classify import classify
from resilient.core.devices import Device, DeviceEvent, DeviceEvidence, DeviceId, State
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Past, RankEvidence
from resilient.core.history import Now, reconsider
from resilient.core.log_text import read_log
from resilient.core.words import paragraph
from resilient.report.plain import sentences
from resilient.report.story import read_story
from resilient.report.verdicts import as_json

XID = "NVRM: Xid (PCI:0000:19:00): 79, pid=4242, name=python3, GPU has fallen off the bus."
SWITCH = "nvidia-nvswitch0: SXid (PCI:0000:07:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
ECC = "CUDA error: uncorrectable ECC error encountered"


def gpu(index: int) -> Device:
    return Device(
        index=index,
        uuid=f"GPU-0000000{index}-1111-2222-3333-444444444444",
        bus=f"0000:{0x18 + index:02x}:00.0",
        state=State.ANSWERS,
    )


def worker(rank: int, *devices: Device, said: str = "", kernel: str = "", message: str = "") -> RankEvidence:
    """A rank that died, with what it said and what its devices are."""
    error = ErrorRecord(chain=(ErrorLink(type="torch.AcceleratorError", message=message),)) if message else None
    return RankEvidence(
        rank=rank,
        exit_code=1,
        order=rank,
        error=error,
        stderr_tail=said,
        kernel_log=kernel,
        devices=tuple(DeviceEvidence(device=device) for device in devices),
    )


def judged(*ranks: RankEvidence) -> Verdict:
    return classify(Evidence(ranks=ranks))


def test_the_drivers_line_leads_to_the_uuid() -> None:
    """It names the address; which of the rank's devices that is, the driver has told before."""
    verdict = judged(worker(0, gpu(0), gpu(1), kernel=XID))
    assert (verdict.rule, verdict.device) == ("xid-off-the-bus", gpu(1).id)
    unknown = judged(worker(0, kernel=XID))
    assert unknown.device == DeviceId(bus="0000:19:00.0")
    assert unknown.device is not None
    assert unknown.device.short == "0000:19:00.0"


def test_an_event_and_a_look_name_their_own_device() -> None:
    """A worker that may use two had trouble with one of them; one without a name has its number."""
    event = DeviceEvent(index=1, kind="xid", number=48, monotonic_s=1.0)
    told = DeviceEvidence(device=gpu(1), events=(event,))
    rank = replace(worker(0), devices=(DeviceEvidence(device=gpu(0)), told))
    assert judged(rank).device == gpu(1).id
    lost = replace(worker(0), devices=tuple(DeviceEvidence(device=device) for device in (gpu(0), lost_one(3))))
    verdict = judged(lost)
    assert (verdict.rule, verdict.device) == ("device-lost", DeviceId(index=3))
    assert verdict.device is not None
    assert verdict.device.short == "device 3"


def lost_one(index: int) -> Device:
    return Device(index=index, state=State.LOST)


def test_what_a_worker_died_of_is_about_its_only_device() -> None:
    """CUDA names no board; a worker that may use several leaves open which."""
    verdict = judged(worker(0, gpu(0)), worker(1, gpu(1), message=ECC))
    assert (verdict.rule, verdict.culprit, verdict.device) == ("cuda-ecc", 1, gpu(1).id)
    assert f"To blame is rank 1 ({gpu(1).id}). " in paragraph(verdict)
    assert judged(worker(0, gpu(0), gpu(1), message=ECC)).device is None


@pytest.mark.parametrize(
    "line",
    [
        SWITCH,
        "pcieport 0000:00:02.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
        "mce: [Hardware Error]: CPU 12: Machine Check Exception: 5 Bank 7: be00000000800400",
    ],
)
def test_what_connects_devices_is_none_of_them(line: str) -> None:
    """The node is to blame, and the rank's own GPU is not put on any list for it."""
    verdict = judged(worker(0, gpu(0), said=line + "\n"))
    assert (verdict.device_grade, verdict.device) == (True, None)


def test_victims_and_ranks_that_died_alike_name_none() -> None:
    """Nobody's device is to blame there; that of the one rank which did not come may be."""
    waited = "[rank{0}]: RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"
    victims = [replace(worker(rank, gpu(rank), said=waited.format(rank)), node=f"node-{rank}") for rank in (0, 1)]
    assert judged(*victims).device is None
    silent = replace(worker(2, gpu(2)), exit_code=0, order=2)
    verdict = judged(*victims, silent)
    assert (verdict.culprit, verdict.device) == (2, gpu(2).id)
    bug = ErrorRecord(chain=(ErrorLink(type="TypeError", message="bad operand"),))
    alike = judged(*(replace(worker(rank, gpu(rank)), error=bug) for rank in range(4)))
    assert (alike.culprit, alike.device) == (None, None)


def test_a_device_that_history_blames_is_named() -> None:
    """Every fault of the run was this rank's: the verdict becomes one on hardware, and says on which."""
    first = replace(worker(3, gpu(3)), exit_code=None, signal=11, step=300)
    verdict = judged(first)
    past = [Past(fingerprint="sigsegv:1", step=step, reached=step, node="a", rank=3) for step in (100, 200)]
    again = reconsider(Now(verdict=verdict, node="a", reached=300, ranks=8), past)
    assert (again.rule, again.device) == ("one-device-again", gpu(3).id)


@pytest.mark.parametrize(
    ("line", "device"),
    [
        (f"kernel: {XID}", "0000:19:00.0"),
        ("NVRM: GPU 00000000:0A:00.0: RmInitAdapter failed! (0x24:0x72:1568)", "0000:0a:00.0"),
        ("amdgpu 0000:e3:00.0: amdgpu: uncorrectable hardware error detected!", "0000:e3:00.0"),
        ("XID 79(GPU has fallen off the bus) detected on PCI:0000:ae:00", "0000:ae:00.0"),
        ("Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the system", "0000:02:00.0"),
        (SWITCH, None),
        ("TypeError: GPU 0000:02:00.0 is no tensor", None),
    ],
)
def test_a_log_names_it_where_the_line_does(line: str, device: str | None) -> None:
    """With ``resilient classify``; what a script says of addresses is no evidence of hardware."""
    assert as_json("log", classify(read_log(line)))["device"] == device


def test_it_is_explained_from_the_journal(tmp_path: Path) -> None:
    """A verdict that does not name the device in its sentence has a line for it."""
    with recording(tmp_path / "journal") as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=101.0)
        recorder.train(101.0, step=0)
        recorder.happen(ev.WorkerEnded(rank=1, clean=False, finished=False), ev.GroupEnded(), at=151.0)
        recorder.happen(ev.Collected(evidence=Evidence(ranks=(worker(1, gpu(1), message=ECC),))), at=151.5)
    story = read_story(str(tmp_path / "journal"), now_s=2000.0)
    judgement = story.attempts[0].judgement
    assert judgement is not None
    assert judgement.device == str(gpu(1).id)
    assert f"  Device: {gpu(1).id}." in sentences(story)
    events = [json.loads(line) for line in next((tmp_path / "journal").glob("*.jsonl")).read_text().splitlines()]
    verdicts = [command["verdict"] for each in events for command in each.get("commands", ()) if command.get("verdict")]
    assert verdicts[0]["device"]["uuid"] == gpu(1).uuid
