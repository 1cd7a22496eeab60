# SPDX-License-Identifier: Apache-2.0
"""The workers of the present attempt in the loop: started, heard, and ended with all that is theirs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from resilient.core import events as ev
from resilient.core.collectives import MOST_GROUPS
from resilient.launch import Seat
from resilient.link.board import FINISHED, STEP, Board
from resilient.link.channel import Closed
from resilient.link.messages import Communicated, FromWorker, Hello
from resilient.supervisor import group
from resilient.supervisor.descendants import LOOK_AGAIN_S, Ending
from resilient.supervisor.group import Member
from resilient.supervisor.scene import Scene

UNKILLABLE_S: Final = 60.0
"""How long SIGKILL may take before a process counts as held by the kernel."""
ANSWER_S: Final = 0.25
"""How long workers have to say where they are before they are ended; those that can answer do so at once."""


class Crew:
    """All members of an attempt and their descriptors."""

    def __init__(
        self,
        scene: Scene,
        board: Board,
        slots: Mapping[int, Sequence[int]],
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int | None], None],
        after: Callable[[str, float, Callable[[], None]], None],
        emit: Callable[[ev.Event], None],
        heard: Callable[[int, FromWorker], None],
    ) -> None:
        self._scene = scene
        self._board = board
        self._slots = slots
        self._add = watch
        self._remove = unwatch
        self._after = after
        self._emit = emit
        self._heard = heard
        self.members: list[Member] = []
        self.not_started: str | None = None
        """Why the rank after the last member could not be started."""
        self._ending: Ending | None = None
        self._asked: set[int] = set()
        """Ranks that have yet to say how far they are; the end waits for them, a little."""
        self._grace_s = 0.0
        self._paused = False

    @property
    def live(self) -> list[Member]:
        """Those whose end is not known."""
        return [member for member in self.members if member.exit is None]

    @property
    def ending(self) -> bool:
        """The group is being ended."""
        return self._ending is not None or bool(self._asked)

    def start(self, *, attempt: int, launch: int, seat: Seat) -> None:
        """Launch all workers; where the node has no room for one, that one has failed."""
        self.forget()
        scene = self._scene
        try:
            group.start(
                scene.place, self._board, self._slots, scene.lines, scene.console.write,
                into=self.members, launch=launch, seat=seat, now=time.monotonic(),
            )  # fmt: skip
        except OSError as error:
            self.not_started = str(error)
        pids = {str(member.rank): member.process.pid for member in self.members}
        scene.journal.write("workers", attempt=attempt, launch=launch, pids=pids)
        for member in self.members:
            self._connect(member)
        if self.not_started is not None:
            self._emit(ev.WorkerEnded(rank=len(self.members), clean=False, finished=False))

    def send(self, rank: int, message: object) -> None:
        """Tell one worker; one that is gone need not know."""
        channel = self.members[rank].channel if rank < len(self.members) else None
        if channel is not None:
            with contextlib.suppress(Closed):  # its exit is on the way
                channel.send(message)

    def signal(self, number: int) -> None:
        """Signal every worker, and nothing else of theirs."""
        for member in self.members:
            member.process.send(number)

    def end(self, grace_s: float, *, ask: bool = False) -> None:
        """End them all; ``ask``: those that still run are asked before how far they are in their collectives."""
        self._grace_s = grace_s
        for member in self.live:
            self._on_messages(member)
        self._asked = {member.rank for member in self.members if ask and group.ask(member)}
        if self._asked:
            self._after("asked", ANSWER_S, self._end_unanswered)
        else:
            self._end(grace_s)

    def _end_unanswered(self) -> None:
        if self._asked:
            self._asked.clear()
            self._end(self._grace_s)

    def _answered(self, rank: int) -> None:
        if rank in self._asked:
            self._asked.remove(rank)
            if not self._asked:
                self._end(self._grace_s)

    def _end(self, grace_s: float) -> None:
        """SIGTERM to all that is theirs, SIGKILL after the grace; ``GroupEnded`` follows."""
        for member in self.members:
            member.stopped = member.exit is None
        now = time.monotonic()
        workers = [member.process.pid for member in self.members]
        self._ending = Ending(self._scene.place.token, grace_s=grace_s, now=now, workers=workers)
        self._end_more()

    def look_for_exits(self) -> None:
        """Where pidfds are refused SIGCHLD says that somebody may have ended."""
        for member in self.live:
            self._on_exit(member)

    def forget(self) -> None:
        """Reap them; nothing is known of them any more."""
        for member in self.members:
            member.process.close()
        self.members, self.not_started = [], None
        self._asked.clear()

    def close(self) -> None:
        """Let go of everything."""
        if self._ending is not None:
            self._ending.close()
            self._ending = None
        self.forget()

    def pause(self, paused: bool) -> None:
        """Back-pressure: while our own output is stuck, the workers' pipes are not read."""
        if paused == self._paused:
            return
        self._paused = paused
        for member in self.members:
            for fd in member.open_pipes:
                if paused:
                    self._remove(fd)
                else:
                    self._add_pipe(member, fd)

    def _add_pipe(self, member: Member, fd: int) -> None:
        def readable() -> None:
            if not group.read_pipe(member, fd):
                self._remove(fd)
            if self._scene.console.full:
                self.pause(True)

        self._add(fd, readable)

    def _connect(self, member: Member) -> None:
        for fd in member.open_pipes:
            self._add_pipe(member, fd)
        if member.process.pidfd is not None:
            self._add(member.process.pidfd, lambda: self._on_exit(member))
        if member.channel is not None:
            self._add(member.channel.fileno(), lambda: self._on_messages(member))

    def _on_messages(self, member: Member) -> None:
        channel = member.channel
        if channel is None:
            return
        try:
            messages = channel.drain()
        except (Closed, ValueError) as error:
            if isinstance(error, ValueError):
                self._scene.journal.write("note", rank=member.rank, text=f"its link is closed: {error}")
            self._remove(channel.fileno())
            channel.close()
            member.channel = None
            return
        for message in messages:
            if isinstance(message, Hello):
                self._scene.journal_hello(member, message.pid, message.started_ns)
            if isinstance(message, Communicated):
                member.collectives = message.groups[:MOST_GROUPS]
                self._answered(member.rank)
            else:
                self._heard(member.rank, message)

    def _on_exit(self, member: Member) -> None:
        exit_ = member.process.poll()
        if exit_ is None:
            return
        self._on_messages(member)  # its last one may end the group, which looks for exits itself
        if member.exit is not None:
            return
        member.exit = exit_
        member.order = sum(other.exit is not None for other in self.members) - 1
        self._remove(member.process.pidfd)
        pulse = self._board.pulse(member.rank)
        midway = pulse.opened and (pulse.looping or pulse.place == STEP)
        # An exit code of 0 may be that of a handler at the interpreter's end, after the exception that ended it.
        clean = exit_.code == 0 and not midway and not member.error_file.exists()
        self._emit(ev.WorkerEnded(rank=member.rank, clean=clean, finished=pulse.place == FINISHED))
        self._answered(member.rank)

    def _end_more(self) -> None:
        ending = self._ending
        if ending is None:
            return
        for fd in ending.pidfds:
            self._remove(fd)
        now = time.monotonic()
        left = ending.advance(now)
        self.look_for_exits()
        if left and now < ending.kill_at + UNKILLABLE_S:
            for fd in ending.pidfds:
                self._add(fd, self._end_more)
            self._after("ending", LOOK_AGAIN_S, self._end_more)
            return
        ending.close()
        self._ending = None
        for member in self.members:
            self._disconnect(member)
        self._emit(ev.GroupEnded(held=tuple(left)))

    def _disconnect(self, member: Member) -> None:
        for fd in tuple(member.open_pipes):
            self._remove(fd)
        group.drain(member)
        self._remove(member.process.pidfd)
        if member.channel is not None:
            self._on_messages(member)
        if member.channel is not None:
            self._remove(member.channel.fileno())
            member.channel.close()
            member.channel = None
