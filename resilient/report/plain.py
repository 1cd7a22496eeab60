# SPDX-License-Identifier: Apache-2.0
"""The story of a run in plain English, one line after the other; shared by every way of showing it."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone

from resilient.core.exit_codes import ExitCode
from resilient.report.chapters import AttemptStory, Automatic, Earlier, OtherPod, Standstill, Story
from resilient.supervisor.ending import meaning


def sentences(story: Story) -> list[str]:
    """The whole story."""
    lines = [headline(story)]
    if story.command:
        lines.append(f"Command: {story.command}")
    lines += before_lines(story)
    for attempt in story.attempts:
        lines += ["", *attempt_lines(attempt, story)]
    return [*lines, *others_lines(story), "", *closing(story)]


def headline(story: Story) -> str:
    """How the run stands."""
    name = f"Run {story.run}" if story.run else "A run"
    if story.exit is not None and story.attempts and story.attempts[-1].already_finished and not story.exit.code:
        return f"{name} was finished already, at step {story.highest_step}: nothing was trained."
    count = f"in {_attempts(story)}"
    step = f" at step {story.highest_step}" if story.steps_known else ""
    if story.exit is None:
        reached = f" It reached step {story.highest_step} {count}." if story.steps_known else ""
        return f"{name}: no exit is on record; {story.probably}.{reached}"
    if story.exit.code == ExitCode.FINISHED:
        return f"{name} finished{step}, {count}."
    return f"{name} ended with exit code {story.exit.code} ({meaning(story.exit.code).name}){step}, {count}."


def _attempts(story: Story) -> str:
    """Their count; attempts are numbered within the run, so that those of a later submission do not begin with 1."""
    count = _count(len(story.attempts), "attempt")
    numbers = [attempt.number for attempt in story.attempts]
    if not numbers or numbers[0] <= 1:
        return count
    which = f"number {numbers[0]}" if len(numbers) == 1 else f"numbers {numbers[0]} to {numbers[-1]}"
    return f"{count} of this submission, {which} of the run"


def before_lines(story: Story) -> list[str]:
    """Who holds the run where that is not told, and the submissions before the one that is, the newest last."""
    lines = [f"Not told: {story.holder}; what follows is what had been shipped before."] if story.holder else []
    if story.earlier:
        lines += ["", f"Before it, {_count(len(story.earlier), 'submission')} of this run:"]
    if story.earlier_unlisted:
        lines.append(f"  {_count(story.earlier_unlisted, 'older one')}, not listed: see journal/ of the checkpoints")
    for earlier in story.earlier:
        command = f"resilient explain {shlex.quote(story.target)} --submission {shlex.quote(earlier.submission)}"
        lines.append(f"  {_clock(earlier.started_s)}: {_earlier(earlier)}: {command}")
    return lines


def _earlier(earlier: Earlier) -> str:
    no_step, least = "no step", ""
    if earlier.exit is None:  # what its journal had last may not have been shipped
        how, no_step, least = "no exit is on record", "nor any step", " at least"
    elif earlier.exit.code == ExitCode.FINISHED:
        how = "finished already" if earlier.already_finished else "finished"
    else:
        how = f"exit code {earlier.exit.code} ({meaning(earlier.exit.code).name})"
    count = _count(earlier.attempts, "attempt")
    if earlier.already_finished or not earlier.highest_step:
        return f"{how}, {no_step}, {count}"
    begun = "" if earlier.resumed_step is None else f"{earlier.resumed_step + 1} to "
    if earlier.resumed_step is not None and earlier.highest_step <= earlier.resumed_step:
        return f"{how}, {no_step} after {earlier.resumed_step}, {count}"
    return f"{how}, steps {begun or 'up to '}{earlier.highest_step}{least}, {count}"


def attempt_lines(attempt: AttemptStory, story: Story) -> list[str]:
    """What became of one attempt."""
    again = f"; {_count(attempt.steps_lost, 'step')} had to be done again" if attempt.steps_lost else ""
    begun = f"{_beginning(attempt)}{_place(attempt)}, {_clock(attempt.started_s)}{again}"
    lines = [f"Attempt {attempt.number} {begun}."]
    lines += [f"  {name} could not be used: {why}" for name, why in attempt.refused]
    if attempt.standstill is not None:
        lines.append(f"  {standstill_line(attempt.standstill)}")
    lines.append(f"  {_ending(attempt, story)}")
    if attempt.judgement is not None:
        judged = attempt.judgement
        lines.append(f"  {_sentence(judged.why)}")
        lines.append(f"  Verdict: {judged.cause}, by rule {judged.rule}, confidence {judged.confidence}.")
        if judged.device and judged.device not in judged.why:
            lines.append(f"  Device: {judged.device}.")
    if attempt.decided:
        lines.append(f"  Decided: {attempt.decided}.")
    return lines


def others_lines(story: Story) -> list[str]:
    """How the other pods ended, whose workers did what the first one says above."""
    if not story.others and not story.others_unlisted:
        return []
    lines = [f"  {_other(other, story)}" for other in story.others]
    if story.others_unlisted:
        lines.append(f"  {story.others_unlisted} more, not listed: see journal/ of the checkpoints")
    return ["", "Other pods, whose workers took part in these attempts:", *lines]


def _other(other: OtherPod, story: Story) -> str:
    place = f"Pod {other.number},{_place(other)}, {_clock(other.started_s)}"
    if other.exit is None:
        return f"{place}: no exit is on record; {other.probably}."
    if other.exit.code == ExitCode.FINISHED:
        return f"{place}: finished."
    is_known = story.exit is not None and other.exit.why == story.exit.why
    is_known |= any(attempt.judgement and other.exit.why == attempt.judgement.why for attempt in story.attempts)
    why = "as told above." if is_known else _sentence(other.exit.why)
    return f"{place}: exit code {other.exit.code} ({meaning(other.exit.code).name}): {why}"


def standstill_line(standstill: Standstill) -> str:
    """How long training stood still, and on what that was spent."""
    phases = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in standstill.phases)
    total = seconds_text(standstill.seconds)
    if standstill.until == "first step":
        return f"Training stood still for {total}: {phases}."
    return f"Training stood still for at least {total}; no step after it is on record: {phases}."


def seconds_text(seconds: float) -> str:
    """Short, with the digits that matter."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"


