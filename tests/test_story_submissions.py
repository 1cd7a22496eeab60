# SPDX-License-Identifier: Apache-2.0
"""The story of a run that was started more than once, and of one whose journal is not shipped yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from object_store import ObjectFileSystem
from recorder import BOOT, recording

from resilient.checkpoint import layout
from resilient.checkpoint.holder import Holder, machine, process
from resilient.checkpoint.lock import HOLDER
from resilient.checkpoint.store import open_store
from resilient.core import events as ev
from resilient.core import wire
from resilient.core.evidence import Evidence, RankEvidence
from resilient.errors import SettingsError
from resilient.report.plain import sentences
from resilient.report.story import Story, explain_command, read_story
from resilient.supervisor.journal import JOURNAL

LATER = 10_000.0
assert ObjectFileSystem.protocol == "objects"


def text_of(story: Story) -> str:
    return "\n".join(sentences(story))


def submit(
    directory: Path, name: str, *, at: float, attempt: int = 1, step: int = 0, end: bool = True, pid: int = 1
) -> None:
    """A submission that makes 10 steps from `step`, and finishes where it is to end."""
    with recording(directory, at=at, submission=name, pid=pid) as recorder:
        recorder.happen(ev.Opened(next_attempt=attempt, committed_step=step, ever_committed=step > 0), at=at + 1)
        recorder.train(at + 1, step=step, name=f"{attempt - 1}-{step}" if step else "")
        recorder.happen(ev.Advanced(step=step + 10), at=at + 10)
        if end:
            recorder.happen(*(ev.WorkerEnded(rank=rank, clean=True, finished=True) for rank in (0, 1)), at=at + 11)
            recorder.happen(ev.GroupEnded(), ev.SaveSettled(durable_step=step + 10), ev.Recorded(), at=at + 12)


def ship(directory: Path, url: str, name: str, number: int) -> None:
    open_store(url).create(f"journal/{name}/p/{number}.jsonl", (directory / JOURNAL).read_bytes())


def hold(url: str, journal: Path | str, *, at: float, **more: str | int) -> Holder:
    """Write what the lock of a directory says of who holds it: this very process, unless told otherwise."""
    ourselves = process(os.getpid())
    fields = {"host": "vm", "pid": os.getpid(), "pod": "", "machine": machine(), "supervisor": ourselves, **more}
    holder = Holder(journal=str(journal), since_s=BOOT + at, keeper=ourselves, **fields)  # type: ignore[arg-type]  # fields of all types
    open_store(url).replace(HOLDER, wire.encode(holder))
    return holder


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Checkpoints of a run whose first submission has made steps 1 to 10, and was killed."""
    submit(tmp_path / "j1", "s1", at=100.0, end=False)
    ship(tmp_path / "j1", str(tmp_path / "run"), "s1", 1)
    return str(tmp_path / "run")


def test_an_exit_on_record_is_an_orderly_end_though_the_journal_lacks_it(url: str) -> None:
    """The store was away when the last piece was to be shipped. A record from before that start is another's."""
    assert read_story(url, now_s=LATER).attempts[0].ended == "cut off"

    def record(attempt: int, at: float, code: int) -> None:
        debit = layout.Debit(
            submission="s1", index=0, attempt=attempt, code=code, step=12, fingerprint="", held_s=1.0,
            wall_s=BOOT + at, why="asked to leave by SIGTERM",
        )  # fmt: skip
        name = f"{layout.debits_path('s1', 0)}/{attempt}.json"
        open_store(url).create(name, layout.encode(debit))

    record(1, 50.0, 193)
    assert read_story(url, now_s=LATER).exit is None
    record(2, 120.0, 196)
    story = read_story(url, now_s=LATER)
    assert story.exit is not None
    assert (story.exit.code, story.highest_step, story.probably) == (196, 12, "")
    assert "  It reached step 12 and left because it was asked to." in sentences(story)


def test_before_anything_is_shipped_the_supervisors_own_journal_is_told(tmp_path: Path) -> None:
    """It runs on this machine, and the lock of the checkpoints says where."""
    submit(tmp_path / "j", "s1", at=100.0, end=False, pid=os.getpid())
    run = str(tmp_path / "run")
    hold(run, tmp_path / "j", at=100.5)
    story = read_story(run, now_s=BOOT + 115.0)
    assert (story.submission, story.highest_step, story.attempts[0].ended) == ("s1", 10, "running")
    assert "it runs now: its last entry is 5 s old" in text_of(story)
    assert "  It reached at least step 10 and was running when it wrote last." in sentences(story)


