# SPDX-License-Identifier: Apache-2.0
"""The process that asks the driver, with real processes: it reports, it hangs, it dies, and training goes on.

Its library is a module ``pynvml`` in a directory of the test's, over the recorded answers of ``tests/nvml.py``.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from supervised import HEAD, LIMIT_S, ROOT, Folder

from resilient.core.devices import Look, State
from resilient.devices.vendors import vendor_here
from resilient.supervisor.device_watch import DeviceWatch

DRIVER = """
import pathlib, threading, time
import nvml
from nvml import NVMLError

HERE = pathlib.Path(__file__).parent
gpus = [nvml.h100(0), nvml.h100(1)]
library = nvml.Pynvml(*gpus)

def hang():
    threading.Event().wait()

def wait(events, timeout_ms):
    try:
        (HERE / "xid").rename(HERE / "reported")
    except FileNotFoundError:
        time.sleep(min(timeout_ms, 20) / 1000)
    else:
        library.happen(gpus[1], 0x8, int((HERE / "reported").read_text()))
    return library.nvmlEventSetWait_v2(events, timeout_ms)

def nvmlEventSetWait_v2(events, timeout_ms):
    return wait(events, timeout_ms)

BODY

def __getattr__(name):
    return getattr(library, name)
"""


def driver(folder: Path, body: str = "") -> dict[str, str]:
    """Write the library; an Xid written into the file ``xid`` beside it is reported for the second GPU."""
    folder.mkdir(exist_ok=True)
    (folder / "pynvml.py").write_text(DRIVER.replace("BODY", body))
    path = os.pathsep.join(map(str, (folder, ROOT / "tests", ROOT)))
    return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0,1"}


def report(folder: Path, xid: int) -> None:
    """Have the driver report an Xid."""
    (folder / "new").write_text(str(xid))
    (folder / "new").rename(folder / "xid")


class Loop:
    """As much of a supervisor's loop as a watch needs."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.actions: dict[int, Callable[[], None]] = {}
        self.timers: dict[str, Callable[[], None]] = {}
        self.journal: list[tuple[str, Mapping[str, Any]]] = []
        self.watch = DeviceWatch(
            environ,
            watch=self.actions.__setitem__,
            unwatch=self.actions.__delitem__,
            after=lambda name, seconds, action: self.timers.__setitem__(name, action),
            journal=lambda kind, fields: self.journal.append((kind, fields)),
        )

    @property
    def kinds(self) -> list[str]:
        """What was journalled."""
        return [kind for kind, _ in self.journal]

    def until(self, done: Callable[[], object]) -> None:
        """Turn until it is so."""
        while not done():
            ready = select.select(list(self.actions), [], [], LIMIT_S)[0]
            assert ready, f"nothing happens any more: {self.journal}"
            for fd in ready:
                self.actions[fd]()

    def look(self) -> Look | None:
        """A look, however long it takes."""
        answers: list[Look | None] = []
        self.watch.look("look", answers.append)
        self.until(lambda: answers)
        return answers[0]


@pytest.fixture
def loops() -> Iterator[Callable[[Mapping[str, str]], Loop]]:
    made: list[Loop] = []

    def make(environ: Mapping[str, str]) -> Loop:
        made.append(Loop({"PATH": os.environ["PATH"], **environ}))
        return made[-1]

    yield make
    for loop in made:
        loop.watch.close()
        assert not loop.actions


Make = Callable[[Mapping[str, str]], Loop]
without_devices = pytest.mark.skipif(vendor_here({}) is not None, reason="this machine has devices")


@without_devices
def test_without_devices_nothing_is_started(loops: Make) -> None:
    """A machine of CPUs has no process more, no line in the journal, and an answer at once."""
    loop = loops({"CUDA_VISIBLE_DEVICES": ""})
    loop.watch.begin()
    answers: list[Look | None] = []
    loop.watch.look("after", answers.append)
    assert (answers, loop.watch.pid, loop.journal, loop.actions) == ([None], None, [], {})


def test_events_are_registered_before_an_attempt_begins(loops: Make, tmp_path: Path) -> None:
    """``begin`` comes back once nothing can be missed any more; what happens then is told, with its device."""
    loop = loops(driver(tmp_path))
    loop.watch.begin()
    assert loop.kinds == ["devices"]
    assert loop.watch.before is not None
    assert [device.watched for device in loop.watch.before.devices] == [True, True]
    report(tmp_path, 79)
    loop.until(lambda: loop.watch.events)
    assert [(event.index, event.number) for event in loop.watch.events] == [(1, 79)]
    loop.watch.begin()
    assert loop.watch.events == [], "the next attempt begins with nothing against it"


def test_an_answer_holds_what_happened_before_the_question(loops: Make, tmp_path: Path) -> None:
    """A worker dies of the Xid at once, and the evidence is asked for: the event must be among it."""
    loop = loops(driver(tmp_path))
    loop.watch.begin()
    for xid in (48, 79, 119):
        report(tmp_path, xid)
        look = loop.look()
        assert look is not None
        assert loop.watch.events[-1].number == xid


