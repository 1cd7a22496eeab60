# SPDX-License-Identifier: Apache-2.0
"""Scenes of ranks that kill, stop, leave and confuse one another, over gloo."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but for its stub
from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

SHORT = timedelta(seconds=3)


def join(rank: int, folder: Path, ranks: int = 2, **more: str) -> None:
    """Make the process group of a scene."""
    os.environ.update(more)
    dist.set_debug_level_from_env()  # type: ignore[attr-defined]  # as above
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    dist.barrier()
    set_timeout(SHORT)  # not before all are there: on a busy machine that takes longer


def peer_killed(rank: int, folder: Path) -> None:
    join(rank, folder)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1 << 20))


def peer_stopped(rank: int, folder: Path) -> None:
    """A rank that stands still, as one that somebody debugs does."""
    join(rank, folder)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(8))


def peer_asleep(rank: int, folder: Path) -> None:
    """A rank that the kernel holds (state D), as one that reads from a dead mount: no signal but SIGKILL reaches it.

    ``posix_spawn`` holds the caller until its child has begun, and the child waits for a writer of the fifo.
    """
    join(rank, folder)
    if rank == 1:
        os.mkfifo(folder / "fifo")
        waiting = [(os.POSIX_SPAWN_OPEN, 0, str(folder / "fifo"), os.O_RDONLY, 0)]
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=waiting)
    dist.all_reduce(torch.ones(8))


def desynchronised(rank: int, folder: Path) -> None:
    join(rank, folder, TORCH_DISTRIBUTED_DEBUG="DETAIL")
    if rank == 0:
        dist.all_reduce(torch.ones(4))
    else:
        dist.broadcast(torch.ones(4), src=0)


def desynchronised_unseen(rank: int, folder: Path) -> None:
    """The same without torch's checks: ranks wait in vain, and nothing tells why."""
    join(rank, folder)
    if rank == 0:
        dist.all_reduce(torch.ones(4))
    else:
        dist.broadcast(torch.ones(4), src=0)
    dist.barrier()


def different_sizes(rank: int, folder: Path) -> None:
    """A branch or a batch that differs from rank to rank."""
    join(rank, folder)
    dist.all_reduce(torch.ones(4 if rank == 0 else 8))


def shape_error(rank: int, folder: Path) -> None:
    join(rank, folder)
    inputs = torch.ones(2, 3 if rank == 0 else 5)
    loss = (inputs @ torch.ones(3, 4)).sum()
    dist.all_reduce(loss)


def store_vanished(rank: int, folder: Path) -> None:
    mark = folder / "port"
    if rank == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        (folder / "port.new").write_text(str(store.port))
        (folder / "port.new").rename(mark)
        store.get("arrived")
        os.kill(os.getpid(), signal.SIGKILL)
    while not mark.exists():
        os.sched_yield()
    store = TCPStore("127.0.0.1", int(mark.read_text()), is_master=False, timeout=SHORT)
    store.set("arrived", "1")
    while True:
        store.get("arrived")


def uneven_ends(rank: int, folder: Path) -> None:
    """A rank that has fewer batches than its peers, and leaves."""
    join(rank, folder)
    for _ in range(3 if rank == 0 else 2):
        dist.all_reduce(torch.ones(8))


SCENES = {
    "peer_killed": (peer_killed, 2),
    "peer_stopped": (peer_stopped, 2),
    "peer_asleep": (peer_asleep, 2),
    "desynchronised": (desynchronised, 2),
    "desynchronised_unseen": (desynchronised_unseen, 2),
    "different_sizes": (different_sizes, 2),
    "shape_error": (shape_error, 2),
    "store_vanished": (store_vanished, 2),
    "uneven_ends": (uneven_ends, 2),
}
