# SPDX-License-Identifier: Apache-2.0
"""Watches the workers' rows of the board: how far they are, and whether they stand still too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from resilient.core import hangs
from resilient.core.evidence import Hang
from resilient.core.hangs import Bounds
from resilient.link.board import Board
from resilient.supervisor import watching
from resilient.supervisor.dumps import Dumps
from resilient.supervisor.group import Member


class Sentry:
    """Looks once a tick; asks for stacks before it raises an alarm."""

    def __init__(
        self,
        board: Board,
        *,
        journal: Callable[[str, Mapping[str, object]], None],
        say: Callable[[str], None],
        found: Callable[[Hang], None],
        first: int = 0,
    ) -> None:
        """``first`` is the rank in the run of the first worker here, for what people are told."""
        self._board = board
        self._journal = journal
        self._say = say
        self._found = found
        self._first = first
        self._watch = hangs.Watch()
        self._dumps: Dumps | None = None
        self._looked_at: float | None = None

    def restarted(self) -> None:
        """New workers: what was learned of the run stays."""
        self._watch, self._dumps, self._looked_at = self._watch.restarted(), None, None

    def look(
        self,
        live: Sequence[Member],
        phases: Mapping[int, Mapping[int, str]],
        bounds: Bounds,
        now: float,
        *,
        outside: bool = False,
    ) -> None:
        """Read all rows; a silence beyond its bound has all stacks taken, then is told.

        ``outside``: so is a worker of another pod, which those of this one may wait for.
        """
        readings = {
            member.rank: watching.reading(self._board.pulse(member.rank), phases.get(member.rank, {}))
            for member in live
        }
        elapsed_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        self._watch, alarm = hangs.tick(self._watch, readings, elapsed_s, bounds, outside=outside)
        if alarm is not None and self._dumps is None:
            self._dumps = Dumps(alarm, live, now)
        if self._dumps is not None and self._dumps.done(now):
            self._judge(self._dumps)

    def _judge(self, dumps: Dumps) -> None:
        self._dumps = None
        for rank, text in dumps.texts().items():
            self._journal("stacks", {"rank": rank, "text": text})
        hang = dumps.hang()
        if dumps.alarm.fatal:
            self._found(hang)
        else:
            rank, where = self._first + hang.rank, hang.where or "unknown"
            self._say(f"rank {rank} has stood still for {hang.silent_s:.0f} s, at {where}")
