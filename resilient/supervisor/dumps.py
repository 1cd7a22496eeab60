# SPDX-License-Identifier: Apache-2.0
"""Stacks of all workers, asked for at once and collected without waiting for anybody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from resilient.core.evidence import Hang
from resilient.core.hangs import Alarm
from resilient.core.stuck import holding_up
from resilient.supervisor import stacks
from resilient.supervisor.group import Member

WAIT_S: Final = 2.0


class Dumps:
    """One round of dumps, because of one alarm."""

    def __init__(self, alarm: Alarm, members: Iterable[Member], now: float) -> None:
        self.alarm = alarm
        self._until = now + WAIT_S
        self._asked: dict[int, stacks.Dump] = {}
        for member in members:
            folder = member.error_file.parent
            dump = stacks.request(member.process, stacks.stack_path(folder, member.rank))
            if dump is not None:
                self._asked[member.rank] = dump

    def done(self, now: float) -> bool:
        """All have answered, or have had the time to."""
        return now >= self._until or all(dump.complete() for dump in self._asked.values())

    def texts(self) -> Mapping[int, str]:
        """The stacks by rank, empty for a worker that did not answer."""
        return {rank: dump.text() if dump.complete() else "" for rank, dump in self._asked.items()}

    def hang(self) -> Hang:
        """The alarm, naming the rank that holds up its peers where there is one."""
        texts = self.texts()
        frames = {rank: stacks.innermost(text) if text else None for rank, text in texts.items()}
        waiting = [rank for rank, text in texts.items() if stacks.waits_for_peers(text)]
        rank = holding_up(frames, waiting)
        rank = self.alarm.rank if rank is None else rank
        return Hang(
            rank=rank,
            place=self.alarm.place,
            phase=self.alarm.phase,
            silent_s=self.alarm.silent_s,
            bound_s=self.alarm.bound_s,
            where=frames.get(rank),
            waits=rank in waiting,
        )
