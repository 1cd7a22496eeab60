# SPDX-License-Identifier: Apache-2.0
"""Durations and cadences are read as people write them, and written so that they read back the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.core.cadence import Every
from resilient.durations import format_duration, format_every, parse_duration, parse_every


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5min", 300),
        ("5m", 300),
        ("1h30m", 5400),
        (" 1 h 30 min ", 5400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("2 days", 172800),
        ("1d1h1m1s1ms", 90061.001),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    """The usual spellings of time are understood."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "5", "-5s", "5 parsecs", "1m1h", "1h1h", "1h30", "x5s", "5s!", "0s", "0.1ms", "1e3s", "9" * 400 + "d",
     "999999999d", "5M", "nan s", "inf"],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Nothing is guessed: no missing unit, no unit twice or in the wrong order, no timer that cannot be set."""
    with pytest.raises(ValueError, match="; "):
        parse_duration(text)


@pytest.mark.parametrize("text", ["99999999999999d", "9" * 400 + "d", "3651d", "0s", "0.0000000001s"])
def test_a_duration_that_no_timer_counts_is_told_the_bounds(text: str) -> None:
    """It is a duration, however absurd: the form is not what is wrong."""
    with pytest.raises(ValueError, match="it is not between 1ms and 3650d"):
        parse_duration(text)


def test_a_bare_number_is_told_its_unit() -> None:
    """The commonest mistake is answered with the text to write."""
    with pytest.raises(ValueError, match="write 90s"):
        parse_duration("90")


@given(st.integers(min_value=1, max_value=3650 * 86_400_000))
def test_a_duration_reads_back_the_same(milliseconds: int) -> None:
    """Writing and reading change no duration."""
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize("every", [Every(steps=1), Every(steps=10**17), Every(seconds=300.0), Every(seconds=0.05)])
def test_a_cadence_reads_back_the_same(every: Every) -> None:
    """A number is steps, anything with a unit is time."""
    assert parse_every(format_every(every)) == every


@pytest.mark.parametrize("text", ["0", "-1", "", "1.5", "often", "100 steps"])
def test_what_is_no_cadence_is_refused(text: str) -> None:
    """A cadence is at least one step, or a time."""
    with pytest.raises(ValueError, match="; "):
        parse_every(text)