def test_a_supervisor_that_is_known_to_be_dead_does_not_run(tmp_path: Path) -> None:
    """However young its last entry is: it was killed on this machine, and its journal is still there."""
    submit(tmp_path / "j", "s1", at=100.0, end=False)
    run = str(tmp_path / "run")
    hold(run, tmp_path / "j", at=100.5, pid=1, supervisor="1:1")
    story = read_story(run, now_s=BOOT + 115.0)
    assert (story.attempts[0].ended, story.probably) == (
        "cut off",
        "probably killed from outside: SIGKILL, an eviction or a lost node",
    )


def test_a_resumed_run_that_is_live_is_told_and_the_submission_before_has_a_line(url: str, tmp_path: Path) -> None:
    """The newest is what runs, though nothing of it is shipped."""
    submit(tmp_path / "j2", "s2", at=200.0, attempt=2, step=10, end=False, pid=os.getpid())
    hold(url, tmp_path / "j2", at=200.5)
    story = read_story(url, now_s=BOOT + 215.0)
    assert (story.submission, story.supervisors, story.highest_step, story.holder) == ("s2", 1, 20, "")
    told = text_of(story)
    assert "no exit is on record, steps 1 to 10 at least, 1 attempt: resilient explain " in told
    assert told.index("--submission s1") < told.index("Attempt 2 resumed from step 10")


def test_what_is_shipped_and_at_hand_is_told_once(url: str, tmp_path: Path) -> None:
    """The supervisor's own journal has what was not shipped yet, too."""
    submit(tmp_path / "j2", "s2", at=200.0, attempt=2, step=10, end=True, pid=os.getpid())
    lines = (tmp_path / "j2" / JOURNAL).read_bytes().splitlines(keepends=True)
    open_store(url).create("journal/s2/p/2.jsonl", b"".join(lines[:6]))
    assert read_story(url, now_s=LATER).exit is None
    hold(url, tmp_path / "j2", at=200.5)
    story = read_story(url, now_s=LATER)
    assert (story.submission, story.supervisors, len(story.attempts)) == ("s2", 1, 1)
    assert story.exit is not None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"machine": "another/pid:[1]"}, "may run now: process 7 on vm, journal /gone"),
        (
            {"machine": "another/pid:[1]", "pod": "train-0"},
            "ask there: kubectl exec train-0 -- resilient explain /gone",
        ),
        ({"machine": "another/pid:[1]", "host": "a\x1b[2Jb\nExit 0"}, "process 7 on ab Exit 0, journal /gone"),
        ({}, "a supervisor runs now: process 7 on vm, journal /gone, since 1970-01-01 00:18:20 UTC"),
    ],
)
def test_a_supervisor_whose_journal_cannot_be_read_is_named(url: str, more: dict[str, str], words: str) -> None:
    """What is told then is the submission before it, and where there is none, who to ask."""
    hold(url, "/gone", at=200.0, pid=7, **more)
    story = read_story(url, now_s=LATER)
    assert story.submission == "s1"
    assert words in sentences(story)[2]
    empty = f"{url}-2"
    hold(empty, "/gone", at=200.0, pid=7, **more)
    with pytest.raises(SettingsError, match=r"no journal is there; a supervisor .*; give the directory"):
        explain_command(empty, as_json=False)


def test_of_a_supervisor_that_has_ended_only_its_journal_is_told(url: str) -> None:
    """Neither one that is told already is named, nor one that this machine knows to be dead."""
    hold(url, "/gone", at=101.0, pid=1, machine="another/pid:[1]")
    assert read_story(url, now_s=LATER).holder == ""
    hold(url, "/gone", at=200.0, supervisor="1:1")
    assert read_story(url, now_s=LATER).holder == ""


