# SPDX-License-Identifier: Apache-2.0
"""One submission over several pods, with real supervisors: how the pod before ended, budgets, and the clock."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from supervised import HEAD, LIMIT_S, Ended, Folder, training

KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "RESILIENT_SUBMISSION": "job-uid-1",
    "RESILIENT_INDEX": "0",
}
WAITS = HEAD + "print('up', flush=True)\nsignal.pause()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, **KUBERNETES)


def pod(name: str, node: str, failures: int = 0, ignored: int = 0) -> dict[str, str]:
    """What the downward API tells one pod of the index; an annotation that is not set is an empty text."""
    return {
        "RESILIENT_POD": name,
        "RESILIENT_NODE": node,
        "RESILIENT_FAILURE_COUNT": str(failures),
        "RESILIENT_IGNORED_COUNT": str(ignored or ""),
    }


def kill(folder: Folder, script: str, until: str, *arguments: str, **environ: str) -> None:
    """A pod whose supervisor is killed once its workers have said ``until``."""
    flags: tuple[str | Path, ...] = ("--checkpoints", folder.checkpoints, *arguments)
    with folder.start(*flags, folder.script(script), **environ) as running:
        running.until(until)
        wait_for(folder, environ["RESILIENT_POD"])
        running.signal(signal.SIGKILL)
        running.wait()


def wait_for(folder: Folder, name: str) -> None:
    """Until something of its journal lies in the store."""
    until = time.monotonic() + LIMIT_S
    while not [*folder.checkpoints.glob(f"journal/*/{name}/*.jsonl")]:
        assert time.monotonic() < until
        time.sleep(0.01)


def ship(folder: Folder, name: str, **sample: float) -> None:
    """One more piece of a killed pod's journal, with the last sample that it took."""
    path = folder.checkpoints / "journal/job-uid-1" / name
    number = 1 + max(int(piece.stem) for piece in path.glob("*.jsonl"))
    entry = {"t": time.time(), "m": 1e6, "kind": "sample", **sample}
    (path / f"{number}.jsonl").write_text(json.dumps(entry, separators=(",", ":")) + "\n")


def run(folder: Folder, script: str, *arguments: str, **environ: str) -> Ended:
    return folder.run("--checkpoints", folder.checkpoints, *arguments, folder.script(script), **environ)


def test_a_pod_that_went_is_told_from_a_container_that_died(folder: Folder) -> None:
    """By what the controller has counted since; and explain tells the same of the attempt that was cut off."""
    kill(folder, WAITS, "up", **pod("train-0-a", "node-a"))
    kill(folder, WAITS, "up", **pod("train-0-b", "node-b", ignored=1))
    ended = run(folder, "print('done')", **pod("train-0-c", "node-b", failures=1, ignored=1))
    assert ended.code == 0, ended.stderr
    (before,) = ended.entries("before")
    assert (before["likely"], before["trace"]["pod"]) == ("killed", "train-0-b")
    died = "probably killed in its container by a SIGKILL that nothing explains: the Job controller counted its end"
    assert f"the supervisor before this one (pod train-0-b, node node-b) wrote no exit: {died}" in ended.stderr
    told = folder.ask("explain", folder.checkpoints).stdout
    went = "probably evicted or preempted, or its node was lost, or the store was while it left: the Job controller "
    went += "did not count its end"
    assert f"Note: the supervisor before in pod train-0-a on node node-a wrote no exit: {went}" in told
    assert told.count("was cut off: its supervisor wrote no exit and was probably") == 2, told
    assert told.index(f"and was {went}") < told.index(f"and was {died}")


def test_an_exit_on_record_leaves_nothing_to_guess(folder: Folder) -> None:
    """Neither has the first pod anything before it."""
    crash = "raise OSError(71, 'Protocol error')"
    assert run(folder, crash, **pod("train-0-a", "node-a")).code == 193
    again = run(folder, crash, **pod("train-0-b", "node-a", failures=1))
    assert (again.code, again.entries("before")) == (194, [])


def test_memory_that_ran_out_is_remembered_by_the_classifier(folder: Folder) -> None:
    """A SIGKILL that nothing explains is less of a riddle then; it is restarted as before."""
    kill(folder, WAITS, "up", **pod("train-0-a", "node-a"))
    ship(folder, "train-0-a", memory_used=99.0, memory_limit=100.0)
    script = HEAD + "if once('killed'):\n    os.kill(os.getpid(), 9)\n"
    ended = run(folder, script, **pod("train-0-b", "node-a", failures=1))
    assert (ended.code, ended.attempts) == (0, 2), ended.stderr
    (before,) = ended.entries("before")
    assert before["likely"] == "out of memory"
    assert ended.rules == ["out-of-memory-before"]


