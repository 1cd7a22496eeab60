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
from typing import Any, Final

from resilient.checkpoint.requests import Opened
from resilient.core import commands as cm
from resilient.core import events as ev
from resilient.core import wire
from resilient.core.batch import dealt_alike
from resilient.core.exit_codes import ExitCode
from resilient.core.job import Job
from resilient.core.machine import advance, begin
from resilient.core.pod_report import Report
from resilient.core.skipping import Skipping
from resilient.link.board import Board
from resilient.preflight.at_start import Preflight
from resilient.supervisor import telling, watching
from resilient.supervisor.adopting import Adopting
from resilient.supervisor.callers import Callers
from resilient.supervisor.crew import Crew
from resilient.supervisor.host import Host, Ports
from resilient.supervisor.joining import join
from resilient.supervisor.lookout import Lookout
from resilient.supervisor.opening import first_job, learned
from resilient.supervisor.pods import Wiring
from resilient.supervisor.processes import reap_orphans
from resilient.supervisor.recording import Recording
from resilient.supervisor.runnable import cannot_run
from resilient.supervisor.scene import Scene
from resilient.supervisor.shipping import Shipping
from resilient.supervisor.store_link import StoreLink
from resilient.supervisor.timers import Timers
from resilient.supervisor.witnesses import Witnesses