def test_the_journal_of_another_run_is_not_taken_for_that_of_the_holder(url: str, tmp_path: Path) -> None:
    """A directory may serve another run by now, and a damaged record names none."""
    submit(tmp_path / "j2", "other", at=300.0, pid=os.getpid())
    hold(url, tmp_path / "j2", at=200.0)
    assert read_story(url, now_s=LATER).submission == "s1"
    os.mkfifo(tmp_path / "fifo")
    for damaged in (b"\xff", b"{}", b"[" * 5000, b"x" * 9000):
        open_store(url).replace(HOLDER, damaged)
        assert read_story(url, now_s=LATER).submission == "s1"
    for directory in (tmp_path / "fifo", "j1", "/a\x00b", "/" + "x" * 3000):
        hold(url, directory, at=101.0, pid=1)
        assert read_story(url, now_s=LATER).submission == "s1"


def test_each_earlier_submission_has_a_line_and_the_command_that_tells_it(url: str, tmp_path: Path) -> None:
    """The newest last, each with how it ended; and the command tells it whole."""
    submit(tmp_path / "j2", "s2", at=200.0, attempt=2, step=10)
    submit(tmp_path / "j3", "s3", at=300.0, attempt=3, step=20)
    ship(tmp_path / "j2", url, "s2", 2)
    ship(tmp_path / "j3", url, "s3", 3)
    told = sentences(read_story(url, now_s=LATER))
    assert told[0].endswith("finished at step 30, in 1 attempt of this submission, number 3 of the run.")
    first, second = told[told.index("Before it, 2 submissions of this run:") + 1 :][:2]
    assert ": no exit is on record, steps 1 to 10 at least, 1 attempt: " in first
    assert first.endswith(f": resilient explain {url} --submission s1")
    assert f": finished, steps 11 to 20, 1 attempt: resilient explain {url} --submission s2" in second
    story = read_story(url, "s2", now_s=LATER)
    assert (story.submission, story.attempts[0].number, story.highest_step, story.earlier) == ("s2", 2, 20, ())
    assert story.started_s == pytest.approx(BOOT + 200.0)


@pytest.mark.parametrize("objects", [False, True])
def test_the_directory_of_a_submission_names_it(url: str, tmp_path: Path, objects: bool) -> None:
    """People see it in the checkpoints, and give it."""
    submit(tmp_path / "j2", "s2", at=200.0, attempt=2, step=10)
    run = f"objects://{url}" if objects else url
    ship(tmp_path / "j2", run, "s2", 2)
    ship(tmp_path / "j1", run + "-2", "s1", 2)
    assert read_story(f"{run}/journal/s2/", now_s=LATER).submission == "s2"
    assert read_story(f"{run}-2/journal/s1", now_s=LATER).highest_step == 10
    submit(tmp_path / "j4", "s4", at=400.0)
    ship(tmp_path / "j4", f"{run}/journal/mine", "s4", 1)  # a run in a directory that happens to have this name
    assert read_story(f"{run}/journal/mine", now_s=LATER).submission == "s4"
    for target, name in ((f"{run}/journal/s9", None), (run, "s9"), (run, "../s1"), (str(tmp_path / "j1"), "s9")):
        with pytest.raises(SettingsError, match=r"^cannot explain "):
            explain_command(target, name, as_json=False)


def test_many_submissions_are_bounded(tmp_path: Path) -> None:
    """Of the oldest only their number is said, and those that are listed are read in part."""
    run = str(tmp_path / "run")
    for number in range(1, 26):
        submit(tmp_path / "j", f"s{number}", at=100.0 * number, attempt=number, step=10 * number)
        ship(tmp_path / "j", run, f"s{number}", number)
        (tmp_path / "j" / JOURNAL).unlink()
    story = read_story(run, now_s=LATER)
    assert [earlier.submission for earlier in story.earlier] == [f"s{number}" for number in range(5, 25)]
    assert story.earlier_unlisted == 4
    assert "  4 older ones, not listed: see journal/ of the checkpoints" in sentences(story)
    assert read_story(run, "s2", now_s=LATER).highest_step == 30


