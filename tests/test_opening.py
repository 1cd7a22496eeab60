# SPDX-License-Identifier: Apache-2.0
"""Opening the store takes its time: what happens meanwhile does not lose its answer, and its silence has an end."""

import os
import select
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from driving import KILLED, ONE, SETTLED, code_of, drive, fail
from saved_run import SavedRun
from supervised import Ended, Folder, training

from resilient.checkpoint.holding import held
from resilient.checkpoint.requests import Claim, Done, Opened, Reply
from resilient.checkpoint.store import open_store
from resilient.core import events as ev
from resilient.core.commands import ClearDeadline, Exit, NumberAttempt, RecordDebit, SetDeadline, StartWorkers
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job, Phase
from resilient.core.policy import Terms
from resilient.core.usage import NOTHING_USED
from resilient.settings import Settings
from resilient.supervisor.store_link import Identity, StoreLink

NAMED = replace(ONE, has_store=True)
WAITING = (ev.HeartbeatOpened(), ev.Announced())
"""A script that names the store itself: its workers run, and wait for the store in ``Run()``."""
DIED, GONE, JUDGED = fail(KILLED)
KNOWN = ev.Opened(next_attempt=5, committed_step=9, ever_committed=True)
LOST = ev.Opened(next_attempt=5, ever_committed=True)
LEAVE = ev.LeaveAsked(by="SIGTERM")


@pytest.mark.parametrize(("start", "before"), [(NAMED, ()), (ONE, WAITING)], ids=["by a flag", "by the script"])
def test_a_store_that_hangs_is_given_up(start: Job, before: tuple[ev.Event, ...]) -> None:
    """A dead mount does not even answer that it fails; a fresh container tries it again."""
    _, told = drive(start, *before, ev.DeadlinePassed(), GONE, *SETTLED)
    deadline = next(command.at for command in told if isinstance(command, SetDeadline))
    assert deadline > start.terms.settle_s  # whoever opens it gives up by itself before
    assert code_of(told) == ExitCode.RESTART


def test_a_store_that_answers_late_is_waited_for_no_longer() -> None:
    """The deadline of the opening ends with it."""
    job, told = drive(ONE, *WAITING, KNOWN)
    assert told[-2:] == [ClearDeadline(), NumberAttempt(attempt=5)]
    assert job.phase is Phase.RUNNING


@pytest.mark.parametrize(
    "events",
    [(DIED, KNOWN, GONE, JUDGED), (DIED, GONE, KNOWN, JUDGED), (DIED, GONE, JUDGED, KNOWN)],
    ids=["stopping", "judging", "backing off"],
)
def test_workers_that_die_while_it_opens_are_followed_by_an_attempt_of_the_run(events: tuple[ev.Event, ...]) -> None:
    """Its number is free in the store, where that of a launch which knew nothing of the run belongs to another."""
    job, told = drive(ONE, *WAITING, *events, ev.DeadlinePassed())
    assert [command.attempt for command in told if isinstance(command, StartWorkers)][-1] >= 5
    assert (job.phase, job.ledger.committed_step) == (Phase.RUNNING, 9)


@pytest.mark.parametrize(
    "events",
    [(DIED, LOST, GONE, *SETTLED), (DIED, GONE, LOST, *SETTLED), (DIED, GONE, JUDGED, LOST)],
    ids=["stopping", "judging", "backing off"],
)
def test_a_wrong_mount_is_found_whenever_it_answers(events: tuple[ev.Event, ...]) -> None:
    """It is never a fresh start, also where the workers that had named it are gone by then."""
    assert code_of(drive(ONE, *WAITING, *events)[1]) == ExitCode.CONFIG_FAULT


@pytest.mark.parametrize(
    "events",
    [(LEAVE, KNOWN, DIED, GONE), (LEAVE, DIED, KNOWN, GONE), (LEAVE, DIED, GONE, KNOWN), (DIED, LEAVE, LOST, GONE)],
    ids=["leaving", "stopping", "settling", "asked while stopping"],
)
def test_asked_to_leave_meanwhile_it_leaves_and_is_recorded_as_an_attempt_of_the_run(
    events: tuple[ev.Event, ...],
) -> None:
    """What the store says then changes what is known, and not that the job leaves."""
    job, told = drive(ONE, *WAITING, *events, *SETTLED)
    assert any(isinstance(command, RecordDebit) for command in told)
    assert (code_of(told), job.attempt) == (ExitCode.PREEMPTED_UNSAVED, 5)


