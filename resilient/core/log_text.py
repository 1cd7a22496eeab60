# SPDX-License-Identifier: Apache-2.0
"""Reading a log that somebody has kept, as evidence.

In it the streams of all ranks are merged and most of what the supervisor would know
is missing: endings, order, which stream. So each error that stands near the end is
taken for the end of one worker; the classifier then blames one of them as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.collectives import from_watchdog
from resilient.core.evidence import UNNAMED, ErrorRecord, Evidence, RankEvidence
from resilient.core.log_lines import plain_lines
from resilient.core.traceback_text import LAUNCHERS, LINE_CHARS, TAIL_CHARS, Found, carries, find_errors

LOG_CHARS: Final = 1024 * 1024
_MOST_ERRORS: Final = 24
_MOST_RANKS: Final = 512
# A process that goes on to print so many lines has not died of the error before them.
_LIVES_ON_LINES: Final = 60

_RANK_AND_CODE: Final = re.compile(r"^ {0,8}rank {1,8}: (\d{1,6}) .{0,80}$")
_CODE: Final = re.compile(r"^ {0,8}exitcode {1,8}: (-?\d{1,5}) ")
_CLOSED: Final = re.compile(
    r"\bfailed \(exitcode: (-?\d{1,5})\)|exits with return code = (-?\d{1,5})\b"
    r"|process \d{1,6} terminated with (?:exit code (\d{1,5})|signal (SIG[A-Z\d]{2,10}))"
    r"|^mpirun\S{0,8} noticed that process .{0,200} exited on signal (\d{1,2})\b"
)
_BY_TORCH: Final = re.compile(r"^\[?[^\n]{0,200}\[(?:PG[^\]\n]{0,120} )?Rank (\d{1,6})\] ")
SIGNALS: Final[Mapping[str, int]] = {
    "SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8,
    "SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15,
    "SIGXCPU": 24, "SIGSYS": 31,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended, where a log or its keeper says so."""

    code: int | None = None
    signal: int | None = None

    @property
    def known(self) -> bool:
        return self.code is not None or self.signal is not None


def read_log(text: str, ending: Ending | None = None, world_size: int | None = None) -> Evidence:
    """Make evidence of a log; ``ending`` is that of the command that printed it."""
    numbered = plain_lines(text[-LOG_CHARS:])
    endings = dict(_endings([line for _, line in numbered]))
    overall = ending if ending is not None and ending.known else endings.pop(UNNAMED, Ending())
    endings.pop(UNNAMED, None)
    by_rank: dict[int, list[str]] = {}
    first_at: dict[int, int] = {}
    for at, (rank, line) in enumerate(numbered):
        key = _printer(rank, line)
        if key not in by_rank and len(by_rank) >= _MOST_RANKS:
            key = UNNAMED
        by_rank.setdefault(key, []).append(line[:LINE_CHARS])
        first_at.setdefault(key, at)
    ranks: list[RankEvidence] = []
    for rank in sorted(by_rank, key=first_at.__getitem__):
        ranks += _workers(rank, by_rank[rank], endings.pop(rank, overall), len(ranks))
    ranks += [
        RankEvidence(rank=rank, exit_code=own.code, signal=own.signal, order=len(ranks), stopped=_was_stopped(own))
        for rank, own in sorted(endings.items())
    ]
    return Evidence(ranks=tuple(ranks), from_log=True, world_size=world_size)


def _printer(rank: int | None, line: str) -> int:
    """Whose line it is: by its prefix, else by what torch's watchdog calls itself."""
    if rank is not None:
        return rank
    found = _BY_TORCH.match(line)
    return int(found[1]) if found else UNNAMED


def _workers(rank: int, lines: Sequence[str], ending: Ending, order: int) -> Iterator[RankEvidence]:
    """One worker for each error that this rank may have died of; one without an error where there is none."""
    tail = _tail(lines)
    text = "\n".join(tail)
    whole = RankEvidence(
        rank=rank,
        exit_code=ending.code,
        signal=ending.signal,
        order=order,
        stderr_tail=text,
        collectives=from_watchdog(text) if rank != UNNAMED else (),
        stopped=rank != UNNAMED and _was_stopped(ending),
    )
    errors = _errors(find_errors(tail), len(tail))
    if rank != UNNAMED:
        errors = errors[-1:]  # one process dies once
    if not errors:
        yield whole
    for number, (error, outlived) in enumerate(errors):
        yield replace(whole, error=error, outlived=outlived, order=order + number)


def _errors(found: Sequence[Found], end: int) -> list[tuple[ErrorRecord, bool]]:
    """Every error once, with whether a long stretch of ordinary output comes after it."""
    own = [error for error in found if not _of_another(error.record)] or found[-1:]
    kept: dict[tuple[str, str, str | None], tuple[ErrorRecord, bool]] = {}
    outlived = False
    for error in reversed(own[-_MOST_ERRORS:]):
        outlived = outlived or (bool(kept) and end - error.end > _LIVES_ON_LINES)
        record = error.record
        kept.setdefault((record.type, record.message, record.frame), (record, outlived))
        end = error.begin
    return list(reversed(kept.values()))


def _of_another(record: ErrorRecord) -> bool:
    """Whether it only says that another process failed."""
    return record.type.rpartition(".")[2] in LAUNCHERS or all(map(carries, record.chain))


def _tail(lines: Sequence[str]) -> list[str]:
    """The last lines that fit into what is looked at."""
    room, at = TAIL_CHARS, len(lines)
    while at > 0 and room >= len(lines[at - 1]) + 1:
        at -= 1
        room -= len(lines[at]) + 1
    return list(lines[at:])


def _endings(lines: Sequence[str]) -> Iterator[tuple[int, Ending]]:
    """What launchers say of the endings of their processes."""
    rank: int | None = None
    for line in lines:
        if found := _RANK_AND_CODE.match(line):
            rank = int(found[1])
        elif rank is not None and (found := _CODE.match(line)):
            yield rank, _ending(int(found[1]))
            rank = None
        elif found := _CLOSED.search(line):
            code = found[1] or found[2] or found[3] or (f"-{found[5]}" if found[5] else "")
            yield UNNAMED, _ending(int(code)) if code else Ending(signal=SIGNALS.get(found[4] or ""))


def _ending(code: int) -> Ending:
    return Ending(signal=-code) if -64 <= code < 0 else Ending(code=code)


def _was_stopped(ending: Ending) -> bool:
    """A worker that a launcher has ended is nobody's culprit."""
    return ending.signal == SIGNALS["SIGTERM"]
