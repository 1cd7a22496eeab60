# SPDX-License-Identifier: Apache-2.0
"""The process that talks to the API server, so that one that hangs stops nobody else.

It looks at the own pod when it is asked, and writes what it is given. A thread for each of the two: one that waits as
it was told to must not keep the other. Whoever started it waits for no answer longer than it likes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, get_args

from resilient import retry
from resilient.core.pod_report import Report, Sieve
from resilient.core.pod_status import PodStatus
from resilient.link.channel import Channel, Closed

UNASKED: Final = 0
LEAVING_PAUSES_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The condition that says why the pod is to go may come a moment after the signal."""
T = TypeVar("T")


class NotDone(Exception):
    """It could not be done; the message says why, and what would help.

    ``again_s``: after so many seconds it may be tried again; ``None``: that would end the same.
    """

    def __init__(self, message: str, *, again_s: float | None) -> None:
        super().__init__(message)
        self.again_s = again_s


class Api(Protocol):
    """The own pod; each method may take its time-outs, and raises ``NotDone``."""

    def read(self) -> PodStatus: ...

    def annotate(self, value: str) -> None: ...

    def event(self, report: Report) -> Mapping[str, Any]: ...

    def emit(self, event: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Look at the own pod now."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """Find out why the pod is to go: look until its condition says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Write this where people look at the pod."""

    id: int
    report: Report


TO_WATCHER: Final[dict[str, type[Look | Leaving | Tell]]] = {"Look": Look, "Leaving": Leaving, "Tell": Tell}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a look has found; the first, with id 0, comes unasked."""

    id: int
    status: PodStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """A look had no answer yet, and is going on."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSeen:
    """A look has found nothing; ``final``: none will."""

    id: int
    why: str
    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was to be written is, or there are reasons why not."""

    id: int
    problems: tuple[str, ...] = ()
    prompt: bool = True
    """The API server has answered, be it with a refusal."""


FromWatcher = Seen | Unanswered | NotSeen | Told
FROM_WATCHER: Final[dict[str, type[FromWatcher]]] = {kind.__name__: kind for kind in get_args(FromWatcher)}


def serve(channel: Channel[Look | Leaving | Tell], open_api: Callable[[], Api]) -> None:
    """Watch until the other end is gone."""
    leaving = threading.Event()
    say = _Sayer(channel)
    lanes = (_Reader(open_api, say, leaving), _Writer(open_api, say, leaving))
    reader, writer = lanes
    for lane in lanes:
        threading.Thread(target=lane.run, daemon=True).start()
    reader.todo.put(Look(id=UNASKED))
    try:
        while True:
            message = channel.receive()
            (writer if isinstance(message, Tell) else reader).todo.put(message)
    except Closed:
        leaving.set()


class _Sayer:
    """Sends from any thread."""

    def __init__(self, channel: Channel[Look | Leaving | Tell]) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def __call__(self, message: FromWatcher) -> None:
        with self._lock:
            self._channel.send(message)


class _Lane:
    """One thread, its connection, and what is left alone: for good, or for as long as the API server has asked."""

    def __init__(self, open_api: Callable[[], Api], say: _Sayer, leaving: threading.Event) -> None:
        self.todo: queue.SimpleQueue[Look | Leaving | Tell] = queue.SimpleQueue()
        self._open = open_api
        self._api: Api | None = None
        self._say = say
        self._leaving = leaving
        self._off: dict[str, tuple[NotDone, float]] = {}
        """Each with the monotonic time until which it is not tried."""

    def run(self) -> None:
        """Work until the other end is gone, which the main thread sees and ends the process."""
        try:
            while True:
                self._turn(self.todo.get())
        except Closed:
            return

    def _turn(self, message: Look | Leaving | Tell) -> None:
        raise NotImplementedError

    def _do(self, name: str, do: Callable[[Api], T], failed: Callable[[], None] = lambda: None) -> T:
        """Do it, with patience; what is left alone ends as it did the last time."""
        problem, until = self._off.get(name, (None, 0.0))
        if problem is not None and time.monotonic() < until:
            raise problem
        try:
            return retry.pod_api(self._leaving, again_s, failed)(lambda: do(self._connected()))
        except NotDone as error:
            wait_s = float("inf") if error.again_s is None else error.again_s
            self._off[name] = (error, time.monotonic() + wait_s)
            raise
        except Exception as error:  # a bug of ours, or of the client's, costs this and no more
            why = f"cannot ask the API server: {type(error).__name__}: {error}; please report it"
            raise NotDone(why, again_s=None) from error

    def _connected(self) -> Api:
        if self._api is None:
            self._api = self._open()
        return self._api


def again_s(error: BaseException) -> float | None:
    """After how many seconds it may be tried again; of any other error nothing is known that waiting would help."""
    return error.again_s if isinstance(error, NotDone) else None


class _Reader(_Lane):
    """Looks."""

    def _turn(self, message: Look | Leaving | Tell) -> None:
        if isinstance(message, Look):
            self._look(message.id)
        elif isinstance(message, Leaving):
            for pause_s in LEAVING_PAUSES_S:
                if self._leaving.wait(pause_s) or self._look(UNASKED):
                    return

    def _look(self, number: int) -> bool:
        """Whether nothing more is to be learned of why the pod is to go."""
        try:
            status = self._do("read", lambda api: api.read(), lambda: self._say(Unanswered(id=number)))
        except NotDone as error:
            self._say(NotSeen(id=number, why=str(error), final=error.again_s is None))
            return error.again_s is None
        self._say(Seen(id=number, status=status))
        return status.disruption is not None


class _Writer(_Lane):
    """Writes; of several verdicts that wait only the last is worth an annotation."""

    def __init__(self, open_api: Callable[[], Api], say: _Sayer, leaving: threading.Event) -> None:
        super().__init__(open_api, say, leaving)
        self._sieve = Sieve()

    def _turn(self, message: Look | Leaving | Tell) -> None:
        waiting = [message]
        while not self.todo.empty():
            waiting.append(self.todo.get())
        told = [one for one in waiting if isinstance(one, Tell)]
        problems = [self._attempt("annotate", lambda api: api.annotate(told[-1].report.annotation))]
        for one in told:
            self._sieve, admitted = self._sieve.admit(one.report, time.monotonic())
            if admitted:
                problems.append(self._write_event(one.report))
        found = [problem for problem in problems if problem is not None]
        prompt = all(problem.again_s is None for problem in found)
        for one in told:
            self._say(Told(id=one.id, problems=tuple(map(str, found)), prompt=prompt))

    def _write_event(self, report: Report) -> NotDone | None:
        made: list[Mapping[str, Any]] = []

        def emit(api: Api) -> None:
            if not made:  # tried again it is the same Event
                made.append(api.event(report))
            api.emit(made[0])

        return self._attempt("event", emit)

    def _attempt(self, name: str, do: Callable[[Api], None]) -> NotDone | None:
        try:
            self._do(name, do)
        except NotDone as error:
            return error
        return None
