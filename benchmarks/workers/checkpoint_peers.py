# SPDX-License-Identifier: Apache-2.0
"""What ``checkpoint.py`` starts for each peer: the training, saved every few steps, or loaded once.

A save is over when all of it is durable: whoever says that it is complete has its files fsynced here, behind the
training where the peer itself works behind it.
"""

import contextlib
import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoint_formats import LOADS, SAVES, Save, State, alone, state_of, sync_tree
from checkpoint_training import WARM_UP, Training, arguments, training_of, watch_memory, write_result
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save

POLL_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A save that goes on behind the training."""

    complete: Callable[[], object]
    """Waits until the peer says so."""
    staged: Callable[[], object] | None = None
    """Waits until the state may change again."""


Begin = Callable[[Path], Pending | None]
"""Begins a save; ``None``: it is complete and durable."""
Opener = Callable[[Training, Path, contextlib.ExitStack], Begin]


def at_once(save: Save) -> Opener:
    def opened(training: Training, directory: Path, closing: contextlib.ExitStack) -> Begin:
        def begin(path: Path) -> None:
            save(training, path)
            sync_tree(path)

        return begin

    return opened


def dcp_async(kind: AsyncCheckpointerType, **staging: bool) -> Opener:
    """``async_save``; with ``staging`` by a stager that keeps its memory, else by the one that it makes for itself."""

    def opened(training: Training, directory: Path, closing: contextlib.ExitStack) -> Begin:
        closing.enter_context(alone(directory))
        stager = DefaultStager(StagingOptions(**staging)) if staging else None
        if stager is not None:
            closing.callback(stager.close)

        def begin(path: Path) -> Pending:
            writer = FileSystemWriter(path)
            answer = async_save(
                state_of(training), storage_writer=writer, async_checkpointer_type=kind, async_stager=stager
            )
            if isinstance(answer, AsyncSaveResponse):
                return Pending(complete=answer.upload_completion.result, staged=answer.staging_completion.result)
            return Pending(complete=answer.result)

        return begin

    return opened


def staging(shared: bool) -> dict[str, bool]:
    """All that a stager has to offer here; pinned memory and copies that do not block are for devices."""
    device = torch.cuda.is_available()
    return {
        "use_async_staging": True,
        "use_shared_memory": shared,
        "use_pinned_memory": device,
        "use_non_blocking_copy": device,
    }


class _Holder:
    """What torchsnapshot asks of anything that it saves."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def state_dict(self) -> State:
        return state_of(self.training)

    def load_state_dict(self, state: State) -> None:
        raise NotImplementedError


def open_torchsnapshot(training: Training, directory: Path, closing: contextlib.ExitStack) -> Begin:
    snapshot: Any = importlib.import_module("torchsnapshot").Snapshot

    def begin(path: Path) -> Pending:
        return Pending(complete=snapshot.async_take(str(path), {"training": _Holder(training)}).wait)

    return begin


def nvrx(persistent: bool) -> Opener:
    """With a worker process that stays, or a fork for each save."""

    def opened(training: Training, directory: Path, closing: contextlib.ExitStack) -> Begin:
        closing.enter_context(alone(directory))
        module: Any = importlib.import_module("nvidia_resiliency_ext.checkpointing.async_ckpt.torch_ckpt")
        saver = module.TorchAsyncCheckpoint(persistent_queue=persistent)
        closing.callback(saver.finalize_async_save, blocking=True, no_dist=True, terminate=True)

        def complete() -> None:
            while saver._async_calls_queue.get_num_unfinalized_calls():
                saver.finalize_async_save(blocking=False, no_dist=True)
                time.sleep(POLL_S)

        def begin(path: Path) -> Pending:
            path.mkdir()
            saver.async_save(state_of(training), path / "state.pt")
            return Pending(complete=complete)

        return begin

    return opened


def _remove(directory: Path, pattern: str) -> None:
    for left in directory.glob(pattern):
        left.unlink()


