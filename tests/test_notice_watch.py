# SPDX-License-Identifier: Apache-2.0
"""The process that waits for notices, with a real one: it cannot reach anything, it dies, and training goes on."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient import settings
from resilient.core.cloud import Cloud
from resilient.supervisor.notice_watch import NoticeWatch


class Loop:
    """As much of a supervisor's loop as a watch needs."""

    def __init__(self, asked: Cloud | None) -> None:
        self.actions: dict[int, Callable[[], None]] = {}
        self.timers: dict[str, Callable[[], None]] = {}
        self.unheard: list[str] = []
        self.watch = NoticeWatch(
            asked,
            settings.environment(),
            heard=lambda announced: None,
            unheard=self.unheard.append,
            watch=self.actions.__setitem__,
            unwatch=self.actions.__delitem__,
            after=lambda name, seconds, action: self.timers.__setitem__(name, action),
        )

    def until_unheard(self) -> str:
        while not self.unheard:
            ready = select.select(list(self.actions), [], [], LIMIT_S)[0]
            assert ready, "nothing was said"
            for fd in ready:
                self.actions[fd]()
        return self.unheard.pop()


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of ours have no network."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("this machine does not let us make a network")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec unshare --net {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_nobody_asked_and_nothing_is_started() -> None:
    """That is the default: no process, no request, not a word."""
    loop = Loop(None)
    assert (loop.watch.pid, loop.actions, loop.unheard) == (None, {}, [])


@pytest.mark.usefixtures("lonely")
def test_a_process_that_dies_is_said_and_started_again() -> None:
    """The OOM killer takes any process; later ones are heard all the same."""
    loop = Loop(Cloud.AWS)
    try:
        assert "/latest/api/token" in loop.until_unheard()
        first = loop.watch.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert "the process that waits for them ended" in loop.until_unheard()
        assert (loop.watch.pid, loop.actions) == (None, {})
        loop.timers.pop("notices")()
        assert loop.watch.pid not in (None, first)
        assert "/latest/api/token" in loop.until_unheard()
    finally:
        loop.watch.close()
    assert loop.actions == {}


def test_a_node_without_room_for_it_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training begins all the same."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    loop = Loop(Cloud.GCP)
    assert "cannot be started" in loop.unheard[0]
    assert list(loop.timers) == ["notices"]
    loop.watch.close()
