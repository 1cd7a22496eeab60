# SPDX-License-Identifier: Apache-2.0
"""When silence is a hang: two bounds, and the rules that keep false alarms out.

* Inside a step the bound is ``max(hang_floor, 10 x the longest step of this run)``.
  It runs only while no live rank is outside a step: peers wait inside one for the
  rank that evaluates alone. The first step of each process compiles, tunes and
  connects, so it has the outer bound, and later ones may take twice as long as it.
* Outside a step (set-up, data, evaluation, the user's own saves) stacks are asked
  for at the first bound and nothing is ended before ``idle_timeout``. A phase that
  has been completed before has its own bound, learned like that of a step.
* A worker that never opened a heartbeat is ended for silence only if
  ``hang_timeout`` says so.

Silence is counted in ticks of the supervisor, none longer than the tick was meant
to be by much: a machine that was frozen, with us on it, is not a hang.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from resilient.core.evidence import Place

TIMES_LONGEST: Final = 10.0
TIMES_FIRST: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The settings that matter here, in seconds."""

    hang_floor_s: float = 60.0
    idle_timeout_s: float = 1800.0
    hang_timeout_s: float | None = None
    tick_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a live worker."""

    opened: bool = True
    place: Place = Place.OUTSIDE
    phase: str | None = None
    mark: tuple[int, ...] = ()
    """Anything that changes whenever the worker moves."""
    longest_s: float = 0.0
    """Its longest step but the first."""
    first_s: float = 0.0
    """Its first step; 0 until that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is remembered from tick to tick."""

    silent_s: Mapping[int, float] = field(default_factory=dict)
    readings: Mapping[int, Reading] = field(default_factory=dict)
    longest_s: float = 0.0
    first_s: float = 0.0
    phases_s: Mapping[str, float] = field(default_factory=dict)
    """Longest completed stay in each named phase."""
    warned: frozenset[int] = frozenset()
    """Ranks whose stacks were asked for in the silence that still lasts."""
    alarmed_s: Mapping[int, float] = field(default_factory=dict)
    """How long ranks had been silent when they last gave a fatal alarm in it."""

    def restarted(self) -> Watch:
        """The same run, new processes: what was learned stays."""
        return Watch(longest_s=self.longest_s, first_s=self.first_s, phases_s=self.phases_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A rank was silent beyond a bound."""

    rank: int
    place: Place
    phase: str | None
    silent_s: float
    bound_s: float
    fatal: bool
    """The group is to be ended; else only its stacks are wanted."""


def tick(
    watch: Watch, readings: Mapping[int, Reading], elapsed_s: float, bounds: Bounds, *, outside: bool = False
) -> tuple[Watch, Alarm | None]:
    """The watch after looking at all live workers, and an alarm if silence has gone on too long.

    ``outside``: some worker is outside a step that is not among these, as it is another pod's.
    """
    elapsed_s = min(elapsed_s, 2 * bounds.tick_s)
    outside = outside or _someone_outside(readings)
    silent = {
        rank: _silence(watch, rank, reading, 0.0 if outside and reading.place is Place.STEP else elapsed_s)
        for rank, reading in readings.items()
    }
    watch = replace(
        watch,
        silent_s=silent,
        readings=dict(readings),
        longest_s=max([watch.longest_s, *(r.longest_s for r in readings.values())]),
        first_s=max([watch.first_s, *(r.first_s for r in readings.values())]),
        phases_s=_phases(watch, readings),
        warned=frozenset(rank for rank in watch.warned if silent.get(rank)),
        alarmed_s={rank: told_s for rank, told_s in watch.alarmed_s.items() if silent.get(rank)},
    )
    for alarm in sorted(_alarms(watch, bounds, outside), key=lambda a: (not a.fatal, -a.silent_s, a.rank)):
        if alarm.fatal:
            # Where nobody acts on it, it is raised again when the silence has doubled.
            if alarm.silent_s >= 2 * watch.alarmed_s.get(alarm.rank, 0.0):
                return replace(watch, alarmed_s={**watch.alarmed_s, alarm.rank: alarm.silent_s}), alarm
        elif alarm.rank not in watch.warned:
            return replace(watch, warned=watch.warned | {alarm.rank}), alarm
    return watch, None


def step_bound(watch: Watch, bounds: Bounds) -> float:
    """Seconds that a step may take."""
    return max(bounds.hang_floor_s, TIMES_LONGEST * watch.longest_s, TIMES_FIRST * watch.first_s)


def _someone_outside(readings: Mapping[int, Reading]) -> bool:
    """Then its peers may wait for it inside a step, and their clock stands still."""
    return any(reading.opened and reading.place is not Place.STEP for reading in readings.values())


def _silence(watch: Watch, rank: int, reading: Reading, elapsed_s: float) -> float:
    return watch.silent_s.get(rank, 0.0) + elapsed_s if _still(watch, rank, reading) else 0.0


def _still(watch: Watch, rank: int, reading: Reading) -> bool:
    before = watch.readings.get(rank)
    return before is not None and before.mark == reading.mark and before.opened == reading.opened


def _phases(watch: Watch, readings: Mapping[int, Reading]) -> Mapping[str, float]:
    """Learn from the phases that were just left."""
    learned = dict(watch.phases_s)
    for rank, before in watch.readings.items():
        now = readings.get(rank)
        if before.phase and now is not None and now.phase != before.phase:
            learned[before.phase] = max(learned.get(before.phase, 0.0), watch.silent_s.get(rank, 0.0))
    return learned


def _alarms(watch: Watch, bounds: Bounds, outside: bool) -> list[Alarm]:
    alarms = []
    for rank, reading in watch.readings.items():
        silent = watch.silent_s[rank]
        kill = _kill_bound(watch, reading, outside, bounds)
        warn = step_bound(watch, bounds) if reading.opened and reading.place is not Place.STEP else None
        if kill is not None and silent >= kill:
            bound, fatal = kill, True
        elif warn is not None and silent >= warn:
            bound, fatal = warn, False
        else:
            continue
        alarms.append(
            Alarm(rank=rank, place=reading.place, phase=reading.phase, silent_s=silent, bound_s=bound, fatal=fatal)
        )
    return alarms


def _kill_bound(watch: Watch, reading: Reading, outside: bool, bounds: Bounds) -> float | None:
    if not reading.opened:
        return bounds.hang_timeout_s
    if reading.place is Place.STEP:
        if reading.first_s == 0.0:
            return None if outside else max(bounds.idle_timeout_s, step_bound(watch, bounds))
        return None if outside else step_bound(watch, bounds)
    if reading.phase is not None and reading.phase in watch.phases_s:
        return max(bounds.hang_floor_s, TIMES_LONGEST * watch.phases_s[reading.phase])
    return bounds.idle_timeout_s
