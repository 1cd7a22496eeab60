# SPDX-License-Identifier: Apache-2.0
"""Several errands at once, beside somebody else's selector, until each has come back or was given up."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from resilient.core.measured import Unmeasured
from resilient.preflight.errand import Errand, Runner
from resilient.supervisor.timers import Timers


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a checkup asks of the loop it runs in."""

    watch: Callable[[int, Callable[[], None]], None]
    unwatch: Callable[[int], None]
    after: Callable[[str, float, Callable[[], None]], None]


class Checkup:
    """Sends probes out; ``then`` is told all their facts, by the names that the errands were given."""

    def __init__(
        self,
        errands: Mapping[str, Errand],
        environ: Mapping[str, str],
        ports: Ports,
        then: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._ports = ports
        self._then = then
        self._facts: dict[str, object] = {}
        self._out: dict[str, Runner] = {}
        for name, errand in errands.items():
            try:
                runner = Runner(errand, environ)
            except OSError as error:  # no more processes or descriptors
                self._facts[name] = Unmeasured(why=f"the probe could not be started: {error}")
                continue
            self._out[name] = runner
            ports.watch(runner.fileno(), partial(self._read, name))
            ports.after(f"probe {name}", errand.limit_s, partial(self._overdue, name))
        self._order = tuple(errands)

    @property
    def pids(self) -> frozenset[int]:
        """Children that are waited for here."""
        return frozenset(runner.pid for runner in self._out.values())

    @property
    def done(self) -> bool:
        return not self._out

    def begin(self) -> None:
        """Tell at once where there was nothing to send out."""
        self._finish()

    def close(self) -> None:
        """End what is still out; ``then`` is not told any more."""
        self._then = lambda facts: None
        for name in list(self._out):
            self._dismiss(name)

    def _read(self, name: str) -> None:
        self._came_back(name, self._out[name].read())

    def _overdue(self, name: str) -> None:
        if name in self._out:
            self._came_back(name, self._out[name].overdue())

    def _came_back(self, name: str, facts: object | None) -> None:
        if facts is not None:
            self._facts[name] = facts
            self._dismiss(name)
            self._finish()

    def _dismiss(self, name: str) -> None:
        runner = self._out.pop(name)
        self._ports.unwatch(runner.fileno())
        runner.close()

    def _finish(self) -> None:
        if self.done:
            then, self._then = self._then, lambda facts: None
            then({name: self._facts[name] for name in self._order})


_TICK_S: Final = 1.0


def measure(errands: Mapping[str, Errand], environ: Mapping[str, str]) -> Mapping[str, object]:
    """Send probes out and wait for all of them; each is bounded by its own limit."""
    timers, told = Timers(), dict[str, object]()
    with selectors.DefaultSelector() as selector:
        ports = Ports(
            watch=lambda fd, action: _register(selector, fd, action),
            unwatch=lambda fd: _unregister(selector, fd),
            after=timers.after,
        )
        checkup = Checkup(errands, environ, ports, told.update)
        try:
            checkup.begin()
            while not checkup.done:
                for key, _ in selector.select(timers.wait_s(_TICK_S)):
                    if key.fd in selector.get_map():
                        key.data()
                timers.run()
        finally:
            checkup.close()
    return told


def _register(selector: selectors.BaseSelector, fd: int, action: Callable[[], None]) -> None:
    selector.register(fd, selectors.EVENT_READ, action)


def _unregister(selector: selectors.BaseSelector, fd: int) -> None:
    selector.unregister(fd)