def test_a_second_request_to_leave_changes_nothing() -> None:
    """Neither the deadline of the last save nor the exit that is being recorded, however often it comes."""
    start = replace(ONE, terms=Terms(grace_s=30.0))
    job, told = drive(start, LEAVE, DIED, GONE, LEAVE, LEAVE, now=20.0)
    settling = [command.at for command in told if isinstance(command, SetDeadline)][1:]
    assert (job.phase, len(set(settling))) == (Phase.SETTLING, 1)
    again, told = drive(start, LEAVE, DIED, GONE, SETTLED[0], LEAVE, LEAVE)
    assert again.phase is Phase.RECORDING
    assert sum(isinstance(command, RecordDebit) for command in told) == 1


def test_who_asks_while_it_is_opened_gets_the_one_answer(tmp_path: Path) -> None:
    """The workers of the next launch name the store again, which is no second run for the saver that opens it."""
    watched: dict[int, Callable[[], None]] = {}

    def unwatch(fd: int) -> None:
        del watched[fd]

    timers: dict[str, Callable[[], None]] = {}
    said: list[str] = []
    answers: list[Opened | ev.OpenFailed] = []
    replies: list[Reply] = []
    identity = Identity(submission="sub", index=0, pod="pod", journal="", in_kubernetes=False)
    link = StoreLink(
        identity, {}, token="t", environ={}, watch=watched.__setitem__, unwatch=unwatch,
        after=lambda name, seconds, action: timers.update({name: action}), note=said.append,
    )  # fmt: skip
    settings = Settings(checkpoints=str(tmp_path / "run"))
    for _ in range(2):
        link.open(settings, fresh=False, until=float("inf"), then=answers.append)
    timers["slow"]()
    assert said == ["the checkpoint store has not been opened for 30 s; it is still waited for"]
    link.submit(
        lambda number: Claim(id=number, attempt=1, began_from=None, usage=NOTHING_USED, claimed_s=1.0, token="t"),
        replies.append,
    )
    while not replies:
        for fd in select.select(list(watched), [], [])[0]:
            watched[fd]()
    link.close(timeout_s=20.0)
    timers["slow"]()
    assert ([type(answer) for answer in answers], len(said)) == ([Opened], 1)
    assert isinstance(replies[0], Done)


def test_a_run_that_somebody_holds_is_theirs_to_end(tmp_path: Path) -> None:
    """The second one says who holds it and what to do about that, and claims nothing of a run that it never opened."""
    run = SavedRun(tmp_path / "checkpoints")
    run.save("1-10")
    with held(open_store(run.url), "pod-a"):
        ended = Folder(tmp_path).run("--checkpoints", run.url, "--no-python", "true")
    assert (ended.code, ended.attempts) == (ExitCode.CONFIG_FAULT, 0)
    assert f"held by process {os.getpid()} on " in ended.termination["why"]
    assert ended.termination["do"] == "stop that one first, or give another directory"
    assert "resilient: next: stop that one first, or give another directory\n" in ended.stderr
    assert "resilient: so far: nothing was started\n" in ended.stderr


def test_what_cannot_be_used_is_named_and_not_called_missing() -> None:
    """Nobody looks for a wrong mount where a newer release has saved, or a file is damaged."""
    damaged = replace(
        LOST, set_aside=("cannot use checkpoint 5-9: tensors-0.safetensors is missing", "another", "third")
    )
    for event, why, do in (
        (LOST, "lists none", "its mount"),
        (damaged, "tensors-0.safetensors is missing; another", "--fresh"),
    ):
        _, told = drive(NAMED, event, *SETTLED)
        (left,) = [command for command in told if isinstance(command, Exit)]
        assert (left.code, why in left.why, do in left.do, "third" in left.why) == (115, True, True, False)


def test_a_checkpoint_that_has_lost_a_file_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    """Its size tells at the opening already, before anything of it is read."""
    folder = Folder(tmp_path)
    slowly = "__import__('time').sleep(0.05)"

    def train(steps: int) -> Ended:
        script = folder.script(training(f"STEPS = {steps}", "every=1, snapshot_every=1, keep=99", slowly))
        return folder.run("--checkpoints", folder.checkpoints, script)

    before, newest = [str(entry["name"]) for entry in train(20).entries("checkpoint")][-2:]
    (folder.checkpoints / "checkpoints" / newest / "rank-0.safetensors").unlink()
    ended = train(30)
    assert ended.code == 0
    why = f"cannot use checkpoint {newest}: rank-0.safetensors is missing"
    assert why in ended.stderr
    assert ended.entries("opened")[0]["set_aside"] == [why]
    assert ended.entries("restore")[0]["name"] == before
