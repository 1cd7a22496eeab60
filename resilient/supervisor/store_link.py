# SPDX-License-Identifier: Apache-2.0
"""The supervisor's link to the checkpoint store: one saver at a time, opened, replaced when it dies."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from resilient.checkpoint import deny_list
from resilient.checkpoint.layout import Debit, FinishedMark
from resilient.checkpoint.requests import Deny, Failed, Finish, Open, Opened, Record, Reply, Request, Ship
from resilient.core import events as ev
from resilient.core.checks_store import ADVISED, WRONG
from resilient.core.denied import Suspect
from resilient.core.grammar import remedy_apart
from resilient.settings import Settings
from resilient.supervisor.saver_process import SaverProcess

REOPEN_S: Final = 5.0
"""Between tries at a store that refuses."""
SLOW_S: Final = 30.0
"""How often people are told that the store is still being opened."""
LOCAL_LOCK_S: Final = 5.0
"""Outside Kubernetes a run that somebody holds is refused soon; inside, an old pod may still be ending."""
MEMORY_REFUSED: Final = (
    "cannot use memory:// for checkpoints: nobody but the process that wrote them could read them; "
    "give a directory or the URL of a store"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who opens the run."""

    submission: str
    index: int
    pod: str
    journal: str
    in_kubernetes: bool
    is_guest: bool = False
    """Another pod holds the run."""


