# SPDX-License-Identifier: Apache-2.0
"""Which of the hangs of several pods counts: not that of a rank that waits for another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resilient.core import events as ev
from resilient.core.evidence import Evidence, Hang, Place
from resilient.core.testimony import together
from resilient.supervisor.blaming import Hangs


def hang(rank: int, *, waits: bool) -> Hang:
    return Hang(rank=rank, place=Place.STEP, phase=None, silent_s=60.0, bound_s=60.0, waits=waits)


class Judge:
    """What is emitted, and what is to be done later."""

    def __init__(self) -> None:
        self.emitted: list[ev.Event] = []
        self.later: list[Callable[[], None]] = []
        self.hangs = Hangs(3, emit=self.emitted.append, after=lambda name, seconds, act: self.later.append(act))

    @property
    def ranks(self) -> list[int]:
        return [event.hang.rank for event in self.emitted if isinstance(event, ev.HangFound)]


@pytest.fixture
def judge() -> Judge:
    return Judge()


def test_a_rank_that_waits_for_nobody_counts_at_once(judge: Judge) -> None:
    """Whoever was seen before it."""
    judge.hangs.found(0, hang(0, waits=True))
    assert judge.ranks == []
    judge.hangs.found(2, hang(2, waits=False))
    assert judge.ranks == [2]


def test_where_all_wait_it_is_the_last_that_was_found(judge: Judge) -> None:
    """Nobody else is to be heard."""
    for pod in range(3):
        judge.hangs.found(pod, hang(pod, waits=True))
    assert judge.ranks == [2]


def test_a_victim_counts_where_nothing_else_is_found(judge: Judge) -> None:
    """After a while, and of these workers only."""
    judge.hangs.found(1, hang(1, waits=True))
    judge.later.pop()()
    assert judge.ranks == [1]
    judge.hangs.forget()
    judge.hangs.found(1, hang(1, waits=True))
    judge.hangs.forget()
    judge.later.pop()()
    assert judge.ranks == [1]


def test_what_all_have_seen_names_the_one_that_waits_for_nobody() -> None:
    """In the evidence as well."""
    seen = [Evidence(ranks=(), hang=hang(0, waits=True)), Evidence(ranks=(), hang=hang(1, waits=False))]
    found = together(seen, order=[], world_size=2).hang
    assert found is not None
    assert found.rank == 1
