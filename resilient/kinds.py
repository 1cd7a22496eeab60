# SPDX-License-Identifier: Apache-2.0
"""The kinds of values that settings have: how each is read and written back.

``parse`` takes text or what TOML and Python hold, and raises ``ValueError`` ("why; do")
on anything else. ``format`` gives the text that ``parse`` reads back the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from resilient.core.cadence import Every
from resilient.durations import every_steps, format_duration, format_every, parse_duration, parse_every

_ON: Final = ("1", "true", "yes", "on")
_OFF: Final = ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How values of one kind are read and written."""

    parse: Callable[[object], Any]
    format: Callable[[Any], str]


def _text(value: object) -> str:
    # True is an int to Python, and no count or time to anybody else.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"its type is {type(value).__name__}; give text or a number")
    return str(value).strip()


def _whole(text: str, least: int) -> int:
    if not text.lstrip("+-").isdecimal() or len(text) > 18:
        raise ValueError(f"it is not a whole number; give {least} or more")
    if int(text) < least:
        raise ValueError(f"it is less than {least}; give {least} or more")
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


def _or(word: str, kind: Kind) -> Kind:
    """The same kind, where ``word`` means that nothing is set."""
    return Kind(
        parse=lambda value: None if value == word else kind.parse(value),
        format=lambda value: word if value is None else kind.format(value),
    )


EVERY: Final = Kind(parse=_every, format=format_every)
AUTO_EVERY: Final = _or("auto", EVERY)
DURATION: Final = Kind(parse=lambda value: parse_duration(_text(value)), format=format_duration)
TIMEOUT: Final = _or("none", DURATION)
COUNT: Final = Kind(parse=lambda value: _whole(_text(value), 1), format=str)
RESTARTS: Final = _or("none", Kind(parse=lambda value: _whole(_text(value), 0), format=str))
PATH: Final = Kind(parse=_path, format=str)
SWITCH: Final = Kind(parse=_switch, format=lambda value: str(value).lower())
