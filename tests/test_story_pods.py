# SPDX-License-Identifier: Apache-2.0
"""The story of a run of several pods: the first one leads, its attempts are the run's, and the others have a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorder import Recorder, recording
from test_story_submissions import LATER, ship, text_of

from resilient.core import events as ev
from resilient.report.story import Story, read_story


def lead(directory: Path, url: str, *, submission: str = "s1", pod: str = "train-0") -> None:
    """Ten steps, which it finishes with the others."""
    with recording(directory, at=100.0, submission=submission, pod=pod, nodes=2, node_rank=0) as recorder:
        recorder.happen(ev.Opened(next_attempt=1, committed_step=0, ever_committed=False), at=101)
        recorder.train(101, step=0)
        recorder.happen(ev.Advanced(step=10), at=110)
        recorder.happen(*(ev.WorkerEnded(rank=rank, clean=True, finished=True) for rank in (0, 1)), at=111)
        recorder.happen(ev.GroupEnded(), ev.SaveSettled(durable_step=10), ev.Recorded(), at=112)
    ship(directory, url, submission, 1)


def follow(directory: Path, url: str, number: int, *, submission: str = "s1", at: float = 100.5, code: int = 0) -> None:
    """Another pod, which ends like that, or without a word where its code is negative."""
    named: dict[str, str] = {"pod": "" if submission != "s1" else f"train-{number}"}
    recorder = Recorder(directory, at=at, submission=submission, nodes=2, node_rank=number, pid=number, **named)  # type: ignore[arg-type]  # as above
    recorder.write("workers", at + 1, attempt=1, launch=1, pids={0: 7})
    if code >= 0:
        recorder.write("exit", at + 2, code=code, name="any", why=f"for reason {code}", do="nothing")
    recorder.journal.close()
    ship(directory, url, submission, 1000 * number + int(at))


def told(url: str, submission: str = "") -> Story:
    return read_story(url, submission, now_s=LATER)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def test_the_attempts_of_a_run_are_told_once(url: str, tmp_path: Path) -> None:
    """Though each pod has a journal of them."""
    lead(tmp_path / "a", url)
    follow(tmp_path / "b", url, 1, code=194)
    follow(tmp_path / "c", url, 1, at=105.0)
    follow(tmp_path / "d", url, 2, code=-1)
    story = told(url)
    assert [(attempt.number, attempt.pod) for attempt in story.attempts] == [(1, "train-0")]
    assert (story.supervisors, story.exit and story.exit.code, story.highest_step) == (1, 0, 10)
    lines = text_of(story).splitlines()
    first, lost, again = lines[lines.index("Other pods, whose workers took part in these attempts:") + 1 :][:3]
    assert first.startswith("  Pod 1, in pod train-1 on node node-a, ")
    assert first.endswith(": exit code 194 (reschedule): For reason 194.")
    assert again.endswith(": finished.")
    assert "Pod 2, in pod train-2 on node node-a, " in lost
    assert ": no exit is on record; probably killed" in lost


def test_outside_kubernetes_each_pod_has_a_submission_of_its_own(url: str, tmp_path: Path) -> None:
    """They are no other submissions of the run. One that is asked for is told."""
    lead(tmp_path / "a", url, submission="local-1", pod="")
    follow(tmp_path / "b", url, 1, submission="local-2")
    story = told(url)
    assert (story.submission, story.earlier, [other.number for other in story.others]) == ("local-1", (), [1])
    theirs = told(url, "local-2")
    assert (theirs.submission, theirs.others, len(theirs.attempts)) == ("local-2", (), 1)


def test_the_journal_of_a_pod_that_follows_is_its_own_story(tmp_path: Path) -> None:
    """Where nothing of the first one is at hand."""
    follow(tmp_path / "b", str(tmp_path / "run"), 1, code=194)
    story = told(str(tmp_path / "b"))
    assert (len(story.attempts), story.others, story.exit and story.exit.code) == (1, (), 194)


def test_of_many_pods_those_are_listed_that_ended_otherwise(url: str, tmp_path: Path) -> None:
    """And the others counted."""
    lead(tmp_path / "a", url)
    for number in range(1, 24):
        follow(tmp_path / f"b{number}", url, number, at=100.5 + number, code=194 if number == 7 else 0)
    story = told(url)
    assert ([other.number for other in story.others], story.others_unlisted) == ([7], 22)
    assert "  22 more, not listed: see journal/ of the checkpoints" in text_of(story)
