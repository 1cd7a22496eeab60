# SPDX-License-Identifier: Apache-2.0
"""How a worker ends that others wait for: though it caught its end, without a search for garbage, and with all that it
had written."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from host import WAIT_S, Host
from supervised import LIMIT_S

import resilient
from resilient.link import board as words
from resilient.link.messages import Steps

IN_A_CYCLE = """
import atexit, gc, logging, sys, threading, weakref
from resilient.training.leaving import hurry

class Log:
    def __init__(self, path, mode):
        self.file, self.itself = open(path, mode), self
    def __del__(self):
        print("looked for")

class Closed(Log):
    pass

class Asked:
    @property
    def __class__(self):
        raise RuntimeError("nobody asks a proxy what it is")

proxy = Asked()
log, data, closed = Log(sys.argv[1], "w"), Log(sys.argv[2], "wb"), Closed(sys.argv[2], "rb")
log.file.write("the last line")
data.file.write(b"the last bytes")
closed.file.close()
atexit.register(print, "atexit ran")
"""
"""Files that nobody closes, which only the search for garbage would find."""


@pytest.mark.parametrize("hurries", [True, False])
def test_what_was_written_is_kept_and_nothing_is_looked_for(tmp_path: Path, hurries: bool) -> None:
    """As after an ordinary end, which does look for what it may forget."""
    log, data = tmp_path / "log", tmp_path / "data"
    code = IN_A_CYCLE + ("hurry()\n" if hurries else "")
    environ = {**os.environ, "PYTHONPATH": str(Path(resilient.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(log), str(data)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert (log.read_text(), data.read_bytes()) == ("the last line", b"the last bytes")
    assert done.stdout.splitlines() == ["atexit ran"] + ["looked for"] * (0 if hurries else 3)
    assert done.stderr == ""


def catches_everything(inside: socket.socket) -> None:
    run = resilient.Run(state={"numbers": [1]})

    @run.step
    def step(batch: int) -> None:
        try:
            inside.send(b"!")
            inside.recv(1)
        except:  # noqa: E722  # what scripts do
            inside.send(b"caught")

    for batch in run.batches([0], steps=10**9):
        step(batch)


def test_a_worker_that_caught_its_end_leaves_at_the_next_boundary() -> None:
    """Its peers wait for it, and a second signal never comes."""
    ours, theirs = socket.socketpair()
    with Host() as host, ours, theirs:
        host.launch(catches_everything, theirs)
        host.begin()
        host.hear(Steps)  # which it answers
        ours.settimeout(WAIT_S)
        assert ours.recv(1) == b"!"
        host.board.words[words.END] = 1
        assert host.kill(signal.SIGTERM) == [143]
        assert ours.recv(10) == b"caught"
