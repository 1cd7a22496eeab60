# SPDX-License-Identifier: Apache-2.0
"""The exits that are on record in the store, told of supervisors whose own last words did not reach it.

An exit goes on record before it is taken, and the journal's last piece after that: where the store was away in between,
or the grace period was over, only the record says that the end was an orderly one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import Debit
from resilient.errors import CheckpointError
from resilient.report.entries import one_line, whole
from resilient.report.lives import Life
from resilient.supervisor.ending import meaning

_WHY_CHARS: Final = 1000


def end_by_records(lives: Sequence[Life], store: Store, problems: list[str]) -> None:
    """Give each life without an exit the one that is on record for it, if one is."""
    open_ended = [life for life in lives if life.exit is None and life.submission and life.alive is not True]
    records: dict[tuple[str, int], list[Debit]] = {}
    for life in open_ended:
        whose = (life.submission, _index(life))
        if whose not in records:
            records[whose] = list(_records(store, *whose, problems))
        until_s = min((other.started_s for other in lives if _follows(other, life)), default=math.inf)
        mine = [debit for debit in records[whose] if life.started_s <= debit.wall_s < until_s]
        if mine:
            _end(life, max(mine, key=lambda debit: debit.wall_s))


def _follows(other: Life, life: Life) -> bool:
    whose = (life.submission, _index(life))
    return (other.submission, _index(other)) == whose and other.started_s > life.started_s


def _index(life: Life) -> int:
    return whole(life.start, "index") or 0


def _records(store: Store, submission: str, index: int, problems: list[str]) -> Iterator[Debit]:
    """What cannot be read says nothing, and is told."""
    try:
        names = [entry.name for entry in store.list(layout.debits_path(submission, index))]
    except CheckpointError as error:
        problems.append(str(error))
        return
    for name in names:
        try:
            yield layout.decode(store.read(name, layout.RECORD_LIMIT), Debit, name)
        except CheckpointError as error:
            problems.append(str(error))


def _end(life: Life, debit: Debit) -> None:
    why = f"{one_line(debit.why, _WHY_CHARS)} (from the exit on record; the end of its journal did not arrive)"
    life.exit = {"code": debit.code, "why": why, "do": meaning(debit.code).do}
    life.last_s = max(life.last_s, debit.wall_s)
    life.highest_step = max(life.highest_step, debit.step)
    if life.attempt is not None:
        life.attempt.highest_step = max(life.attempt.highest_step, debit.step)
