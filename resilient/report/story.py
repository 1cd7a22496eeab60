# SPDX-License-Identifier: Apache-2.0
"""The story of a run: what happened, why, and what it cost, computed from its journals.

It is told in sentences by :mod:`resilient.report.plain` and shown on a terminal by
:mod:`resilient.report.page`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Final

from resilient.core.aftermath import Counters, Shortage, Trace, probable_end, shortage_of
from resilient.core.exit_codes import PREEMPTED, ExitCode
from resilient.core.redact import clean_url
from resilient.errors import SettingsError
from resilient.report.chapters import AttemptStory, Automatic, Earlier, Ending, OtherPod, Standstill, Story
from resilient.report.entries import Entry, one_line, text, whole
from resilient.report.journals import MOST_EARLIER, Found, find_journals
from resilient.report.lives import ENDING_MARKS, MARKS, Attempt, Life
from resilient.report.page import show_page
from resilient.report.plain import sentences

__all__ = ["Story", "explain_command", "probably", "read_story", "tell"]

_PHASES: Final = {
    "stopped": "stop",
    "judged": "judge",
    "assembled": "wait for all pods",
    "left": "save and leave",
    "started": "away",
    "launched": "back off",
    "constructed": "start and import",
    "restored": "handshake and restore",
    "first step": "first step",
}
"""What the time until a mark was spent on."""
_MOST_OTHERS: Final = 20
_MOST_NOTES: Final = 40
_SILENCE_S: Final = 90.0
"""A supervisor writes at least every 30 s; after this it is not alive any more."""


def explain_command(target: str, submission: str | None = None, *, as_json: bool) -> int:
    """Tell the story of a run on stdout; an unusable target is an error that says why."""
    story = read_story(target, submission or "", now_s=time.time())
    if as_json:
        print(json.dumps(dataclasses.asdict(story), indent=2))
    elif sys.stdout.isatty():
        show_page(story)
    else:
        print("\n".join(sentences(story)))
    return ExitCode.FINISHED


def read_story(target: str, submission: str = "", *, now_s: float) -> Story:
    """The story at a journal directory, a journal file, or the path or URL of the checkpoints.

    Of its newest submission, unless another is named, as ``RUN/journal/<submission>`` does as well.
    """
    found = find_journals(target, submission)
    if not found.lives:
        why = "; ".join(found.problems) or "nothing in its journal can be read"
        raise SettingsError(
            f"cannot explain {target}: {why}; give the directory of a journal or the checkpoints of a run"
        )
    return tell(found, now_s=now_s)


def _started(life: Life) -> float:
    return life.started_s


def tell(found: Found, *, now_s: float) -> Story:
    """The story of one submission, and a line on each of those before it where it is the newest."""
    everybody = sorted(found.lives, key=_started)
    ordered = _leading(everybody, found.submission)
    known = list(dict.fromkeys(life.submission for life in ordered if life.submission))
    submission = found.submission or (known[-1] if known else "")
    before = [] if found.submission else known[:-1]
    unlisted = found.unlisted + max(0, len(before) - MOST_EARLIER)
    ours = [life for life in ordered if life.submission in (submission, "")]
    if found.submission and submission not in known:
        raise SettingsError(
            f"cannot explain submission {submission!r} of {found.target}: it is not there; "
            "leave --submission out to see which are"
        )
    newest = ours[-1]
    ending = _ending(newest)
    others = _others(everybody, ours, submission)
    listed = others if len(others) <= _MOST_OTHERS else [life for life in others if not _ended_like(life, ending)]
    return Story(
        target=clean_url(found.target),
        run=found.run or next((life.run for life in reversed(ours) if life.run), ""),
        submission=submission,
        earlier=tuple(
            _earlier(name, [life for life in ordered if life.submission == name]) for name in before[-MOST_EARLIER:]
        ),
        earlier_unlisted=0 if found.submission else unlisted,
        holder="" if found.submission else found.holder,
        command=_command(newest),
        ranks=whole(newest.start, "ranks"),
        supervisors=len(ours),
        attempts=_attempts(ours, now_s),
        others=tuple(_other(life, others, now_s) for life in listed[-_MOST_OTHERS:]),
        others_unlisted=len(others) - len(listed[-_MOST_OTHERS:]),
        steps_known=any(life.steps_known or life.highest_step for life in ours),
        highest_step=max(life.highest_step for life in ours),
        committed_step=max(life.committed_step for life in ours),
        checkpoints=sum(life.checkpoints for life in ours),
        newest_checkpoint=next((life.newest for life in reversed(ours) if life.newest), ""),
        save_failures=sum(life.save_failures for life in ours),
        save_failed_why=next((life.save_failed_why for life in reversed(ours) if life.save_failures), ""),
        snapshots=sum(life.snapshots for life in ours),
        longest_stall_s=max(life.stall_s for life in ours),
        automatic=next((_automatic(life.cadence) for life in reversed(ours) if life.cadence), None),
        stacks=sum(life.stacks for life in ours),
        skipped=tuple(batch for life in ours for batch in life.skipped),
        notes=tuple(dict.fromkeys(note for life in (*ours, *others) for note in life.notes))[-_MOST_NOTES:],
        started_s=ours[0].started_s,
        last_s=newest.last_s,
        exit=ending,
        probably="" if ending else probably(newest, now_s),
        unread=found.unread,
        problems=tuple(found.problems),
    )


def _leading(lives: Sequence[Life], submission: str) -> list[Life]:
    """Those of the pod that leads, as the others do what it says; all where nothing of it was found."""
    found = [life for life in lives if not life.pod]
    return found if any(not submission or life.submission in (submission, "") for life in found) else [*lives]


def _others(lives: Sequence[Life], ours: Sequence[Life], submission: str) -> list[Life]:
    """Of the other pods. Outside Kubernetes each has a submission of its own, and belongs to what ran meanwhile."""
    if all(life.pod for life in ours):
        return []
    from_s, to_s = ours[0].started_s - _SILENCE_S, ours[-1].last_s

    def belongs(life: Life) -> bool:
        meanwhile = life.start.get("in_kubernetes") is not True and from_s <= life.started_s <= to_s
        return life.pod > 0 and (life.submission == submission or meanwhile)

    return [life for life in lives if belongs(life)]


def _ended_like(life: Life, ending: Ending | None) -> bool:
    return life.exit is not None and ending is not None and whole(life.exit, "code") == ending.code


def _other(life: Life, others: Sequence[Life], now_s: float) -> OtherPod:
    its = [other for other in others if other.pod == life.pod]
    exit_ = _ending(life)
    guess = probably(life, now_s) if life is its[-1] else _cut_off(its, life)
    return OtherPod(
        number=life.pod,
        in_kubernetes=life.start.get("in_kubernetes") is True,
        pod=text(life.start, "pod"),
        node=text(life.start, "node"),
        started_s=life.started_s,
        exit=exit_,
        probably="" if exit_ else guess,
    )


def _earlier(submission: str, lives: Sequence[Life]) -> Earlier:
    """What one line says of it; of a long one only the beginning and the end were read."""
    attempts = [attempt for life in lives for attempt in life.attempts]
    return Earlier(
        submission=submission,
        started_s=lives[0].started_s,
        attempts=max(len(attempts), attempts[-1].number - attempts[0].number + 1) if attempts else 0,
        resumed_step=attempts[0].resumed_step if attempts else None,
        highest_step=max(life.highest_step for life in lives),
        already_finished=any(attempt.already_finished for attempt in attempts),
        exit=_ending(lives[-1]),
    )


def _automatic(entry: Entry) -> Automatic:
    return Automatic(
        memory_s=entry.number("memory_s"), durable_s=entry.number("durable_s"), mttf_s=entry.number("mttf_s") or 0.0
    )


def probably(life: Life, now_s: float) -> str:
    """What became of a supervisor that wrote no exit: a guess, and said as one."""
    if _may_run(life, now_s):
        sure = "it runs now" if life.alive else "it probably still runs"
        return f"{sure}: its last entry is {max(0.0, now_s - life.last_s):.0f} s old"
    return probable_end(_trace(life)).why


def _may_run(life: Life, now_s: float) -> bool:
    """By its process, where that can be seen, else by how long it has been silent."""
    return now_s - life.last_s < _SILENCE_S if life.alive is None else life.alive


def _trace(life: Life) -> Trace:
    """What says how it ended."""
    last = life.samples[-1] if life.samples else None
    sample = Shortage()
    if last is not None:
        sample = shortage_of(last.data, life.offset_s + last.monotonic_s)
    return Trace(
        started_s=life.started_s,
        last_s=life.last_s,
        counters=_counters(life),
        asked_by=life.asked_by,
        oom_kills=None if life.first_sample is None else life.first_sample.number("oom_kills"),
        sample=sample,
    )


def _counters(life: Life) -> Counters:
    """What the controller had counted when it started."""
    return Counters(failures=whole(life.start, "failure_count"), ignored=whole(life.start, "ignored_count"))


def _ending(life: Life) -> Ending | None:
    if life.exit is None:
        return None
    return Ending(code=whole(life.exit, "code") or 0, why=text(life.exit, "why"), do=text(life.exit, "do"))


def _command(life: Life) -> str:
    command = life.start.get("command")
    if isinstance(command, list):
        return one_line(" ".join(word for word in command if isinstance(word, str)))
    return text(life.start, "command")


def _attempts(lives: Sequence[Life], now_s: float) -> tuple[AttemptStory, ...]:
    told: list[AttemptStory] = []
    before: tuple[Life, Attempt] | None = None
    reached = 0
    for life in lives:
        for attempt in life.attempts:
            highest = max(attempt.highest_step, attempt.resumed_step or 0)
            told.append(
                AttemptStory(
                    number=attempt.number,
                    in_kubernetes=life.start.get("in_kubernetes") is True,
                    pod=text(life.start, "pod"),
                    node=text(life.start, "node"),
                    started_s=attempt.marks["launched"],
                    resumed_step=attempt.resumed_step,
                    resumed_from=attempt.resumed_from,
                    already_finished=attempt.already_finished,
                    refused=tuple(attempt.refused),
                    steps_lost=_lost(before, reached, attempt),
                    highest_step=highest,
                    ended=(ended := _how_ended(lives, life, attempt, now_s)),
                    probably=_cut_off(lives, life) if ended == "cut off" else "",
                    judgement=attempt.judgement,
                    decided=attempt.decided,
                    standstill=_standstill(before, life, attempt) if before else None,
                )
            )
            before, reached = (life, attempt), max(reached, highest)
    return tuple(told)


def _lost(before: tuple[Life, Attempt] | None, reached: int, attempt: Attempt) -> int | None:
    if before is None or attempt.resumed_step is None:
        return None
    return max(0, reached - attempt.resumed_step)


def _how_ended(lives: Sequence[Life], life: Life, attempt: Attempt, now_s: float) -> str:
    if attempt is not life.attempt or attempt.judgement is not None:
        return "without a pod" if attempt.judgement is None and "pod gone" in attempt.marks else "failed"
    if life.exit is not None:
        code = whole(life.exit, "code")
        if code == ExitCode.FINISHED:
            return "finished"
        return "asked to leave" if life.asked_by or code in PREEMPTED else "ended"
    return "running" if life is lives[-1] and _may_run(life, now_s) else "cut off"


def _cut_off(lives: Sequence[Life], life: Life) -> str:
    """What probably ended a supervisor, also by what its controller had counted when the next one started."""
    later = [other for other in lives if other.started_s > life.started_s]
    return probable_end(_trace(life), _counters(later[0]) if later else None).why


def _standstill(before: tuple[Life, Attempt], life: Life, attempt: Attempt) -> Standstill:
    """Between two attempts; where they have different supervisors, their clocks on the wall are compared."""
    earlier, failed = before
    passed: dict[str, float] = {mark: failed.marks[mark] for mark in ENDING_MARKS if mark in failed.marks}
    if earlier is not life:
        passed |= {"left": earlier.last_s, "started": life.started_s}
    passed |= {mark: at for mark, at in attempt.marks.items() if mark not in ENDING_MARKS}
    until, *rest = [mark for mark in MARKS if mark in passed]
    at = passed[until]
    phases = [("detect", failed.silent_s)] if failed.silent_s else []
    for mark in rest:
        name = "open the store" if mark == "launched" and earlier is not life else _PHASES[mark]
        phases.append((name, max(0.0, passed[mark] - at)))
        at, until = max(at, passed[mark]), mark
    return Standstill(seconds=sum(seconds for _, seconds in phases), phases=tuple(phases), until=until)