TICK_S: Final = 0.1
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
        first = scene.launch.node * scene.launch.nproc
        self._store = StoreLink(
            scene.identity(),
            {first + rank: fds for rank, fds in self._slots.items()},
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
            heard=lambda rank, message: self._pods.said(rank, message),
        )
        self._pods = join(scene, self._wiring())
        self._host = Host(self._pods.board, self._ports())
        self._callers = Callers(
            scene,
            self._emit,
            children=self._reap,
            save=self._save_soon,
            pause=self._crew.pause,
            is_leaving=lambda: self.job.leave_by is not None,
        )
        self._lookout = Lookout(
            scene, self._board, self._crew, self._pods, self._host, tick_s=TICK_S, job=lambda: self.job,
            advanced=self._queue.append,
        )  # fmt: skip
        self._witnesses = Witnesses(scene, self._emit, watch=self._add, unwatch=self._remove, after=self._timers.after)
        self._preflight = Preflight(scene, self._emit, watch=self._add, unwatch=self._remove, after=self._timers.after)
        self._deadline: float | None = None
        self._shipping = Shipping(scene, self._store, lambda: self._board.inherited_bytes)
        self._recording = Recording(scene, self._store, self._emit)
        self.last: cm.Announce | None = None
        self.exit: cm.Exit | None = None

    # The loop.

    def run(self) -> cm.Exit:
        """Supervise until there is an exit."""
        self._callers.watch(self._add)
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
        self._pods.close(self.exit, self._scene.seconds_left(self.job))
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
            _PERFORM[type(command)](self, command)

    def _emit(self, event: ev.Event) -> None:
        if not isinstance(event, (ev.Advanced, ev.Committed, ev.HeartbeatOpened)):
            self._lookout.tell_progress()
        self._queue.append(event)
        if isinstance(event, ev.LeaveAsked):
            self._pods.leaving(event.by, self._scene.settings.grace if event.within_s is None else event.within_s)
            self._witnesses.leaving()
        if isinstance(event, ev.Committed) and not self.job.terms.follows:
            self._pods.committed(event.step)
        if isinstance(event, ev.Dismissed) and self._pods.verdict is not None:
            self.last = cm.Announce(text=event.decision.why, verdict=self._pods.verdict, do=event.decision.do)

    def _tell_host(self, command: cm.NumberAttempt | cm.SkipBatch) -> None:
        if isinstance(command, cm.SkipBatch):
            self._host.claiming.skip(dealt_alike(command.batch, self._pods.board.counts()), command.why)
        else:
            self._host.number(command.attempt)

    def _announce(self, command: cm.Announce) -> None:
        self.last = command if command.verdict is not None or self.last is None else self.last
        if command.verdict is not None:
            self._scene.remember(command.verdict, self.job.ledger)
            self.tell(telling.of_verdict(self._scene, self.job, command))
        self._scene.say(command.text)
        self._pods.announce(command.text)
        self._shipping.ship()

    # Time.

    def _timeout(self) -> float:
        return self._timers.wait_s(TICK_S if self._deadline is None else self._deadline - time.monotonic())

    def _run_timers(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            self._emit(ev.DeadlinePassed(awaited=self._pods.awaited))
        self._timers.run()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._crew.members and not self._crew.ending:
            self._lookout.look(now)
        self._host.tick(now)
        self._pods.tick()

    def _sample(self) -> None:
        self._shipping.sample()
        self._witnesses.listen()

    # The store.

    def _ports(self) -> Ports:
        return Ports(
            send=self._pods.tell,
            submit=self._pods.submit,
            emit=self._emit,
            journal=self._scene.write,
            resolve=self._pods.resolve,
            now=time.monotonic,
            usage=lambda: self.job.ledger.usage(time.monotonic()),
            say=self._scene.say,
            give_back=self._pods.give_back,
            settled=self._on_settled,
            last_saved=lambda step, ok: None,
            orders=self._pods.orders,
        )

    def _wiring(self) -> Wiring:
        return Wiring(
            emit=self._emit,
            say=self._scene.say,
            journal=self._scene.journal.write,
            watch=self._add,
            unwatch=self._remove,
            after=self._timers.after,
            board=self._board,
            tell=self._crew.send,
            wake=lambda: self._crew.signal(signal.SIGTERM),
            heard=lambda rank, message: self._host.message(rank, message, time.monotonic()),
            ended=lambda rank: self._host.loop_end.left(rank),
            submit=self._store.submit,
            settle=lambda: self._host.tiers.saving.settle(time.monotonic()),
            give_back=self._scene.give_back,
            resolve=self._scene.resolve,
            is_outside=lambda: watching.someone_outside(self._board, self._crew.live),
        )

    def _settle(self, command: cm.Command) -> None:
        if not self._pods.settle(self._on_settled):
            self._host.tiers.saving.settle(time.monotonic())

    def _open_store(self, command: cm.Command) -> None:
        settings = self._scene.settings
        if settings.checkpoints is None:
            raise AssertionError("a store is opened that nobody named")
        until = time.monotonic() + settings.store_patience
        self._store.open(settings, fresh=settings.fresh, until=until, then=self._on_open)

    def _on_settled(self, durable_step: int) -> None:
        if self.job.ending is None or self.job.ending.code != ExitCode.FINISHED:  # else all are told of that
            self._pods.settled(durable_step)
        reached = watching.completed(self._pods.board)
        trained = self._host.training or (self.job.terms.follows and reached > 0)
        reached_step = max(reached, self._host.agreement.step) if trained else None
        self._emit(ev.SaveSettled(durable_step=durable_step, reached_step=reached_step))

    def _on_open(self, answer: Opened | ev.OpenFailed) -> None:
        if isinstance(answer, ev.OpenFailed):
            self._emit(answer)
            return
        if not self.job.terms.follows:
            answer = self._adopting.judge(answer, self._host.adopt)
        opened = learned(self._scene, answer)
        if not self.job.terms.follows:  # what is resumed from is for pod 0 to say
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

    def _reap(self) -> None:
        self._crew.look_for_exits()
        known = {member.process.pid for member in self._crew.members}
        ours = (self._store.saver_pid, *self._witnesses.pids, *self._preflight.pids, *self._pods.pids)
        reap_orphans(known | {pid for pid in ours if pid is not None})

    def _save_soon(self) -> bool:
        may = self._host.training and self._host.wants_store
        if may:
            self._host.tiers.save_soon()
        return may

    # Workers.

    def _start_workers(self, command: cm.StartWorkers) -> None:
        wrong = cannot_run(self._scene.launch, self._scene.place.base, is_first=command.launch == 1)
        if wrong is not None:
            self._emit(wrong)
            return
        self._lookout.restarted()
        self._witnesses.begin()
        numbered = self._store.opened is not None or not self.job.has_store
        self._host.launched(command.attempt, numbered=numbered)
        self._crew.start(attempt=command.attempt, launch=command.launch, seat=self._pods.seat(command))
        self._shipping.ship()  # should it be killed soon, whoever comes next can tell that it was there

    def _on_crew(self, event: ev.Event) -> None:
        if isinstance(event, ev.WorkerEnded) and event.clean:
            self._host.loop_end.left(event.rank)
        if isinstance(event, ev.GroupEnded) and (done := watching.completed(self._pods.board)):  # also steps made again
            self._scene.journal.write("reached", attempt=self.job.attempt, step=done)
        heard = self._pods.local(event)
        if heard is not None:
            self._emit(heard)

    def _order_stop(self, command: cm.Command) -> None:
        if self._host.loop_end.begun:
            return  # what follows the loop gets the time to end by itself: the work is done all the same
        if self.job.terms.follows and self.job.ledger.steps_known:
            return  # pod 0 names the boundary, at which it has them woken
        if not self._host.stop():
            self._host.tiers.end()  # somebody does not train yet, or never will: nothing to wait for
            self._pods.end(self.job.terms.stop_grace_s)
        self._crew.signal(signal.SIGTERM)  # under an order it only wakes them

    def _end_group(self, command: cm.EndGroup) -> None:
        self._host.tiers.end()
        self._pods.end(command.grace_s)
        is_fault = self.job.ending is None and self.job.leave_by is None
        self._crew.end(command.grace_s, ask=is_fault)

    def _collect(self, command: cm.Command) -> None:
        past = tuple(self._scene.past)
        skipping = Skipping(allowed=self._scene.settings.skip_bad_batches, skipped=self._host.claiming.skipped)
        self._witnesses.gather(
            self._crew.members, self._board,
            lambda seen: self._emit(ev.Collected(evidence=self._pods.together(seen), past=past, skipping=skipping)),
            hang=self._lookout.hang, not_started=self._crew.not_started,
        )  # fmt: skip


def _set_deadline(self: Supervisor, command: cm.SetDeadline | cm.ClearDeadline) -> None:
    self._deadline = command.at if isinstance(command, cm.SetDeadline) else None


def _exit(self: Supervisor, command: cm.Exit) -> None:
    self.exit = command


_PERFORM: Final[Mapping[type[cm.Command], Callable[[Supervisor, Any], None]]] = {
    cm.OpenStore: Supervisor._open_store,
    cm.Examine: lambda self, command: self._preflight.examine(suspect=command.suspect),
    cm.Assemble: lambda self, command: self._pods.assemble(),
    cm.StartWorkers: Supervisor._start_workers,
    cm.NumberAttempt: Supervisor._tell_host,
    cm.OrderStop: Supervisor._order_stop,
    cm.EndGroup: Supervisor._end_group,
    cm.CollectEvidence: Supervisor._collect,
    cm.Testify: lambda self, command: self._pods.testify(command.evidence),
    cm.Dismiss: lambda self, command: self._pods.dismiss(command, self.last.verdict if self.last else None),
    cm.SetDeadline: _set_deadline,
    cm.ClearDeadline: _set_deadline,
    cm.Settle: Supervisor._settle,
    cm.SkipBatch: Supervisor._tell_host,
    cm.RecordDebit: Supervisor._record,
    cm.RecordFinished: Supervisor._record,
    cm.Announce: Supervisor._announce,
    cm.Exit: _exit,
}
