# SPDX-License-Identifier: Apache-2.0
"""What the ranks of one attempt say together, where none of them can be judged by itself.

Whether nearly all died of the same, whether they waited for the same collective, and
who did not come to it. Nothing here looks at a clock: clocks of nodes differ by more
than what lies between a cause and its victims.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from resilient.core.collectives import Suspect, absent
from resilient.core.evidence import UNNAMED, Evidence, RankEvidence
from resilient.core.fingerprint import normalise
from resilient.core.traceback_text import TAIL_CHARS, shown

NEARLY_ALL: Final = 0.9
# Collectives that may be queued. Numbers farther apart are those of two groups that old releases do not name.
_FARTHEST: Final = 64
_MESSAGE_CHARS: Final = 200
_WAITED: Final = re.compile(
    r"\[Rank (\d{1,6})\] Watchdog caught collective operation timeout: "
    r"WorkNCCL\(SeqNum=(\d{1,12}), OpType=(\w{1,40})"
)
_GROUP: Final = re.compile(r"\[(PG [^\]\n]{1,80}?) Rank \d{1,6}\]")
# Waits in vain, in the words of NCCL's watchdog, gloo and the store: the number of the collective where it has one, and
# the time-out in milliseconds.
_IN_VAIN: Final = re.compile(
    r"operation timeout: WorkNCCL\(SeqNum=(\d{1,12}),[^\n]{0,160}\bTimeout\(ms\)=(\d{1,10})\)"
    r"|(?:Timed out waiting|wait timeout after) (\d{1,10})ms"
)
# As many collectives as come before the first step: what is exchanged of parameters, and barriers.
_FIRST: Final = 16
# tqdm's "[29:56<01:08, 1060.83it/s]", and without a total "[29:56, 1060.83it/s]": it stands still where its loop does.
_BAR: Final = re.compile(r"\[(?:(\d{1,3}):)?(\d{1,2}):(\d\d)(?:<[^\],\n]{1,20})?, [^\],\n]{1,30}[\],]")
_ABOUT: Final = (0.8, 1.2)
# On the own machine nobody can have mistaken the address: there it is the other process that is missing. A port of 0
# was never set.
UNREACHED: Final = (
    r"client socket has timed out after \d{1,9} ?m?s while trying to connect to "
    r"(?:\(|(?!\())(?:(?!localhost\b|127\.|\[?::1\b)[^\s,)]|[^,\s]{1,255}, 0\))"
)
_UNREACHED: Final = re.compile(UNREACHED)
# Of a training that was under way, or of workers that are started again because one has failed.
_UNDER_WAY: Final = re.compile(
    r"(?i)\b(?:step|iter|iteration|epoch|batch)s?\b[\s:=\[(#]{1,3}\d|\bloss\b['\"]?[ :=]{1,3}-?\d|\bworker group\b"
)
_BARRIER: Final = re.compile(r"\bRanks? (\d{1,6}) failed to pass monitoredBarrier")


@dataclass(frozen=True, slots=True)
class Wait:
    """A collective that a rank waited for in vain."""

    group: str
    member: int
    """Its rank within the group, by which torch calls it."""
    rank: int
    """Its rank in the run, where that is known from elsewhere."""
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
        groups: defaultdict[str, dict[int, Wait]] = defaultdict(dict)
        for wait in self._waits:
            groups[wait.group].setdefault(wait.member, wait)
        for first in groups.values():
            for one, other in pairwise(first[member] for member in sorted(first)):
                if one.number == other.number and one.kind != other.kind:
                    return f"rank {one.rank} waited in {one.kind} {one.number}, rank {other.rank} in {other.kind}"
                near = bool(one.group) or abs(one.number - other.number) <= _FARTHEST
                if one.kind == other.kind and one.number != other.number and near:
                    return f"rank {one.rank} waited in {one.kind} {one.number}, rank {other.rank} in {other.number}"
        return None

    @cached_property
    def late(self) -> Suspect | None:
        """The one rank that is behind the others in the collectives of a group."""
        ranks = self._evidence.ranks
        # A log may lack ranks: of two that it names, a third may be behind both.
        return absent({each.rank: each.collectives for each in ranks}, least=3 if self._evidence.from_log else 2)

    @cached_property
    def absent(self) -> Suspect | None:
        """The one rank that did not come to a collective that the others came to."""
        return self.late or self._barred or self._unheard

    @cached_property
    def unconnected(self) -> bool:
        """Whether all ranks that are known tried in vain to reach the store, before anything was done."""
        named = {each.rank for each in self._evidence.ranks} - {UNNAMED}
        heard = {rank for rank, text in self._said if _UNREACHED.search(text)}
        return named <= heard and not self._under_way and not any(_BAR.search(text) for _, text in self._said)

    @cached_property
    def preparation(self) -> str | None:
        """The progress bar that ran for about as long as others waited in vain, in one of the first collectives."""
        waits = [found for _, text in self._said for found in _IN_VAIN.finditer(text)]
        if any(int(found[1] or 0) > _FIRST for found in waits) or (self._under_way and not all(f[1] for f in waits)):
            return None
        waited_s = max((int(found[2] or found[3]) / 1000 for found in waits), default=0.0)
        for _, text in self._said if waited_s else ():
            bar = max(_BAR.finditer(text), key=_ran_s, default=None)
            if bar is not None and _ABOUT[0] * waited_s <= _ran_s(bar) <= _ABOUT[1] * waited_s:
                return shown(text[text.rfind("\n", 0, bar.start()) + 1 : bar.end()]).strip()[-_MESSAGE_CHARS:]
        return None

    @cached_property
    def _under_way(self) -> bool:
        """Whether a step was made, as far as anybody says."""
        return any(each.step for each in self._evidence.ranks) or any(_UNDER_WAY.search(text) for _, text in self._said)

    @cached_property
    def _endings(self) -> Counter[tuple[str, str]]:
        first = {each.rank: each for each in reversed(self._evidence.ranks)}
        return Counter(ending for each in first.values() if (ending := _ending_of(each)) is not None)

    @cached_property
    def _said(self) -> tuple[tuple[int, str], ...]:
        """What each rank printed and raised, once; in a log many workers may stand for one text."""
        ranks = self._evidence.ranks
        tails = dict.fromkeys((each.rank, each.stderr_tail[-TAIL_CHARS:]) for each in ranks)
        raised = dict.fromkeys((each.rank, link.message) for each in ranks if each.error for link in each.error.chain)
        return (*tails, *raised)

    @cached_property
    def _waits(self) -> tuple[Wait, ...]:
        """Every wait that a watchdog has told of."""
        waits = []
        for printer, line in self._lines("Watchdog caught"):
            if found := _WAITED.search(line):
                group, member = _GROUP.search(line), int(found[1])
                waits.append(
                    Wait(
                        group=group[1] if group else "",
                        member=member,
                        rank=member if printer == UNNAMED else printer,
                        number=int(found[2]),
                        kind=found[3],
                    )
                )
        return tuple(waits)

    @cached_property
    def _barred(self) -> Suspect | None:
        """Named by torch itself."""
        named = {int(found[1]) for _, line in self._lines("monitoredBarrier") if (found := _BARRIER.search(line))}
        if len(named) != 1:
            return None
        rank = named.pop()
        return Suspect(rank=rank, why=f"rank {rank} did not come to the barrier")

    @cached_property
    def _unheard(self) -> Suspect | None:
        """All others told of a time-out."""
        told = {wait.rank for wait in self._waits}
        everybody = {each.rank for each in self._evidence.ranks} | set(range(min(self._evidence.world_size or 0, 4096)))
        silent = everybody - told - {UNNAMED}
        if len(silent) != 1 or len(told) < 2:
            return None
        rank = silent.pop()
        return Suspect(rank=rank, why=f"rank {rank} alone did not report it")

    def _lines(self, word: str) -> list[tuple[int, str]]:
        """Lines with this word, and which rank printed them."""
        return [(rank, line) for rank, text in self._said if word in text for line in text.split("\n") if word in line]


def _ran_s(bar: re.Match[str]) -> int:
    """For how long a progress bar has run."""
    return 3600 * int(bar[1] or 0) + 60 * int(bar[2]) + int(bar[3])


def _ending_of(rank: RankEvidence) -> tuple[str, str] | None:
    """What a rank died of, without what differs from rank to rank; ``None`` where it was merely stopped."""
    if rank.error is not None and rank.error.chain:
        said = rank.error.message.strip().partition("\n")[0][:_MESSAGE_CHARS]
        return rank.error.type.rpartition(".")[2], normalise(said)
    if rank.signal is not None and not rank.stopped:
        return "signal", str(rank.signal)
    return None
