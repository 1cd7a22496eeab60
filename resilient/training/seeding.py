# SPDX-License-Identifier: Apache-2.0
"""What our batches change inside DataLoader worker processes: random draws, SIGTERM, and a word on what is read.

Draws made in a worker process cannot be restored by position, because workers
run ahead. So torch, numpy and random are reseeded there for each batch, from the
run's seed, the rank, the epoch and the number of the batch.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import random
import re
import select
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.util import get_temp_dir
from types import FrameType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resilient.training.signals import leaving_later

_PR_SET_PDEATHSIG: Final = 1
_HIGHEST: Final = 1 << 53
_ENDING_S: Final = 1.0


class Numbered(NamedTuple):
    """What the sampler asked for, with its place in the run."""

    epoch: int
    batch: int
    indices: Any


class Reading:
    """What each process that loads data is reading; in memory that outlives it, where it is not the training's own.

    A row for each worker process: its pid, 1 + the number of the batch, 1 + the index of the sample, and whether that
    has failed. From then on the row stands: the worker goes on with other batches.
    """

    PID, BATCH, SAMPLE, FAILED, WORDS = range(5)

    def __init__(self, loader: DataLoader[Any]) -> None:
        count = self.WORDS * max(1, loader.num_workers)
        multiprocessing: Any = loader.multiprocessing_context or torch.multiprocessing
        self.words: Any = multiprocessing.RawArray("q", count) if loader.num_workers else [0] * count

    def begin(self) -> None:
        """New workers, or an epoch of the old ones."""
        self.words[:] = [0] * len(self.words)

    @contextlib.contextmanager
    def of(self, wanted: Numbered) -> Iterator[Callable[[Any], None]]:
        """A batch is read; what is given is to be called with the index of each sample, before that is read."""
        found, words = get_worker_info(), self.words
        base = self.WORDS * (found.id if found else 0)
        if words[base + self.FAILED]:
            yield lambda index: None
            return
        words[base + self.PID], words[base + self.BATCH], words[base + self.SAMPLE] = os.getpid(), 1 + wanted.batch, 0
        at_sample = base + self.SAMPLE

        def began(index: Any) -> None:
            words[at_sample] = 1 + index if type(index) is int and 0 <= index < _HIGHEST else 0

        try:
            yield began
        except BaseException:
            words[base + self.FAILED] = 1
            raise
        words[at_sample] = 0  # from now on it is put together

    def failed(self, messages: Sequence[str], *, fetching: bool) -> tuple[int, int | None] | None:
        """Batch and sample, where that is known, of an exception with these messages."""
        for row in self._rows(messages, fetching):
            batch, sample = self.words[row + self.BATCH], self.words[row + self.SAMPLE]
            if batch:
                return batch - 1, sample - 1 if sample else None
        return None

    def _rows(self, messages: Sequence[str], fetching: bool) -> Iterator[int]:
        rows, is_told = range(0, len(self.words), self.WORDS), False
        for message in messages:
            # torch/_utils.py (ExceptionWrapper) and torch/utils/data/dataloader.py
            if caught := re.search(r"in DataLoader worker process (\d{1,9})\.", message):
                row, is_told = self.WORDS * int(caught[1]), True
                yield from [row] if row in rows and self.words[row + self.FAILED] else []
            elif died := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]{1,4000})\)", message):
                pids, is_told = {int(pid) for pid in died[1].replace(",", " ").split()}, True
                yield from (row for row in rows if self.words[row + self.PID] in pids)
        if self.words[self.PID] == os.getpid():
            yield from [0] if self.words[self.FAILED] else []
        elif fetching and not is_told:  # a pipe to a worker that has just died breaks with words of its own
            gone = _gone({pid for row in rows if (pid := self.words[row + self.PID])})
            yield from (row for row in rows if self.words[row + self.PID] in gone)


def _gone(pids: set[int]) -> set[int]:
    """Those of our children that have ended, or are about to: their pipes are closed a moment before."""
    gone = {pid for pid in pids if _has_ended(pid)}
    if gone or not hasattr(os, "pidfd_open"):
        return gone
    with contextlib.ExitStack() as opened, contextlib.suppress(OSError):  # refused here, or reaped by now
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pidfd in pidfds:
            opened.callback(os.close, pidfd)
        select.select(pidfds, [], [], _ENDING_S)
    return {pid for pid in pids if _has_ended(pid)}


def _has_ended(pid: int) -> bool:
    """Whoever started it may still ask how."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


class SeededData(Dataset[Any]):
    """The user's data set; in a worker process each batch finds the generators seeded for it."""

    def __init__(self, data: Any, seed: str, reading: Reading) -> None:
        self.data = data
        self.seed = seed
        self.reading = reading

    def __getitem__(self, wanted: Numbered) -> Any:
        with self.reading.of(wanted) as began:
            self._reseed(wanted)
            began(wanted.indices)
            return self.data[wanted.indices]

    def __getitems__(self, wanted: Numbered) -> Any:
        with self.reading.of(wanted) as began:
            self._reseed(wanted)
            fetch = getattr(self.data, "__getitems__", None)
            return fetch(wanted.indices) if fetch else [self._one(index, began) for index in wanted.indices]

    def _one(self, index: Any, began: Callable[[Any], None]) -> Any:
        began(index)
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        # What worker_init_fn finds as get_worker_info().dataset should look like the user's own.
        if name.startswith("__") or name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)

    def _reseed(self, wanted: Numbered) -> None:
        if get_worker_info() is None:
            return  # in the training process the restored generators do
        text = f"{self.seed}/{wanted.epoch}/{wanted.batch}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)


class WorkerStart:
    """``worker_init_fn``: a SIGTERM that a platform sends to every process leaves the data coming."""

    def __init__(self, then: Callable[[int], None] | None, ending: Any) -> None:
        self._then = then
        self._ending = ending
        """Shared byte: 1 once the training process itself is done with its workers."""
        self._owner = 0

    def __call__(self, worker_id: int) -> None:
        self._owner = os.getppid()
        signal.signal(signal.SIGTERM, self._obey)
        # torch's workers look for their parent every five seconds, and a restart should not wait for that.
        with contextlib.suppress(OSError, AttributeError):  # not on Linux
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # Blocked by the training process until here; see Workers.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if self._then is not None:
            self._then(worker_id)

    def _obey(self, number: int, frame: FrameType | None) -> None:
        if os.getppid() != self._owner:  # it was killed: nobody waits for us, and nobody else clears up
            shutil.rmtree(get_temp_dir(), ignore_errors=True)
            os._exit(0)
        if self._ending.value:
            os._exit(0)  # as torch's own workers do when their owner ends them; anything else it takes for a crash


class Workers:
    """The worker processes of a loader, if it has any: how they begin, and when they may end."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._owner = os.getpid()
        self._ending: Any = None
        self.start: Callable[[int], None] | None = loader.worker_init_fn
        """Their ``worker_init_fn``."""
        if loader.num_workers:
            multiprocessing: Any = loader.multiprocessing_context or torch.multiprocessing
            self._ending = multiprocessing.RawValue("b", 0)
            self.start = WorkerStart(loader.worker_init_fn, self._ending)
            # multiprocessing ends its children with SIGTERM at exit and waits for them.
            atexit.register(self.end)

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Workers that are started in it inherit a block of SIGTERM, and lift it when their own handler stands; what
        the training process gets of it, it obeys afterwards."""
        if self._ending is None:
            yield
            return
        self._ending.value = 0
        with leaving_later():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """From now on they obey a SIGTERM; not where a process ends that the training has forked."""
        if self._ending is not None and os.getpid() == self._owner:
            self._ending.value = 1
