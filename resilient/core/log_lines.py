# SPDX-License-Identifier: Apache-2.0
"""What launchers put in front of each line of a log, and how to take it off again.

Pure text. A prefix may name the rank that printed the line; the rest is noise. The
forms are those of torchrun, mpirun, srun, pdsh, Ray, Docker, CRI and kubectl.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from resilient.core.traceback_text import shown

_MOST_PREFIXES: Final = 4
_SHARE: Final = 0.6
_FEWEST: Final = 5

# Each can be told from what a program prints by itself; a group is a rank.
_SURE: Final = re.compile(
    r"\[(?:rank|default) ?(\d{1,6})\]:? ?"  # torch's excepthook; torchrun --tee; resilient run
    r"| {0,5}\d{1,5}: (?=\[rank\d{1,6}\]:)"  # srun --label in front of it, even if only once
    r"|\[\d{1,6},(\d{1,6})\]<std(?:out|err|diag)>: ?"  # mpirun --tag-output
    r"|\[pod/[\w./-]{1,300}\] "  # kubectl logs --prefix
    r"|\d{4}-\d\d-\d\dT[\d:.]{8,20}(?:Z|[+-]\d\d:?\d\d)?:? (?:std(?:out|err) [FP] )?"  # kubectl --timestamps, CRI
    r"|\((?:[\w.-]{1,80},? ){0,2}pid=\d{1,10}(?:, ip=[\d.]{7,15})?\) ?"  # Ray
    r"|\((?:raylet|autoscaler)(?:, ip=[\d.]{7,15})?\) "
    r"|[\w.-]{1,64} {0,20}\| "  # docker compose
    r"|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]{8} \[?[\w./-]{1,80}:\d{1,6}\] ?"  # vLLM
)
# These look like ordinary words: they count only where most lines have them.
_LABEL: Final = re.compile(r" {0,5}(\d{1,5}): ?")  # srun --label
_HOST: Final = re.compile(r"([A-Za-z][\w.-]{0,62}\d[\w.-]{0,62}): ")  # pdsh
_ESCAPED: Final = re.compile(r"Traceback \(most recent call last\):\\n")


def plain_lines(text: str) -> list[tuple[int | None, str]]:
    """Give each line without its prefixes, with the rank that they name."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    weak = next((pattern for pattern in (_LABEL, _HOST) if _is_common(pattern, lines)), None)
    found: list[tuple[int | None, str]] = []
    for line in lines:
        rank, rest = _without_prefix(line, weak)
        rest = shown(rest)
        pieces = _unescaped(rest) if _ESCAPED.search(rest) else [rest]
        found += [(rank, piece) for piece in pieces]
    return found


def _is_common(pattern: re.Pattern[str], lines: Sequence[str]) -> bool:
    """Whether a launcher has put this in front of most lines, the same few words again and again."""
    said = [match[1] for line in lines if line.strip() and (match := pattern.match(line))]
    printed = sum(1 for line in lines if line.strip())
    few = len(Counter(said)) <= max(1, len(said) // 2)
    return len(said) >= _FEWEST and few and len(said) >= _SHARE * printed


def _without_prefix(line: str, weak: re.Pattern[str] | None) -> tuple[int | None, str]:
    rank: int | None = None
    if weak is not None and (match := weak.match(line)):
        rank = int(match[1]) if match[1].isdecimal() else None
        line = line[match.end() :]
    for _ in range(_MOST_PREFIXES):
        match = _SURE.match(line)
        if match is None:
            break
        named = match[1] or match[2]
        rank = int(named) if named else rank
        line = line[match.end() :]
    return rank, line


def _unescaped(line: str) -> list[str]:
    """A traceback that a structured logger has put into one line of JSON."""
    return line.replace("\\n", "\n").replace('\\"', '"').split("\n")
