# SPDX-License-Identifier: Apache-2.0
"""All workers of one attempt: how they are started, heard and ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resilient.core.collectives import Collectives
from resilient.facts import ERROR_FILE_VARIABLE, LINK_VARIABLE, STACKS_VARIABLE
from resilient.launch import Launch, Seat, worker_command, worker_environment
from resilient.link.board import Board
from resilient.link.channel import Channel, send_descriptors
from resilient.link.messages import FROM_WORKER, FromWorker, ask_path
from resilient.supervisor import nccl
from resilient.supervisor.descendants import TOKEN_VARIABLE
from resilient.supervisor.output import Lines, Relay
from resilient.supervisor.processes import Exit, Worker, spawn


@dataclass(slots=True, kw_only=True)
class Member:
    """One worker with everything that connects us to it."""

    rank: int
    process: Worker
    channel: Channel[FromWorker] | None
    stdout: Relay
    stderr: Relay
    error_file: Path
    torchelastic_file: Path
    spawned_at: float
    nccl_log: Callable[[], str] = str
    """The end of what NCCL has logged for it."""
    collectives: tuple[Collectives, ...] | None = None
    """How far it is in its groups; ``None`` while it has not said so."""
    exit: Exit | None = None
    order: int | None = None
    """How many had ended before it."""
    stopped: bool = False
    """It was told to end before it did."""
    open_pipes: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What all attempts of a supervisor share."""

    launch: Launch
    run_id: str
    base: Mapping[str, str]
    token: str
    scratch: Path
    """Private directory for error records and stacks."""
    terminal: bool
    max_restarts: int


def start(
    place: Place,
    board: Board,
    slots: Mapping[int, Sequence[int]],
    lines: Lines,
    sink: Callable[[int, bytes], object],
    *,
    into: list[Member],
    launch: int,
    seat: Seat,
    now: float,
) -> None:
    """Launch all workers; ``into`` gets them one by one: an ``OSError`` leaves those that were started to be ended."""
    folder = place.scratch / f"launch-{launch}"
    with contextlib.suppress(OSError):  # on a full disk workers do without records of their errors, and train
        folder.mkdir(mode=0o700, parents=True)
    for rank in range(place.launch.nproc):
        files = (folder / f"error-{rank}.json", folder / f"torchelastic-{rank}.json")
        environ = worker_environment(
            place.launch,
            seat=seat,
            local_rank=rank,
            run_id=place.run_id,
            max_restarts=place.max_restarts,
            base=place.base,
            error_file=str(files[1]),
        )
        environ |= nccl.variables(folder, rank, place.base)
        environ |= {TOKEN_VARIABLE: place.token, ERROR_FILE_VARIABLE: str(files[0]), STACKS_VARIABLE: str(folder)}
        label = "" if place.terminal else f"[rank{seat.first + rank}] "
        into.append(_start_one(place, board, slots, lines, sink, rank, label, environ, files, now))


def _start_one(
    place: Place,
    board: Board,
    slots: Mapping[int, Sequence[int]],
    lines: Lines,
    sink: Callable[[int, bytes], object],
    rank: int,
    prefix: str,
    environ: dict[str, str],
    files: tuple[Path, Path],
    now: float,
) -> Member:
    ours: socket.socket | None = None
    theirs: socket.socket | None = None
    # A foreign launcher has several workers at the one end of a link: they save for themselves instead.
    if place.launch.foreign_launcher is None:
        ours, theirs = socket.socketpair()
        with contextlib.suppress(OSError):  # not every file system has FIFOs: then it is not asked
            os.mkfifo(ask_path(files[0].parent, rank), 0o600)
        send_descriptors(ours, [board.fd, *slots[rank]])
        environ[LINK_VARIABLE] = str(theirs.fileno())
    try:
        process = spawn(
            worker_command(place.launch, rank),
            environ=environ,
            fds=[theirs.fileno()] if theirs else [],
            terminal=place.terminal,
        )
    except BaseException:
        if ours is not None:
            ours.close()
        raise
    finally:
        if theirs is not None:
            theirs.close()
    member = Member(
        rank=rank,
        process=process,
        channel=Channel(ours, FROM_WORKER) if ours is not None else None,
        stdout=lines.relay(lambda data: sink(1, data), prefix=prefix),
        stderr=lines.relay(lambda data: sink(2, data), prefix=prefix),
        error_file=files[0],
        torchelastic_file=files[1],
        nccl_log=lambda: nccl.read_log(files[0].parent, rank, process.pid, place.base),
        spawned_at=now,
    )
    member.open_pipes = {fd for fd in (process.stdout, process.stderr) if fd is not None}
    return member


def ask(member: Member) -> bool:
    """Have a worker say how far it is in its collectives; False where nobody listens, or it is dying and has told."""
    if member.exit is not None or member.channel is None or member.collectives is not None:
        return False
    try:
        fd = os.open(ask_path(member.error_file.parent, member.rank), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(fd)  # whoever waits for somebody to write sees the end
    return True


def read_pipe(member: Member, fd: int, size: int = 1 << 16) -> bool:
    """Pass on what a worker printed; False once the pipe is at its end."""
    relay = member.stdout if fd == member.process.stdout else member.stderr
    try:
        data = os.read(fd, size)
    except BlockingIOError:
        return True
    if data:
        relay.feed(data)
        return True
    relay.finish()
    member.open_pipes.discard(fd)
    return False


def drain(member: Member) -> None:
    """Pass on what is left in the pipes of a worker that has ended; whoever else holds them may write for ever."""
    for fd in tuple(member.open_pipes):
        relay = member.stdout if fd == member.process.stdout else member.stderr
        left = _waiting_bytes(fd)
        while left > 0 and (data := os.read(fd, left)):
            relay.feed(data)
            left -= len(data)
        relay.finish()
        member.open_pipes.discard(fd)


def _waiting_bytes(fd: int) -> int:
    """How much can be read from a pipe now."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
