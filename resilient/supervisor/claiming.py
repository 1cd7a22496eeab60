# SPDX-License-Identifier: Apache-2.0
"""Making an attempt ours in the store: until it is, nothing is saved."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from resilient.checkpoint.requests import Claim, Failed, Reply, Request
from resilient.core import events as ev
from resilient.core import wire
from resilient.core.adoption import Origin
from resilient.core.batch import Batch, shortened
from resilient.core.usage import Usage

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
        usage: Callable[[], Usage],
    ) -> None:
        """``may_save`` is told whether the attempt is ours, with ``None`` while that is being found out."""
        self._submit = submit
        self._may_save = may_save
        self._emit = emit
        self._journal = journal
        self._now = now
        self._usage = usage
        self.skipped: tuple[Batch, ...] = ()
        """Batches that are left out, the oldest first: each attempt is claimed with those of its launch."""
        self.origins: dict[int, Origin] = {}
        """Of each attempt."""
        self._claim: Claim | None = None
        """The very same for every try: one may have been carried out by a saver that was killed before it said so."""
        self._deaths = 0
        self._again_at: float | None = None

    def begin(self, attempt: int, began_from: str | None) -> None:
        """Claim ``attempt``, which goes on from the checkpoint ``began_from``."""
        self._deaths = 0
        claim = Claim(
            id=0,
            attempt=attempt,
            began_from=began_from,
            usage=self._usage(),
            claimed_s=time.time(),
            token=secrets.token_hex(16),
            skipped=self.skipped,
        )
        self.origins[attempt] = Origin(token=claim.token, began_from=began_from, skipped=claim.skipped)
        self._ask(claim)

    def skip(self, batch: Batch, why: str) -> None:
        """Leave it out from the next launch on."""
        self.skipped = shortened((*self.skipped, batch))
        fields = {field: value for field, value in wire.to_data(batch).items() if field != "type"}
        self._journal("skipped", {"text": str(batch), **fields, "why": why})

    def forget(self) -> None:
        """The attempt is over."""
        self._claim = self._again_at = None

    def tick(self, now: float) -> None:
        """Try again when it is time."""
        if self._claim is not None and self._again_at is not None and now >= self._again_at:
            self._ask(self._claim)

    def _ask(self, claim: Claim) -> None:
        self._claim, self._again_at = claim, None
        self._may_save(None)
        self._submit(lambda number: replace(claim, id=number), lambda reply: self._answered(claim, reply))

    def _answered(self, claim: Claim, reply: Reply) -> None:
        if claim is not self._claim:
            return
        if not isinstance(reply, Failed):
            self._may_save(True)
        elif reply.conflict:
            self._emit(ev.Broken(why=f"another supervisor has claimed attempt {claim.attempt}: {reply.why}"))
        elif reply.kind == "internal" and not reply.answered and self._deaths < MOST_DEATHS:
            self._deaths += 1
            self._ask(claim)  # the saver was killed: the next one is asked
        else:
            self._may_save(False)
            self._journal("save_failed", {"step": 0, "why": f"attempt {claim.attempt} cannot be claimed: {reply.why}"})
            self._again_at = self._now() + AGAIN_S
