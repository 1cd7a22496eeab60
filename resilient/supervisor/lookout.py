# SPDX-License-Identifier: Apache-2.0
"""Looks at the workers while they run: how far all have got, and whether one stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from resilient.core import events as ev
from resilient.core.evidence import Hang
from resilient.core.job import Job, Phase
from resilient.link.board import Board
from resilient.supervisor import watching
from resilient.supervisor.crew import Crew
from resilient.supervisor.host import Host
from resilient.supervisor.pods import Alone
from resilient.supervisor.scene import Scene
from resilient.supervisor.sentry import Sentry

PROGRESS_S: Final = 5.0
"""How often progress is an event of its own; before every other event it is brought up to date."""


class Lookout:
    """Of one supervisor."""

    def __init__(
        self,
        scene: Scene,
        board: Board,
        crew: Crew,
        pods: Alone,
        host: Host,
        *,
        tick_s: float,
        job: Callable[[], Job],
        advanced: Callable[[ev.Advanced], None],
    ) -> None:
        """``board`` has the own workers, that of ``pods`` all that are led from here; ``advanced`` is told at once, in
        front of what is emitted next."""
        self._scene = scene
        self._crew = crew
        self._pods = pods
        self._host = host
        self._tick_s = tick_s
        self._job = job
        self._advanced = advanced
        self._sentry = Sentry(
            board, journal=scene.write, say=scene.say, found=self._on_hang, first=scene.launch.node * scene.launch.nproc
        )
        self._progress_at = 0.0
        self._first_step_of = 0
        self.hang: Hang | None = None
        """What was found of the present workers."""

    def restarted(self) -> None:
        """New workers: what was learned of the run stays."""
        self._sentry.restarted()
        self.hang = None

    def look(self, now: float) -> None:
        """Read all rows of the board."""
        job, done = self._job(), watching.completed(self._pods.board)
        if now - self._progress_at >= PROGRESS_S or (done and not job.ledger.highest_step):
            self._progress_at = now
            self.tell_progress()
        if self._host.training and done > self._host.agreement.step and self._first_step_of != job.launch:
            self._first_step_of = job.launch
            self._scene.journal.write("first_step", attempt=job.attempt, step=done)
        if not self._scene.terminal:  # somebody may be at a debugger's prompt
            bounds, outside = self._scene.bounds(self._tick_s), self._pods.others_outside
            bounds = replace(bounds, hang_floor_s=max(bounds.hang_floor_s, self._pods.stale_s))
            self._sentry.look(self._crew.live, self._host.phases, bounds, now, outside=outside)

    def tell_progress(self) -> None:
        """Say how far all have got, if that is further than was known."""
        done = watching.completed(self._pods.board) if self._crew.members else 0
        if done > self._job().ledger.highest_step:
            self._advanced(ev.Advanced(step=done))

    def _on_hang(self, hang: Hang) -> None:
        if not self._crew.ending and self._job().phase is Phase.RUNNING:
            self.hang = hang
            self._pods.hung(hang)
