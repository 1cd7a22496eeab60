# SPDX-License-Identifier: Apache-2.0
"""The probes that need torch: a product whose answer is known on every device, and a sum over ranks.

Neither leaves anything behind, and neither is ever imported into a supervisor.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from resilient.core.measured import AllReduceFacts, ComputeFacts, TorchFacts

TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # public, and missing in its stubs
SIDE: Final = 1024
ELEMENTS: Final = 1 << 20
"""Of the sum: 4 MB, enough to go through every channel."""


def compute(at: Callable[[str], None]) -> TorchFacts:
    """One multiplication on the CPU and on each CUDA device, compared element by element."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{index}" for index in range(cuda))]
    found = []
    for device in devices:
        at(f"multiplying on {device}")
        try:
            found.append(_multiply(torch.device(device)))
        except RuntimeError as error:  # torch's own errors, of the driver as well
            why = str(error).strip().partition("\n")[0][:300]
            found.append(ComputeFacts(device=device, why=f"{type(error).__name__}: {why}"))
    return TorchFacts(version=torch.__version__, cuda=torch.version.cuda, devices=tuple(found))


def _multiply(device: torch.device) -> ComputeFacts:
    """``(f x g) @ (p x q)`` is ``sum(g * p) * (f x q)``. All numbers are whole and below 2**24, so that float32 and
    TF32 are exact whatever the order of summation: any difference is a fault."""
    free, size = torch.cuda.mem_get_info(device) if device.type == "cuda" else (None, None)
    at = torch.arange(SIDE)
    f, g, p, q = at % 8 + 1, at % 3 + 1, at % 5 + 1, at % 7 + 1
    known = int((g * p).sum()) * torch.outer(f, q)
    left, right = (torch.outer(*pair).to(device, torch.float32) for pair in ((f, g), (p, q)))
    wrong = int((left @ right != known.to(device)).sum())
    return ComputeFacts(device=str(device), wrong=wrong, free=free, size=size)


def all_reduce(at: Callable[[str], None], ranks: int, limit_s: float) -> AllReduceFacts:
    """A sum over processes of this machine: NCCL with one rank for each device where there are any, else gloo."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() and dist.is_nccl_available() else 0
    backend, ranks = ("nccl", cuda) if cuda else ("gloo", ranks)
    store = TCPStore("127.0.0.1", 0, ranks, is_master=True, wait_for_workers=False)
    began = time.monotonic()
    # Forked before CUDA or a process group exists: importing torch once is what takes long.
    children = [_fork(backend, rank, ranks, store.port, limit_s) for rank in range(1, ranks)]
    at(f"summing over {ranks} ranks by {backend}")
    right = _sum(backend, 0, ranks, store, limit_s)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    seconds = round(time.monotonic() - began, 3)
    return AllReduceFacts(backend=backend, ranks=ranks, right=right and not any(codes), seconds=seconds)


def _fork(backend: str, rank: int, ranks: int, port: int, limit_s: float) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        store = TCPStore("127.0.0.1", port, ranks, is_master=False, timeout=timedelta(seconds=limit_s))
        code = 0 if _sum(backend, rank, ranks, store, limit_s) else 1
    except Exception:  # the top of a process; rank 0 says what came of it
        traceback.print_exc()
    finally:
        os._exit(code)


def _sum(backend: str, rank: int, ranks: int, store: Any, limit_s: float) -> bool:
    """Rank r gives r + 1 everywhere."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    timeout = timedelta(seconds=limit_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    try:
        values = torch.full((ELEMENTS,), float(rank + 1), device=device)
        dist.all_reduce(values)
        return bool((values == ranks * (ranks + 1) / 2).all())
    finally:
        dist.destroy_process_group()