STUCK = training(
    body="""
import signal
import time
if not once('first'):
    while len(list((HERE / 'checkpoints').glob('journal/*/*/*.jsonl'))) < 2:
        time.sleep(0.01)
    print('stuck', flush=True)
    signal.pause()

STEPS = 10**6

def fault(step):
    if list((HERE / 'checkpoints').glob('checkpoints/*/manifest.json')):
        sys.exit(3)
""",
    arguments="every=1",
)
"""It saves a step, fails soon after, and then hangs before it has built its ``Run``."""


def test_the_clock_goes_on_over_pods_that_were_killed(folder: Folder) -> None:
    """A killed supervisor has recorded nothing at its end; its journal says how long it had devices."""
    kill(folder, STUCK, "stuck", **pod("train-0-a", "node-a"))
    ended = run(folder, STUCK, "--max-time-without-progress", "1ms", **pod("train-0-b", "node-b", ignored=1))
    assert (ended.code, ended.attempts) == (116, 0), ended.stderr
    assert "was committed in 0.0 h of holding devices" in ended.termination["why"]


def test_max_restarts_are_those_of_the_submission_in_all_its_pods(folder: Folder) -> None:
    """The pod that replaces one is a restart as well; to be preempted is none."""
    crash = "raise OSError(71, 'Protocol error')"  # investigated: one second look
    flags = ("--max-restarts", "2")
    first = run(folder, crash, *flags, **pod("train-0-a", "node-a"))
    assert (first.code, first.attempts) == (193, 2)
    with folder.start("--checkpoints", folder.checkpoints, *flags, folder.script(WAITS), **pod("b", "n")) as running:
        running.until("up")
        running.signal(signal.SIGTERM)
        assert running.wait().code == 196
    last = run(folder, crash, *flags, **pod("train-0-c", "node-b", failures=1, ignored=1))
    assert (last.code, last.attempts) == (116, 1)
    assert "the 2 restarts of --max-restarts are spent" in last.termination["why"]
    again = run(folder, crash, *flags, **pod("train-0-d", "node-b") | {"RESILIENT_SUBMISSION": "job-uid-2"})
    assert (again.code, again.attempts) == (193, 2)


def test_restarts_between_two_commits_are_those_of_the_submission_in_all_its_pods(folder: Folder) -> None:
    """Twenty faults, each another one; the pods that replace the first have no restart in place left."""
    crash = f"""{HEAD}
letter = next(letter for letter in "abcdefghijklmnopqrstuvwxyz" if once(letter))
raise type(f"Fault{{letter}}", (Exception,), {{}})("is another one")
"""
    first = run(folder, crash, **pod("train-0-a", "node-a"))
    assert (first.code, first.attempts) == (193, 21), first.stderr
    second = run(folder, crash, **pod("train-0-b", "node-a", failures=1))
    assert (second.code, second.attempts) == (194, 1)
    last = run(folder, crash, **pod("train-0-c", "node-b", failures=2))
    assert (last.code, last.attempts) == (116, 1)
    debits = [json.loads(path.read_text()) for path in sorted(folder.checkpoints.glob("debits/job-uid-1/0/*.json"))]
    assert [debit["restarts_since_commit"] for debit in debits] == [21, 22]


def test_restarts_of_a_pod_that_was_killed_count(folder: Folder) -> None:
    """It has put no exit on record; its newest attempt was claimed with the restarts before it."""
    crash = "raise OSError(71, 'Protocol error')"
    script = training(
        body="""
import time

def fault(step):
    if once('first'):
        sys.exit(3)
    while not (HERE / 'checkpoints/attempts/2.json').exists():
        time.sleep(0.01)
    print('claimed', flush=True)
    signal.pause()
"""
    )
    kill(folder, script, "claimed", **pod("train-0-a", "node-a"))
    ended = run(folder, crash, "--max-restarts", "1", **pod("train-0-b", "node-b", ignored=1))
    assert (ended.code, ended.attempts) == (116, 1), ended.stderr
    assert "the 1 restarts of --max-restarts are spent" in ended.termination["why"]
