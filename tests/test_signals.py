# SPDX-License-Identifier: Apache-2.0
"""Signals become something to read; nothing is lost and everything is put back."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient.link.board import Board
from resilient.supervisor.signals import WANTED, Signals
from resilient.training.leaving import WayOut
from resilient.training.signals import install

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.close()


def test_signals_wake_a_selector_and_are_read_in_order(signals: Signals) -> None:
    """Each one, a second Ctrl-C too; then nothing is left."""
    assert not select.select([signals], [], [], 0)[0]
    sent = [signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
    for number in sent:
        signal.raise_signal(number)
    assert select.select([signals], [], [], 60)[0]
    assert signals.read() == sent
    assert signals.read() == []
    assert not select.select([signals], [], [], 0)[0]


def test_a_flood_of_one_signal_hides_no_other(signals: Signals) -> None:
    """However many children end while the loop is busy, SIGTERM is seen."""
    for _ in range(5000):
        signal.raise_signal(signal.SIGCHLD)
    signal.raise_signal(signal.SIGTERM)
    assert select.select([signals], [], [], 60)[0]
    assert signals.read()[-1] == signal.SIGTERM


def test_a_child_that_ends_wakes_the_selector(signals: Signals) -> None:
    """Where pidfds are refused this is how exits are learned."""
    with subprocess.Popen(["true"]):
        assert select.select([signals], [], [], 60)[0]
    assert signal.SIGCHLD in signals.read()


def test_close_puts_everything_back() -> None:
    """Handlers, mask and wake-up descriptor are those from before."""

    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in WANTED]

    before, mask = handlers(), signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signals = Signals()
        assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        signals.close()
        assert handlers() == before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_what_a_parent_had_ignored_on_purpose_stays_ignored() -> None:
    """``nohup`` is obeyed; an ignored SIGTERM or SIGCHLD is not, for the job depends on them."""
    code = """if True:
        import signal
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        from resilient.supervisor.signals import Signals
        signals = Signals()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.raise_signal(number)
        print(signals.read() == [signal.SIGTERM, signal.SIGCHLD])
    """
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, cwd=REPOSITORY, check=False)
    assert (done.stdout, done.stderr) == (b"True\n", b"")


def test_reading_does_not_wait(signals: Signals) -> None:
    """Nothing there is an empty list."""
    assert signals.read() == []
    assert os.get_blocking(signals.fileno()) is False


@pytest.mark.parametrize(("supervised", "code"), [(True, 143), (False, 196)])
def test_a_worker_whose_host_is_gone_leaves_when_it_is_asked_to(supervised: bool, code: int) -> None:
    """One that runs for itself with the contract's code: nothing can be saved any more."""
    before = signal.getsignal(signal.SIGTERM)
    board = Board.create(1)
    try:
        install(board, 0, WayOut(), supervised=supervised, host_is_gone=lambda: True)
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
        board.close()
    assert left.value.code == code


def test_a_worker_that_is_ending_already_is_left_to_it() -> None:
    """Asked to leave while its exit handlers run, it runs them all, says nothing, and keeps its own exit code."""
    code = """if True:
        import atexit, signal, sys
        from resilient.link.board import Board
        from resilient.training.leaving import WayOut
        from resilient.training.signals import install

        def asked(name):
            signal.raise_signal(signal.SIGTERM)
            print(name, flush=True)

        atexit.register(asked, "registered before")
        board = Board.create(1)
        install(board, 0, WayOut(), supervised=True, host_is_gone=lambda: True)
        atexit.register(asked, "registered after")
        sys.exit(7)
    """
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, timeout=LIMIT_S, cwd=REPOSITORY, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"registered after\nregistered before\n", b"")


LEAVING = """if True:
    import os, signal, sys
    from resilient.link.board import ATTENTION, END, NOTHING, Board
    from resilient.training.leaving import WayOut
    from resilient.training.signals import install, leaving_later

    board, way_out = Board.create(1), WayOut()
    board.clear_orders()
    board.words[END] = 1
    install(board, 0, way_out, supervised=True, host_is_gone=lambda: False)

    def told():
        signal.raise_signal(signal.SIGTERM)

    class Iterator:
        def __del__(self):
            told()

    def generator():
        try:
            yield
        finally:
            told()

    def next_boundary():
        print("went on", board.words[ATTENTION] == NOTHING, flush=True)
        way_out.take_again()

"""
"""A worker whose group is being ended."""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("iterator = Iterator()\ndel iterator\nnext_boundary()", "went on False\n"),
        ("begun = generator()\nnext(begun)\ndel begun\nnext_boundary()", "went on False\n"),
        ("try:\n told()\nexcept:\n pass\nnext_boundary()", "went on False\n"),
        ("try:\n told()\nfinally:\n told()\n print('cleared up', flush=True)\nnext_boundary()", "cleared up\n"),
        ("try:\n way_out.take(143)\nfinally:\n told()\n print('cleared up', flush=True)", "cleared up\n"),
        ("os.register_at_fork(after_in_parent=told)\nwith leaving_later():\n os.fork() or os._exit(0)", ""),
    ],
    ids=["in a finalizer", "in a generator's", "caught", "told twice", "told at the boundary", "around a fork"],
)
def test_a_worker_leaves_by_one_exception_that_is_not_lost(body: str, said: str) -> None:
    """Python says nothing of exceptions that it ignores; where one cannot be raised, or was caught, the next boundary
    is the end, and what a worker does on its way out is not disturbed."""
    command = [sys.executable, "-c", LEAVING + body.replace("\n", "\n    ").join(["    ", "\n"])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=REPOSITORY, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, said, "")
