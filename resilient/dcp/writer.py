# SPDX-License-Identifier: Apache-2.0
"""Saving through torch.distributed.checkpoint: each rank writes its files, the coordinator commits.

A rank's items go into safetensors files of about ``FILE_BYTES``: whole tensors, blocks of sharded tensors, and objects
apart from each other, because after a restart a rank reads its own blocks but needs the whole tensors and the objects
of every rank. Files are the unit of digests and of memory: a save holds ``AT_ONCE`` + 1 of them, or as many tensors
that are larger.

Nothing is swallowed: what a rank raises here, DCP raises as ``CheckpointException`` on every rank, and then there is no
manifest. Ranks need not agree on a name: each makes a directory of its own, under a fresh random name.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future as Job
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from resilient.checkpoint import image
from resilient.checkpoint.digest import digest
from resilient.checkpoint.tensors import Flat, flatten
from resilient.dcp.manifest import File, file_name, made_of, tensor_name
from resilient.dcp.shelf import Shelf
from resilient.errors import CheckpointError, SettingsError
from resilient.training.surroundings import versions
from resilient.version import version

FILE_BYTES: Final = 64 << 20
AT_ONCE: Final = 2
"""Files that a rank writes at the same time; the store writes parts of a file at once besides."""


class Writer(StorageWriter):
    """The ``storage_writer`` of ``dcp.save`` and ``dcp.async_save``.

    ``path``: a directory that all ranks share, or an fsspec URL (``s3://bucket/run-42/step-1000``). It is written once:
    a save to a path that holds a checkpoint is refused. ``checkpoint_id``, where DCP is given one, takes its place.
    It can be pickled, as ``AsyncCheckpointerType.PROCESS`` needs. Raises SettingsError for a path that cannot be used;
    what fails during a save is a CheckpointError of the rank where it failed, inside DCP's ``CheckpointException``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = ""
        self._rank = 0
        self._shelf: Shelf | None = None
        self.reset(path)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open store, whose connections are this process's."""
        return {**vars(self), "_shelf": None}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Save to another path from now on, if one is given."""
        if checkpoint_id is not None:
            self._shelf = Shelf(checkpoint_id)
            self._path = os.fspath(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether such a path can be used."""
        return is_usable(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a save, on every rank."""
        if not kwargs.get("use_collectives", True):
            raise SettingsError(
                "cannot save without collectives: nobody would know whether all ranks have written; "
                "leave use_collectives at True"
            )
        self._rank = int(kwargs.get("rank", dist.get_rank() if dist.is_initialized() else 0))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: refuse what could not be committed before anything is written."""
        self._open().check_free()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's items; all of them are durable on return."""
        shelf = self._open()
        written: list[str] = []
        try:
            results = _write(shelf, plan.items, planner, self._rank, written)
        except BaseException:
            shelf.forget(written)
            raise
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, when every rank has written: commit."""
        files = {result.index: result.storage_data for of_rank in results for result in of_rank}
        manifest = made_of(
            metadata, files, world_size=len(results), created_s=time.time(), versions=versions(version())
        )
        self._open().commit(manifest)

    def _open(self) -> Shelf:
        if self._shelf is None:
            self._shelf = Shelf(self._path)
        return self._shelf


def is_usable(path: str | os.PathLike[str]) -> bool:
    """Whether there can be a checkpoint at such a path."""
    try:
        Shelf(path)
    except CheckpointError:
        return True  # the store says so now; it may not tomorrow
    except (SettingsError, TypeError):
        return False
    return True


def _write(
    shelf: Shelf, items: list[WriteItem], planner: SavePlanner, rank: int, written: list[str]
) -> list[WriteResult]:
    """Prepare one file after another while those before it are being written."""
    token = secrets.token_hex(8)
    results: list[WriteResult] = []
    jobs: deque[Job[None]] = deque()
    with ThreadPoolExecutor(AT_ONCE, "dcp-write") as threads:
        for number, group in enumerate(_files(items)):
            flat = _flat(group, planner)
            plan = image.plan(flat)
            buffer = memoryview(mmap.mmap(-1, plan.size_bytes))
            image.write(flat, plan, buffer)
            file = File(name=file_name(token, rank, number), size=len(buffer), digest=digest(buffer))
            results += [
                WriteResult(index=item.index, size_in_bytes=_size(tensor), storage_data=file)
                for item, tensor in zip(group, flat.tensors.values(), strict=True)
            ]
            if len(jobs) == AT_ONCE:
                jobs.popleft().result()
            written.append(file.name)
            jobs.append(threads.submit(_put, shelf, file.name, buffer))
            del flat, buffer  # the next file is prepared while these are still being written
        for job in jobs:
            job.result()
    return results


def _put(shelf: Shelf, name: str, buffer: memoryview) -> None:
    shelf.patiently(lambda: shelf.store.write_file(name, buffer))


def _files(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    """The items of each file, in the order of the plan."""
    for kind in ("whole", "blocks", "objects"):
        group: list[WriteItem] = []
        size = 0
        for item in items:
            if _kind(item) != kind:
                continue
            if group and size + _planned_size(item) > FILE_BYTES:
                yield group
                group, size = [], 0
            group.append(item)
            size += _planned_size(item)
        if group:
            yield group


def _kind(item: WriteItem) -> str:
    if item.tensor_data is None:
        return "objects"
    return "whole" if item.tensor_data.chunk.sizes == item.tensor_data.size else "blocks"


def _planned_size(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else data.chunk.sizes.numel() * data.properties.dtype.itemsize


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flat(group: list[WriteItem], planner: SavePlanner) -> Flat:
    """The content of one file; objects are the bytes of their text."""
    tensors: dict[str, torch.Tensor] = {}
    for item in group:
        fqn, data = item.index.fqn, item.tensor_data
        if fqn == "__metadata__":
            raise CheckpointError(f"cannot save {fqn}: safetensors files use that name; rename it")
        if item.type is WriteItemType.BYTE_IO or data is None:
            tensors[fqn] = _object(item, planner)
            continue
        whole = data.chunk.sizes == data.size
        tensors[tensor_name(fqn, tuple(data.chunk.offsets), whole=whole)] = _tensor(item, planner)
    return Flat(tensors=tensors, aliases={}, objects="null")


def _tensor(item: WriteItem, planner: SavePlanner) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    data = item.tensor_data
    if data is None or not isinstance(tensor, torch.Tensor):
        raise CheckpointError(
            f"cannot save {item.index.fqn}: the planner resolves it to no tensor; correct the planner"
        )
    if tensor.dtype != data.properties.dtype or tensor.shape != data.chunk.sizes:
        raise CheckpointError(
            f"cannot save {item.index.fqn}: {tensor.dtype} of shape {tuple(tensor.shape)} where the plan has "
            f"{data.properties.dtype} of shape {tuple(data.chunk.sizes)}; correct the planner"
        )
    (found,) = flatten(tensor, path=(item.index.fqn,)).tensors.values()
    return found


def _object(item: WriteItem, planner: SavePlanner) -> torch.Tensor:
    """Of the object itself, not of its pickled bytes; only an interface for objects can give it."""
    fqn = item.index.fqn
    look_up = getattr(planner, "lookup_object", None)
    if look_up is None:
        raise CheckpointError(
            f"cannot save {fqn}: it is no tensor, and {type(planner).__name__} gives it as pickled bytes only; "
            "use a planner that extends DefaultSavePlanner"
        )
    flat = flatten(look_up(item.index), path=(fqn,))
    if flat.tensors:
        raise CheckpointError(
            f"cannot save {fqn}: there is a tensor in an object that DCP saves as one; put tensors into dicts and lists"
        )
    return torch.frombuffer(bytearray(flat.objects.encode("ascii")), dtype=torch.uint8)
