# SPDX-License-Identifier: Apache-2.0
"""An attempt is claimed before anything is saved under it, and nothing about that goes on without end or pause."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from resilient.checkpoint.requests import Claim, Done, Failed, Reply
from resilient.core import events as ev
from resilient.core.usage import Usage
from resilient.supervisor.claiming import AGAIN_S, MOST_DEATHS, Claiming

DIED = Failed(id=1, why="the saver ended", answered=False, kind="internal")
AWAY = Failed(id=1, why="503", answered=False, kind="unreachable")
TAKEN = Failed(id=1, why="it exists", answered=True, kind="conflict")


class Desk:
    """A saver that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Claim] = []
        self.may_save: list[bool | None] = []
        self.told: list[Any] = []
        self._then: Callable[[Reply], None] = lambda reply: None
        self.claiming = Claiming(
            self._submit,
            self.may_save.append,
            self.told.append,
            self._journal,
            now=lambda: 100.0,
            usage=lambda: Usage(held_s=7.0),
        )

    def _submit(self, make: Callable[[int], Any], then: Callable[[Reply], None]) -> None:
        self.asked.append(make(1))
        self._then = then

    def _journal(self, kind: str, fields: Mapping[str, object]) -> None:
        self.told.append(kind)

    def answer(self, reply: Reply) -> None:
        self._then(reply)


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.claiming.begin(3, "2-9")
    return desk


def test_an_attempt_is_ours_once_the_store_says_so(desk: Desk) -> None:
    """Until then it is unknown whether anything may be saved."""
    (asked,) = desk.asked
    assert (asked.attempt, asked.began_from, asked.usage) == (3, "2-9", Usage(held_s=7.0))
    desk.answer(Done(id=1))
    assert (desk.may_save, desk.told) == ([None, True], [])


def test_an_attempt_of_somebody_else_ends_the_supervisor(desk: Desk) -> None:
    """Two supervisors must not run one run."""
    desk.answer(TAKEN)
    assert [type(told) for told in desk.told] == [ev.Broken]


def test_a_store_that_is_away_is_asked_again_later(desk: Desk) -> None:
    """Training goes on meanwhile, without saving."""
    desk.answer(AWAY)
    assert (desk.may_save, desk.told) == ([None, False], ["save_failed"])
    desk.claiming.tick(100.0 + AGAIN_S - 1)
    assert len(desk.asked) == 1
    desk.claiming.tick(100.0 + AGAIN_S)
    desk.answer(Done(id=1))
    assert (len(desk.asked), desk.may_save[-1]) == (2, True)


def test_savers_that_die_one_after_the_other_are_not_replaced_without_pause(desk: Desk) -> None:
    """The first few at once, as a last save may wait for it; then as any store that fails."""
    for _ in range(MOST_DEATHS):
        desk.answer(DIED)
    assert (len(desk.asked), desk.told) == (1 + MOST_DEATHS, [])
    assert set(desk.asked) == {desk.asked[0]}  # what a saver did before it died is known by its token
    desk.answer(DIED)
    assert (len(desk.asked), desk.told, desk.may_save[-1]) == (1 + MOST_DEATHS, ["save_failed"], False)


def test_an_attempt_that_is_over_is_not_claimed_any_more(desk: Desk) -> None:
    """Neither by an answer that comes late nor by the clock."""
    desk.answer(AWAY)
    desk.claiming.forget()
    desk.claiming.tick(1000.0)
    assert len(desk.asked) == 1
    desk.claiming.begin(4, None)
    assert desk.asked[1].token != desk.asked[0].token
    desk.claiming.forget()
    desk.answer(TAKEN)
    assert desk.told == ["save_failed"]
