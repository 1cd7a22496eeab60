# SPDX-License-Identifier: Apache-2.0
"""Reading the error file that torchelastic's ``@record`` leaves behind.

Pure parsing of an untrusted file; anything but the documented form is ``None``.
The form: https://docs.pytorch.org/docs/stable/elastic/errors.html
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Final

from resilient.core.evidence import ErrorLink, ErrorRecord
from resilient.core.traceback_text import TAIL_CHARS, builtin_bases, parse_traceback

_MAX_FILE: Final = 1024 * 1024
_MAX_MESSAGE: Final = 8 * 1024
_TYPED: Final = re.compile(r"([A-Za-z_][\w.]{0,199})(?:: ?([\s\S]*))?")


def from_torchelastic(text: str) -> ErrorRecord | None:
    """Read the text of a ``TORCHELASTIC_ERROR_FILE``."""
    if len(text) > _MAX_FILE:
        return None
    try:
        outer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    inner = outer.get("message") if isinstance(outer, dict) else None
    extra: object = None
    if isinstance(inner, dict):
        extra = inner.get("extraInfo")
        inner = inner.get("message")
    if not isinstance(inner, str) or not (found := _TYPED.match(inner[:_MAX_MESSAGE])):
        return None
    link = ErrorLink(type=found[1], message=(found[2] or "").strip(), bases=builtin_bases(found[1]))
    return _with_callstack(ErrorRecord(chain=(link,)), extra if isinstance(extra, dict) else {})


def _with_callstack(record: ErrorRecord, extra: dict[str, object]) -> ErrorRecord:
    record = replace(record, wall_s=_seconds(extra.get("timestamp")))
    callstack = extra.get("py_callstack")
    if not isinstance(callstack, str):
        return record
    record = replace(record, traceback=callstack[-TAIL_CHARS:])
    parsed = parse_traceback(callstack)
    if parsed is None:
        return record
    # The call stack has the module of the type and the chain, which the message lacks.
    same = parsed.chain[0].type.rpartition(".")[2] == record.type
    chain = parsed.chain if same else record.chain + parsed.chain
    return replace(record, chain=chain, frame=parsed.frame, function=parsed.function)


def _seconds(value: object) -> float | None:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None
