# SPDX-License-Identifier: Apache-2.0
"""What one supervisor lived through, folded from its journal entry by entry.

Times are seconds of the wall clock when the supervisor started plus its monotonic clock,
so that a clock that is set does not make a training stand still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from resilient.checkpoint.untrusted import Json
from resilient.core.adoption import told_adopted, told_kept
from resilient.core.devices import DeviceId
from resilient.report.entries import Entry, items, mapping, number, text, whole

ENDING_MARKS: Final = ("fault", "stopped", "judged", "assembled")
MARKS: Final = (*ENDING_MARKS, "left", "started", "launched", "constructed", "restored", "first step")
"""What is passed on the way from a fault to the next step, in order; "left" and "started" between two supervisors."""
_KEPT: Final = 20
_MOST_SKIPPED: Final = 1000
"""A run that leaves out more is told of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict on an attempt that failed."""

    cause: str
    rule: str
    why: str
    culprit: int | None
    device: str | None
    """What broke, or the culprit's own, in all the words that are known for it."""
    step: int | None
    confidence: str


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One launch of the workers, as it is being learned."""

    number: int
    launch: int
    marks: dict[str, float] = field(default_factory=dict)
    resumed_step: int | None = None
    resumed_from: str = ""
    already_finished: bool = False
    """All steps had been done before: it had nothing to train."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    highest_step: int = 0
    silent_s: float = 0.0
    """For how long a hung worker had stood still before that was called a hang."""
    judgement: Judgement | None = None
    decided: str = ""


@dataclass(slots=True, kw_only=True)
class Life:
    """One supervisor, from its start to its last entry."""

    started_s: float
    offset_s: float
    """From its monotonic clock to the wall clock."""
    start: Mapping[str, Json]
    last_s: float
    submission: str = ""
    run: str = ""
    """The run's id in its checkpoint store; empty where none was opened."""
    alive: bool | None = None
    """Whether its process runs now, where that can be seen from here."""
    attempts: list[Attempt] = field(default_factory=list)
    steps_known: bool = False
    highest_step: int = 0
    committed_step: int = 0
    checkpoints: int = 0
    newest: str = ""
    snapshots: int = 0
    stall_s: float = 0.0
    """Longest time for which a snapshot held the training up."""
    cadence: Entry | None = None
    """What the automatic cadences came to last."""
    save_failures: int = 0
    save_failed_why: str = ""
    asked_by: str = ""
    samples: deque[Entry] = field(default_factory=lambda: deque(maxlen=1))
    first_sample: Entry | None = None
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))
    stacks: int = 0
    skipped: list[str] = field(default_factory=list)
    """Batches that are left out from some launch on."""
    exit: Mapping[str, Json] | None = None

    def add(self, entry: Entry) -> None:
        """Learn from the next entry; what is unknown is passed over."""
        at = self.offset_s + entry.monotonic_s
        self.last_s = max(self.last_s, at)
        learn = _LEARN.get(entry.kind)
        if learn is not None:
            learn(self, entry, at)

    @property
    def pod(self) -> int:
        """Of several pods its number; the first one, which leads, is 0."""
        return whole(self.start, "node_rank") or 0

    @property
    def attempt(self) -> Attempt | None:
        """The newest one."""
        return self.attempts[-1] if self.attempts else None


def read_lives(entries: Iterable[Entry], submission: str = "") -> list[Life]:
    """The supervisors that wrote a journal, one after the other; ``submission``: of those that do not say theirs."""
    lives: list[Life] = []
    for entry in entries:
        if entry.kind == "start" or not lives:
            # A journal whose beginning is lost begins with whatever is left of it.
            start = entry.data if entry.kind == "start" else {}
            offset = entry.wall_s - entry.monotonic_s
            name = text(start, "submission") or submission
            life = Life(started_s=entry.wall_s, offset_s=offset, start=start, last_s=entry.wall_s, submission=name)
            lives.append(life)
        lives[-1].add(entry)
    return lives


def _event(life: Life, entry: Entry, at: float) -> None:
    event = entry.object("event")
    learn = _LEARN_EVENT.get(text(event, "type"))
    if learn is not None:
        learn(life, event, at)
    for command in map(mapping, items(entry.data.get("commands"))):
        obey = _LEARN_COMMAND.get(text(command, "type"))
        if obey is not None:
            obey(life, command, at)


def _advanced(life: Life, event: Mapping[str, Json], at: float) -> None:
    """Events tell of steps that nobody had made, entries of the journal of those that are made again as well."""
    step = whole(event, "step") or 0
    life.highest_step = max(life.highest_step, step)
    if life.attempt is not None:
        life.attempt.highest_step = max(life.attempt.highest_step, step)


