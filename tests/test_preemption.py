# SPDX-License-Identifier: Apache-2.0
"""Asked to leave, at every moment: one common step, a save within the grace, and a code that says which."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from failing_store import plugin
from supervised import HEAD, LIMIT_S, ROOT, Ended, Folder, descendants, training, until_entry, until_event

SAVED, UNSAVED = 195, 196

EXACT = (
    HEAD
    + """
import hashlib
import light_torch
import torch
import resilient

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.full((2,), index / 64) + torch.rand(2)

torch.set_num_threads(1)
torch.manual_seed(1)
rank = os.environ["RANK"]
model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters())
loader = torch.utils.data.DataLoader(Data(), batch_size=2, shuffle=True, num_workers=1)
run = resilient.Run(state={"model": model, "optimizer": optimizer, "data": loader})
gate = os.environ.get("GATE")

@run.step
def train_step(batch):
    if gate:  # one step for each byte that the test, or the closing of its end, gives
        print("is in", run.step_number + 1, flush=True)
        os.read(GATE, 1)
    loss = model(batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

GATE = os.open(gate + rank, os.O_RDONLY) if gate else None
print("begins after", run.step_number, flush=True)
for batch in run.batches(loader, steps=int(os.environ["STEPS"])):
    train_step(batch)
    print("has done", run.step_number, flush=True)
moments = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
data = b"".join(t.detach().numpy().tobytes() for t in [*model.parameters(), *moments, torch.get_rng_state()])
print("digest", hashlib.sha256(data).hexdigest(), flush=True)
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def left_at(ended: Ended) -> dict[int, int]:
    """The step after which each rank said that it leaves."""
    leaving = "leaves after step "
    notes = [entry for entry in ended.entries("note") if entry["text"].startswith(leaving)]
    return {entry["rank"]: int(entry["text"].removeprefix(leaving)) for entry in notes}


def seconds_to_leave(ended: Ended) -> float:
    """From the request to the exit."""
    asked = next(entry["m"] for entry in ended.entries("event") if entry["event"]["type"] == "LeaveAsked")
    return float(ended.entries("exit")[0]["m"] - asked)


def digests(ended: Ended) -> list[str]:
    return sorted(line.split("digest ")[1] for line in ended.stdout.splitlines() if "digest " in line)


def test_all_ranks_leave_at_one_step_although_everything_is_signalled(folder: Folder) -> None:
    """DataLoader workers and the saver get the signal too, twice; what is left behind goes on to the same bits."""
    script = folder.script(EXACT)
    for rank in range(2):
        os.mkfifo(folder.path / f"gate{rank}")
    arguments = ("--grace", "300s", "--nproc-per-node", "2", "--checkpoints", folder.checkpoints, script)
    with folder.start(*arguments, STEPS="1000", GATE=str(folder.path / "gate")) as running:
        gates = [os.open(folder.path / f"gate{rank}", os.O_WRONLY) for rank in range(2)]
        os.write(gates[0], b"xxxxx")  # rank 0 runs ahead by two steps
        os.write(gates[1], b"xxx")
        running.until("[rank0] is in 6")
        running.until("[rank1] is in 4")
        for pid in descendants(running.pid) * 2:
            os.kill(pid, signal.SIGTERM)
        until_event(running, "LeaveAsked")
        for gate in gates:
            os.close(gate)  # whoever still has steps to do may do them
        ended = running.wait()
    assert ended.code == SAVED, ended.stderr
    (step,) = set(left_at(ended).values())
    assert len(left_at(ended)) == 2
    assert step >= 6, "what rank 0 had entered is finished, by both"
    assert ended.termination["code"] == SAVED

    resumed = folder.run(*arguments, STEPS=str(step + 2))
    assert resumed.stdout.count(f"begins after {step}\n") == 2
    whole = folder.run("--nproc-per-node", "2", script, STEPS=str(step + 2))
    assert (resumed.code, whole.code) == (0, 0), resumed.stderr
    assert digests(resumed) == digests(whole)
    assert len(digests(whole)) == 2


# Before there is anything to save.


def test_before_the_run_is_built(folder: Folder) -> None:
    """While the script imports: it ends at once, and nobody waits for a boundary that cannot come."""
    script = folder.script("import signal; print('importing', flush=True); signal.pause()")
    with folder.start("--grace", f"{10 * LIMIT_S:.0f}s", "--checkpoints", folder.checkpoints, script) as running:
        running.until("importing")
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert (ended.code, ended.attempts) == (UNSAVED, 1), ended.stderr


@pytest.fixture
def store(folder: Folder) -> Iterator[Path]:
    """A store that hangs from ``os.mkfifo`` of this path until ``release``."""
    folder.environ.update(plugin(folder.path, ROOT))
    yield folder.path / "fault"
    release(folder.path / "fault")


def release(fault: Path) -> None:
    """Let the store go on."""
    if fault.is_fifo():
        writer = os.open(fault, os.O_RDWR)
        fault.unlink()
        os.close(writer)


def test_while_the_store_is_being_opened(folder: Folder, store: Path) -> None:
    """No worker is started any more, and the exit is put on record once the store answers."""
    os.mkfifo(store)
    with folder.start("--checkpoints", f"failing://{folder.checkpoints}", folder.script("print('never')")) as running:
        until_entry(running, "sample")
        running.signal(signal.SIGTERM)
        until_event(running, "LeaveAsked")
        release(store)
        ended = running.wait()
    assert (ended.code, ended.attempts) == (UNSAVED, 0), ended.stderr
    assert list(folder.checkpoints.rglob("debits/*/*/*.json"))


@pytest.mark.slow
def test_a_store_that_never_opens_does_not_hold_us_beyond_the_grace(folder: Folder, store: Path) -> None:
    """The exit could not be put on record, so it is one that is counted."""
    os.mkfifo(store)
    url = f"failing://{folder.checkpoints}"
    with folder.start("--grace", "12s", "--checkpoints", url, folder.script("print('never')")) as running:
        until_entry(running, "sample")
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert (ended.code, ended.attempts) == (199, 0), ended.stderr
    assert seconds_to_leave(ended) < 12


# In the middle of something.

# The wake-up does not end this one, as it would end ``signal.pause``.
BUSY = "import threading\ndef busy():\n    print('busy', flush=True)\n    threading.Event().wait()\n"
STANDING = {
    "phase": training(BUSY, loop='with run.phase("eval"): busy()'),
    "step": training(BUSY + "def fault(step):\n    if step == 2: busy()"),
}


@pytest.mark.parametrize("where", ["phase", pytest.param("step", marks=pytest.mark.slow)])
def test_what_takes_longer_than_the_grace_is_broken_off(folder: Folder, where: str) -> None:
    """The newest snapshot is saved in what is left of the grace."""
    script = folder.script(STANDING[where])
    with folder.start("--grace", "12s", "--checkpoints", folder.checkpoints, script) as running:
        running.until("busy")
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert ended.code in (SAVED, UNSAVED), ended.stderr
    assert (ended.code == SAVED) == (f"step {ended.termination['step']} is saved" in ended.termination["why"])
    assert left_at(ended) == {}, "nobody was at a boundary"
    assert seconds_to_leave(ended) < 12


CRASHES = """
import time
STEPS = 10**6
if not once("first"):
    print("second", flush=True)
    signal.pause()
def fault(step):
    for _ in range(step):  # each waits longer: on a busy machine it takes a while until the last one is told
        time.sleep(0.1)
        if any(entry["step"] == step - 1 for entry in told("snapshot")):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_while_the_workers_start_again(folder: Folder) -> None:
    """The memory of the attempt before is made durable."""
    script = folder.script(training(CRASHES))
    with folder.start("--checkpoints", folder.checkpoints, "--snapshot-every", "1", script) as running:
        running.until("second")
        running.signal(signal.SIGTERM)
        ended = running.wait()
    assert (ended.code, ended.attempts) == (SAVED, 2), ended.stderr
    assert re.search(r"step (\d+) is saved, step \1 was reached", ended.termination["why"])


SAVING = """
import time
STEPS = 1000
def fault(step):
    time.sleep(0.2)
    if step == 2:
        os.mkfifo(os.environ["FAILING_STORE"])
    if step == 6:
        print("busy", flush=True)
"""


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_during_a_save(folder: Folder, store: Path, late: bool) -> None:
    """The step of the stop is saved after the save that was going on, if the store lets it."""
    arguments = ("--checkpoints", f"failing://{folder.checkpoints}", "--every", "1", "--snapshot-every", "1")
    script = folder.script(training(SAVING))
    with folder.start("--grace", "12s" if late else "300s", *arguments, script) as running:
        running.until("busy")
        running.signal(signal.SIGTERM)
        until_event(running, "LeaveAsked")
        if not late:
            release(store)
        ended = running.wait()
    if late:
        assert ended.code == 199, "what cannot be put on record is counted"
        assert seconds_to_leave(ended) < 12
    else:
        assert ended.code == SAVED, ended.stderr
        assert ended.termination["step"] >= 6


# People.


def test_a_second_interrupt_wants_out_now(folder: Folder) -> None:
    """The first one waits for the step to end, within the grace."""
    with folder.start("--grace", f"{10 * LIMIT_S:.0f}s", folder.script(STANDING["step"])) as running:
        running.until("busy")
        running.signal(signal.SIGINT)
        until_event(running, "LeaveAsked")
        running.signal(signal.SIGINT)
        ended = running.wait()
    assert ended.code == UNSAVED, ended.stderr
    assert "SIGINT" in ended.termination["why"]


def test_save_and_stop_from_another_shell(folder: Folder) -> None:
    """By the journal's directory and by the checkpoints; save goes on, stop says that Kubernetes starts it again."""
    body = "import time\nSTEPS = 10**6\ndef fault(step):\n    time.sleep(0.05)"
    script = folder.script(training(body, loop="if run.step_number == 3: print('busy', flush=True)"))
    with folder.start("--checkpoints", folder.checkpoints, script) as running:
        running.until("busy")
        saved = folder.ask("save", running.journal)
        assert saved.returncode == 0, saved.stderr
        until_entry(running, "checkpoint")
        stopped = folder.ask("stop", folder.checkpoints)
        assert stopped.returncode == 0, stopped.stderr
        assert "started again" in stopped.stdout
        ended = running.wait()
    assert ended.code == SAVED, ended.stderr
    assert "resilient stop" in ended.termination["why"]
    local, shipped = folder.ask("explain", running.journal), folder.ask("explain", folder.checkpoints)
    assert (local.returncode, shipped.returncode) == (0, 0), local.stderr + shipped.stderr
    assert local.stdout == shipped.stdout, "the segments in the store tell the same story"
