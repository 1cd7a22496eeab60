# SPDX-License-Identifier: Apache-2.0
"""The last words on stderr, and the table of exit codes."""

from __future__ import annotations

import pytest

from resilient.core.causes import Action, Cause, Confidence, Verdict
from resilient.core.classify import classify
from resilient.core.evidence import Evidence, RankEvidence
from resilient.core.exit_codes import STOP, ExitCode
from resilient.supervisor.ending import MEANINGS, exit_code_table, last_words, meaning

VERDICT = Verdict(
    cause=Cause.USER_CODE,
    action=Action.STOP,
    confidence=Confidence.HIGH,
    rule="python-type-error",
    why="rank 1 raised TypeError at train.py:3",
    fingerprint="f",
    culprit=1,
    step=57,
)


def words(code: int, why: str = "a reason", do: str = "a deed", verdict: Verdict | None = VERDICT) -> str:
    return last_words(
        code, why, do, target="/my journal", attempts=2, highest_step=57, durable_step=41, verdict=verdict,
        in_kubernetes=True,
    )  # fmt: skip


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_says_why_what_next_and_where_to_read_more(code: ExitCode) -> None:
    """In at most a dozen lines, each of them marked as ours."""
    said = words(code)
    lines = said.splitlines()
    assert len(lines) <= (3 if code == ExitCode.FINISHED else 12)
    assert all(line.startswith("resilient: ") for line in lines)
    assert "a reason" in said
    assert lines[-1] == "resilient: read more: resilient explain '/my journal'"
    if code != ExitCode.FINISHED:
        assert f"exit code {int(code)} ({meaning(code).name})" in lines[0]
        assert "rank 1, in step 57" in said
        assert "rule python-type-error" in said
        assert "next: a deed" in said
        assert "step 41 is saved" in said


@pytest.mark.parametrize(("completed", "when"), [(None, "in step 57"), (56, "in step 57"), (57, "after step 57")])
def test_a_failure_between_two_steps_is_not_put_into_the_one_before(completed: int | None, when: str) -> None:
    """The heartbeat tells which step was entered last, and which was completed."""
    killed = RankEvidence(rank=1, signal=9, order=0, step=57, completed=completed)
    verdict = classify(Evidence(ranks=(killed,)))
    assert f"what failed: rank 1, {when}" in words(114, verdict=verdict)
    assert verdict.why == f"rank 1 was killed by a SIGKILL that nothing explains {when}"


def test_the_verdict_is_said_once() -> None:
    """Not again where the reason of the exit holds it already; and not at all where nobody was judged."""
    assert words(114, why=f"{VERDICT.why} (twice)").count(VERDICT.why) == 1
    assert words(116, why="spent").count(VERDICT.why) == 1
    assert "verdict" not in words(195, verdict=None)


def test_of_a_run_that_was_never_opened_nothing_is_claimed() -> None:
    """Who is refused at the door knows neither its steps nor its checkpoints."""
    said = last_words(115, "held", "wait", target="/j", attempts=0, highest_step=0, durable_step=0)
    assert "resilient: so far: nothing was started\n" in said
    assert "no checkpoint" not in said
    assert "step 0" not in said
    known = last_words(198, "no disk", "wait", target="/j", attempts=0, highest_step=9, durable_step=7)
    assert "so far: step 9 was reached, 0 attempts; step 7 is saved" in known


@pytest.mark.parametrize(("has_store", "words"), [(True, "the checkpoint store cannot be used"), (False, "on record")])
def test_what_cannot_be_put_on_record_is_not_called_a_bug(has_store: bool, words: str) -> None:
    """199 has two meanings, and people are told the one that is meant."""
    said = last_words(
        199, "no answer", "look", target="/j", attempts=0, highest_step=0, durable_step=0, unrecorded=True,
        has_store=has_store,
    )  # fmt: skip
    headline = said.splitlines()[0]
    assert words in headline
    assert "bug" not in headline


def test_what_is_left_to_do_after_the_end_of_the_work_is_said() -> None:
    """Where that is nothing, nothing is said of it."""
    assert "next: restore it" in words(0, do="restore it")
    assert "next:" not in words(0, do="nothing")


def test_words_of_workers_make_no_lines() -> None:
    """Line ends in a reason are blanks, and a reason without end is cut."""
    said = words(114, why="x\nresilient: finished\r\n" + "y" * 10_000)
    assert not any(line == "resilient: finished" for line in said.splitlines())
    assert len(said) < 3000


def test_the_table_has_every_code_once() -> None:
    """With cells that are whole: it is Markdown for the README."""
    rows = exit_code_table().splitlines()
    codes = [int(row.split("|")[1]) for row in rows[2:]]
    assert codes == sorted(set(codes))
    assert set(map(int, ExitCode)) | {137} <= set(codes)
    assert all(row.count("|") == 4 for row in rows)


def test_what_kubernetes_does_agrees_with_the_contract() -> None:
    """The stop codes and the two of a command that cannot be run fail the Job, nothing else does."""
    failing = {code for code, known in MEANINGS.items() if "fails the Job" in known.platform}
    assert failing == {*STOP, ExitCode.CANNOT_EXECUTE, ExitCode.NOT_FOUND}


def test_a_foreign_code_is_called_unknown() -> None:
    """Nothing is made up."""
    assert meaning(77).name == "unknown"
