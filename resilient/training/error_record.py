# SPDX-License-Identifier: Apache-2.0
"""The worker's last words: the exception that ends it, written where the supervisor finds it.

Installed as ``sys.excepthook``; the hook that was there before still runs. It
sees BaseExceptions too, bounds everything it writes, and never raises but for
the one ``SystemExit`` that gives an unsupervised worker its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from resilient.core import wire
from resilient.core.batch import Batch
from resilient.core.evidence import ErrorLink, ErrorRecord, Ruling
from resilient.core.exit_codes import ExitCode
from resilient.core.traceback_text import is_users, parse_traceback
from resilient.errors import CheckpointError, Reschedule, Retry, SettingsError, Stop
from resilient.facts import LATE
from resilient.training.leaving import hurry
from resilient.training.signals import children_unheard

MESSAGE_CHARS: Final = 4096
TRACEBACK_CHARS: Final = 32 * 1024
LINKS: Final = 16
_BASES: Final = 8

_RULINGS: Final = ((Stop, Ruling.STOP), (Retry, Ruling.RETRY), (Reschedule, Ruling.RESCHEDULE))
_CODES: Final = (
    (Stop, ExitCode.CODE_FAULT),
    (Retry, ExitCode.RESTART),
    (Reschedule, ExitCode.RESCHEDULE),
    (CheckpointError, ExitCode.CONFIG_FAULT),
    (SettingsError, ExitCode.CONFIG_FAULT),
)


class LastWords:
    """Writes the error record of this process when an exception ends it."""

    def __init__(self, *, rank: int, path: str | None, torchelastic_path: str | None, supervised: bool) -> None:
        self._rank = rank
        self.step: Callable[[], int] = lambda: 0
        """The step that was entered last."""
        self.farewell: Callable[[], None] = lambda: None
        """What else there is to say to the supervisor."""
        self.batch: Callable[[Sequence[str]], Batch | None] = lambda messages: None
        """The batch that an exception with these messages, of itself and of its causes, is about."""
        self._path = path
        self._torchelastic_path = torchelastic_path
        self._supervised = supervised
        self._pid = os.getpid()
        self._heard = False
        self._before = sys.excepthook

    def install(self) -> None:
        """From now on this hears of every uncaught exception."""
        self._before = sys.excepthook
        sys.excepthook = self._hear
        atexit.register(self._look_back)

    def _hear(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() != self._pid:  # a forked child's exception is not the worker's
            self._before(kind, error, trace)
            return
        self._heard = True
        hurry()
        code = None if self._supervised else exit_code(error)
        try:
            with children_unheard():
                self._write(error)
                self.farewell()
        except Exception as failure:  # the last words must never hide what they are about
            _complain(failure)
        if code is None:
            self._before(kind, error, trace)
            return
        # Raising below would lose what torch's own hook, when it runs around this one, has caught of our output.
        with contextlib.redirect_stderr(sys.__stderr__ or io.StringIO()):
            self._before(kind, error, trace)
        raise SystemExit(int(code))  # the interpreter then ends in good order, with atexit and logging, and this code

    def _look_back(self) -> None:
        """A hook that was put in place of ours has kept quiet; the interpreter remembers what it showed last.

        That may be older than the end, so it stands in a file of its own, which proves no failure by being there.
        """
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if self._path and not self._heard and os.getpid() == self._pid and isinstance(error, BaseException):
            try:
                _replace(self._path + LATE, self._described(error))
            except Exception as failure:  # as above
                _complain(failure)

    def _write(self, error: BaseException) -> None:
        if self._path:
            _replace(self._path, self._described(error))
        elif self._torchelastic_path:
            _replace(self._torchelastic_path, _as_torchelastic(error))

    def _described(self, error: BaseException) -> bytes:
        try:
            batch = self.batch([_message(member) for member in chain_of(error)])
        except Exception as failure:  # the record says more than the batch does
            _complain(failure)
            batch = None
        return wire.encode(describe(error, rank=self._rank, step=self.step(), batch=batch))


def exit_code(error: BaseException) -> ExitCode | None:
    """What an unsupervised worker exits with; ``None``: Python's own 1, since nobody can judge it yet."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