def closing(story: Story) -> list[str]:
    """What is saved, what went wrong with saving, how it ended and what there is to do."""
    lines = [_time(story), _saved(story)]
    if story.save_failures:
        lines.append(f"{_count(story.save_failures, 'checkpoint')} could not be saved; last: {story.save_failed_why}")
    if story.snapshots:
        stall = seconds_text(story.longest_stall_s)
        lines.append(f"Memory: {_count(story.snapshots, 'snapshot')}, the longest held training up for {stall}.")
    if story.automatic is not None:
        lines.append(_automatic(story.automatic))
    if story.stacks:
        lines.append(f"The journal holds the stacks of {_count(story.stacks, 'worker')}.")
    if story.skipped:
        lines.append(f"Warning: left out from then on, as a fault came back there ({len(story.skipped)}):")
        lines += [f"  {batch}" for batch in story.skipped]
    lines += [f"Note: {note}" for note in story.notes]
    if story.exit is not None:
        lines.append(f"Exit {story.exit.code}: {_sentence(story.exit.why)}")
        if story.exit.code != ExitCode.FINISHED:
            lines.append(f"To do: {_sentence(story.exit.do)}")
    if story.unread:
        lines.append(
            f"{_count(story.unread, 'line')} of the journal could not be read and {_was(story.unread)} left out."
        )
    return [*lines, *story.problems]


def _automatic(automatic: Automatic) -> str:
    found = (("snapshot", automatic.memory_s), ("checkpoint", automatic.durable_s))
    what = ", ".join(f"a {word} every {seconds_text(seconds)}" for word, seconds in found if seconds is not None)
    return f"Automatic: {what}, as a failure is expected every {seconds_text(automatic.mttf_s)}."


def _beginning(attempt: AttemptStory) -> str:
    if attempt.resumed_step is None:
        return "started"
    if attempt.resumed_step == 0:
        return "started from the beginning"
    source = "memory" if attempt.resumed_from == "memory" else f"checkpoint {attempt.resumed_from}"
    return f"resumed from step {attempt.resumed_step} ({source})"


def _place(attempt: AttemptStory | OtherPod) -> str:
    pod = f" {'in pod' if attempt.in_kubernetes else 'on'} {attempt.pod}" if attempt.pod else ""
    return pod + (f" on node {attempt.node}" if attempt.node else "")


def _ending(attempt: AttemptStory, story: Story) -> str:
    if attempt.already_finished and attempt.ended == "finished":
        return "It found every step done already, and trained nothing."
    least = "at least " if attempt.ended in ("cut off", "running") else ""
    reached = f"It reached {least}step {attempt.highest_step} and" if story.steps_known else "It"
    how = {
        "finished": "finished",
        "failed": "failed",
        "without a pod": "was ended, as a pod of the run left or was lost",
        "asked to leave": "left because it was asked to",
        "cut off": "was cut off: its supervisor wrote no exit and was " + attempt.probably,
        "running": "was running when it wrote last",
    }.get(attempt.ended, "ended")
    return f"{reached} {how}."


def _time(story: Story) -> str:
    still_s = sum(attempt.standstill.seconds for attempt in story.attempts if attempt.standstill)
    whole = f"Time: {seconds_text(max(0.0, story.last_s - story.started_s))} from the first entry to the last"
    return f"{whole}; training stood still for {seconds_text(still_s)} of it." if still_s else f"{whole}."


def _saved(story: Story) -> str:
    if not story.checkpoints:
        none = "none was saved" if story.exit is not None else "none is on record"
        known = f"step {story.committed_step} had been saved before" if story.committed_step else none
        return f"Checkpoints: {known}."
    newest = f"; the newest is {story.newest_checkpoint}, of step {story.committed_step}"
    return f"Checkpoints: {story.checkpoints} saved{newest}."


def _sentence(words: str) -> str:
    first = words.split(" ", 1)[0]
    if not set("./:_") & set(first):  # else a file or a type, which has its own letters
        words = words[:1].upper() + words[1:]
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _clock(wall_s: float) -> str:
    try:
        return datetime.fromtimestamp(wall_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
