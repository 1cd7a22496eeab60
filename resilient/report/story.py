# SPDX-License-Identifier: Apache-2.0
"""The story of a run: what happened, why, and what it cost, computed from its journals.

It is told in sentences by :mod:`resilient.report.plain` and shown on a terminal by
:mod:`resilient.report.page`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Sequence
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.errors import SettingsError
from resilient.report.chapters import AttemptStory, Automatic, Ending, Standstill, Story
from resilient.report.entries import Entry, open_sources, text, whole
from resilient.report.lives import MARKS, Attempt, Life, read_lives
from resilient.report.page import show_page
from resilient.report.plain import sentences

__all__ = ["Story", "explain_command", "probably", "read_story", "tell"]

_PHASES: Final = {
    "stopped": "stop",
    "judged": "judge",
    "left": "save and leave",
    "started": "away",
    "launched": "back off",
    "constructed": "start and import",
    "restored": "handshake and restore",
    "first step": "first step",
}
"""What the time until a mark was spent on."""
_ENDING_MARKS: Final[tuple[str, ...]] = MARKS[:3]
_SILENCE_S: Final = 90.0
"""A supervisor writes at least every 30 s; after this it is not alive any more."""
_NEARLY_FULL: Final = 0.95


def explain_command(target: str, *, as_json: bool) -> int:
    """Tell the story of a run on stdout; an unusable target is an error that says why."""
    story = read_story(target, now_s=time.time())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # workers may print what this terminal has no letters for
    if as_json:
        print(json.dumps(dataclasses.asdict(story), indent=2))
    elif sys.stdout.isatty():
        show_page(story, {})
    else:
        print("\n".join(sentences(story)))
    return ExitCode.FINISHED


def read_story(target: str, *, now_s: float) -> Story:
    """The story at a journal directory, a journal file, or the path or URL of the checkpoints."""
    sources = open_sources(target)
    lives = [life for source in sources for life in read_lives(source.entries())]
    problems = [problem for source in sources for problem in source.problems]
    if not lives:
        why = "; ".join(problems) or "nothing in its journal can be read"
        raise SettingsError(
            f"cannot explain {target}: {why}; give the directory of a journal or the checkpoints of a run"
        )
    return tell(lives, now_s=now_s, unread=sum(source.unread for source in sources), problems=problems)


def tell(lives: Sequence[Life], *, now_s: float, unread: int = 0, problems: Sequence[str] = ()) -> Story:
    """The story of the newest run among these supervisors."""
    ordered = sorted(lives, key=lambda life: life.started_s)
    runs = [text(life.start, "run") for life in ordered]
    run = next((name for name in reversed(runs) if name), "")
    ours = [life for life, name in zip(ordered, runs, strict=True) if name in (run, "")]
    if not ours:
        ours = [Life(started_s=now_s, offset_s=0.0, start={}, last_s=now_s)]
    newest = ours[-1]
    ending = _ending(newest)
    return Story(
        run=run,
        submissions=tuple(dict.fromkeys(name for life in ours if (name := text(life.start, "submission")))),
        command=_command(newest),
        ranks=whole(newest.start, "ranks"),
        supervisors=len(ours),
        attempts=_attempts(ours, now_s),
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
        notes=tuple(note for life in ours for note in life.notes),
        started_s=ours[0].started_s,
        last_s=newest.last_s,
        exit=ending,
        probably="" if ending else probably(newest, now_s),
        unread=unread,
        problems=tuple(problems),
    )


def _automatic(entry: Entry) -> Automatic:
    return Automatic(
        memory_s=entry.number("memory_s"), durable_s=entry.number("durable_s"), mttf_s=entry.number("mttf_s") or 0.0
    )


def probably(life: Life, now_s: float) -> str:
    """What became of a supervisor that wrote no exit: a guess, and said as one."""
    silent_s = now_s - life.last_s
    if silent_s < _SILENCE_S:
        return f"it probably still runs: its last entry is {max(0.0, silent_s):.0f} s old"
    last = life.samples[-1] if life.samples else None
    if last is not None and (short := _shortage(life, last)):
        before_s = max(0.0, life.last_s - (life.offset_s + last.monotonic_s))
        return f"{short} {before_s:.0f} s before the last entry"
    if life.asked_by:
        return f"probably killed before it was done leaving: it had been asked to by {life.asked_by}"
    return "probably killed from outside: SIGKILL, an eviction or a lost node"


def _shortage(life: Life, last: Entry) -> str:
    used, limit = last.number("memory_used"), last.number("memory_limit")
    if used is not None and limit and used / limit >= _NEARLY_FULL:
        return f"probably out of memory: memory was at {used / limit:.0%} of its limit"
    first = life.first_sample or last
    if (last.number("oom_kills") or 0) > (first.number("oom_kills") or 0):
        return "probably out of memory: the kernel's OOM killer had struck by"
    for field, name in (("shm_used_fraction", "/dev/shm"), ("disk_used_fraction", "the disk of the journal")):
        fraction = last.number(field)
        if fraction is not None and fraction >= _NEARLY_FULL:
            return f"probably out of space: {name} was at {fraction:.0%}"
    return ""


def _ending(life: Life) -> Ending | None:
    if life.exit is None:
        return None
    return Ending(code=whole(life.exit, "code") or 0, why=text(life.exit, "why"), do=text(life.exit, "do"))


def _command(life: Life) -> str:
    command = life.start.get("command")
    if isinstance(command, list):
        return text({"command": " ".join(word for word in command if isinstance(word, str))}, "command")
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
                    submission=text(life.start, "submission"),
                    pod=text(life.start, "pod"),
                    node=text(life.start, "node"),
                    started_s=attempt.marks["launched"],
                    resumed_step=attempt.resumed_step,
                    resumed_from=attempt.resumed_from,
                    refused=tuple(attempt.refused),
                    steps_lost=_lost(before, reached, attempt),
                    highest_step=highest,
                    ended=_how_ended(lives, life, attempt, now_s),
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
        return "failed"
    if life.exit is not None:
        if life.exit.get("code") == ExitCode.FINISHED:
            return "finished"
        return "asked to leave" if life.asked_by else "ended"
    return "running" if life is lives[-1] and now_s - life.last_s < _SILENCE_S else "cut off"


def _standstill(before: tuple[Life, Attempt], life: Life, attempt: Attempt) -> Standstill:
    """Between two attempts; where they have different supervisors, their clocks on the wall are compared."""
    earlier, failed = before
    passed: dict[str, float] = {mark: failed.marks[mark] for mark in _ENDING_MARKS if mark in failed.marks}
    if earlier is not life:
        passed |= {"left": earlier.last_s, "started": life.started_s}
    passed |= {mark: at for mark, at in attempt.marks.items() if mark not in _ENDING_MARKS}
    until, *rest = [mark for mark in MARKS if mark in passed]
    at = passed[until]
    phases = [("detect", failed.silent_s)] if failed.silent_s else []
    for mark in rest:
        name = "open the store" if mark == "launched" and earlier is not life else _PHASES[mark]
        phases.append((name, max(0.0, passed[mark] - at)))
        at, until = max(at, passed[mark]), mark
    return Standstill(seconds=sum(seconds for _, seconds in phases), phases=tuple(phases), until=until)
