# SPDX-License-Identifier: Apache-2.0
"""Several pods of one run for tests: each a real supervisor, all on this machine, meeting at a port of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from chaos_run import free_port
from supervised import Ended, Folder, Running


class Pods:
    """The pods of one run in one folder, started as often as a test wants."""

    def __init__(self, folder: Folder, count: int, *flags: str | Path) -> None:
        self.folder = folder
        self.count = count
        self._flags = flags
        self._port = free_port()

    def start(self, pod: int, *arguments: str | Path, **environ: str) -> Running:
        """Start one of them; end it by leaving the ``with`` block."""
        meet = ("--master-addr", "localhost", "--master-port", str(self._port))
        where = ("--nnodes", str(self.count), "--node-rank", str(pod), *meet)
        return self.folder.start(*where, *self._flags, *arguments, **environ)

    @contextlib.contextmanager
    def started(self, *arguments: str | Path, **environ: str) -> Iterator[list[Running]]:
        """All of them."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.start(pod, *arguments, **environ)) for pod in range(self.count)]

    def run(self, *arguments: str | Path, **environ: str) -> list[Ended]:
        """All of them to their ends."""
        with self.started(*arguments, **environ) as running:
            return [one.wait() for one in running]