def _reached(life: Life, entry: Entry, at: float) -> None:
    _advanced(life, entry.data, at)


def _committed(life: Life, event: Mapping[str, Json], at: float) -> None:
    life.committed_step = max(life.committed_step, whole(event, "step") or 0)
    life.highest_step = max(life.highest_step, life.committed_step)


def _opened(life: Life, event: Mapping[str, Json], at: float) -> None:
    step = whole(event, "committed_step") or 0
    life.committed_step = max(life.committed_step, step)
    life.highest_step = max(life.highest_step, step)


def _worker_ended(life: Life, event: Mapping[str, Json], at: float) -> None:
    if life.attempt is not None and event.get("clean") is not True:
        life.attempt.marks.setdefault("fault", at)


def _collected(life: Life, event: Mapping[str, Json], at: float) -> None:
    """A rank may have come further than all of them together."""
    attempt = life.attempt
    if attempt is None:
        return
    attempt.marks.setdefault("judged", at)
    for rank in map(mapping, items(mapping(event.get("evidence")).get("ranks"))):
        attempt.highest_step = max(attempt.highest_step, whole(rank, "completed") or 0)


def _hang_found(life: Life, event: Mapping[str, Json], at: float) -> None:
    if life.attempt is not None:
        life.attempt.silent_s = max(0.0, number(mapping(event.get("hang")), "silent_s") or 0.0)
        life.attempt.marks.setdefault("fault", at)


def _mark(name: str) -> Callable[[Life, Mapping[str, Json], float], None]:
    def learn(life: Life, event: Mapping[str, Json], at: float) -> None:
        if life.attempt is not None:
            life.attempt.marks.setdefault(name, at)

    return learn


def _leave_asked(life: Life, event: Mapping[str, Json], at: float) -> None:
    life.asked_by = life.asked_by or text(event, "by")


def _leave_explained(life: Life, event: Mapping[str, Json], at: float) -> None:
    if life.asked_by and "(" not in life.asked_by:
        life.asked_by += f" ({text(event, 'why')})"


def _start_workers(life: Life, command: Mapping[str, Json], at: float) -> None:
    launch = whole(command, "launch") or 0
    if life.attempt is None or life.attempt.launch != launch:
        life.attempts.append(Attempt(number=whole(command, "attempt") or 0, launch=launch, marks={"launched": at}))


def _workers(life: Life, entry: Entry, at: float) -> None:
    """The event of this launch may be in a part of the journal that is lost."""
    _start_workers(life, entry.data, at)


def _number_attempt(life: Life, command: Mapping[str, Json], at: float) -> None:
    if life.attempt is not None:
        life.attempt.number = whole(command, "attempt") or life.attempt.number


def _announce(life: Life, command: Mapping[str, Json], at: float) -> None:
    said, verdict = text(command, "text"), mapping(command.get("verdict"))
    if not verdict:
        life.notes.append(said)
        return
    if life.attempt is None:
        return
    why = text(verdict, "why")
    # What was announced is the reason, in brackets what adds to it, and then the deed.
    added, _, deed = said.removeprefix(why).partition("; ") if why and said.startswith(why) else ("", "", said)
    life.attempt.decided = deed
    life.attempt.judgement = Judgement(
        cause=text(verdict, "cause"),
        rule=text(verdict, "rule"),
        why=why + added,
        culprit=whole(verdict, "culprit"),
        device=_device(mapping(verdict.get("device"))),
        step=whole(verdict, "step"),
        confidence=text(verdict, "confidence"),
    )


def _device(said: Mapping[str, Json]) -> str | None:
    return str(DeviceId(uuid=text(said, "uuid"), bus=text(said, "bus"), index=whole(said, "index"))) if said else None


def _exit_command(life: Life, command: Mapping[str, Json], at: float) -> None:
    life.exit = life.exit or command


def _run_opened(life: Life, entry: Entry, at: float) -> None:
    life.run = entry.text("run")


def _already_finished(life: Life, entry: Entry, at: float) -> None:
    if life.attempt is not None:
        life.attempt.already_finished = True


def _hello(life: Life, entry: Entry, at: float) -> None:
    life.steps_known = True
    if life.attempt is not None:
        life.attempt.marks["constructed"] = at  # the last rank's counts


