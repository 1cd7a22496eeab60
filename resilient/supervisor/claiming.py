# SPDX-License-Identifier: Apache-2.0
"""Making an attempt ours in the store: until it is, nothing is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from resilient.checkpoint.requests import Claim, Failed, Reply, Request
from resilient.core import events as ev

AGAIN_S: Final = 10.0
"""Between tries after the saver's own retries have failed."""
MOST_DEATHS: Final = 3
"""Savers that may die over one claim before the next try waits as well."""


class Claiming:
    """One attempt at a time; an answer that comes for an earlier one is of no interest."""

    def __init__(
        self,
        submit: Callable[[Callable[[int], Request], Callable[[Reply], None]], None],
        may_save: Callable[[bool | None], None],
        emit: Callable[[ev.Event], None],
        journal: Callable[[str, Mapping[str, object]], None],
        *,
        now: Callable[[], float],
        held_s: Callable[[], float],
    ) -> None:
        """``may_save`` is told whether the attempt is ours, with ``None`` while that is being found out."""
        self._submit = submit
        self._may_save = may_save
        self._emit = emit
        self._journal = journal
        self._now = now
        self._held_s = held_s
        self._attempt: int | None = None
        self._began_from: str | None = None
        self._deaths = 0
        self._again_at: float | None = None

    def begin(self, attempt: int, began_from: str | None) -> None:
        """Claim ``attempt``, which goes on from the checkpoint ``began_from``."""
        self._attempt, self._began_from, self._deaths = attempt, began_from, 0
        self._ask(attempt)

    def forget(self) -> None:
        """The attempt is over."""
        self._attempt = self._again_at = None

    def tick(self, now: float) -> None:
        """Try again when it is time."""
        if self._attempt is not None and self._again_at is not None and now >= self._again_at:
            self._ask(self._attempt)

    def _ask(self, attempt: int) -> None:
        held_s, began_from = self._held_s(), self._began_from
        self._again_at = None
        self._may_save(None)
        self._submit(
            lambda number: Claim(id=number, attempt=attempt, began_from=began_from, held_s=held_s),
            lambda reply: self._answered(attempt, reply),
        )

    def _answered(self, attempt: int, reply: Reply) -> None:
        if attempt != self._attempt:
            return
        if not isinstance(reply, Failed):
            self._may_save(True)
        elif reply.conflict:
            self._emit(ev.Broken(why=f"another supervisor has claimed attempt {attempt}: {reply.why}"))
        elif reply.kind == "internal" and not reply.answered and self._deaths < MOST_DEATHS:
            self._deaths += 1
            self._ask(attempt)  # the saver was killed: the next one is asked
        else:
            self._may_save(False)
            self._journal("save_failed", {"step": 0, "why": f"attempt {attempt} cannot be claimed: {reply.why}"})
            self._again_at = self._now() + AGAIN_S
