# SPDX-License-Identifier: Apache-2.0
"""The kernel's log: what of it counts, for whom, and since when.

A socket that keeps records apart stands for ``/dev/kmsg``: one record for each read, and never a wait.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilient.core import kernel_log
from resilient.core.classify import classify
from resilient.core.devices import Device
from resilient.core.evidence import Evidence, RankEvidence
from resilient.devices.procfs import list_devices
from resilient.supervisor.kernel_log import MOST_LINES, KernelLog, open_kernel_log

FELL_OFF = "NVRM: Xid (PCI:0000:19:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
SXID = "nvidia-nvswitch0: SXid (PCI:0000:00:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
KILLED = "Memory cgroup out of memory: Killed process 4242 (python) total-vm:1kB, anon-rss:1kB"


def record(line: str, *, priority: int = 3) -> str:
    """As the kernel gives it, with a continuation that holds properties."""
    return f"{priority},1234,98765432,-;{line}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:19:00.0\n"


@pytest.mark.parametrize("line", [FELL_OFF, SXID, KILLED, "mlx5_core 0000:5c:00.0: mlx5_pcie_event:299: power"])
def test_lines_of_drivers_and_of_the_oom_killer_matter(line: str) -> None:
    """The text of the record alone is kept."""
    assert kernel_log.message(record(line)) == line


@pytest.mark.parametrize(
    "text",
    [
        record("usb 1-1: new high-speed USB device"),
        record(f"audit: {FELL_OFF}"),
        record(FELL_OFF, priority=(1 << 3) | 3),
        FELL_OFF,
        "",
        "3,1,2,-",
        "3,x,2,-;NVRM: Xid",
    ],
)
def test_other_lines_and_those_that_processes_write_do_not(text: str) -> None:
    """The kernel marks what a process writes into its log with another facility than its own."""
    assert kernel_log.message(text) is None


def gpu(index: int) -> Device:
    return Device(index=index, bus=f"0000:{0x18 + index:02x}:00.0")


def test_a_line_belongs_to_the_device_whose_address_it_has() -> None:
    """On a shared node most of the log is about other people's devices; the fabric is everybody's on it."""
    other = FELL_OFF.replace("19:00", "1b:00")
    wide = "NVRM: GPU 00000000:19:00.0: GPU has fallen off the bus."
    lines = [FELL_OFF, other, SXID, KILLED, wide]
    assert kernel_log.about(lines, [gpu(1)]) == (FELL_OFF, SXID, wide)
    assert kernel_log.about(lines, [gpu(0)]) == (SXID,)
    assert kernel_log.about(lines, [gpu(0), gpu(3)]) == (other, SXID)
    assert kernel_log.about(lines, [Device(index=0)]) == kernel_log.about(lines, []) == ()


def test_what_the_kernel_says_of_a_device_is_the_drivers_word() -> None:
    """It decides as it would on stderr, where bare containers have it."""
    ranks = (
        RankEvidence(rank=0, exit_code=1, order=0),
        RankEvidence(rank=1, exit_code=1, order=1, kernel_log=f"{FELL_OFF}\n"),
    )
    verdict = classify(Evidence(ranks=ranks))
    assert (verdict.rule, verdict.culprit, verdict.device_grade) == ("xid-off-the-bus", 1, True)


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, KernelLog]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    log = KernelLog(ours.detach())
    with theirs:
        yield theirs, log
        log.close()


def test_only_what_comes_after_the_beginning_counts(kernel: tuple[socket.socket, KernelLog]) -> None:
    """Yesterday's Xid is no reason for today's failure."""
    writer, log = kernel
    writer.send(record(FELL_OFF).encode())
    log.begin()
    assert log.lines == []
    for line in ("eth0: link up", KILLED, SXID):
        writer.send(record(line).encode())
    log.listen()
    assert log.lines == [KILLED, SXID]
    log.begin()
    assert log.lines == []


def test_a_flood_is_bounded_and_the_first_lines_stay(kernel: tuple[socket.socket, KernelLog]) -> None:
    """A fault that repeats itself must not push out how it began."""
    writer, log = kernel
    for number in range(MOST_LINES + 50):
        writer.send(record(f"NVRM: line {number}").encode())
        log.listen()
    assert len(log.lines) == MOST_LINES
    assert log.lines[0] == "NVRM: line 0"


def test_bytes_that_are_no_text_and_an_end_do_no_harm(kernel: tuple[socket.socket, KernelLog]) -> None:
    """The log is read for evidence; nothing in it may stop a training."""
    writer, log = kernel
    writer.send(b"\xff\xfe;\x00")
    writer.send(record(f"NVRM: \udcff{'x' * 5000}").encode(errors="surrogateescape"))
    log.listen()
    assert [len(line) for line in log.lines] == [512]


def test_what_is_not_the_kernels_log_is_not_read(tmp_path: Path) -> None:
    """Some sandboxes put the console or a file in its place; most have nothing there."""
    (tmp_path / "kmsg").write_text(record(FELL_OFF))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "kmsg", tmp_path / "fifo", Path("/dev/zero"), tmp_path / "missing"):
        log = open_kernel_log(path)
        log.listen()
        assert log.lines == []
        log.close()


def test_the_driver_lists_its_devices_in_files(tmp_path: Path) -> None:
    """Their names and addresses are known where its library is not installed; a UUID may be one of question marks."""
    information = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 1\nGPU UUID: \t GPU-{}\nDevice Minor: \t 0\n"
    for bus, uuid in (("0000:5A:00.0", "????????-????"), ("0000:18:00.0", "8f2b1c3d-1111")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(information.format(uuid))
    (tmp_path / "0000:9a:00.0").mkdir()
    look = list_devices(tmp_path)
    assert look is not None
    assert [(device.index, device.bus, device.uuid, device.name) for device in look.devices] == [
        (0, "0000:18:00.0", "GPU-8f2b1c3d-1111", "NVIDIA H100 80GB HBM3"),
        (1, "0000:5a:00.0", None, "NVIDIA H100 80GB HBM3"),
        (2, "0000:9a:00.0", None, None),
    ]
    assert list_devices(tmp_path / "missing") is None
