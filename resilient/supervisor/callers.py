# SPDX-License-Identifier: Apache-2.0
"""Whoever calls a supervisor from outside: signals, and commands of a person; and who reads what it prints."""

from __future__ import annotations

import signal
from collections.abc import Callable

from resilient.core import events as ev
from resilient.supervisor.scene import Scene


class Callers:
    """Of one supervisor."""

    def __init__(
        self,
        scene: Scene,
        emit: Callable[[ev.Event], None],
        *,
        children: Callable[[], None],
        save: Callable[[], bool],
        pause: Callable[[bool], None],
        is_leaving: Callable[[], bool],
    ) -> None:
        """``children`` looks which of them have ended; ``save`` is False where nothing can be saved; ``pause`` is told
        whether our own output is stuck."""
        self._scene = scene
        self._emit = emit
        self._children = children
        self._save = save
        self._pause = pause
        self._is_leaving = is_leaving

    def watch(self, add: Callable[[int, Callable[[], None]], None]) -> None:
        """Hear them all from now on."""
        add(self._scene.signals.fileno(), self._on_signals)
        add(self._scene.control.fileno(), self._on_control)
        add(self._scene.console.fileno(), self._on_console)

    def _on_signals(self) -> None:
        for number in self._scene.signals.read():
            if number == signal.SIGCHLD:
                self._children()
            elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                again = number == signal.SIGINT and self._is_leaving()
                self._emit(ev.LeaveAsked(by=signal.Signals(number).name, urgent=again))

    def _on_control(self) -> None:
        request = self._scene.control.accept()
        if request is None:
            return
        if request.verb == "stop":
            request.reply("all workers finish one common step, save there and leave")
            self._emit(ev.LeaveAsked(by="resilient stop"))
        elif self._save():
            request.reply("a checkpoint is taken at the next common step")
        else:
            request.reply("cannot save: no worker trains under a checkpoint URL yet; try again later")

    def _on_console(self) -> None:
        self._scene.console.acknowledge()
        self._pause(self._scene.console.full)
