# SPDX-License-Identifier: Apache-2.0
"""Failures that really happen: processes that kill, stop, lose and confuse one another, with a lot of ordinary output.

Run as a script with a folder and names of scenes: it imports torch once, then forks the ranks of each scene, and prints
how each ended, in which order, and what it had printed to stderr.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but for its stub
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.utils.data import DataLoader, Dataset

ORDINARY_LINES = 300
LONGEST_S = 60
NOT_PERMITTED = 77
SHORT = timedelta(seconds=3)
Scene = Callable[[int, Path], None]


def chatter(rank: int) -> None:
    """What a healthy training prints before it fails, with words that would mislead."""
    for step in range(ORDINARY_LINES):
        print(
            f"[{step:05d}] rank {rank} loss {1 / (step + 1):.4f} lr 3.0e-04 grad_norm 0.71 eta 0:10:00", file=sys.stderr
        )
    print("warning: no NaN found, 0 errors; NCCL and CUDA are not used; timeout is 3 s", file=sys.stderr)
    print("uncorrectable ECC error counters: 0", file=sys.stderr, flush=True)


def join(rank: int, folder: Path, ranks: int = 2, **more: str) -> None:
    """Make the process group of a scene."""
    os.environ.update(more)
    dist.set_debug_level_from_env()  # type: ignore[attr-defined]  # as above
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=SHORT)
    dist.barrier()


def peer_killed(rank: int, folder: Path) -> None:
    join(rank, folder)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1 << 20))


def peer_stopped(rank: int, folder: Path) -> None:
    """A rank that stands still, as one in an endless read from a dead mount does."""
    join(rank, folder)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(8))


def desynchronised(rank: int, folder: Path) -> None:
    join(rank, folder, TORCH_DISTRIBUTED_DEBUG="DETAIL")
    if rank == 0:
        dist.all_reduce(torch.ones(4))
    else:
        dist.broadcast(torch.ones(4), src=0)


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


class Numbers(Dataset[torch.Tensor]):
    """Samples, one of which ends the process that fetches it."""

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 5:
            self._end()
        return torch.ones(1 << 20)


def loader_killed(rank: int, folder: Path) -> None:
    list(DataLoader(Numbers(lambda: os.kill(os.getpid(), signal.SIGKILL)), num_workers=1))


def loader_crashed(rank: int, folder: Path) -> None:
    list(DataLoader(Numbers(lambda: os.kill(os.getpid(), signal.SIGSEGV)), num_workers=1))


def make_shared_memory_tiny() -> None:
    """Mount 1 MiB over /dev/shm, for this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, namespace = 0x44000, 0x20000  # MS_REC | MS_PRIVATE; CLONE_NEWNS
    done = (
        libc.unshare(namespace) == 0
        and libc.mount(None, b"/", None, private, None) == 0
        and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1M") == 0
    )
    if not done:
        os._exit(NOT_PERMITTED)


def loader_without_shared_memory(rank: int, folder: Path) -> None:
    make_shared_memory_tiny()
    list(DataLoader(Numbers(lambda: None), num_workers=2))


def damaged_checkpoint(rank: int, folder: Path) -> None:
    torch.save({"weight": torch.ones(1000)}, folder / "last.pt")
    os.truncate(folder / "last.pt", 2000)
    torch.load(folder / "last.pt")


def unfit_checkpoint(rank: int, folder: Path) -> None:
    torch.nn.Linear(3, 4).load_state_dict(torch.nn.Linear(3, 5).state_dict())


def dcp_without_a_checkpoint(rank: int, folder: Path) -> None:
    load({"weight": torch.ones(3)}, checkpoint_id=str(folder / "nothing"))


def dcp_with_a_damaged_file(rank: int, folder: Path) -> None:
    save({"weight": torch.ones(1000)}, checkpoint_id=str(folder / "saved"))
    next((folder / "saved").glob("*.distcp")).write_bytes(b"nonsense")
    load({"weight": torch.ones(1000)}, checkpoint_id=str(folder / "saved"))


def no_host_memory(rank: int, folder: Path) -> None:
    torch.empty(1 << 50)


def disk_full(rank: int, folder: Path) -> None:
    make_shared_memory_tiny()  # a disk like any other
    torch.save({"weight": torch.ones(4 << 20)}, "/dev/shm/last.pt")


def uneven_ends(rank: int, folder: Path) -> None:
    """A rank that has fewer batches than its peers, and leaves."""
    join(rank, folder)
    for _ in range(3 if rank == 0 else 2):
        dist.all_reduce(torch.ones(8))


SCENES: dict[str, tuple[Scene, int]] = {
    "peer_killed": (peer_killed, 2),
    "peer_stopped": (peer_stopped, 2),
    "desynchronised": (desynchronised, 2),
    "shape_error": (shape_error, 2),
    "store_vanished": (store_vanished, 2),
    "loader_killed": (loader_killed, 1),
    "loader_crashed": (loader_crashed, 1),
    "loader_without_shared_memory": (loader_without_shared_memory, 1),
    "damaged_checkpoint": (damaged_checkpoint, 1),
    "unfit_checkpoint": (unfit_checkpoint, 1),
    "dcp_without_a_checkpoint": (dcp_without_a_checkpoint, 1),
    "dcp_with_a_damaged_file": (dcp_with_a_damaged_file, 1),
    "no_host_memory": (no_host_memory, 1),
    "disk_full": (disk_full, 1),
    "uneven_ends": (uneven_ends, 2),
}


def start(scene: Scene, rank: int, folder: Path) -> int:
    """Fork one rank; the child never returns."""
    child = os.fork()
    if child:
        return child
    code = 1
    signal.alarm(LONGEST_S)  # whatever its peers do, no rank outlives the scene for long
    try:
        fd = os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(fd, 2)
        chatter(rank)
        try:
            scene(rank, folder)
            code = 0
        except BaseException:  # what an uncaught exception does at the top of a script
            print_uncaught()
    except BaseException:  # a loader whose worker died raises from a signal handler, wherever its process is
        print_uncaught()
    finally:
        sys.stderr.flush()
        os._exit(code)


def print_uncaught() -> None:
    """What Python prints last, with no handler to come in between."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    traceback.print_exc()


def play(name: str, folder: Path) -> list[dict[str, object]]:
    """Run one scene; a rank that is stopped is killed once its peers have ended."""
    scene, ranks = SCENES[name]
    folder.mkdir(parents=True)
    living = {start(scene, rank, folder): rank for rank in range(ranks)}
    endings: list[dict[str, object]] = []
    stopped = False
    while living:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            continue
        code = os.waitstatus_to_exitcode(status)
        rank = living.pop(pid)
        stderr = (folder / f"stderr-{rank}").read_text()
        ended = {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}
        endings.append({"rank": rank, **ended, "stopped": stopped, "stderr": stderr})
        if name == "peer_stopped" and living:
            stopped = True
            os.kill(next(iter(living)), signal.SIGKILL)
    return endings


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    print(json.dumps({name: play(name, root / name) for name in sys.argv[2:]}))
