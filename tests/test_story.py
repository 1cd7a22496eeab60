# SPDX-License-Identifier: Apache-2.0
"""The story of a run, told from journals that the real machine and the real journal have written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from object_store import ObjectFileSystem
from recorder import BOOT, recording
from rich.console import Console

from resilient.checkpoint.store import open_store
from resilient.core import events as ev
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, Hang, Place, RankEvidence
from resilient.core.exit_codes import ExitCode
from resilient.errors import SettingsError
from resilient.report.lives import read_lives
from resilient.report.page import show_page
from resilient.report.plain import sentences
from resilient.report.story import Story, explain_command, read_story
from resilient.supervisor.journal import JOURNAL

LATER = 10_000.0
CONTROL = "\x1b]0;owned\x07"
HOSTILE = f"[rank0] [/x] [bold]b[/bold] <script>alert(1)</script> {CONTROL}AKIAABCDEFGHIJKLMNOP"
assert ObjectFileSystem.protocol == "objects"


def killed(step: int) -> Evidence:
    return Evidence(
        ranks=(
            RankEvidence(rank=0, signal=15, order=1, stopped=True, step=step, place=Place.STEP),
            RankEvidence(rank=1, signal=9, order=0, step=step, place=Place.STEP),
        )
    )


def raised(message: str) -> Evidence:
    record = ErrorRecord(chain=(ErrorLink(type="TypeError", message=message, bases=("Exception",)),), step=1)
    return Evidence(ranks=(RankEvidence(rank=1, exit_code=1, order=0, error=record, step=1, place=Place.STEP),))


def crash_and_finish(directory: Path) -> None:
    """Rank 1 is killed in step 57, all resume from step 41 in memory, and finish at step 60."""
    with recording(directory) as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=101.0)
        recorder.train(101.0, step=0)
        recorder.happen(ev.Advanced(step=56), at=150.0)
        recorder.write("snapshot", 150.5, step=41, stall_s=0.02)
        recorder.happen(ev.WorkerEnded(rank=1, clean=False, finished=False), at=151.0)
        recorder.happen(ev.WorkerEnded(rank=0, clean=False, finished=False), at=151.2)
        recorder.happen(ev.GroupEnded(), at=151.5)
        recorder.happen(ev.Collected(evidence=killed(57)), at=151.75)
        recorder.happen(ev.DeadlinePassed(), at=152.0)
        recorder.train(152.0, step=41, name="memory", launch=2)
        recorder.happen(ev.Advanced(step=60), at=170.0)
        recorder.write("checkpoint", 171.0, name="2-60", step=60, seconds=0.5, size_bytes=10, pruned=[])
        recorder.happen(*(ev.WorkerEnded(rank=rank, clean=True, finished=True) for rank in (0, 1)), at=172.0)
        recorder.happen(ev.GroupEnded(), ev.SaveSettled(durable_step=60), ev.Recorded(), at=172.0)


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    crash_and_finish(tmp_path / "journal")
    return tmp_path / "journal"


def text_of(story: Story) -> str:
    return "\n".join(sentences(story))


def test_a_crash_and_what_it_cost(crashed: Path) -> None:
    """Who failed and why, what was decided, what training went on from, and each phase of the standstill."""
    story = read_story(str(crashed), now_s=LATER)
    first, second = story.attempts
    assert (first.ended, first.highest_step, first.resumed_step) == ("failed", 56, 0)
    assert first.judgement is not None
    assert (first.judgement.culprit, first.judgement.step) == (1, 57)
    assert first.decided == "restart all workers in place"
    assert first.standstill is None
    assert (second.ended, second.resumed_step, second.resumed_from) == ("finished", 41, "memory")
    assert second.steps_lost == 15
    assert second.standstill is not None
    assert second.standstill.until == "first step"
    assert second.standstill.seconds == pytest.approx(6.0)
    assert dict(second.standstill.phases) == pytest.approx(
        {
            "stop": 0.5, "judge": 0.25, "back off": 0.25, "start and import": 3.0,
            "handshake and restore": 1.0, "first step": 1.0,
        }
    )  # fmt: skip
    assert (story.run, story.highest_step, story.checkpoints, story.newest_checkpoint) == ("r1", 60, 1, "2-60")
    assert story.exit is not None
    assert story.exit.code == 0


def test_it_is_told_in_plain_english(crashed: Path) -> None:
    """The sentences a person looks for."""
    told = text_of(read_story(str(crashed), now_s=LATER))
    assert told.startswith("Run r1 finished at step 60, in 2 attempts.")
    assert "Command: train.py --lr 1" in told
    (resumed,) = (line for line in told.splitlines() if line.startswith("Attempt 2 resumed from step 41 (memory)"))
    assert resumed.endswith("; 15 steps had to be done again."), "where and when come first"
    assert "Training stood still for 6.00 s: stop 0.50 s, judge 0.25 s, back off 0.25 s" in told
    assert "Decided: restart all workers in place." in told
    assert "Time: 72.0 s from the first entry to the last; training stood still for 6.00 s of it." in told
    assert "Checkpoints: 1 saved; the newest is 2-60, of step 60." in told


def test_a_hang_took_time_to_be_seen(tmp_path: Path) -> None:
    """The silence before it was called a hang belongs to the standstill."""
    hang = Hang(rank=1, place=Place.STEP, phase=None, silent_s=60.0, bound_s=60.0, where="train.py:3 in loss")
    with recording(tmp_path) as recorder:
        recorder.happen(ev.Opened(next_attempt=1), ev.HeartbeatOpened(), ev.Advanced(step=5), at=101.0)
        recorder.happen(ev.HangFound(hang=hang), at=170.0)
        recorder.write("stacks", 170.0, rank=1, text="Thread 1")
        recorder.happen(ev.GroupEnded(), at=171.0)
        recorder.happen(ev.Collected(evidence=Evidence(ranks=(), hang=hang)), ev.DeadlinePassed(), at=171.0)
        recorder.train(171.0, step=5, name="1-5", launch=2)
    story = read_story(str(tmp_path), now_s=LATER)
    standstill = story.attempts[1].standstill
    assert standstill is not None
    assert standstill.phases[0] == ("detect", 60.0)
    assert standstill.seconds == pytest.approx(60.0 + 1.0 + 5.0)
    assert "resumed from step 5 (checkpoint 1-5)" in text_of(story)
    assert "stacks of 1 worker" in text_of(story)


def preempted(directory: Path) -> None:
    with recording(directory / "a", pod="train-0-abc") as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=101.0)
        recorder.train(101.0, step=0)
        recorder.happen(ev.Advanced(step=9), at=120.0)
        recorder.happen(ev.LeaveAsked(by="SIGTERM"), at=121.0)
        recorder.happen(ev.Advanced(step=10), at=122.0)
        recorder.happen(*(ev.WorkerEnded(rank=rank, clean=True, finished=False) for rank in (0, 1)), at=122.5)
        recorder.happen(ev.GroupEnded(), at=123.0)
        recorder.happen(ev.SaveSettled(durable_step=10), ev.Recorded(), at=125.0)
    with recording(directory / "b", at=160.0, pod="train-0-xyz") as recorder:
        recorder.happen(ev.Opened(next_attempt=2, committed_step=10, ever_committed=True), at=162.0)
        recorder.train(162.0, step=10, name="1-10")


def ship(source: Path, store_url: str, pod: str, *, pieces: int = 1, skip: tuple[int, ...] = ()) -> None:
    """Put a journal into a store in so many pieces."""
    lines = (source / JOURNAL).read_bytes().splitlines(keepends=True)
    size = -(-len(lines) // pieces)
    for number in range(pieces):
        if number not in skip:
            piece = b"".join(lines[number * size : (number + 1) * size])
            open_store(store_url).create(f"journal/s1/{pod}/{number + 8}.jsonl", piece)


def test_a_preempted_pod_and_the_one_that_replaced_it(tmp_path: Path) -> None:
    """One story from the store, over both pods; their clocks on the wall say how long nobody trained."""
    preempted(tmp_path)
    url = f"objects://{tmp_path}/run"
    ship(tmp_path / "b", url, "train-0-xyz", pieces=3)
    ship(tmp_path / "a", url, "train-0-abc", pieces=5)
    story = read_story(url, now_s=LATER)
    first, second = story.attempts
    assert (story.supervisors, story.submission, story.earlier) == (2, "s1", ())
    assert "Attempt 1 started from the beginning in pod train-0-abc on node node-a, " in text_of(story)
    assert (first.pod, first.ended, second.pod) == ("train-0-abc", "asked to leave", "train-0-xyz")
    assert (second.resumed_from, second.steps_lost) == ("1-10", 0)
    assert second.standstill is not None
    assert dict(second.standstill.phases) == pytest.approx(
        {
            "save and leave": 2.0, "away": 35.0, "open the store": 2.0, "start and import": 3.0,
            "handshake and restore": 1.0, "first step": 1.0,
        }
    )  # fmt: skip


def test_pieces_that_are_missing_or_came_twice(tmp_path: Path) -> None:
    """The rest is told, and nothing is counted twice."""
    crash_and_finish(tmp_path / "a")
    url = str(tmp_path / "run")
    ship(tmp_path / "a", url, "p", pieces=1)
    open_store(url).create("journal/s1/p/9.jsonl", (tmp_path / "a" / JOURNAL).read_bytes())
    whole = read_story(url, now_s=LATER)
    assert (len(whole.attempts), whole.checkpoints, whole.snapshots) == (2, 1, 1)
    other = str(tmp_path / "other")
    ship(tmp_path / "a", other, "p", pieces=4, skip=(0,))
    story = read_story(other, now_s=LATER)
    assert story.exit is not None
    assert story.highest_step == 60


def test_what_automatic_cadences_came_to_is_told(crashed: Path) -> None:
    """The last word of them, and only of those that are automatic."""
    assert "Automatic" not in sentences(read_story(str(crashed), now_s=LATER))
    with recording(crashed, at=500.0) as recorder:
        recorder.write("cadence", 501.0, memory_s=1.0, durable_s=70.0, mttf_s=11160.0)
        recorder.write("cadence", 502.0, memory_s=10.5, durable_s=None, mttf_s=11160.0)
    told = sentences(read_story(str(crashed), now_s=LATER))
    assert "Automatic: a snapshot every 10.5 s, as a failure is expected every 186 min." in told


def test_only_the_newest_submission_is_told(crashed: Path) -> None:
    """A journal directory may have served an earlier one, which has a line."""
    with recording(crashed, at=500.0, run="r2", submission="s2") as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=501.0)
    story = read_story(str(crashed), now_s=LATER)
    assert (story.run, len(story.attempts), story.highest_step) == ("r2", 1, 0)
    assert [earlier.submission for earlier in story.earlier] == ["s1"]
    assert read_story(str(crashed), "s1", now_s=LATER).run == "r1"


def test_a_script_that_never_imports_us(tmp_path: Path) -> None:
    """No store and no steps: the first launch comes without an event, and nothing is said of steps."""
    with recording(tmp_path, store=False) as recorder:
        recorder.write("workers", 101.0, attempt=1, launch=1, pids={0: 1})
        for launch in (1, 2):
            recorder.happen(ev.WorkerEnded(rank=1, clean=False, finished=False), ev.GroupEnded(), at=110.0 * launch)
            recorder.happen(ev.Collected(evidence=raised("x")), at=110.0 * launch)
            if launch == 1:
                recorder.happen(ev.DeadlinePassed())
                recorder.write("workers", 111.0, attempt=2, launch=2, pids={0: 2})
        recorder.happen(ev.SaveSettled(durable_step=0), ev.Recorded())
    story = read_story(str(tmp_path), now_s=LATER)
    assert [attempt.ended for attempt in story.attempts] == ["failed", "failed"]
    assert story.exit is not None
    assert story.exit.code == ExitCode.CODE_FAULT
    told = text_of(story)
    assert "ended with exit code 114 (code fault)" in told
    assert "  It failed." in told
    assert "step" not in told.splitlines()[0]
    assert "Attempt 2 started," in told


def samples(memory: int, oom_kills: int = 0, shm: float = 0.1, disk: float = 0.1) -> dict[str, object]:
    return {
        "memory_used": memory, "memory_limit": 100, "oom_kills": oom_kills,
        "shm_used_fraction": shm, "disk_used_fraction": disk,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("last", "asked", "expected"),
    [
        (samples(99), False, "probably out of memory: memory was at 99% of its limit 4 s before the last entry"),
        (samples(50, oom_kills=3), False, "probably out of memory: the kernel's OOM killer"),
        (samples(50, shm=0.97), False, "probably out of space: /dev/shm was at 97%"),
        (samples(50, disk=1.0), False, "probably out of space: the disk of the journal was at 100%"),
        (samples(50), False, "probably killed from outside"),
        (samples(50), True, "probably killed before it was done leaving: it had been asked to by SIGTERM"),
        ({"memory_used": "x", "memory_limit": None}, False, "probably killed from outside"),
    ],
)
def test_without_an_exit_the_last_samples_say_what_is_probable(
    tmp_path: Path, last: dict[str, object], asked: bool, expected: str
) -> None:
    """And no more than that."""
    with recording(tmp_path) as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=101.0)
        recorder.write("sample", 102.0, **samples(20, oom_kills=2))
        recorder.write("sample", 130.0, **{"oom_kills": 2, **last})
        recorder.happen(ev.LeaveAsked(by="SIGTERM") if asked else ev.Advanced(step=7), at=134.0)
    story = read_story(str(tmp_path), now_s=LATER)
    assert story.exit is None
    assert story.probably.startswith(expected)
    assert story.probably in text_of(story)
    assert story.attempts[0].ended == "cut off"


def test_a_run_that_may_still_run_is_not_called_dead(tmp_path: Path) -> None:
    """Its last entry is young."""
    with recording(tmp_path) as recorder:
        recorder.happen(ev.Opened(next_attempt=1), at=101.0)
    story = read_story(str(tmp_path), now_s=BOOT + 110.0)
    assert story.probably == "it probably still runs: its last entry is 9 s old"
    assert story.attempts[0].ended == "running"


def hostile(directory: Path) -> Story:
    with recording(directory, command=["train.py", HOSTILE], pod="[/x]") as recorder:
        recorder.happen(ev.Opened(next_attempt=1), ev.HeartbeatOpened(), at=101.0)
        recorder.write("restore", 102.0, attempt=1, name=HOSTILE, step=3, refused=[{"name": HOSTILE, "why": HOSTILE}])
        recorder.write("note", 103.0, rank=0, text=f"{HOSTILE}\nExit 0: forged")
        recorder.happen(ev.WorkerEnded(rank=1, clean=False, finished=False), ev.GroupEnded(), at=104.0)
        recorder.happen(ev.Collected(evidence=raised(HOSTILE)), ev.SaveSettled(durable_step=0), at=105.0)
    # A journal that somebody else has written has not passed our redaction.
    raw = (directory / JOURNAL).read_bytes().replace(b"<script>", b"<script>\\u001b[2J\\u0007")
    (directory / JOURNAL).write_bytes(raw)
    return read_story(str(directory), now_s=LATER)


@pytest.mark.parametrize("terminal", [True, False])
def test_words_of_workers_are_never_markup(tmp_path: Path, terminal: bool) -> None:
    """They come out as they went in, but for control sequences and secrets, and make no lines of their own."""
    story = hostile(tmp_path)
    out = io.StringIO()
    show_page(story, Console(file=out, force_terminal=terminal, width=4000))
    shown = out.getvalue()
    assert shown.count("[rank0] [/x] [bold]b[/bold] <script>alert(1)</script>") >= 5
    assert "owned" not in shown
    assert "\x07" not in shown
    assert "\x1b[2J" not in shown
    assert "AKIAABCDEFGHIJKLMNOP" not in shown
    assert not any(line.strip(" │").startswith("Exit 0: forged") for line in shown.splitlines())


def test_explain_prints_lines_or_json(crashed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no terminal gets plain text; --json gives the same story."""
    assert explain_command(str(crashed), as_json=False) == 0
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert plain.startswith("Run r1 finished")
    assert explain_command(str(crashed / JOURNAL), as_json=True) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["attempts"][1]["resumed_step"] == 41
    assert data["exit"]["code"] == 0


