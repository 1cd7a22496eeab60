# SPDX-License-Identifier: Apache-2.0
"""Workers that stand still, under real supervisors: who is ended, who is named, and who is left alone."""

import itertools
import os
import signal
from pathlib import Path

import mounts
import pytest
from failing_store import plugin
from supervised import ROOT, Ended, Folder, Running, training

FLAGS = ("--hang-floor", "5s", "--idle-timeout", "300s", "--snapshot-every", "1")
"""Seconds of standing still are nothing on a busy machine; five are a hang here."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def hangs(ended: Ended) -> list[dict[str, object]]:
    """What was found to hang."""
    return [entry["event"]["hang"] for entry in ended.entries("event") if entry["event"]["type"] == "HangFound"]


def stacks(ended: Ended) -> dict[int, str]:
    """Of each rank, before the group was first ended."""
    return {entry["rank"]: entry["text"] for entry in reversed(ended.entries("stacks"))}


# Misses.

STANDS = """
import time
rank = int(os.environ["RANK"])
again = (HERE / "hang").exists()
STEPS = 400 if again else 10**6
def fault(step):
    if again:
        return
    time.sleep(0.1)
    if rank == 1 and told("snapshot"):
        once("hang")
        stand_still()
    meet()
"""
PEERS = """
import torch.distributed
torch.distributed.init_process_group("gloo")

def meet():
    torch.distributed.barrier()
"""
# In state D, as in a read from a dead mount: `posix_spawn` comes back when its child has opened the fifo.
ASLEEP = """
def stand_still():
    os.mkfifo(HERE / "fifo")
    waiting = [(os.POSIX_SPAWN_OPEN, 0, str(HERE / "fifo"), os.O_RDONLY, 0)]
    os.posix_spawn("/bin/true", ["true"], {}, file_actions=waiting)
"""
WAYS = {
    "sleep": "import time\ndef stand_still():\n    time.sleep(1000)",
    "stopped": "def stand_still():\n    os.kill(os.getpid(), signal.SIGSTOP)",
    "loop": "def stand_still():\n    while True: pass",
    "asleep": ASLEEP,
}


@pytest.mark.parametrize(
    "how", ["sleep", *(pytest.param(how, marks=pytest.mark.slow) for how in ("stopped", "loop", "asleep"))]
)
def test_a_rank_that_stops_in_a_step_is_found_and_named(folder: Folder, how: str) -> None:
    """Its peer waits for it in a collective; the group starts again from memory and finishes."""
    script = folder.script(training(PEERS + WAYS[how] + STANDS))
    ended = folder.run("--nproc-per-node", "2", *FLAGS, script)
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    assert [hang["rank"] for hang in hangs(ended)] == [1]
    assert [hang["place"] for hang in hangs(ended)] == ["step"]
    assert "rank 1" in ended.stderr
    found = stacks(ended)
    assert set(found) == {0, 1}, "stacks of every rank are in the journal"
    assert "barrier" in found[0]
    if how not in ("stopped", "asleep"):
        assert "in stand_still" in found[1]
    resumed = [entry["step"] for entry in ended.entries("restore")]
    assert resumed[0] == 0
    assert resumed[1] >= 1, "what was done before the hang is not done again"


DEAD = """
import time
STEPS = 400
def fault(step):
    time.sleep(0.1)
    if told("snapshot"):
        os.stat(HERE / "dead" / "data")
"""


@pytest.mark.slow
def test_a_rank_that_cannot_be_killed_leaves_the_node(folder: Folder) -> None:
    """It waits for a dead mount, SIGKILL or not: none can be started beside it, and what is in memory is saved."""
    script = folder.script(training(DEAD))
    flags = (*FLAGS, "--checkpoints", folder.checkpoints)
    with mounts.dead(folder.path / "dead"), folder.start(*flags, script) as running:
        code = running.process.wait(300)
        entries = running.entries()
    assert code == 194
    [ended] = [
        entry["event"] for entry in entries if entry["kind"] == "event" and entry["event"]["type"] == "GroupEnded"
    ]
    assert len(ended["held"]) == 1
    why = [entry["why"] for entry in entries if entry["kind"] == "exit"]
    assert why == [f"processes {ended['held'][0]} do not end, as the kernel holds them: a mount or a driver is dead"]
    assert [entry["step"] for entry in entries if entry["kind"] == "checkpoint"] >= [1]


def test_a_hang_that_comes_back_ends_the_job_with_its_name(folder: Folder) -> None:
    """The termination message says which rank stood still, and where."""
    script = folder.script(training("import time\ndef fault(step):\n    if step == 3:\n        time.sleep(1000)"))
    ended = folder.run(*FLAGS, "--max-restarts", "0", script)
    assert (ended.code, ended.attempts) == (116, 1), ended.stderr
    assert "rank 0" in ended.termination["why"]
    assert "train.py" in ended.termination["why"]


@pytest.mark.slow
def test_a_named_phase_that_stands_still_has_its_own_bound(folder: Folder) -> None:
    """It was learned when the phase was completed before."""
    body = "import time\nSTEPS = 4"
    loop = 'with run.phase("eval"): time.sleep(1000 if run.step_number == 3 and once("hang") else 0.3)'
    ended = folder.run(*FLAGS, folder.script(training(body, loop=loop)))
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    assert [hang["phase"] for hang in hangs(ended)] == ["eval"]


# False alarms.


def left_alone(ended: Ended, attempts: int = 1) -> None:
    assert (ended.code, ended.attempts, hangs(ended)) == (0, attempts, []), ended.stderr


def test_a_first_evaluation_is_no_hang(folder: Folder) -> None:
    """100 times a step and beyond the first bound: stacks are told, and nobody is ended."""
    body = "import time\ndef evaluate():\n    while not told('stacks'): time.sleep(0.1)"
    ended = folder.run(*FLAGS, folder.script(training(body, loop="if run.step_number == 2: evaluate()")))
    left_alone(ended)
    assert "has stood still" in ended.stderr


FROZEN = """
import time
STEPS = 50
frozen = []