def describe(error: BaseException, *, rank: int, step: int, batch: Batch | None = None) -> ErrorRecord:
    """The record of an exception."""
    members = chain_of(error)
    frame, function = _innermost(error)
    told = next((found for member in members if (found := _told(member)) is not None), None)
    if told is not None and told.function is not None:
        frame, function = told.frame, told.function
    return ErrorRecord(
        chain=(*(_link(member) for member in members), *(told.chain if told else ()))[:LINKS],
        traceback=_formatted(error)[-TRACEBACK_CHARS:],
        frame=frame,
        function=function,
        rank=rank,
        host=socket.gethostname(),
        step=step,
        monotonic_s=time.monotonic(),
        wall_s=time.time(),
        batch=batch,
        ruling=next((ruling for kind, ruling in _RULINGS if isinstance(error, kind)), None),
    )


def chain_of(error: BaseException) -> list[BaseException]:
    """The exception, then what caused it, the members of groups, and what DCP collected from other ranks."""
    found: list[BaseException] = []
    queue = [error]
    while queue and len(found) < LINKS:
        current = queue.pop(0)
        if any(current is known for known in found):
            continue
        found.append(current)
        queue.extend(_next(current))
    return found


def _next(error: BaseException) -> Iterator[BaseException]:
    if error.__cause__ is not None:
        yield error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__:
        yield error.__context__
    members = getattr(error, "exceptions", ())  # ExceptionGroup, which Python 3.10 lacks
    if isinstance(members, (tuple, list)):
        yield from (member for member in members if isinstance(member, BaseException))
    failures = getattr(error, "failures", None)  # torch.distributed.checkpoint.api.CheckpointException
    for failure in failures.values() if isinstance(failures, dict) else ():
        member = failure[0] if isinstance(failure, tuple) and failure else failure
        if isinstance(member, BaseException):
            yield member


def _told(error: BaseException) -> ErrorRecord | None:
    """What ``torch.multiprocessing.spawn`` passes on of a process of its own: a traceback, as the message."""
    if type(error).__name__ != "ProcessRaisedException":
        return None
    return parse_traceback(_plain(str(error)))


def _link(error: BaseException) -> ErrorLink:
    bases = [_name(base) for base in type(error).__mro__[1:] if base is not object]
    return ErrorLink(type=_name(type(error)), message=_message(error), bases=tuple(bases[:_BASES]))


def _name(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return _plain(name)[:200]


def _message(error: BaseException) -> str:
    try:
        return _plain(str(error))[:MESSAGE_CHARS]
    except Exception as failure:  # the user's own __str__
        return f"<its message cannot be read: {type(failure).__name__}>"


def _plain(text: str) -> str:
    """Without lone surrogates, which no file takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _formatted(error: BaseException) -> str:
    try:
        return _plain("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    except Exception:  # the same __str__
        return _plain("".join(traceback.format_tb(error.__traceback__)))


def _innermost(error: BaseException) -> tuple[str | None, str | None]:
    """Innermost frame of the user's own code, as ``train.py:41 in loss`` and ``train.py:loss``."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        code = frame.f_code
        if is_users(code.co_filename):
            file = _plain(Path(code.co_filename).name)
            return f"{file}:{line} in {code.co_name}", f"{file}:{code.co_name}"
    return None, None


def _as_torchelastic(error: BaseException) -> bytes:
    """The form that ``torch.distributed.elastic`` reads, so that torchrun shows it."""
    details = {"py_callstack": _formatted(error)[-TRACEBACK_CHARS:], "timestamp": str(int(time.time()))}
    message = f"{type(error).__name__}: {_message(error)}"
    return json.dumps({"message": {"message": message, "extraInfo": details}}).encode()


def _replace(path: str, data: bytes) -> None:
    """Write a file so that a reader finds all of it or none."""
    fresh = f"{path}.{os.getpid()}"
    Path(fresh).write_bytes(data)
    os.replace(fresh, path)


def _complain(failure: Exception) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"resilient: cannot write the error record: {failure}\n")
