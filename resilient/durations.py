# SPDX-License-Identifier: Apache-2.0
"""How people write time and cadence, and how both are written back.

A duration always has a unit (``30s``, ``5min``, ``1h30m``): a bare number would mean
steps in one setting and seconds in the next. A cadence is a number of steps or a duration.
"""

from __future__ import annotations

import re
from typing import Final

from resilient.core.cadence import Every

_UNITS: Final = (
    (86_400_000, ("d", "day", "days")),
    (3_600_000, ("h", "hr", "hrs", "hour", "hours")),
    (60_000, ("m", "min", "mins", "minute", "minutes")),
    (1000, ("s", "sec", "secs", "second", "seconds")),
    (1, ("ms",)),
)
_MS: Final = {word: size for size, words in _UNITS for word in words}
_LONGEST_MS: Final = 3650 * 86_400_000  # what every timer of the system can count to
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_NEGATIVE: Final = re.compile(r"-[\d.]+\s*[a-z]+", re.ASCII)
_NOT_BETWEEN: Final = "it is not between 1ms and 3650d; choose a time between them"
_MOST_STEPS: Final = 10**18
_EXAMPLES: Final = "30s, 5min or 1h30m"


def parse_duration(text: str) -> float:
    """Seconds, to the millisecond; ``ValueError`` says what is wrong and what to write."""
    if _NEGATIVE.fullmatch(text.strip()):
        raise ValueError(_NOT_BETWEEN)
    total, last, at = 0.0, float("inf"), 0
    for part in _PART.finditer(text.strip()):
        size = _MS.get(part[2])
        if part.start() != at or size is None or size >= last:
            break
        total, last, at = total + float(part[1]) * size, size, part.end()
    if at == 0 or at != len(text.strip()):
        unit = f"it has no unit; write {text.strip()}s for seconds" if text.strip().isdecimal() else None
        raise ValueError(unit or f"it is not a duration; write for example {_EXAMPLES}")
    total = min(total, 2.0 * _LONGEST_MS)  # so many digits may be more than a float can be
    if not 1 <= round(total) <= _LONGEST_MS:
        raise ValueError(_NOT_BETWEEN)
    return round(total) / 1000


def format_duration(seconds: float) -> str:
    """The shortest way to write it that ``parse_duration`` reads back the same."""
    rest, parts = round(seconds * 1000), []
    for size, words in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{'min' if words[0] == 'm' else words[0]}")
    return "".join(parts) or "0s"


def parse_every(text: str) -> Every:
    """A number of steps, or a duration."""
    if re.fullmatch(r"[+-]?\d{1,1000}", text.strip(), re.ASCII):
        return every_steps(int(text))
    try:
        return Every(seconds=parse_duration(text))
    except ValueError as error:
        if str(error) == _NOT_BETWEEN:
            raise
        raise ValueError(
            f"it is neither a number of steps nor a duration; write for example 100 for steps, {_EXAMPLES} for time"
        ) from error


def every_steps(steps: int) -> Every:
    """A cadence of so many steps."""
    if steps < 1:
        raise ValueError("it is less than one step; give 1 or more")
    if steps >= _MOST_STEPS:
        raise ValueError("it has more than 18 digits, and no training so many steps; give fewer, or a duration")
    return Every(steps=steps)


def format_every(every: Every) -> str:
    """The text that ``parse_every`` reads back the same."""
    return str(every.steps) if every.steps is not None else format_duration(every.seconds or 0.0)
