# SPDX-License-Identifier: Apache-2.0
"""The supervisor's loop: performs the machine's commands and feeds events back.

One thread, one selector: signals, pidfds, pipes, workers' channels, the saver and
the control socket are all descriptors in it. It decides nothing; what is decided
stands in :mod:`resilient.core.machine`.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from resilient.checkpoint.requests import Opened
from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core import wire
from resilient.core.batch import dealt_alike
from resilient.core.evidence import Hang
from resilient.core.job import Job, Phase
from resilient.core.machine import advance, begin
from resilient.core.pod_report import Report
from resilient.core.skipping import Skipping
from resilient.link.board import Board
from resilient.preflight.at_start import Preflight
from resilient.supervisor import telling, watching
from resilient.supervisor.adopting import Adopting
from resilient.supervisor.crew import Crew
from resilient.supervisor.host import Host, Ports
from resilient.supervisor.opening import first_job, learned
from resilient.supervisor.processes import reap_orphans
from resilient.supervisor.recording import Recording
from resilient.supervisor.runnable import cannot_run
from resilient.supervisor.scene import Scene
from resilient.supervisor.sentry import Sentry
from resilient.supervisor.shipping import Shipping
from resilient.supervisor.store_link import StoreLink
from resilient.supervisor.timers import Timers
from resilient.supervisor.witnesses import Witnesses

TICK_S: Final = 0.1
PROGRESS_S: Final = 5.0
"""How often progress is an event of its own; before every other event it is brought up to date."""
SAMPLE_S: Final = 10.0
SHIP_S: Final = 30.0


class Supervisor:
    """One ``resilient run``, from its first launch to its exit."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._selector = selectors.DefaultSelector()
        self._timers = Timers()
        self._queue: deque[ev.Event] = deque()
        self._board = Board.create(scene.launch.nproc)
        pod = scene.platform.pod_uid or ""
        self._adopting = Adopting(
            scene.volume, self._board, scene.identity(), pod=pod, journal=scene.write, say=scene.say
        )
        self._slots = scene.make_slots(self._adopting.in_memory)
        self.job = first_job(scene)
        self._store = StoreLink(
            scene.identity(),
            self._slots,
            token=scene.place.token,
            environ=scene.saver_environ,
            watch=self._add,
            unwatch=self._remove,
            after=self._timers.after,
            note=scene.say,
        )
        self._store.left_by = self._adopting.attempt
        self._crew = Crew(
            scene,
            self._board,
            self._slots,
            watch=self._add,
            unwatch=self._remove,
            after=self._timers.after,
            emit=self._on_crew,
            heard=lambda rank, message: self._host.message(rank, message, time.monotonic()),
        )
        self._host = Host(self._board, self._ports())
        self._sentry = Sentry(
            self._board,
            journal=scene.write,
            say=scene.say,
            found=self._on_hang,
        )
        self._witnesses = Witnesses(scene, self._emit, watch=self._add, unwatch=self._remove, after=self._timers.after)
        self._preflight = Preflight(scene, self._emit, watch=self._add, unwatch=self._remove, after=self._timers.after)
        self._hang: Hang | None = None
        self._deadline: float | None = None
        self._progress_at = 0.0
        self._first_step_of = 0
        self._shipping = Shipping(scene, self._store, lambda: self._board.inherited_bytes)
        self._recording = Recording(scene, self._store, self._emit)
        self.last: cm.Announce | None = None
        self.exit: cm.Exit | None = None

    # The loop.

    def run(self) -> cm.Exit:
        """Supervise until there is an exit."""
        self._add(self._scene.signals.fileno(), self._on_signals)
        self._add(self._scene.control.fileno(), self._on_control)
        self._add(self._scene.console.fileno(), self._on_console)
        self._timers.every("tick", TICK_S, self._tick)
        self._timers.every("sample", SAMPLE_S, self._sample)
        self._timers.every("ship", SHIP_S, self._shipping.ship)
        self._sample()
        self._take(*begin(self.job, time.monotonic()))
        while self.exit is None:
            for key, _ in self._selector.select(self._timeout()):
                if self.exit is None and key.fd in self._selector.get_map():
                    key.data()
                    self._work_off()
            self._run_timers()
            self._work_off()
        return self.exit

    @property
    def ships(self) -> bool:
        """The store is open: what the journal says can be read there."""
        return self._shipping.ships

    def tell(self, report: Report) -> None:
        """Have a decision written where people look at the pod, if that was asked for."""
        self._witnesses.tell(report)

    def leave_snapshot(self, code: int) -> None:
        """Make ready what the next container may go on from after this exit, if it is one of those."""
        opened = self._store.opened
        self._adopting.leave(code, self._host.newest, None if opened is None else opened.run_id)

    def close(self) -> None:
        """End the saver, once it has done what it was asked, and let go of everything."""
        self._crew.close()
        self._preflight.close()
        self._shipping.ship_rest(self._scene.seconds_left(self.job))
        self._store.close(timeout_s=self._scene.seconds_left(self.job))
        self._witnesses.close(timeout_s=self._scene.seconds_left(self.job))
        self._selector.close()
        self._board.close()

    def _work_off(self) -> None:
        while self._queue and self.exit is None:
            event = self._queue.popleft()
            phase = self.job.phase
            job, commands = advance(self.job, event, time.monotonic())
            self._scene.journal.write(
                "event",
                event=wire.to_data(event),
                phase=phase.value,
                next=job.phase.value,
                commands=wire.to_data(commands),
            )
            self._take(job, commands)

    def _take(self, job: Job, commands: tuple[cm.Command, ...]) -> None:
        self.job = job
        for command in commands:
            self._perform(command)

    def _emit(self, event: ev.Event) -> None:
        if not isinstance(event, (ev.Advanced, ev.Committed, ev.HeartbeatOpened)):
            self._tell_progress()
        self._queue.append(event)
        if isinstance(event, ev.LeaveAsked):
            self._witnesses.leaving()

    def _perform(self, command: cm.Command) -> None:
        match command:
            case cm.Examine():
                self._preflight.examine(suspect=command.suspect)
            case cm.StartWorkers():
                self._start_workers(command)
            case cm.EndGroup():
                self._end_group(command.grace_s)
            case cm.SetDeadline():
                self._deadline = command.at
            case cm.ClearDeadline():
                self._deadline = None
            case cm.NumberAttempt() | cm.SkipBatch():
                self._tell_host(command)
            case cm.RecordDebit() | cm.RecordFinished():
                self._record(command)
            case cm.Announce():
                self._announce(command)
            case cm.Exit():
                self.exit = command
            case _:
                _PLAIN[type(command)](self)

    def _tell_host(self, command: cm.NumberAttempt | cm.SkipBatch) -> None:
        if isinstance(command, cm.SkipBatch):
            self._host.claiming.skip(dealt_alike(command.batch, self._board.counts()), command.why)
        else:
            self._host.number(command.attempt)

    def _announce(self, command: cm.Announce) -> None:
        self.last = command if command.verdict is not None or self.last is None else self.last
        if command.verdict is not None:
            self._scene.remember(command.verdict, self.job.ledger)
            self.tell(telling.of_verdict(self._scene, self.job, command))
        self._scene.say(command.text)
        self._shipping.ship()

    # Time.

    def _timeout(self) -> float:
        return self._timers.wait_s(TICK_S if self._deadline is None else self._deadline - time.monotonic())

    def _run_timers(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            self._emit(ev.DeadlinePassed())
        self._timers.run()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._crew.members and not self._crew.ending:
            self._look(now)
        self._host.tick(now)

    def _look(self, now: float) -> None:
        """Read all rows of the board: progress, and silence."""
        done = watching.completed(self._board)
        if now - self._progress_at >= PROGRESS_S or (done and not self.job.ledger.highest_step):
            self._progress_at = now
            self._tell_progress()
        if self._host.training and done > self._host.agreement.step and self._first_step_of != self.job.launch:
            self._first_step_of = self.job.launch
            self._scene.journal.write("first_step", attempt=self.job.attempt, step=done)
        if not self._scene.terminal:  # somebody may be at a debugger's prompt
            self._sentry.look(self._crew.live, self._host.phases, self._scene.bounds(TICK_S), now)

    def _on_hang(self, hang: Hang) -> None:
        if not self._crew.ending and self.job.phase is Phase.RUNNING:
            self._hang = hang
            self._emit(ev.HangFound(hang=hang))

    def _tell_progress(self) -> None:
        done = watching.completed(self._board) if self._crew.members else 0
        if done > self.job.ledger.highest_step:
            self._queue.append(ev.Advanced(step=done))

    def _sample(self) -> None:
        self._shipping.sample()
        self._witnesses.listen()

    # The store.

    def _ports(self) -> Ports:
        return Ports(
            send=self._crew.send,
            submit=self._store.submit,
            emit=self._emit,
            journal=self._scene.write,
            resolve=self._scene.resolve,
            now=time.monotonic,
            usage=lambda: self.job.ledger.usage(time.monotonic()),
            say=self._scene.say,
            give_back=self._scene.give_back,
            settled=self._on_settled,
            last_saved=lambda step, ok: None,
        )

    def _settle(self) -> None:
        self._host.tiers.saving.settle(time.monotonic())

    def _open_store(self) -> None:
        settings = self._scene.settings
        if settings.checkpoints is None:
            raise AssertionError("a store is opened that nobody named")
        until = time.monotonic() + settings.store_patience
        self._store.open(settings, fresh=settings.fresh, until=until, then=self._on_open)

    def _on_settled(self, durable_step: int) -> None:
        reached = max(watching.completed(self._board), self._host.agreement.step) if self._host.training else None
        self._emit(ev.SaveSettled(durable_step=durable_step, reached_step=reached))

    def _on_open(self, answer: Opened | ev.OpenFailed) -> None:
        if isinstance(answer, ev.OpenFailed):
            self._emit(answer)
            return
        answer = self._adopting.judge(answer, self._host.adopt)
        opened = learned(self._scene, answer)
        self._host.opened(answer, self._scene.settings.store_patience)
        self._emit(opened)

    def _record(self, command: cm.RecordDebit | cm.RecordFinished) -> None:
        self._recording.begin(
            command,
            attempt=self.job.attempt,
            total_steps=self._host.total_steps,
            has_store=self.job.has_store,
            patience_s=max(0.5, (self._deadline or 0.0) - time.monotonic() - 0.5),
        )

    # Descriptors.

    def _add(self, fd: int, action: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, action)

    def _remove(self, fd: int | None) -> None:
        if fd is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)

    def _on_signals(self) -> None:
        for number in self._scene.signals.read():
            if number == signal.SIGCHLD:
                self._reap()
            elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                again = number == signal.SIGINT and self.job.leave_by is not None
                self._emit(ev.LeaveAsked(by=signal.Signals(number).name, urgent=again))

    def _reap(self) -> None:
        self._crew.look_for_exits()
        known = {member.process.pid for member in self._crew.members}
        ours = (self._store.saver_pid, *self._witnesses.pids, *self._preflight.pids)
        reap_orphans(known | {pid for pid in ours if pid is not None})

    def _on_control(self) -> None:
        request = self._scene.control.accept()
        if request is None:
            return
        if request.verb == "stop":
            request.reply("all workers finish one common step, save there and leave")
            self._emit(ev.LeaveAsked(by="resilient stop"))
        elif self._host.training and self._host.wants_store:
            self._host.tiers.save_soon()
            request.reply("a checkpoint is taken at the next common step")
        else:
            request.reply("cannot save: no worker trains under a checkpoint URL yet; try again later")

    def _on_console(self) -> None:
        self._scene.console.acknowledge()
        self._crew.pause(self._scene.console.full)

    # Workers.

    def _start_workers(self, command: cm.StartWorkers) -> None:
        wrong = cannot_run(self._scene.launch, self._scene.place.base, is_first=command.launch == 1)
        if wrong is not None:
            self._emit(wrong)
            return
        self._sentry.restarted()
        self._hang = None
        self._witnesses.begin()
        numbered = self._store.opened is not None or not self.job.has_store
        self._host.launched(command.attempt, numbered=numbered)
        self._crew.start(attempt=command.attempt, launch=command.launch)
        self._shipping.ship()  # should it be killed soon, whoever comes next can tell that it was there

    def _on_crew(self, event: ev.Event) -> None:
        if isinstance(event, ev.WorkerEnded) and event.clean:
            self._host.loop_end.left(event.rank)
        if isinstance(event, ev.GroupEnded) and (done := watching.completed(self._board)):  # also steps made again
            self._scene.journal.write("reached", attempt=self.job.attempt, step=done)
        self._emit(event)

    def _order_stop(self) -> None:
        if self._host.loop_end.begun:
            return  # what follows the loop gets the time to end by itself: the work is done all the same
        if self._host.stop() is None:
            self._host.tiers.end()  # somebody does not train yet, or never will: nothing to wait for
        self._crew.signal(signal.SIGTERM)  # under an order it only wakes them

    def _end_group(self, grace_s: float) -> None:
        self._host.tiers.end()
        is_fault = self.job.ending is None and self.job.leave_by is None
        self._crew.end(grace_s, ask=is_fault)

    def _collect(self) -> None:
        past = tuple(self._scene.past)
        skipping = Skipping(allowed=self._scene.settings.skip_bad_batches, skipped=self._host.claiming.skipped)
        self._witnesses.gather(
            self._crew.members, self._board,
            lambda found: self._emit(ev.Collected(evidence=found, past=past, skipping=skipping)),
            hang=self._hang, not_started=self._crew.not_started,
        )  # fmt: skip


_PLAIN: Final[Mapping[type[cm.Command], Callable[[Supervisor], None]]] = {
    cm.OpenStore: Supervisor._open_store,
    cm.OrderStop: Supervisor._order_stop,
    cm.CollectEvidence: Supervisor._collect,
    cm.Settle: Supervisor._settle,
}
"""Commands that say nothing but their name."""
