# SPDX-License-Identifier: Apache-2.0
"""When silence is a hang, on a clock of the test's own: false alarms are tested as hard as misses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.classify import classify
from resilient.core.evidence import Evidence, Hang, Place, RankEvidence
from resilient.core.hangs import Alarm, Bounds, Reading, Watch, step_bound, tick

TICK_S = 0.5
BOUNDS = Bounds(hang_floor_s=60.0, idle_timeout_s=1800.0, tick_s=TICK_S)
STEP = Reading(place=Place.STEP, longest_s=1.0, first_s=2.0, mark=(1,))
OUTSIDE = replace(STEP, place=Place.OUTSIDE)
UNOPENED = Reading(opened=False, place=Place.UNKNOWN)
HOUR_S = 3600.0


def evaluating(mark: int = 1) -> Reading:
    return replace(OUTSIDE, phase="eval", mark=(mark,))


@dataclass
class Clock:
    """Looks at workers tick by tick."""

    bounds: Bounds = BOUNDS
    watch: Watch = field(default_factory=Watch)

    def look(self, readings: Mapping[int, Reading], elapsed_s: float = TICK_S) -> Alarm | None:
        self.watch, alarm = tick(self.watch, readings, elapsed_s, self.bounds)
        return alarm

    def stay(self, readings: Mapping[int, Reading], seconds: float) -> list[tuple[float, Alarm]]:
        """Nothing moves for so long; the alarms, with the time they took, up to the first fatal one."""
        alarms: list[tuple[float, Alarm]] = []
        self.look(readings)
        for number in range(1, int(seconds / TICK_S) + 1):
            alarm = self.look(readings)
            if alarm is not None:
                alarms.append((number * TICK_S, alarm))
                if alarm.fatal:
                    break
        return alarms

    def fatal(self, readings: Mapping[int, Reading], seconds: float) -> tuple[float, Alarm] | None:
        """The alarm that ends the group, and when."""
        return next(((at, alarm) for at, alarm in self.stay(readings, seconds) if alarm.fatal), None)


# Misses.


def test_a_rank_that_stands_in_a_step_is_a_hang_at_the_floor() -> None:
    """However short the steps were."""
    found = Clock().fatal({0: STEP, 1: replace(STEP, mark=(2,))}, 100)
    assert found is not None
    assert (found[0], found[1].place, found[1].bound_s) == (60.0, Place.STEP, 60.0)


def test_an_alarm_that_nobody_acts_on_comes_again_as_the_silence_doubles() -> None:
    """Under --observe the group goes on: it is told a few times, not at every look; and at once the next time."""
    clock, at = Clock(), []
    clock.look({0: STEP})
    for number in range(1, int(500 / TICK_S) + 1):
        if clock.look({0: STEP}) is not None:
            at.append(number * TICK_S)
    assert at == [60.0, 120.0, 240.0, 480.0]
    found = clock.fatal({0: replace(STEP, mark=(2,))}, 100)
    assert found is not None
    assert found[0] == 60.0


def test_the_one_that_has_been_silent_longest_is_meant() -> None:
    """Its peers came to stand later, because of it."""
    clock = Clock()
    clock.stay({0: STEP, 1: STEP}, 10)
    found = clock.fatal({0: replace(STEP, mark=(2,)), 1: STEP}, 100)
    assert found is not None
    assert found[1].rank == 1
    assert found[1].silent_s >= 60


def test_outside_a_step_stacks_come_first_and_the_end_at_the_idle_timeout() -> None:
    """Once each, and in that order."""
    alarms = Clock().stay({0: OUTSIDE}, HOUR_S)
    assert [(at, alarm.fatal) for at, alarm in alarms] == [(60.0, False), (1800.0, True)]


def test_after_the_loop_the_idle_timeout_holds() -> None:
    """What follows the loop is not a step."""
    found = Clock().fatal({0: replace(STEP, place=Place.FINISHED)}, HOUR_S)
    assert found is not None
    assert found[0] == 1800.0


def test_a_rank_that_evaluates_alone_for_ever_is_a_hang_in_the_end() -> None:
    """It is the one outside that is named, not its peers that wait inside a step."""
    found = Clock().fatal({0: STEP, 1: OUTSIDE}, HOUR_S)
    assert found is not None
    assert (found[0], found[1].rank) == (1800.0, 1)


def test_the_first_step_that_never_ends_is_a_hang() -> None:
    """It may compile, but not for ever."""
    found = Clock().fatal({0: replace(STEP, first_s=0.0, longest_s=0.0)}, HOUR_S)
    assert found is not None
    assert found[0] == 1800.0


@pytest.mark.parametrize(("asked_s", "at_s"), [(None, None), (30.0, 30.0)])
def test_a_script_without_a_heartbeat_is_ended_only_if_asked(asked_s: float | None, at_s: float | None) -> None:
    """Its silence means nothing."""
    found = Clock(replace(BOUNDS, hang_timeout_s=asked_s)).fatal({0: UNOPENED}, HOUR_S)
    assert (found[0] if found else None) == at_s


def test_a_worker_without_a_heartbeat_excuses_nobody() -> None:
    """A peer that still imports is not outside a step: it never opened its heartbeat."""
    found = Clock().fatal({0: STEP, 1: UNOPENED}, 100)
    assert found is not None
    assert found[1].rank == 0


def test_a_phase_that_was_completed_before_has_its_own_bound() -> None:
    """Ten times as long as the longest stay in it, not below the floor."""
    clock = Clock()
    clock.stay({0: evaluating()}, 30)
    clock.look({0: STEP})
    found = clock.fatal({0: evaluating(2)}, HOUR_S)
    assert found is not None
    assert found[1].phase == "eval"
    assert 300 <= found[0] <= 310


def test_a_short_phase_is_given_the_floor() -> None:
    """A phase of a second may take a minute some day."""
    clock = Clock()
    clock.stay({0: evaluating()}, 1)
    clock.look({0: STEP})
    found = clock.fatal({0: evaluating(2)}, HOUR_S)
    assert found is not None
    assert found[0] == 60.0


# False alarms.


def test_a_first_evaluation_of_a_hundred_steps_is_left_alone() -> None:
    """Steps of ten seconds, an evaluation of a thousand: stacks are told, nobody is ended."""
    long = replace(OUTSIDE, longest_s=10.0, first_s=20.0)
    alarms = Clock().stay({0: long, 1: long}, 1000)
    assert [alarm.fatal for _, alarm in alarms] == [False, False]
    assert {alarm.rank for _, alarm in alarms} == {0, 1}


@pytest.mark.parametrize("longest_s", [10.0, 100.0])
def test_a_late_slow_step_below_ten_times_the_longest_is_left_alone(longest_s: float) -> None:
    """The bound grows with the steps of this run."""
    slow = replace(STEP, longest_s=longest_s)
    assert Clock().stay({0: slow, 1: slow}, 9.9 * longest_s) == []
    found = Clock().fatal({0: slow, 1: slow}, 11 * longest_s)
    assert found is not None
    assert found[0] == 10 * longest_s


def test_one_slow_rank_raises_the_bound_of_all() -> None:
    """A peer waits for it as long as it takes."""
    assert Clock().stay({0: STEP, 1: replace(STEP, longest_s=100.0)}, 990) == []


def test_a_rank_that_evaluates_alone_keeps_its_peers_alive() -> None:
    """They wait for it in a collective, inside a step."""
    assert Clock().fatal({0: evaluating(), 1: STEP, 2: STEP}, 1700) is None


def test_peers_get_a_bound_of_their_own_once_nobody_is_outside() -> None:
    """The wait for an evaluation is not held against them the moment it ends."""
    clock = Clock()
    clock.stay({0: evaluating(), 1: STEP}, 600)
    now_together = {0: replace(STEP, mark=(9,)), 1: STEP}
    found = clock.fatal(now_together, 100)
    assert found is not None
    assert found[0] >= 59


def test_a_first_step_may_compile() -> None:
    """It has the outer bound, and later ones may take twice as long as it."""
    first = replace(STEP, first_s=0.0, longest_s=0.0)
    assert Clock().stay({0: first, 1: first}, 1700) == []
    recompiles = replace(STEP, first_s=600.0)
    assert Clock().stay({0: recompiles}, 1190) == []


def test_a_first_step_is_excused_by_a_rank_outside() -> None:
    """A rank that is still loading its data, before its first step, is waited for."""
    assert Clock().fatal({0: replace(STEP, first_s=0.0), 1: replace(OUTSIDE, phase="load")}, 1700) is None


def test_a_rank_that_is_gone_holds_nobody() -> None:
    """Only live workers are read, so one that ended while outside does not keep the clock from running."""
    clock = Clock()
    clock.stay({0: STEP, 1: OUTSIDE}, 10)
    assert clock.fatal({0: STEP}, 100) is not None


@pytest.mark.parametrize("lost_s", [30.0, HOUR_S, 10 * 86400.0])
def test_a_machine_that_was_frozen_blames_nobody(lost_s: float) -> None:
    """We were stopped, or the machine slept: what was not seen is not silence."""
    clock = Clock()
    for _ in range(20):
        assert clock.look({0: STEP, 1: STEP}, lost_s) is None
    assert clock.watch.silent_s[0] <= 20 * 2 * TICK_S


def test_a_frozen_store_is_nobodys_silence() -> None:
    """Steps go on while nothing can be saved; only the mark counts."""
    clock = Clock()
    assert [clock.look({0: replace(STEP, mark=(number,))}) for number in range(1000)] == [None] * 1000


def test_any_movement_ends_the_silence_and_the_warning() -> None:
    """A worker that moves again has its stacks told the next time as well."""
    clock = Clock()
    assert [alarm.fatal for _, alarm in clock.stay({0: OUTSIDE}, 70)] == [False]
    assert clock.look({0: replace(OUTSIDE, mark=(2,))}) is None
    again = clock.stay({0: replace(OUTSIDE, mark=(3,))}, 70)
    assert [(at, alarm.fatal) for at, alarm in again] == [(60.0, False)]


def test_what_was_learned_outlives_a_restart() -> None:
    """The same run in new processes: their first readings have no longest step yet."""
    clock = Clock()
    clock.look({0: replace(STEP, longest_s=20.0, first_s=90.0)})
    clock.stay({0: evaluating()}, 30)
    clock.look({0: STEP})
    clock.watch = clock.watch.restarted()
    assert clock.watch.silent_s == {}
    assert clock.stay({0: replace(STEP, longest_s=0.0, first_s=1.0)}, 199) == []
    found = clock.fatal({0: evaluating(7)}, HOUR_S)
    assert found is not None
    assert found[0] < 310


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from(list(Place))), max_size=60),
    st.floats(0.0, 100.0),
)
def test_no_alarm_comes_before_its_bound(moves: list[tuple[int, int, Place]], elapsed_s: float) -> None:
    """Whatever the workers do: a fatal alarm names a live rank that was silent for at least its bound."""
    clock = Clock()
    readings = dict.fromkeys(range(3), STEP)
    for rank, mark, place in moves:
        readings[rank] = replace(STEP, place=place, mark=(mark,), opened=place is not Place.UNKNOWN)
        alarm = clock.look(readings, elapsed_s)
        assert step_bound(clock.watch, BOUNDS) >= BOUNDS.hang_floor_s
        if alarm is not None:
            assert alarm.rank in readings
            assert alarm.silent_s >= alarm.bound_s >= BOUNDS.hang_floor_s


@pytest.mark.parametrize(
    ("place", "completed", "words"),
    [
        (Place.STEP, 10, "in step 11 for 75 s"),
        (Place.OUTSIDE, 10, "after step 10, outside of a step, for 75 s"),
        (Place.OUTSIDE, 11, "after step 11, outside of a step, for 75 s"),
        (Place.OUTSIDE, 0, "before the first step, outside of a step, for 75 s"),
        (Place.UNKNOWN, None, "rank 0 stood still, outside of a step, for 75 s"),
    ],
)
def test_a_hang_outside_of_a_step_is_put_into_none(place: Place, completed: int | None, words: str) -> None:
    """The step that comes next is entered before its batch is there."""
    rank = RankEvidence(rank=0, signal=9, stopped=True, place=place, step=11, completed=completed)
    hang = Hang(rank=0, place=place, phase=None, silent_s=75, bound_s=60)
    assert words in classify(Evidence(ranks=(rank,), hang=hang)).why
