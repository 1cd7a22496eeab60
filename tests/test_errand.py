# SPDX-License-Identifier: Apache-2.0
"""A probe's errand ends in time, whatever holds the probe: a fifo, a signal, a crash, a dead mount."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mounts
import pytest
from supervised import LIMIT_S

from resilient.core.checks import CHECKS
from resilient.core.exit_codes import ExitCode
from resilient.core.measured import FolderFacts, HostFacts, NamesFacts, Unmeasured
from resilient.core.preflight import Asked, judge
from resilient.preflight.checkup import measure
from resilient.preflight.errand import Errand, Runner

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
LONG_S = 120.0

Send = Callable[..., Runner]


@pytest.fixture
def send() -> Iterator[Send]:
    """Sends a probe out; let go of at the end."""
    out = []

    def sent(probe: str, limit_s: float = LONG_S, **given: Any) -> Runner:
        out.append(Runner(Errand(probe=probe, limit_s=limit_s, given=given), ENVIRON))
        return out[-1]

    yield sent
    for runner in out:
        runner.close()


def await_facts(runner: Runner) -> object:
    """What it comes back with."""
    while (facts := runner.read()) is None:
        assert select.select([runner], [], [], LONG_S)[0], "the probe never came back"
    return facts


def hanging_host(root: Path) -> dict[str, str]:
    """A machine whose ``/proc/self/cgroup`` is a fifo that nobody writes to."""
    (root / "proc/self").mkdir(parents=True)
    os.mkfifo(root / "proc/self/cgroup")
    return {"root": str(root)}


def until_it_reads(runner: Runner) -> None:
    """Wait until the probe has said where it is."""
    assert select.select([runner], [], [], LONG_S)[0]
    runner.read()


def test_a_probe_brings_facts_home(send: Send) -> None:
    """Of the type that it promises."""
    facts = await_facts(send("host"))
    assert isinstance(facts, HostFacts)
    assert facts.open_files is not None


def test_a_probe_that_hangs_is_ended_and_says_where_it_was(send: Send, tmp_path: Path) -> None:
    """A read of a fifo never comes back; the process is gone afterwards."""
    runner = send("host", limit_s=0.5, **hanging_host(tmp_path))
    until_it_reads(runner)
    facts = runner.overdue()
    assert facts == Unmeasured(why="no answer within 0.5 s while reading limits", late=True)
    assert not Path(f"/proc/{runner.pid}").exists()


def test_what_a_probe_is_given_is_nobody_elses_to_read(send: Send, tmp_path: Path) -> None:
    """Arguments of a process are seen by all users of a machine, and a URL may hold a password."""
    runner = send("host", **hanging_host(tmp_path))
    until_it_reads(runner)
    assert os.fsencode(tmp_path) not in Path(f"/proc/{runner.pid}/cmdline").read_bytes()


def test_a_stopped_probe_is_late(send: Send, tmp_path: Path) -> None:
    """SIGSTOP holds everything of it but SIGKILL."""
    runner = send("host", limit_s=0.5, **hanging_host(tmp_path))
    os.kill(runner.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, runner.pid, os.WSTOPPED | os.WNOWAIT)
    facts = runner.overdue()
    assert isinstance(facts, Unmeasured)
    assert (facts.late, facts.stuck) == (True, False)
    assert not Path(f"/proc/{runner.pid}").exists()


def test_a_killed_probe_says_by_what(send: Send, tmp_path: Path) -> None:
    """The OOM killer leaves no other word."""
    runner = send("host", **hanging_host(tmp_path))
    os.kill(runner.pid, signal.SIGKILL)
    assert await_facts(runner) == Unmeasured(why="the probe was killed by SIGKILL")


def test_a_probe_that_cannot_start_shows_its_last_line() -> None:
    """A broken interpreter is not mistaken for a broken machine."""
    errand = Errand(probe="host", limit_s=LONG_S)
    (facts,) = measure({"host": errand}, {**ENVIRON, "PYTHONHOME": "/nowhere"}).values()
    assert isinstance(facts, Unmeasured)
    assert facts.why.startswith("the probe ended with 1: ")
    assert not facts.late


def test_an_error_of_a_probe_is_told(send: Send) -> None:
    """By type and message."""
    facts = await_facts(send("names", wrong=1))
    assert isinstance(facts, Unmeasured)
    assert "TypeError" in facts.why


def test_names_are_resolved_or_the_reason_is_told(send: Send) -> None:
    """``.invalid`` never exists (RFC 2606)."""
    facts = await_facts(send("names", hosts=["localhost", "nobody.invalid", "x" * 300]))
    assert isinstance(facts, NamesFacts)
    known, unknown, wrong = facts.names
    assert {"127.0.0.1", "::1"} & set(known.addresses)
    assert (unknown.addresses, wrong.addresses) == ((), ())
    assert unknown.why
    assert wrong.why


def test_a_dead_mount_holds_the_probe_and_not_us(send: Send, tmp_path: Path) -> None:
    """Its process survives SIGKILL; it is left behind, named, and ends when the mount does."""
    with mounts.dead(tmp_path / "dead") as mount:
        runner = send("folder", limit_s=0.5, path=str(mount.path))
        assert select.select([mount.taken], [], [], LONG_S)[0]
        facts = runner.overdue()
        assert isinstance(facts, Unmeasured)
        assert facts.stuck
        assert f"looking at {mount.path}" in facts.why
        assert f"process {runner.pid} cannot be killed" in facts.why
        assert Path(f"/proc/{runner.pid}").exists()
    assert judge(CHECKS, {"journal": facts}, Asked()).code == ExitCode.NODE_REFUSED
    os.waitpid(runner.pid, 0)


def test_a_full_disk_is_told_from_a_sick_one(send: Send, tmp_path: Path) -> None:
    """By what the write fails with; nothing of the probe is left."""
    with mounts.small(tmp_path / "full", 1 << 16) as path:
        facts = await_facts(send("folder", path=str(path)))
        assert isinstance(facts, FolderFacts)
        assert (facts.kind, facts.size) == ("", 1 << 16)
        (path / "filler").write_bytes(bytes(1 << 16))
        facts = await_facts(send("folder", path=str(path)))
        assert isinstance(facts, FolderFacts)
        assert (facts.kind, facts.free) == ("full", 0)
        assert [entry.name for entry in path.iterdir()] == ["filler"]


def test_a_directory_that_is_not_there_yet_is_not_made(send: Send, tmp_path: Path) -> None:
    """What is looked at is the one in which it would be made."""
    facts = await_facts(send("folder", path=str(tmp_path / "a/b")))
    assert isinstance(facts, FolderFacts)
    assert facts.kind == ""
    assert list(tmp_path.iterdir()) == []


def test_a_probe_dies_with_whoever_sent_it(tmp_path: Path) -> None:
    """A doctor that is killed leaves nothing behind."""
    given = hanging_host(tmp_path)
    program = (
        "import os, sys; from resilient.preflight.errand import Errand, Runner\n"
        f"runner = Runner(Errand(probe='host', limit_s=99, given={given!r}), dict(os.environ))\n"
        "runner.read() or print(runner.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as sender:
        assert sender.stdout is not None
        pidfd = os.pidfd_open(int(sender.stdout.readline()))
        sender.kill()
        try:
            assert select.select([pidfd], [], [], LONG_S)[0]
        finally:
            os.close(pidfd)


def test_many_errands_are_bounded_by_their_own_limits(tmp_path: Path) -> None:
    """One that hangs does not keep the others' facts from being told."""
    errands = {
        "hangs": Errand(probe="host", limit_s=0.2, given=hanging_host(tmp_path)),
        "names": Errand(probe="names", limit_s=LONG_S, given={"hosts": ["localhost"]}),
    }
    facts = measure(errands, ENVIRON)
    assert list(facts) == ["hangs", "names"]
    assert isinstance(facts["hangs"], Unmeasured)
    assert isinstance(facts["names"], NamesFacts)


def test_nothing_to_measure_is_told_at_once() -> None:
    """An empty checkup ends."""
    assert measure({}, ENVIRON) == {}


def test_a_quick_probe_loads_little() -> None:
    """Several run before the first worker of each start: settings alone would double the time of each."""
    program = (
        "import sys, resilient.preflight.probes; print({'resilient.settings', 'torch', 'fsspec'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert ended.stdout == "set()\n"
