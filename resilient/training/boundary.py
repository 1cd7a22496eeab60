# SPDX-License-Identifier: Apache-2.0
"""What a worker does at a boundary that the host has named; the rare path between two steps.

See :mod:`resilient.link.board` for the protocol. A worker acts on the host's
numbers only, never on its own clock: so all ranks act at the same step.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from resilient.core.exit_codes import ExitCode
from resilient.link.attach import Attachment
from resilient.link.board import NONE, PENDING, SNAPSHOT_SLOT, SNAPSHOT_STEP, STOP_STEP
from resilient.link.channel import Closed
from resilient.link.messages import Leaving, SaveEnded
from resilient.training.leaving import WayOut
from resilient.training.snapshots import Snapshots

NO_SNAPSHOT: Final = -2
"""``SNAPSHOT_SLOT`` when everybody stops and nothing is to be taken before."""
_LOOK_S: Final = 0.0002
"""The host writes its word within a millisecond; there is no event for a word in memory."""


class Boundary:
    """Obeys the board at one boundary."""

    def __init__(self, attachment: Attachment, snapshots: Snapshots, way_out: WayOut) -> None:
        self._attachment = attachment
        self._words = attachment.board.words
        self._snapshots = snapshots
        self._way_out = way_out
        self._taken = NONE

    def act(self, step: int) -> None:
        """Do what is ordered for the boundary of ``step``, if anything is."""
        self._way_out.take_again()
        words = self._words
        while words[PENDING]:
            if not self._host_lives():
                return
        if words[STOP_STEP] == step:
            self._stop(step)
        elif words[SNAPSHOT_STEP] == step and words[SNAPSHOT_SLOT] >= 0:
            self._snapshot(step)

    def _snapshot(self, step: int, *, last: bool = False) -> None:
        # The order stays on the board until the host clears it, and a step that raised is entered again.
        if self._taken != step:
            self._taken = step
            self._snapshots.take(step, self._words[SNAPSHOT_SLOT], last=last)

    def _stop(self, step: int) -> None:
        words = self._words
        self._snapshots.finish()
        while words[SNAPSHOT_STEP] == step and words[SNAPSHOT_SLOT] == NONE and self._host_lives():
            pass  # an earlier snapshot is still being saved from the slot
        if words[SNAPSHOT_STEP] == step and words[SNAPSHOT_SLOT] >= 0:
            self._snapshot(step, last=True)
        self._attachment.send(Leaving(step=step))
        saved = self._attachment.supervised or self.saved(step)
        if not self._attachment.supervised and self._attachment.index == 0:  # else it is the supervisor that says it
            how = "saved" if saved else "not saved"
            sys.stderr.write(f"resilient: asked to leave by SIGTERM; step {step} is {how}\n")
        self._way_out.take(int(ExitCode.PREEMPTED_SAVED if saved else ExitCode.PREEMPTED_UNSAVED))

    def saved(self, step: int) -> bool:
        """Wait until the host says how saving ``step`` ended."""
        try:
            while True:
                answer = self._attachment.channel.receive()
                if isinstance(answer, SaveEnded) and answer.step >= step:
                    return answer.ok
        except Closed:
            return False

    def _host_lives(self) -> bool:
        time.sleep(_LOOK_S)
        return not self._attachment.host_is_gone()
