# SPDX-License-Identifier: Apache-2.0
"""The termination message: the last word of a container, shown by ``kubectl describe pod``.

One JSON line of at most 1 KiB that begins with ``"why"`` and ``"do"``. The kubelet keeps
4096 bytes of all containers of a pod together, so a longer one could be cut in its middle.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from resilient.core.exit_codes import OBSERVED_FAILURE, ExitCode

LIMIT: Final = 1024
"""Bytes, with the line's end."""
DEFAULT_PATH: Final = "/dev/termination-log"
_FIELD_LIMIT: Final = 64
"""Bytes for what names something: an id, a pod, a rule."""
_HIGHEST: Final = (1 << 53) - 1
"""What every reader of JSON can hold."""
_CUT_MARK: Final = "..."


def message(
    code: int | None,
    why: str,
    do: str,
    *,
    run: str | None,
    submission: str | None,
    attempt: int,
    step: int | None,
    rank: int | None,
    rule: str | None,
    node: str | None,
    device: str | None = None,
    journal: str | None,
) -> bytes:
    """The line, whatever comes in; what is unknown is left out, and the code where nothing ends."""
    fields: dict[str, Any] = {"why": "", "do": ""}
    if code is not None:
        fields |= {"code": code, "name": exit_name(code)}
    named = {"run": run, "submission": submission, "rule": rule, "node": node, "device": device, "journal": journal}
    numbered = {"attempt": attempt, "step": step, "rank": rank}
    fields |= {name: min(number, _HIGHEST) for name, number in numbered.items() if number is not None}
    fields |= {name: _shortened(text, _FIELD_LIMIT) for name, text in named.items() if text}
    _make_fit(fields, why, do)
    return _line(fields)


def exit_name(code: int) -> str:
    """The contract's word for a code, for programs: ``code_fault``."""
    if code == OBSERVED_FAILURE:
        return "observed_failure"
    try:
        return ExitCode(code).name.lower()
    except ValueError:
        return "unknown"


def write(path: str | os.PathLike[str], data: bytes) -> str | None:
    """Write the message to a file; what went wrong, if anything did.

    The kubelet puts an empty file at ``/dev/termination-log``. It is written in place, not
    replaced: it is a mount of its own.
    """
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    # Below /dev nothing is made: where there is no kubelet nobody asked for the file.
    made = 0 if os.fspath(path).startswith("/dev/") else os.O_CREAT
    try:
        fd = os.open(path, flags | made, 0o644)
        try:
            written = os.write(fd, data)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        return f"cannot write the termination message to {os.fspath(path)}: {error}"
    if written < len(data):
        return f"cannot write the termination message to {os.fspath(path)}: no space"
    return None


def _make_fit(fields: dict[str, Any], why: str, do: str) -> None:
    """Shorten the two sentences, ``why`` the less; an escaped character takes up to 12 bytes."""
    room = LIMIT - len(_line(fields))
    do_room = max(room // 3, room - _size(why))
    fields["do"] = _fitting(do, do_room)
    fields["why"] = _fitting(why, room - _size(fields["do"]))


def _fitting(text: str, room: int) -> str:
    """The longest beginning of ``text`` that takes at most ``room`` bytes."""
    if _size(text) <= room:
        return text
    low, high = 0, min(len(text), room)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(text[:middle] + _CUT_MARK) <= room else (low, middle - 1)
    return text[:low] + _CUT_MARK


def _shortened(text: str, limit: int) -> str:
    """At most ``limit`` bytes; the end of a path says more than its beginning, and that of an id no less."""
    while _size(text) > limit:
        text = text[max(1, (_size(text) - limit) // 12) :]
    return text


def _size(text: str) -> int:
    return len(json.dumps(text)) - 2


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