def _restore(life: Life, entry: Entry, at: float) -> None:
    attempt = life.attempt
    if attempt is None:
        return
    attempt.resumed_step, attempt.resumed_from = entry.whole("step"), entry.text("name")
    refused = map(mapping, items(entry.data.get("refused")))
    attempt.refused = [(text(row, "name"), text(row, "why")) for row in refused][:_KEPT]


def _restored(life: Life, entry: Entry, at: float) -> None:
    if life.attempt is not None:
        life.attempt.marks["restored"] = at


def _first_step(life: Life, entry: Entry, at: float) -> None:
    if life.attempt is not None:
        life.attempt.marks.setdefault("first step", at)
    _reached(life, entry, at)


def _snapshot(life: Life, entry: Entry, at: float) -> None:
    life.snapshots += 1
    life.stall_s = max(life.stall_s, entry.number("stall_s") or 0.0)
    _reached(life, entry, at)


def _cadence(life: Life, entry: Entry, at: float) -> None:
    life.cadence = entry


def _checkpoint(life: Life, entry: Entry, at: float) -> None:
    life.checkpoints += 1
    life.newest = entry.text("name")
    _committed(life, entry.data, at)


def _save_failed(life: Life, entry: Entry, at: float) -> None:
    life.save_failures += 1
    life.save_failed_why = entry.text("why")


def _sample(life: Life, entry: Entry, at: float) -> None:
    life.first_sample = life.first_sample or entry
    life.samples.append(entry)


def _stacks(life: Life, entry: Entry, at: float) -> None:
    life.stacks += 1


def _note(life: Life, entry: Entry, at: float) -> None:
    rank = entry.whole("rank")
    note = (f"rank {rank}: " if rank is not None else "") + entry.text("text")
    if note not in life.notes:  # each attempt says it anew
        life.notes.append(note)


def _skipped(life: Life, entry: Entry, at: float) -> None:
    if len(life.skipped) < _MOST_SKIPPED:
        life.skipped.append(entry.text("text"))


def _before(life: Life, entry: Entry, at: float) -> None:
    trace = entry.object("trace")
    pod, node = text(trace, "pod"), text(trace, "node")
    where = (f" in pod {pod}" if pod else "") + (f" on node {node}" if node else "")
    life.notes.append(f"the supervisor before{where} wrote no exit: {entry.text('why')}")


def _denied(life: Life, entry: Entry, at: float) -> None:
    suspect = entry.object("suspect")
    kept_off = f"{text(suspect, 'kind')} {text(suspect, 'name')} was put on the deny list of the run"
    life.notes.append(kept_off if not entry.text("why") else f"{kept_off}, in vain: {entry.text('why')}")


def _adopted(life: Life, entry: Entry, at: float) -> None:
    life.notes.append(told_adopted(entry.whole("attempt"), entry.whole("step"), entry.text("why") or None))


def _kept(life: Life, entry: Entry, at: float) -> None:
    life.notes.append(told_kept(entry.whole("attempt") or 0, entry.whole("step") or 0, entry.text("why") or None))


def _exit(life: Life, entry: Entry, at: float) -> None:
    life.exit = entry.data


_Learn = Callable[[Life, Entry, float], None]
_LearnPart = Callable[[Life, Mapping[str, Json], float], None]

_LEARN: Final[Mapping[str, _Learn]] = {
    "event": _event,
    "opened": _run_opened,
    "already_finished": _already_finished,
    "workers": _workers,
    "hello": _hello,
    "restore": _restore,
    "restored": _restored,
    "first_step": _first_step,
    "reached": _reached,
    "snapshot": _snapshot,
    "cadence": _cadence,
    "checkpoint": _checkpoint,
    "save_failed": _save_failed,
    "sample": _sample,
    "stacks": _stacks,
    "skipped": _skipped,
    "note": _note,
    "before": _before,
    "denied": _denied,
    "adopted": _adopted,
    "kept": _kept,
    "exit": _exit,
}
_LEARN_EVENT: Final[Mapping[str, _LearnPart]] = {
    "Advanced": _advanced,
    "Committed": _committed,
    "Opened": _opened,
    "WorkerEnded": _worker_ended,
    "HangFound": _hang_found,
    "GroupEnded": _mark("stopped"),
    "Collected": _collected,
    "Assembled": _mark("assembled"),
    "PeerAsked": _mark("pod gone"),
    "PeerGone": _mark("pod gone"),
    "LeaveAsked": _leave_asked,
    "LeaveExplained": _leave_explained,
}
_LEARN_COMMAND: Final[Mapping[str, _LearnPart]] = {
    "StartWorkers": _start_workers,
    "NumberAttempt": _number_attempt,
    "Announce": _announce,
    "Exit": _exit_command,
}