def test_a_driver_that_hangs_costs_evidence_only(loops: Make, tmp_path: Path) -> None:
    """Nobody waits beyond the bound, and whoever asked is told that nothing is known."""
    loop = loops(
        driver(tmp_path, "def nvmlDeviceGetMigMode(gpu):\n    return hang() if (HERE / 'stuck').exists() else [0, 0]")
    )
    loop.watch.begin()
    (tmp_path / "stuck").touch()
    answers: list[Look | None] = []
    loop.watch.look("after", answers.append)
    loop.timers["after"]()
    assert answers == [None]
    assert loop.journal[-1] == ("no_device_evidence", {"why": "the driver did not answer within 10 s"})


def test_a_driver_that_hangs_from_the_start_lets_training_begin(
    loops: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait before the first worker is bounded, and is not waited again."""
    monkeypatch.setattr("resilient.supervisor.device_watch.READY_S", 0.0)
    loop = loops(driver(tmp_path, "def nvmlInit():\n    hang()"))
    loop.watch.begin()
    loop.watch.begin()
    assert loop.kinds == ["no_device_evidence"]
    assert loop.watch.pid is None


def test_a_library_that_is_missing_is_said_in_one_line(loops: Make, tmp_path: Path) -> None:
    """Devices are asked for, and nobody can say anything of them."""
    environ = driver(tmp_path, "raise ImportError('no module')")
    loop = loops(environ)
    for _ in range(3):
        loop.watch.begin()
    [(kind, fields)] = loop.journal
    assert kind == "no_device_evidence"
    assert fields["why"].startswith("cannot ask the NVIDIA driver: the package nvidia-ml-py is not installed")


def test_a_watcher_that_is_killed_is_replaced_for_the_next_attempt(loops: Make, tmp_path: Path) -> None:
    """The OOM killer takes any process; what it knew is unknown, and the next attempt is watched again."""
    loop = loops(driver(tmp_path))
    loop.watch.begin()
    assert loop.watch.pid is not None
    os.kill(loop.watch.pid, signal.SIGKILL)
    assert loop.look() is None
    loop.watch.begin()
    assert loop.kinds == ["devices", "no_device_evidence", "devices"]
    assert loop.look() is not None


def test_a_node_without_room_for_the_watcher_costs_evidence_only(
    loops: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training begins all the same, and the next attempt is watched if there is room by then."""
    with monkeypatch.context() as full:
        full.setattr(sys, "executable", str(tmp_path / "nowhere"))
        loop = loops(driver(tmp_path))
        loop.watch.begin()
        assert loop.look() is None
    loop.watch.begin()
    assert loop.kinds == ["no_device_evidence", "no_device_evidence", "devices"]
    assert "the process that watches them cannot be started" in loop.journal[0][1]["why"]


def test_events_that_end_leave_the_looks(loops: Make, tmp_path: Path) -> None:
    """NVML ends its waits when a board is lost, and still says which."""
    body = "def wait(events, timeout_ms):\n    gpus[1].lost = True\n    raise NVMLError(15)"
    loop = loops(driver(tmp_path, body))
    loop.watch.begin()
    loop.until(lambda: "no_device_evidence" in loop.kinds)
    look = loop.look()
    assert look is not None
    assert [device.state for device in look.devices] == [State.ANSWERS, State.LOST]


def test_a_fault_that_reports_itself_for_ever_is_bounded(loops: Make, tmp_path: Path) -> None:
    """Of a storm of events the first are kept, and questions are still answered."""
    body = "def wait(events, timeout_ms):\n    library.happen(gpus[0], 0x8, 94)\n    return library.events.pop()"
    loop = loops(driver(tmp_path, body))
    loop.watch.begin()
    assert loop.look() is not None
    loop.until(lambda: len(loop.watch.events) == 64)
    loop.look()
    assert len(loop.watch.events) == loop.kinds.count("device_event") == 64


SCRIPT = (
    HEAD
    + """
import time
if os.environ["RANK"] == "1":
    (HERE / "driver" / "new").write_text("79")
    (HERE / "driver" / "new").rename(HERE / "driver" / "xid")
    while not (HERE / "driver" / "reported").exists():
        time.sleep(0.01)
    raise ValueError("the loss is wrong")
signal.pause()
"""
)


def test_a_run_on_a_gpu_that_falls_off_leaves_the_node(tmp_path: Path) -> None:
    """The script's own exception would be its fault; the driver knows better, and the verdict names rank and GPU."""
    folder = Folder(tmp_path, **driver(tmp_path / "driver"))
    ended = folder.run("--nproc-per-node", "2", folder.script(SCRIPT))
    assert (ended.code, ended.attempts, ended.rules) == (194, 1, ["xid-off-the-bus"])
    assert "rank 1" in ended.termination["why"]
    assert "GPU-00000001-1111-2222-3333-444444444444, PCI 0000:19:00.0" in ended.termination["why"]
    assert ended.termination["device"] == "GPU-00000001-1111-2222-3333-444444444444"
    assert [entry["when"] for entry in ended.entries("devices")] == ["before", "after"]
    assert [entry["event"]["number"] for entry in ended.entries("device_event")] == [79]


@without_devices
def test_a_run_without_devices_says_nothing_of_them(tmp_path: Path) -> None:
    """Not a line of the journal, and no process beside the supervisor's own: a CPU-only machine pays nothing."""
    folder = Folder(tmp_path, CUDA_VISIBLE_DEVICES="")
    children = "pathlib.Path(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read_text().split()"
    ended = folder.run(folder.script(HEAD + f"note(len({children}))"))
    assert (ended.code, folder.notes) == (0, ["1"])
    assert not [entry for entry in ended.journal if "device" in entry["kind"]]