def fault(step):
    store = pathlib.Path(os.environ["FAILING_STORE"])
    if not frozen and told("checkpoint"):
        frozen.append(step)
        os.mkfifo(store)
    if frozen and step <= frozen[0] + 28:
        time.sleep(0.2)
    if frozen and step == frozen[0] + 28:
        writer = os.open(store, os.O_RDWR)
        store.unlink()
        os.close(writer)

def wait():
    for _ in range(200):
        if not frozen and not told("checkpoint"):
            time.sleep(0.05)
"""


def test_a_frozen_store_holds_nobody_up(folder: Folder) -> None:
    """Whoever talks to it hangs for longer than a step may take; the training does not notice."""
    folder.environ.update(plugin(folder.path, ROOT))
    url = f"failing://{folder.checkpoints}"
    script = folder.script(training(FROZEN, loop="wait()"))
    ended = folder.run(*FLAGS, "--every", "1", "--checkpoints", url, script)
    left_alone(ended)
    saved = [entry["step"] for entry in ended.entries("checkpoint")]
    assert saved[-1] == 50
    assert max(later - earlier for earlier, later in itertools.pairwise(saved)) > 20, "it was frozen"


@pytest.mark.slow
def test_a_rank_that_evaluates_alone_is_no_hang(folder: Folder) -> None:
    """Its peer waits for it inside a step."""
    body = PEERS + "rank = int(os.environ['RANK'])\ndef fault(step):\n    meet()"
    loop = "if run.step_number == 2 and rank == 0: import time; time.sleep(8)"
    left_alone(folder.run("--nproc-per-node", "2", *FLAGS, folder.script(training(body, loop=loop))))


@pytest.mark.slow
def test_a_slow_first_step_is_no_hang(folder: Folder) -> None:
    """It compiles; and a later step below ten times the longest is none either."""
    body = "import time\ndef fault(step):\n    time.sleep({1: 10.0, 2: 1.0, 3: 7.0}.get(step, 0))"
    left_alone(folder.run(*FLAGS, folder.script(training(body))))


@pytest.mark.slow
def test_a_script_that_never_imports_us_may_sleep(folder: Folder) -> None:
    """There is no heartbeat whose silence would mean anything."""
    script = folder.script("import time; time.sleep(4); print('awake')")
    left_alone(folder.run("--hang-floor", "1s", "--idle-timeout", "1s", script))
    ended = folder.run("--hang-timeout", "1s", "--max-restarts", "0", script)
    assert ended.code == 116, "unless it is asked for"


@pytest.mark.slow
def test_a_frozen_supervisor_blames_nobody(folder: Folder) -> None:
    """It was stopped and goes on: what it did not see is not silence."""
    body = "def fault(step):\n    if step == 3:\n        print('sleeps', flush=True)\n        open(HERE / 'go').read()"
    os.mkfifo(folder.path / "go")
    with folder.start("--hang-floor", "3s", "--snapshot-every", "1", folder.script(training(body))) as running:
        running.until("sleeps")
        running.signal(signal.SIGSTOP)
        freeze(running, 5.0)
        running.signal(signal.SIGCONT)
        (folder.path / "go").write_text("")
        left_alone(running.wait())


def freeze(running: Running, seconds: float) -> None:
    """Let time pass while nothing may end."""
    import select

    pidfd = os.pidfd_open(running.pid)
    assert select.select([pidfd], [], [], seconds)[0] == []
    os.close(pidfd)