def test_an_unusable_target_is_refused(tmp_path: Path) -> None:
    """Each with a reason."""
    (tmp_path / "noise").write_bytes(b"\x00\xff\n{}\n[]\n")
    (tmp_path / "empty").mkdir()
    for target in ("missing", "noise", "empty"):
        with pytest.raises(SettingsError, match=r"^cannot explain "):
            explain_command(str(tmp_path / target), as_json=False)


def test_torn_and_foreign_lines_are_counted_and_left_out(crashed: Path) -> None:
    """The rest of the story stays as it is."""
    whole = read_story(str(crashed), now_s=LATER)
    with (crashed / JOURNAL).open("ab") as file:
        file.write(b'{"t":1,"m":1,"kind":"from the future","x":[1]}\n{"t": 5, "ki\n')
        file.write(b'{"t":NaN,"m":1,"kind":"exit"}\n' + b"[" * 100_000 + b"\n" + b"x" * (3 << 20))
    story = read_story(str(crashed), now_s=LATER)
    assert story.attempts == whole.attempts
    assert story.exit == whole.exit
    assert story.unread == 4  # and of lines that are the same one
    assert "4 lines of the journal could not be read" in text_of(story)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)
NAMES = [
    "event", "next", "commands", "attempt", "launch", "rank", "step", "name", "refused", "text", "why", "do", "code",
    "run", "pod", "submission", "command", "ranks", "type", "hang", "silent_s", "verdict", "memory_used",
    "memory_limit", "oom_kills", "shm_used_fraction", "stall_s", "by", "memory_s", "durable_s", "mttf_s",
    "pid", "in_kubernetes", "steps",
]  # fmt: skip
KINDS = [
    "start", "event", "workers", "hello", "restore", "restored", "first_step", "reached", "snapshot", "checkpoint",
    "save_failed", "cadence", "sample", "stacks", "note", "exit", "opened", "already_finished", "unheard of",
]  # fmt: skip
TYPES = ["Advanced", "WorkerEnded", "HangFound", "Opened", "Committed", "Collected", "StartWorkers", "Announce", "Exit"]
parts = st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4)
typed = st.builds(lambda kind, rest: {**rest, "type": kind}, st.sampled_from(TYPES), parts)
garbage = st.builds(
    lambda t, m, kind, rest, event, commands: {
        "event": event, "commands": commands, **rest, "t": t, "m": m, "kind": kind,
    },
    st.one_of(st.floats(0, 1e6), json_values), st.one_of(st.floats(0, 1e6), json_values), st.sampled_from(KINDS),
    parts, typed, st.lists(typed, max_size=3),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(entries=st.lists(garbage, max_size=12), noise=st.binary(max_size=50))
@example(entries=[{"t": 1, "m": 1, "kind": "start"}, {"t": 9e15, "m": -9e15, "kind": "exit", "code": -1}], noise=b"")
def test_no_garbage_breaks_it(tmp_path: Path, entries: list[dict[str, object]], noise: bytes) -> None:
    """Whatever the fields hold, there is a story or a refusal."""
    path = tmp_path / "garbage"
    path.write_bytes(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries) + noise)
    try:
        story = read_story(str(path), now_s=LATER)
    except SettingsError:
        return
    assert sentences(story)
    show_page(story, Console(file=io.StringIO(), force_terminal=True))


def test_nothing_is_made_of_nothing() -> None:
    """No entries, no lives."""
    assert read_lives([]) == []
