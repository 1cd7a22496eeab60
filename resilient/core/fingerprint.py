# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: one short readable name for the same fault, wherever and whenever it strikes.

Budgets are kept per fingerprint, so it must not depend on the rank, node, step,
address, process or time that a message happens to mention.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

_MESSAGE_CHARS: Final = 4096
_NAME_CHARS: Final = 120
FROM_OUTSIDE: Final = frozenset({"sigkill", "sigkill-while-loading", "sigterm", "not-started", "loader-killed"})
"""Rules of what the kernel or a person does to a process: neither code nor device does, however often it comes back."""

# In this order: what holds digits as a whole goes before single numbers.
_NORMAL: Final = (
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "#"),
    (re.compile(r"\b0[xX][0-9a-fA-F]{1,32}\b"), "#"),
    # PCI bus and hardware addresses
    (re.compile(r"\b(?:[0-9a-fA-F]{2,4}:){2,7}[0-9a-fA-F]{2,4}"), "#"),
    # the folders of a path or URL; the file's name stays
    (re.compile(r"(?:\b[a-z][a-z0-9+.-]{1,20}:/)?(?:/[^\s/'\"<>:,;()\[\]]{1,255})+/"), ""),
    (re.compile(r"\b[\w-]{0,63}(?:node|worker|host|gpu|ip)-?\d[\w.-]{0,190}", re.IGNORECASE), "#"),
    # digests and request ids
    (re.compile(r"\b(?=[0-9a-f]{0,39}\d)[0-9a-f]{8,64}\b"), "#"),
    (re.compile(r"\d+"), "#"),
    # dates, times, versions, shapes, signs and exponents around a number
    (re.compile(r"[+-]?#(?:e[+-]?#|[#.:,x+-])*", re.IGNORECASE), "#"),
    (re.compile(r"\s+"), " "),
)


def normalise(message: str) -> str:
    """Take everything out of a message that changes from one occurrence to the next."""
    text = message[:_MESSAGE_CHARS]
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    return text.strip()


def fingerprint(rule: str, exception: str | None = None, function: str | None = None, message: str = "") -> str:
    """Name a fault by its rule, exception type and place; by its message where no place is known."""
    name = rule
    if exception:
        name += f":{exception.rpartition('.')[2]}"
    if function:
        return f"{name}@{function}"[:_NAME_CHARS]
    text = normalise(message)
    if not text:
        return name[:_NAME_CHARS]
    return f"{name[:_NAME_CHARS]}#{hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"


def rule_of(fingerprint: str) -> str:
    """The id of the rule in a fingerprint."""
    return re.split("[:@#]", fingerprint, maxsplit=1)[0]
