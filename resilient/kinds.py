# SPDX-License-Identifier: Apache-2.0
"""The kinds of values that settings have: how each is read and written back.

``parse`` takes text or what TOML and Python hold, and raises ``ValueError`` ("why; do")
on anything else. ``format`` gives the text that ``parse`` reads back the same.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.batch import MOST_OUT
from resilient.core.cadence import Every
from resilient.core.cloud import Cloud
from resilient.core.on_code_fault import OnCodeFault
from resilient.core.pod_status import PodAccess
from resilient.core.retention import Best, is_metric
from resilient.durations import every_steps, format_duration, format_every, parse_duration, parse_every

_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")
_UNITS: Final[dict[str, int]] = {
    unit: base**power
    for power, (decimal, binary) in enumerate((("", ""), ("k", "Ki"), ("M", "Mi"), ("G", "Gi"), ("T", "Ti")))
    for unit, base in ((decimal, 1000), (binary, 1024))
}
_WHOLE: Final = re.compile(r"[+-]?\d+", re.ASCII)
_DIGITS: Final = 18
_BEST_BY: Final = re.compile(r"([^:]*):(min|max):([^:]*)")
_BYTES_PER_S: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kMGT]i?|Ki|)B/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How values of one kind are read and written."""

    parse: Callable[[object], Any]
    format: Callable[[Any], str]
    placeholder: str
    """What stands for a value in a help text; nothing for a switch, whose flag takes none."""


def _text(value: object) -> str:
    # True is an int to Python, and no count or time to anybody else.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"its type is {type(value).__name__}; give text or a number")
    return str(value).strip()


def _at_most(count: int, most: int) -> int:
    if count > most:
        raise ValueError(f"it is more than {most}; give that or less")
    return count


def _whole(text: str, least: int) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"it is not a whole number; give {least} or more")
    if text.startswith("-") or int(text[:_DIGITS]) < least:
        raise ValueError(f"it is less than {least}; give {least} or more")
    if len(text) > _DIGITS:
        raise ValueError(f"it has more than {_DIGITS} digits; give a smaller number")
    return int(text)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = _text(value).lower()
    if text not in _ON + _OFF:
        raise ValueError("it is neither on nor off; give true or false")
    return text in _ON


def _path(value: object) -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ValueError(f"its type is {type(value).__name__}; give a path as text")
    if not text.strip() or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("it is empty or holds control characters; give a path")
    # A shell leaves the ~ of --journal=~/x alone. In a URL it is the server's.
    return text if "://" in text else os.path.expanduser(text)


def _every(value: object) -> Every:
    if isinstance(value, int) and not isinstance(value, bool):
        return every_steps(value)
    return parse_every(_text(value))


def _bandwidth(value: object) -> int:
    # The unit is told to the letter: MB/s and Mb/s differ by a factor of eight.
    match = _BYTES_PER_S.fullmatch(_text(value).replace("KB", "kB"))
    if match is None or match[2] not in _UNITS:
        raise ValueError("it is not a number of bytes per second, of 9 digits at most; write for example 200MB/s")
    if not 1000 <= (count := round(float(match[1]) * _UNITS[match[2]])) <= 10**15:
        raise ValueError("it is not between 1kB/s and 1000TB/s; choose a limit between them, or none")
    return count


def _format_bandwidth(count: int) -> str:
    unit = max((unit for unit, size in _UNITS.items() if count % size == 0), key=lambda unit: _UNITS[unit])
    return f"{count // _UNITS[unit]}{unit}B/s"


def _best(value: object) -> Best:
    match = _BEST_BY.fullmatch(_text(value))
    if match is None or not is_metric(match[1]):
        raise ValueError("it does not say which metric and whether less is better; write for example val_loss:min:3")
    return Best(metric=match[1], lowest=match[2] == "min", count=_whole(match[3], 1))


def _format_best(best: Best) -> str:
    return f"{best.metric}:{'min' if best.lowest else 'max'}:{best.count}"


def _choice(words: type[enum.Enum]) -> Kind:
    """One of a few words."""

    def parse(value: object) -> enum.Enum:
        text = _text(value)
        if text not in (names := [word.value for word in words]):
            raise ValueError(f"it is none of the words that are known; choose from {', '.join(names)}")
        return words(text)

    return Kind(parse=parse, format=lambda word: str(word.value), placeholder="WORD")


def _or(word: str, kind: Kind) -> Kind:
    """The same kind, where ``word`` means that nothing is set."""
    return Kind(
        parse=lambda value: None if value == word else kind.parse(value),
        format=lambda value: word if value is None else kind.format(value),
        placeholder=kind.placeholder,
    )


EVERY: Final = Kind(parse=_every, format=format_every, placeholder="STEPS|TIME")
AUTO_EVERY: Final = _or("auto", EVERY)
DURATION: Final = Kind(parse=lambda value: parse_duration(_text(value)), format=format_duration, placeholder="TIME")
TIMEOUT: Final = _or("none", DURATION)
BANDWIDTH: Final = _or("none", Kind(parse=_bandwidth, format=_format_bandwidth, placeholder="RATE"))
COUNT: Final = Kind(parse=lambda value: _whole(_text(value), 1), format=str, placeholder="N")
SOME: Final = _or("none", COUNT)
UP_TO: Final = Kind(parse=lambda value: _whole(_text(value), 0), format=str, placeholder="N")
BEST: Final = _or("none", Kind(parse=_best, format=_format_best, placeholder="METRIC:min|max:N"))
RESTARTS: Final = _or("none", UP_TO)
BATCHES: Final = Kind(parse=lambda value: _at_most(UP_TO.parse(value), MOST_OUT), format=str, placeholder="N")
PATH: Final = Kind(parse=_path, format=str, placeholder="PATH")
CODE_FAULT: Final = _choice(OnCodeFault)
NOTICES: Final = _or("none", _choice(Cloud))
POD_API: Final = _or("none", _choice(PodAccess))
SWITCH: Final = Kind(parse=_switch, format=lambda value: str(value).lower(), placeholder="")