class StoreLink:
    """Requests to the saver that outlive the saver."""

    def __init__(
        self,
        identity: Identity,
        slots: Mapping[int, Sequence[int]],
        *,
        token: str,
        environ: Mapping[str, str],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        after: Callable[[str, float, Callable[[], None]], None],
        note: Callable[[str], None],
    ) -> None:
        self._identity = identity
        self._slots = slots
        self._token = token
        self._environ = environ
        self._watch = watch
        self._unwatch = unwatch
        self._after = after
        self._note = note
        self._saver: SaverProcess | None = None
        self.opened: Opened | None = None
        self._again: Callable[[], None] | None = None
        self.left_by: int | None = None
        """The attempt of a snapshot that the container before has left."""
        self._opening = False
        """The run is being opened, for the first time or by the next saver."""
        self._held: list[tuple[Callable[[int], Request], Callable[[Reply], None]]] = []
        """Requests that came while the run was being opened, at first or by the next saver."""

    @property
    def saver_pid(self) -> int | None:
        return self._saver.pid if self._saver else None

    def open(
        self, settings: Settings, *, fresh: bool, until: float, then: Callable[[Opened | ev.OpenFailed], None]
    ) -> None:
        """Open the run, asking again until ``until`` where the store does not answer or refuses.

        While that goes on whoever asks once more waits for the same answer, which is given once.
        """
        if not self._opening:
            self._say_slow(0.0)
            self._open(settings, fresh=fresh, until=until, then=then)

    def _say_slow(self, waited_s: float) -> None:
        """People at a terminal must not take a store that does not answer for a supervisor that stands still."""
        if waited_s and self._opening:
            self._note(f"the checkpoint store has not been opened for {waited_s:.0f} s; it is still waited for")
        if self._opening or not waited_s:
            self._after("slow", SLOW_S, lambda: self._say_slow(waited_s + SLOW_S))

    def _open(
        self, settings: Settings, *, fresh: bool, until: float, then: Callable[[Opened | ev.OpenFailed], None]
    ) -> None:
        url = settings.checkpoints or ""
        if url.startswith("memory:"):
            why, do = remedy_apart(MEMORY_REFUSED)
            then(ev.OpenFailed(why=why, wrong=True, do=do))
            return

        def again() -> None:
            self._open(settings, fresh=fresh, until=until, then=then)

        def answered(reply: Reply) -> None:
            if isinstance(reply, Opened):
                self.opened, self._opening = reply, False
                # A saver that takes over later must not begin the history anew once more.
                self._again = lambda: self.open(
                    settings, fresh=False, until=time.monotonic() + patience_s, then=self._reopened
                )
                then(reply)
                self._let_go()
            elif isinstance(reply, Failed):
                locked = reply.kind == "locked" and not self._identity.in_kubernetes
                wrong = reply.kind in WRONG or locked
                if wrong or time.monotonic() + REOPEN_S >= until:
                    self._opening = False
                    why, do = remedy_apart(reply.why) if reply.kind in ADVISED else (reply.why, "")
                    then(ev.OpenFailed(why=why, wrong=wrong, do=do))
                    self._let_go()
                else:
                    self._note(f"the checkpoint store cannot be opened yet: {reply.why}")
                    self._after("open", REOPEN_S, again)

        self._opening = True
        patience_s = max(0.0, until - time.monotonic())
        identity = self._identity
        self._submit(
            lambda number: Open(
                id=number,
                url=url,
                submission=identity.submission,
                index=identity.index,
                pod=identity.pod,
                in_kubernetes=identity.in_kubernetes,
                guest=identity.is_guest,
                host=socket.gethostname(),
                pid=os.getpid(),
                journal=identity.journal,
                fresh=fresh,
                save_bandwidth=settings.save_bandwidth,
                lock_patience_s=patience_s if identity.in_kubernetes else min(LOCAL_LOCK_S, patience_s),
                patience_s=patience_s,
                left_by=self.left_by,
            ),
            answered,
        )

    def submit(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        """Ask for something once the run is open; the caller's deadline bounds how long it waits for that."""
        if self._opening or (self._saver is not None and not self._saver.alive):
            self._held.append((make, then))
        elif self.opened is None:
            then(Failed(id=0, why="the checkpoint store is not open", answered=False, kind="unreachable"))
        else:
            self._submit(make, then)

    def record(
        self, debit: ev.Debit, *, attempt: int, why: str, patience_s: float, then: Callable[[str | None], None]
    ) -> None:
        """Put an exit on record; ``then`` is told what went wrong, or ``None``."""
        row = self.debit(debit, attempt=attempt, why=why)
        self.submit(
            lambda number: Record(id=number, debit=row, patience_s=patience_s),
            lambda reply: then(reply.why if isinstance(reply, Failed) else None),
        )

    def deny(self, suspect: Suspect, *, patience_s: float, then: Callable[[str | None], None]) -> None:
        """Put what a verdict blames on the run's deny list."""
        identity = self._identity
        record = deny_list.record_of(suspect, submission=identity.submission, pod=identity.pod, wall_s=time.time())
        self.submit(
            lambda number: Deny(id=number, record=record, patience_s=patience_s),
            lambda reply: then(reply.why if isinstance(reply, Failed) else None),
        )

    def debit(self, debit: ev.Debit, *, attempt: int, why: str) -> Debit:
        """The record of an exit."""
        return Debit(
            submission=self._identity.submission,
            index=self._identity.index,
            attempt=attempt,
            code=debit.code,
            step=debit.step,
            fingerprint=debit.fingerprint[:200],
            held_s=debit.usage.held_s,
            wall_s=time.time(),
            why=why[:1000],
            node=debit.node,
            fault_step=debit.fault_step,
            times=debit.times,
            strikes=debit.strikes,
            batch=debit.batch,
            restarts=debit.usage.restarts,
            restarts_since_commit=debit.usage.restarts_since_commit,
        )

    def finish(
        self, *, steps: int | None, reached: int, attempt: int, patience_s: float, then: Callable[[str | None], None]
    ) -> None:
        """Write the finished mark."""
        how = "steps" if steps is not None and reached >= steps else "break"
        submission = self._identity.submission
        mark = FinishedMark(steps=steps, reached=reached, how=how, submission=submission, attempt=attempt)
        self.submit(
            lambda number: Finish(id=number, mark=mark, patience_s=patience_s),
            lambda reply: then(reply.why if isinstance(reply, Failed) else None),
        )

    def ship(self, number: int, path: str, then: Callable[[bool], None]) -> None:
        """Keep a copy of a segment of the journal; ``then`` is told whether that succeeded."""
        if self.opened is not None:
            self.submit(
                lambda n: Ship(id=n, pod=self._identity.pod, number=number, path=path),
                lambda reply: then(not isinstance(reply, Failed)),
            )

    def ship_rest(
        self, segment: Callable[[], tuple[int, Path] | None], shipped: Callable[[int], None], until: float
    ) -> None:
        """Ship everything, waiting for it: the last entries say how it ended. Not for the loop."""
        while self.opened is not None and (cut := segment()) is not None:
            done: list[bool] = []
            self.ship(cut[0], str(cut[1]), done.append)
            while not done:
                saver = self._saver
                if saver is None or not select.select([saver], [], [], max(0.0, until - time.monotonic()))[0]:
                    return
                self._on_replies()
            if not done[0]:
                return  # the store fails, and what is left has nobody to try it again
            shipped(cut[0])

    def close(self, timeout_s: float) -> None:
        """Let the saver finish what it was asked, and end."""
        if self._saver is not None:
            self._unwatch(self._saver.fileno())
            self._saver.close(timeout_s)
            self._saver = None

    def _submit(self, make: Callable[[int], Request], then: Callable[[Reply], None]) -> None:
        if self._saver is None:
            try:
                self._saver = SaverProcess(self._slots, self._token, self._environ)
            except OSError as error:  # the node has no room for it
                then(Failed(id=0, why=f"the saver cannot be started: {error}", answered=False, kind="internal"))
                return
            self._watch(self._saver.fileno(), self._on_replies)
        self._saver.submit(make, then)

    def _on_replies(self) -> None:
        saver = self._saver
        if saver is None:
            return
        saver.read()
        if saver.alive:
            return
        # It was killed (out of memory, a person): what it held is free, so another one takes over.
        self._note("the saver ended; another one is started")
        self._unwatch(saver.fileno())
        saver.close(0.0)
        self._saver = None
        if self._again is not None and not self._opening:  # else its opening has failed, and is tried again
            self._again()

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for make, then in held:
            self.submit(make, then)

    def _reopened(self, answer: Opened | ev.OpenFailed) -> None:
        if isinstance(answer, ev.OpenFailed):
            self._note(f"the checkpoint store is lost: {answer.why}; training goes on without it")
            if self._again is not None and not answer.wrong:
                self._after("open", REOPEN_S, self._again)
