# SPDX-License-Identifier: Apache-2.0
"""Failures that really happen: processes that kill, stop, lose and confuse one another, with a lot of ordinary output.

Run as a script with a folder and names of scenes: it imports torch once, then forks the ranks of each scene, and prints
how each ended, in which order, what it had printed to stderr, and what a supervisor would have read beside it.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cgroups
import scenes_cuda
import scenes_memory
import scenes_peers
import scenes_state
import torch

ORDINARY_LINES = 300
LONGEST_S = 200
AT_A_TIME = 3
"""Some scenes are nothing but waits."""
Scene = Callable[[int, Path], None]
SCENES: dict[str, tuple[Scene, int]] = {
    **scenes_peers.SCENES,
    **scenes_memory.SCENES,
    **scenes_state.SCENES,
    **scenes_cuda.SCENES,
}
"""What each rank does, and how many there are."""


def chatter(rank: int) -> None:
    """What a healthy training prints before it fails, with words that would mislead."""
    for step in range(ORDINARY_LINES):
        print(
            f"[{step:05d}] rank {rank} loss {1 / (step + 1):.4f} lr 3.0e-04 grad_norm 0.71 eta 0:10:00", file=sys.stderr
        )
    print("warning: no NaN found, 0 errors; NCCL and CUDA are not used; timeout is 3 s", file=sys.stderr)
    print("uncorrectable ECC error counters: 0", file=sys.stderr, flush=True)


def start(scene: Scene, rank: int, folder: Path) -> int:
    """Fork one rank, with a process group for all that it starts; the child never returns."""
    child = os.fork()
    with contextlib.suppress(OSError):  # both do it, so that it is done; whoever comes second may be refused
        os.setpgid(child, child)
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


def play(name: str, folder: Path) -> dict[str, Any]:
    """Run one scene; a rank that stands still is killed once its peers have ended, and what a rank leaves behind."""
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
        with contextlib.suppress(ProcessLookupError):  # a loader's worker may outlive it for good, with our stdout
            os.killpg(pid, signal.SIGKILL)
        rank = living.pop(pid)
        stderr = (folder / f"stderr-{rank}").read_text()
        ended = {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}
        endings.append({"rank": rank, **ended, "stopped": stopped, "stderr": stderr})
        if name in ("peer_stopped", "peer_asleep") and living:
            stopped = True
            os.kill(next(iter(living)), signal.SIGKILL)
    fraction = folder / "shm_used_fraction"
    return {
        "ranks": endings,
        "oom_kills": cgroups.leave(folder),
        "shm_used_fraction": float(fraction.read_text()) if fraction.exists() else None,
    }


def play_share(names: list[str], root: Path, share: int) -> int:
    """Fork a process that plays each third scene or so, one after the other, and writes down what came of it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            played = {name: play(name, root / name) for name in names[share::AT_A_TIME]}
            (root / f"played-{share}").write_text(json.dumps(played))
            code = 0
        finally:
            os._exit(code)
    return child


def main(root: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for player in [play_share(names, root, share) for share in range(AT_A_TIME)]:
        os.waitpid(player, 0)
    played: dict[str, Any] = {}
    for share in range(AT_A_TIME):
        played |= json.loads((root / f"played-{share}").read_text())
    print(json.dumps(played))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