def test_of_a_long_earlier_submission_the_beginning_and_the_end_are_read(tmp_path: Path) -> None:
    """Which is enough for its line: the numbers of its attempts go on without a gap."""
    run = str(tmp_path / "run")
    submit(tmp_path / "a", "s1", at=100.0, end=False)
    submit(tmp_path / "b", "s1", at=500.0, attempt=7, step=60)
    for number in range(1, 20):
        ship(tmp_path / "a", run, "s1", number)
    open_store(run).create("journal/s1/p/5.5.jsonl", b"not a piece")
    open_store(run).create("journal/s1/p/20.jsonl", b'{"t": 1, "m": 1, "kind": "cut')
    ship(tmp_path / "b", run, "s1", 21)
    submit(tmp_path / "c", "s2", at=900.0, attempt=8, step=70)
    ship(tmp_path / "c", run, "s2", 22)
    (earlier,) = read_story(run, now_s=LATER).earlier
    assert (earlier.attempts, earlier.resumed_step, earlier.highest_step) == (7, 0, 70)
    assert earlier.exit is not None


def test_a_start_of_a_finished_run_is_said_to_be_one(url: str, tmp_path: Path) -> None:
    """Nothing was trained, and its line says that as well when it is an earlier one."""
    for number in (2, 3):
        at, directory = 100.0 * number, tmp_path / f"j{number}"
        with recording(directory, at=at, submission=f"s{number}") as recorder:
            recorder.happen(ev.Opened(next_attempt=number, committed_step=10, ever_committed=True), at=at + 1)
            recorder.write("restore", at + 2, attempt=number, name="1-10", step=10, refused=[])
            recorder.write("already_finished", at + 3, steps=10)
            recorder.happen(*(ev.WorkerEnded(rank=rank, clean=True, finished=True) for rank in (0, 1)), at=at + 4)
            recorder.happen(ev.GroupEnded(), ev.SaveSettled(durable_step=10), ev.Recorded(), at=at + 5)
        ship(directory, url, f"s{number}", number)
    told = sentences(read_story(url, now_s=LATER))
    assert told[0] == "Run r1 was finished already, at step 10: nothing was trained."
    assert "  It found every step done already, and trained nothing." in told
    assert any(": finished already, no step, 1 attempt: " in line for line in told)
    assert not any("in 1 attempt" in line for line in told)


def test_a_run_has_the_name_that_its_checkpoints_have(url: str) -> None:
    """That of ``run.json``, which ``checkpoints list`` shows; a damaged one is no name."""
    store = open_store(url)
    store.replace(layout.RUN, layout.encode(layout.RunRecord(id="abc", created_s=1.0)))
    assert sentences(read_story(url, now_s=LATER))[0].startswith("Run abc: no exit")
    store.replace(layout.RUN, b"{")
    assert sentences(read_story(url, now_s=LATER))[0].startswith("Run r1: no exit")


def test_outside_kubernetes_there_is_no_pod(tmp_path: Path) -> None:
    """The name of the machine stands for it."""
    with recording(tmp_path, pod="vm", in_kubernetes=False, node=None) as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=101.0)
    told = text_of(read_story(str(tmp_path), now_s=LATER))
    assert "Attempt 1 started on vm, " in told
    assert "pod" not in told


def test_steps_that_were_made_again_count_for_their_attempt(tmp_path: Path) -> None:
    """It got no farther than the one before, so no step of it was an event; what every attempt notes is told once."""
    with recording(tmp_path) as recorder:
        recorder.train(101.0, step=0)
        recorder.happen(ev.Advanced(step=40), at=150.0)
        for launch in (1, 2):
            recorder.write("note", 150.0 + launch, rank=0, text="left out batch 3")
            recorder.happen(ev.WorkerEnded(rank=0, clean=False, finished=False), ev.GroupEnded(), at=152.0 * launch)
            rank = RankEvidence(rank=0, exit_code=1, order=0, step=40, completed=39)
            recorder.happen(ev.Collected(evidence=Evidence(ranks=(rank,))), at=152.0 * launch)
            if launch == 1:
                recorder.happen(ev.DeadlinePassed(), at=153.0)
                recorder.train(154.0, step=2, name="memory", launch=2)
    story = read_story(str(tmp_path), now_s=LATER)
    assert [attempt.highest_step for attempt in story.attempts] == [40, 39]
    assert story.notes == ("rank 0: left out batch 3",)


def test_the_name_of_a_file_keeps_its_letters(tmp_path: Path) -> None:
    """Where a sentence begins with it."""
    with recording(tmp_path) as recorder:
        recorder.write("exit", 102.0, code=114, why="ddp.py:46 in train_step: no", do="correct it")
    told = text_of(read_story(str(tmp_path), now_s=LATER))
    assert "ddp.py:46 in train_step: no." in told
    assert "Correct it." in told
