# SPDX-License-Identifier: Apache-2.0
"""Symptoms: the evidence of one rank, clipped and sorted by who printed what.

Rules look at this only. It decides which text may speak at all: lines in the
formats of the driver, of NCCL and of torch, and the exception that the process
died of. Whatever else a script prints is free text, and no witness.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from resilient.core.evidence import ErrorLink, ErrorRecord, Evidence, RankEvidence
from resilient.core.traceback_text import builtin_bases, clip, innermost, parse_traceback

_MESSAGE_CHARS: Final = 8 * 1024
_MAX_LINKS: Final = 16
_SIGABRT: Final = 6
_SIGINT: Final = 2

_STAMP: Final = r"(?:<\d{1,3}>)?(?:\[[^\]\n]{1,48}\] ?)?(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S{1,64} )?(?:kernel: ?)?"
_KERNEL: Final = re.compile(rf"^{_STAMP}((?:NVRM: |nvidia-nvswitch\d+: SXid ).*)")
_NCCL: Final = re.compile(r"^(?:\[[^\]\n]{1,40}\] )?\S{1,255}:\d{1,10}:\d{1,10} \[-?\d{1,5}\] .{0,120}?NCCL WARN (.*)")
_TORCH: Final = re.compile(r"^(?:\[rank\d{1,6}\]: ?)?\[[EWF](?:\d| )[^\]\n]{0,100}\.[ch]pp:\d{1,6}\] (.*)")
_WHAT: Final = re.compile(r"^ {2}what\(\): {1,2}(.*)")
_TERMINATE: Final = "terminate called after throwing an instance of"

# They say that something failed, not what: the exception behind them says more.
_WRAPPERS: Final = frozenset(
    {
        "CheckpointException",
        "ExceptionGroup",
        "BaseExceptionGroup",
        "ChildFailedError",
        "ProcessRaisedException",
        "Exception",
        "BaseException",
        "RuntimeError",
    }
)


class Lane(enum.Enum):
    """A printer whose lines can be told from free text."""

    KERNEL = "kernel"
    """The driver's lines of the kernel log."""
    NCCL = "nccl"
    TORCH = "torch"
    """torch's C++ log lines, and what an uncaught C++ exception said."""
    STDERR = "stderr"
    """All of it, for forms that need the exit code or signal as a second witness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """What the rules may look at."""

    rank: RankEvidence
    evidence: Evidence
    chain: tuple[ErrorLink, ...]
    """The exception and what led to it; empty where none is known."""
    frame: str | None
    function: str | None
    signal: int | None
    code: int | None
    lanes: Mapping[Lane, str]

    @property
    def head(self) -> tuple[ErrorLink, ...]:
        """The exception that says most: the first that is no mere wrapper of another."""
        for link in self.chain:
            if link.type.rpartition(".")[2] not in _WRAPPERS:
                return (link,)
        return self.chain[:1]


def observe(rank: RankEvidence, evidence: Evidence) -> Symptoms:
    """Sort the evidence of one rank."""
    signal, code = _ending(rank)
    lines = clip(rank.stderr_tail)
    record = rank.error if rank.error and rank.error.chain else _from_stderr(rank.stderr_tail, signal, code)
    frame, function = (record.frame, record.function) if record else (None, None)
    if record and function is None and record.traceback:
        frame, function = innermost(record.traceback)
    return Symptoms(
        rank=rank,
        evidence=evidence,
        chain=_clipped(record.chain) if record else (),
        frame=frame,
        function=function,
        signal=signal,
        code=code,
        lanes=_lanes(lines, rank, aborted=signal == _SIGABRT),
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


def _from_stderr(tail: str, signal: int | None, code: int | None) -> ErrorRecord | None:
    """Read the traceback off stderr, where the way the process ended fits one."""
    # A C++ destructor may abort a process that is already dying of an exception.
    if code in (None, 0) and signal not in (_SIGABRT, _SIGINT):
        return None
    return parse_traceback(tail)


def _clipped(chain: tuple[ErrorLink, ...]) -> tuple[ErrorLink, ...]:
    return tuple(
        replace(link, message=link.message[:_MESSAGE_CHARS], bases=link.bases or builtin_bases(link.type))
        for link in chain[:_MAX_LINKS]
    )


def _lanes(lines: list[str], rank: RankEvidence, *, aborted: bool) -> Mapping[Lane, str]:
    kernel = [found[1] for line in lines + clip(rank.kernel_log) if (found := _KERNEL.match(line))]
    # NCCL logs to a file where it is told to, and else to stdout, whatever lies behind it.
    nccl_lines = lines + clip(rank.nccl_log) + clip(rank.stdout_tail)
    nccl = [found[1] for line in nccl_lines if (found := _NCCL.match(line))]
    torch = [found[1] for line in lines if (found := _TORCH.match(line))]
    if aborted:
        # Only std::terminate prints this pair, and only a process that then aborts.
        pairs = pairwise(lines)
        torch += [found[1] for first, line in pairs if _TERMINATE in first and (found := _WHAT.match(line))]
    return {
        Lane.KERNEL: "\n".join(kernel),
        Lane.NCCL: "\n".join(nccl),
        Lane.TORCH: "\n".join(torch),
        Lane.STDERR: "\n".join(lines),
    }
