# SPDX-License-Identifier: Apache-2.0
"""What our batches change inside DataLoader worker processes: random draws and SIGTERM.

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
import shutil
import signal
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from types import FrameType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

_PR_SET_PDEATHSIG: Final = 1


class Numbered(NamedTuple):
    """What the sampler asked for, with its place in the run."""

    epoch: int
    batch: int
    indices: Any


class SeededData(Dataset[Any]):
    """The user's data set; in a worker process each batch finds the generators seeded for it."""

    def __init__(self, data: Any, seed: str) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, wanted: Numbered) -> Any:
        self._reseed(wanted)
        return self.data[wanted.indices]

    def __getitems__(self, wanted: Numbered) -> Any:
        self._reseed(wanted)
        fetch = getattr(self.data, "__getitems__", None)
        return fetch(wanted.indices) if fetch else [self.data[index] for index in wanted.indices]

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
        """Workers that are started in it inherit a block of SIGTERM, and lift it when their own handler stands."""
        if self._ending is None:
            yield
            return
        self._ending.value = 0
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """From now on they obey a SIGTERM."""
        if self._ending is not None:
            self._ending.value = 1
