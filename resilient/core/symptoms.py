# SPDX-License-Identifier: Apache-2.0
"""Symptoms: the evidence of one rank, clipped and sorted by who printed what.

Rules look at this only. It decides which text may speak at all: lines in the
formats of known printers (:mod:`resilient.core.lanes`), and the exception that the
process died of. Whatever else a script prints is free text, and no witness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from resilient.core.crowd import Crowd
from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence
from resilient.core.lanes import Lanes, sort_lines
from resilient.core.traceback_text import (
    LAUNCHERS,
    builtin_bases,
    carries,
    clip,
    innermost,
    parse_lines,
    parse_native,
)

_MESSAGE_CHARS: Final = 8 * 1024
_MAX_LINKS: Final = 16
_SIGABRT: Final = 6
_SIGINT: Final = 2
# They only carry others.
_CARRIERS: Final = frozenset(
    {"CheckpointException", "ExceptionGroup", "BaseExceptionGroup", "ChildFailedError", "ProcessRaisedException"}
)
# They say that something failed, not what: the exception behind them says more.
_WRAPPERS: Final = _CARRIERS | {
    "Exception", "BaseException", "RuntimeError", "XlaRuntimeError", "InternalError", "UnknownError", "AbortedError",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """What the rules may look at."""

    rank: RankEvidence
    evidence: Evidence
    chain: tuple[ErrorLink, ...]
    """The exception and what led to it; empty where none is known."""
    head: tuple[ErrorLink, ...]
    """The exception that says most: the first that is no mere wrapper of another."""
    frame: str | None
    function: str | None
    signal: int | None
    code: int | None
    lanes: Lanes
    crowd: Crowd
    """All ranks together, for what none of them can say alone."""

    @property
    def raised(self) -> bool:
        """Whether an exception is known that is more than a launcher's report of a failed process."""
        return any(link.type.rpartition(".")[2] not in LAUNCHERS for link in self.chain)


def observe(rank: RankEvidence, evidence: Evidence, crowd: Crowd | None = None) -> Symptoms:
    """Sort the evidence of one rank; ``crowd`` is that of the whole evidence, where it is at hand."""
    signal, code = _ending(rank)
    record = rank.error if rank.error and rank.error.chain else None
    lines = clip(rank.stderr_tail)
    if record is None and not evidence.from_log:
        record = _from_stderr(lines, signal, code)
    frame, function = (record.frame, record.function) if record else (None, None)
    if record and function is None and record.traceback:
        frame, function = innermost(record.traceback)
    chain = _clipped(record.chain) if record else ()
    return Symptoms(
        rank=rank,
        evidence=evidence,
        chain=chain,
        head=_head(chain),
        frame=frame,
        function=function,
        signal=signal,
        code=code,
        crowd=crowd or Crowd(evidence),
        lanes=sort_lines(
            tuple(lines),
            kernel=tuple(clip(rank.kernel_log)),
            # NCCL logs to a file where it is told to, and else to stdout, whatever lies behind it.
            nccl=(*clip(rank.nccl_log), *clip(rank.stdout_tail)),
            aborted=signal == _SIGABRT,
            from_log=evidence.from_log,
            told=any(link.type.rpartition(".")[2] not in _WRAPPERS and not carries(link) for link in chain),
        ),
    )


def _ending(rank: RankEvidence) -> tuple[int | None, int | None]:
    """Undo the spellings of a signal: -n by Python and torchelastic, 128+n by shells and containers."""
    code = rank.exit_code
    if rank.signal is not None:
        return rank.signal, None
    if code is not None and -64 <= code < 0:
        return -code, None
    if code is not None and 128 < code <= 128 + 64:
        return code - 128, None
    return None, code


def _head(chain: tuple[ErrorLink, ...]) -> tuple[ErrorLink, ...]:
    own = tuple(link for link in chain if not carries(link)) or chain
    for dull in (_WRAPPERS, _CARRIERS):
        for link in own:
            if link.type.rpartition(".")[2] not in dull:
                return (link,)
    return own[:1]


def _from_stderr(lines: Sequence[str], signal: int | None, code: int | None) -> ErrorRecord | None:
    """Read the traceback off stderr, where the way the process ended fits one."""
    # A C++ destructor may abort a process that is already dying of an exception.
    if code in (None, 0) and signal not in (_SIGABRT, _SIGINT):
        return None
    return parse_lines(lines) or (parse_native(lines) if signal == _SIGABRT else None)


def _clipped(chain: tuple[ErrorLink, ...]) -> tuple[ErrorLink, ...]:
    return tuple(
        replace(link, message=link.message[:_MESSAGE_CHARS], bases=link.bases or builtin_bases(link.type))
        for link in chain[:_MAX_LINKS]
    )
