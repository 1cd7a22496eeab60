# SPDX-License-Identifier: Apache-2.0
"""What the ranks of one attempt say together, where none of them can be judged by itself.

Whether nearly all died of the same, whether they waited for the same collective, and
who did not come to it. Nothing here looks at a clock: clocks of nodes differ by more
than what lies between a cause and its victims.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from resilient.core.evidence import UNNAMED, Evidence, RankEvidence
from resilient.core.fingerprint import normalise
from resilient.core.traceback_text import TAIL_CHARS

NEARLY_ALL: Final = 0.9
# Collectives that may be queued. Numbers farther apart are those of two groups that old releases do not name.
_FARTHEST: Final = 64
_MESSAGE_CHARS: Final = 200
_WAITED: Final = re.compile(
    r"\[Rank (\d{1,6})\] Watchdog caught collective operation timeout: "
    r"WorkNCCL\(SeqNum=(\d{1,12}), OpType=(\w{1,40})"
)
_GROUP: Final = re.compile(r"\[(PG [^\]\n]{1,80}?) Rank \d{1,6}\]")
_ENQUEUED: Final = re.compile(
    r"\[(PG [^\]\n]{1,80}?) Rank (\d{1,6})\][^\n]{0,200}?"
    r"last enqueued (?:NCCL )?work: (\d{1,12}), last completed (?:NCCL )?work: (\d{1,12})"
)
_BARRIER: Final = re.compile(r"\bRanks? (\d{1,6}) failed to pass monitoredBarrier")


@dataclass(frozen=True, slots=True)
class Wait:
    """A collective that a rank waited for in vain."""

    group: str
    rank: int
    number: int
    kind: str


class Crowd:
    """All ranks of an attempt, compared with one another when somebody asks."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def alike(self, rank: RankEvidence) -> bool:
        """Whether nearly all ranks, and more than one, ended the same way as this one."""
        own = _ending_of(rank)
        ranks = max(len({each.rank for each in self._evidence.ranks}), self._evidence.world_size or 0)
        same = self._endings[own] if own is not None else 0
        return same > 1 and same >= NEARLY_ALL * ranks

    @cached_property
    def disagreement(self) -> str | None:
        """How ranks of one group differ in what they waited for; ``None`` where they agree, or too few have said."""
        for by_rank in self._waits.values():
            for one, other in pairwise(by_rank[rank] for rank in sorted(by_rank)):
                if one.number == other.number and one.kind != other.kind:
                    return f"rank {one.rank} waited in {one.kind} {one.number}, rank {other.rank} in {other.kind}"
                near = bool(one.group) or abs(one.number - other.number) <= _FARTHEST
                if one.kind == other.kind and one.number != other.number and near:
                    return f"rank {one.rank} waited in {one.kind} {one.number}, rank {other.rank} in {other.number}"
        return None

    @cached_property
    def absent(self) -> tuple[int, str] | None:
        """The one rank that did not come to a collective that the others came to, and how that is known."""
        return self._barred or self._behind or self._unheard

    @cached_property
    def _endings(self) -> Counter[tuple[str, str]]:
        first = {each.rank: each for each in reversed(self._evidence.ranks)}
        return Counter(ending for each in first.values() if (ending := _ending_of(each)) is not None)

    @cached_property
    def _text(self) -> tuple[str, ...]:
        """What each rank printed and raised, once; in a log many workers may stand for one text."""
        tails = dict.fromkeys(each.stderr_tail[-TAIL_CHARS:] for each in self._evidence.ranks)
        raised = dict.fromkeys(link.message for each in self._evidence.ranks if each.error for link in each.error.chain)
        return (*tails, *raised)

    @cached_property
    def _waits(self) -> Mapping[str, Mapping[int, Wait]]:
        """Every wait that a watchdog has told of, each rank's first of each group."""
        groups: defaultdict[str, dict[int, Wait]] = defaultdict(dict)
        for line in self._lines("Watchdog caught"):
            if found := _WAITED.search(line):
                group = _GROUP.search(line)
                named = group[1] if group else ""
                wait = Wait(group=named, rank=int(found[1]), number=int(found[2]), kind=found[3])
                groups[wait.group].setdefault(wait.rank, wait)
        return groups

    @cached_property
    def _barred(self) -> tuple[int, str] | None:
        """Named by torch itself."""
        named = {int(found[1]) for line in self._lines("monitoredBarrier") if (found := _BARRIER.search(line))}
        return (named.pop(), "did not come to the barrier") if len(named) == 1 else None

    @cached_property
    def _behind(self) -> tuple[int, str] | None:
        """It has put fewer collectives into its queue than every other rank of its group."""
        groups: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for line in self._lines("last enqueued"):
            if found := _ENQUEUED.search(line):
                groups[found[1]].setdefault(int(found[2]), int(found[3]))
        for numbers in groups.values():
            ordered = sorted(numbers.items(), key=lambda item: item[1])
            if len(ordered) > 2 and ordered[0][1] < ordered[1][1]:
                (rank, number), (_, others) = ordered[0], ordered[1]
                return rank, f"had come to collective {number} when all others were at {others} or beyond"
        return None

    @cached_property
    def _unheard(self) -> tuple[int, str] | None:
        """All others told of a time-out."""
        told = {rank for by_rank in self._waits.values() for rank in by_rank}
        everybody = {each.rank for each in self._evidence.ranks} | set(range(min(self._evidence.world_size or 0, 4096)))
        silent = everybody - told - {UNNAMED}
        return (silent.pop(), "alone did not report it") if len(silent) == 1 and len(told) > 1 else None

    def _lines(self, word: str) -> list[str]:
        return [line for text in self._text if word in text for line in text.split("\n") if word in line]


def _ending_of(rank: RankEvidence) -> tuple[str, str] | None:
    """What a rank died of, without what differs from rank to rank; ``None`` where it was merely stopped."""
    if rank.error is not None and rank.error.chain:
        said = rank.error.message.strip().partition("\n")[0][:_MESSAGE_CHARS]
        return rank.error.type.rpartition(".")[2], normalise(said)
    if rank.signal is not None and not rank.stopped:
        return "signal", str(rank.signal)
    return None