def open_dlrover(training: Training, directory: Path, closing: contextlib.ExitStack) -> Begin:
    """Flash checkpoint: into shared memory while the training waits, to disk by a process of its own."""
    name = f"bench{os.getpid()}"
    os.environ.update(LOCAL_WORLD_SIZE="1", NODE_RANK="0", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    os.environ["TORCHELASTIC_RUN_ID"] = name
    # DLRover has a place of its own for its sockets, whatever TMPDIR says, and leaves them behind.
    sockets = Path(importlib.import_module("dlrover.python.common.multi_process").SOCKET_TMP_DIR) / name
    closing.callback(shutil.rmtree, sockets, ignore_errors=True)
    closing.callback(_remove, Path("/dev/shm"), f"*{name}*")
    root = directory / "dlrover"
    root.mkdir()
    ddp: Any = importlib.import_module("dlrover.trainer.torch.flash_checkpoint.ddp")
    to_disk = importlib.import_module("dlrover.trainer.torch.flash_checkpoint.checkpointer").StorageType.DISK
    saver = ddp.DdpCheckpointer(str(root))
    tracker, numbers = root / "dlrover_latest.txt", iter(range(1, sys.maxsize))

    def begin(path: Path) -> Pending:
        number = next(numbers)
        path.mkdir()
        saver.save_checkpoint(number, state_of(training), str(path / "rank_0.pt"), storage_type=to_disk)

        def complete() -> None:
            while not (tracker.exists() and tracker.read_text().strip() == str(number)):
                time.sleep(POLL_S)

        return Pending(complete=complete)

    return begin


THREAD, PROCESS = AsyncCheckpointerType.THREAD, AsyncCheckpointerType.PROCESS
OPENERS: dict[str, Opener] = {
    **{name: at_once(save) for name, save in SAVES.items()},
    "dcp_async_thread": dcp_async(THREAD),
    "dcp_async_stager": dcp_async(THREAD, **staging(shared=False)),
    "dcp_async_process": dcp_async(PROCESS, **staging(shared=True)),
    "torchsnapshot": open_torchsnapshot,
    "nvrx": nvrx(persistent=True),
    "nvrx_fork": nvrx(persistent=False),
    "dlrover": open_dlrover,
}


class Saving:
    """One save, and who waits for the end of it."""

    def __init__(self, begin: Begin, path: Path) -> None:
        self.path = path
        self.begun = time.monotonic()
        self.pending = begin(path)
        self.durable = time.monotonic()
        self.over = threading.Event()
        self.failed: BaseException | None = None
        self._waiter = threading.Thread(target=self._wait)
        if self.pending is None:
            self.over.set()
        else:
            self._waiter.start()

    def _wait(self) -> None:
        assert self.pending is not None
        try:
            self.pending.complete()
            sync_tree(self.path)
            self.durable = time.monotonic()
        except BaseException as error:  # the top of a thread: raised again where the training is
            self.failed = error
        self.over.set()

    def before_update(self) -> None:
        if self.pending is not None and self.pending.staged is not None:
            self.pending.staged()

    def end(self) -> dict[str, float]:
        if self._waiter.ident is not None:
            self._waiter.join()
        if self.failed is not None:
            raise self.failed
        disk = sum(found.stat().st_blocks * 512 for found in self.path.rglob("*") if found.is_file())
        shutil.rmtree(self.path)
        return {"begun": self.begun, "durable": self.durable, "disk_bytes": disk}


def save_often(training: Training, begin: Begin, directory: Path, saves: int, pause: int) -> list[dict[str, float]]:
    """Saves that warm up, those that count, and one that is looked at for its memory."""
    found = []
    for number in range(WARM_UP + saves + 1):
        for _ in range(pause + 1):  # one of them deletes what was saved before
            training.step(training.batches[0])
        if number == WARM_UP + saves:
            watch_memory(directory)
        saving = Saving(begin, directory / f"save-{number}")
        training.step(training.batches[1], saving.before_update)
        while not saving.over.is_set():
            training.step(training.batches[2])
        found.append(saving.end())
    return found


def load_once(training: Training, name: str, path: Path) -> None:
    saved_by, load = LOADS[name]
    begun = time.monotonic()
    load(training, path / saved_by)
    training.wait_for_device()
    seconds = time.monotonic() - begun
    same = training.fingerprint() == json.loads((path / "fingerprint.json").read_text())
    write_result(path, seconds=seconds, same=same)


def write_all(training: Training, path: Path) -> None:
    """What ``load_once`` loads."""
    training.step(training.batches[0])
    for name, save in SAVES.items():
        save(training, path / name)
        sync_tree(path / name)
    (path / "fingerprint.json").write_text(json.dumps(training.fingerprint()))
    write_result(path, size_bytes=training.size_bytes())


def save_nothing(training: Training, directory: Path) -> None:
    """What all others are compared with."""
    compute_s = training.measure_compute()
    for batch in training.batches * 3:
        training.step(batch)
    watch_memory(directory)
    time.sleep(1.0)  # in which it is looked at
    write_result(directory, steps=training.times[2:], compute_s=compute_s, size_bytes=training.size_bytes())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--what", choices=["none", "write", *OPENERS, *LOADS], required=True)
    options = parser.parse_args()
    training = training_of(options)
    if options.what == "none":
        save_nothing(training, options.directory)
    elif options.what == "write":
        write_all(training, options.directory)
    elif options.what in LOADS:
        load_once(training, options.what, options.directory)
    else:
        with contextlib.ExitStack() as closing:
            begin = OPENERS[options.what](training, options.directory, closing)
            saves = save_often(training, begin, options.directory, options.saves, options.pause)
            write_result(options.directory, steps=training.times, saves=saves, size_bytes=training.size_bytes())


if __name__ == "__main__":  # processes that peers spawn import this file again
    main()
