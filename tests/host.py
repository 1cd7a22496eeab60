# SPDX-License-Identifier: Apache-2.0
"""A small host for tests of workers: the real board, memory, sockets and messages, driven step by step by the test."""

import multiprocessing
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch._dynamo  # noqa: F401  # optimizers import it when they are built: once here, not in every forked worker

from resilient.checkpoint.arena import create_arenas
from resilient.link import board as words
from resilient.link.board import Board, SlotRecord
from resilient.link.channel import Channel, Closed, send_descriptors
from resilient.link.messages import (
    FROM_WORKER,
    AlreadyFinished,
    AtEnd,
    Begin,
    FinalSlot,
    FromWorker,
    Go,
    Hello,
    Leaving,
    Restored,
    Steps,
    Taken,
    Tried,
    Try,
)

WAIT_S = 120.0
FORK = multiprocessing.get_context("fork")


class Host:
    """Holds the memory of ``ranks`` workers over their attempts, like a supervisor."""

    def __init__(self, ranks: int = 1, *, checkpoints: str | None = None) -> None:
        self.ranks = ranks
        self.checkpoints = checkpoints
        self.board = Board.create(ranks)
        self.slots = create_arenas(ranks, tempfile.gettempdir())
        self.attempt = 0
        self.finished_steps: int | None = None
        self.final_slot: int | None = 1
        self.supervised = True
        self.heard: list[tuple[int, FromWorker]] = []
        self.channels: list[Channel[FromWorker]] = []
        self.workers: list[Any] = []

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self.board.close()
        for slot in (slot for slots in self.slots.values() for slot in slots):
            slot.close()

    def launch(self, target: Callable[..., None], *args: object) -> None:
        """Start the next attempt: one forked process per rank runs ``target`` as a supervised worker."""
        self.attempt += 1
        self.heard.clear()
        self.board.reset_rows()
        self.board.clear_orders()
        pairs = [socket.socketpair() for _ in range(self.ranks)]
        self.channels = [Channel(ours, FROM_WORKER) for ours, _ in pairs]
        every = [sock for pair in pairs for sock in pair]
        self.workers = [
            FORK.Process(target=_work, args=(rank, self.ranks, pairs[rank][1], every, target, args))
            for rank in range(self.ranks)
        ]
        for rank, worker in enumerate(self.workers):
            worker.start()
            send_descriptors(pairs[rank][0], [self.board.fd, *(slot.fd for slot in self.slots[rank])])
        for _, theirs in pairs:
            theirs.close()

    def send(self, message: object) -> None:
        for channel in self.channels:
            channel.send(message)

    def hear(self, kind: type[Any], count: int | None = None) -> list[Any]:
        """Serve the workers until so many messages of a kind have come, by default one of each rank."""
        wanted = self.ranks if count is None else count
        self.serve(lambda: sum(isinstance(message, kind) for _, message in self.heard) >= wanted)
        return [message for _, message in self.heard if isinstance(message, kind)]

    def serve(self, enough: Callable[[], bool]) -> None:
        """Answer what needs no decision, until ``enough``; an end that comes first fails the test."""
        open_channels = {channel.fileno(): rank for rank, channel in enumerate(self.channels)}
        while not enough():
            assert open_channels, f"the workers ended; they had said {self.heard}"
            ready, _, _ = select.select(list(open_channels), [], [], WAIT_S)
            assert ready, f"nothing came; the workers had said {self.heard}"
            for fileno in ready:
                rank = open_channels[fileno]
                try:
                    messages = self.channels[rank].drain()
                except Closed:
                    del open_channels[fileno]
                    continue
                for message in messages:
                    self.heard.append((rank, message))
                    self._answer(rank, message)

    def _answer(self, rank: int, message: FromWorker) -> None:
        channel = self.channels[rank]
        if isinstance(message, Steps):
            done = self.finished_steps
            channel.send(Go(name="", step=0) if done is None else AlreadyFinished(steps=done))
        elif isinstance(message, AtEnd):
            channel.send(FinalSlot(slot=self.final_slot))

    def begin(self, candidates: Sequence[Try] = ()) -> str:
        """The handshake; gives the name of the candidate that all ranks took."""
        self.hear(Hello)
        self.send(Begin(attempt=self.attempt, checkpoints=self.checkpoints))
        chosen = Go(name="", step=0)
        for number, candidate in enumerate(candidates, 1):
            self.send(candidate)
            self.hear(Tried, number * self.ranks)
            if all(answer.ok for _, answer in self.heard[-self.ranks :]):  # type: ignore[union-attr]  # what is left of heard is answers
                chosen = Go(name=candidate.name, step=candidate.step)
                break
        self.send(chosen)
        self.hear(Restored)
        return chosen.name

    def refusals(self) -> list[str]:
        """Why candidates were refused."""
        return [message.why for _, message in self.heard if isinstance(message, Tried) and not message.ok]

    def name(self, *, snapshot: int | None = None, stop: bool = False) -> int:
        """Name the boundary at which all act, by the board's protocol; the workers run meanwhile."""
        board, row = self.board.words, words.row_base
        board[words.PENDING] = 1
        board[words.ATTENTION] = 0
        time.sleep(0.002)  # stores that were issued before are visible by now: the protocol's own wait
        step = max(board[row(rank) + words.ENTERED] for rank in range(self.ranks))
        self.order(step, snapshot=snapshot, stop=stop)
        board[words.PENDING] = 0
        return step

    def order(self, step: int, *, snapshot: int | None = None, stop: bool = False) -> None:
        """Write the orders for a boundary that no rank has reached."""
        board = self.board.words
        board[words.SNAPSHOT_SLOT] = words.NONE if snapshot is None else snapshot
        board[words.SNAPSHOT_STEP] = words.NONE if snapshot is None else step
        board[words.STOP_STEP] = step if stop else words.NONE
        board[words.ATTENTION] = step

    def records(self, slot: int) -> list[SlotRecord | None]:
        return [self.board.record(rank, slot) for rank in range(self.ranks)]

    def kill(self, number: int = signal.SIGKILL) -> list[int]:
        """End the workers by a signal and wait for them."""
        for worker in self.workers:
            if worker.is_alive():
                os.kill(worker.pid, number)
        return self.wait()

    def wait(self) -> list[int]:
        """Serve until all workers have ended; gives their exit codes."""
        codes = []
        for worker in self.workers:
            while worker.exitcode is None:
                select.select([worker.sentinel, *self.channels], [], [], WAIT_S)
                for rank, channel in enumerate(self.channels):
                    self._drain(rank, channel)
                worker.join(0)
            codes.append(worker.exitcode)
            worker.close()
        for channel in self.channels:
            channel.close()
        self.workers, self.channels = [], []
        return codes

    def _drain(self, rank: int, channel: Channel[FromWorker]) -> None:
        try:
            messages = channel.drain()
            for message in messages:
                self.heard.append((rank, message))
                self._answer(rank, message)
        except Closed:
            return


def taken(host: Host) -> list[int]:
    """Steps of the snapshots that were taken, in the order in which they were heard of."""
    return [message.step for _, message in host.heard if isinstance(message, Taken)]


def left(host: Host) -> list[int]:
    """Steps at which workers left."""
    return [message.step for _, message in host.heard if isinstance(message, Leaving)]


def _work(
    rank: int, ranks: int, link: socket.socket, every: Sequence[socket.socket], target: Callable[..., None], args: Any
) -> None:
    for sock in every:
        if sock is not link:
            sock.close()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    os.environ["RESILIENT_INTERNAL_LINK"] = str(link.detach())
    target(*args)
