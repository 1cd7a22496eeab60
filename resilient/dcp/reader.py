# SPDX-License-Identifier: Apache-2.0
"""Loading through torch.distributed.checkpoint: everything is read and verified before anything is changed.

DCP loads in place and has two phases: ranks plan, and when all have planned they read. Here each rank reads all that it
needs while it plans and holds it in host memory, so a file that is torn, flipped, missing or swapped stops all ranks
while their states are still whole. The price is memory for the rank's part of the state once more, and four files.

DCP's planner unpickles whatever it is given for an object. It is given bytes that were pickled here, a moment before,
from an object made of the checkpoint's JSON; nothing that is read is ever unpickled.
"""

from __future__ import annotations

import io
import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from resilient.checkpoint import image
from resilient.checkpoint.digest import matches
from resilient.checkpoint.store_errors import Missing
from resilient.checkpoint.tensors import Flat, unflatten
from resilient.checkpoint.vault import Corrupt
from resilient.dcp.manifest import Chunk, File, Manifest, metadata_of, tensor_name
from resilient.dcp.shelf import Shelf
from resilient.dcp.writer import is_usable
from resilient.errors import CheckpointError

AT_ONCE: Final = 4
"""Files that are read and verified at the same time."""


class Reader(StorageReader):
    """The ``storage_reader`` of ``dcp.load``.

    ``path``: where a ``Writer`` has saved. ``checkpoint_id``, where DCP is given one, takes its place. A tensor of
    another dtype than the saved one is refused; ``cast=True`` converts it, as DCP does silently. Raises SettingsError
    for a path that cannot be used; what fails during a load is a CheckpointError of the rank where it failed, inside
    DCP's ``CheckpointException``, and no tensor of any rank has been changed then. (A dtype that is another one on some
    ranks only is found when the others have begun. DCP's planner itself sets values in nested dicts that are not
    tensors, numbers, text or bytes to None before it asks for anything: torch 2.13, ``_init_state_dict``.)
    """

    def __init__(self, path: str | os.PathLike[str], *, cast: bool = False) -> None:
        self._cast = cast
        self._held: dict[ReadItem, object] = {}
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Load from another path from now on, if one is given."""
        self._held = {}
        if checkpoint_id is not None:
            self._shelf = Shelf(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether such a path can be used."""
        return is_usable(checkpoint_id)

    def world_size(self) -> int:
        """Ranks that saved the checkpoint; CheckpointError where there is none, or a damaged one."""
        return self._shelf.manifest().world_size

    def holds(self, key: str) -> bool:
        """Whether the checkpoint has anything under this key of the state; CheckpointError as above."""
        manifest = self._shelf.manifest()
        names = (*manifest.tensors, *manifest.objects)
        return any(name == key or name.startswith(f"{key}.") for name in names)

    def read_metadata(self) -> Metadata:
        """DCP's metadata. Of a checkpoint that cannot be read it raises when it is looked at, not before."""
        try:
            return metadata_of(self._shelf.manifest())
        except CheckpointError as error:
            return _Unreadable(error)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a load, on every rank."""
        self._held = {}
        self._manifest: Manifest = metadata.storage_data
        self._blocks: dict[str, dict[tuple[int, ...], Chunk]] = {}

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Read and verify all that this rank needs; an error here stops all ranks before any of them has changed."""
        self._held = self._fetch(plan.items)
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the state with what is held."""
        self._held.update(self._fetch([item for item in plan.items if item not in self._held]))
        tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
        targets = [(item, planner.resolve_tensor(item).detach()) for item in tensors]
        sources = [self._source(item, target) for item, target in targets]
        plain = [item for item in plan.items if item.type is LoadItemType.BYTE_IO]
        pickled = [(item, _pickled(self._held[item])) for item in plain]
        for (item, target), source in zip(targets, sources, strict=True):
            target.copy_(source)
            planner.commit_tensor(item, target)
        for item, data in pickled:
            planner.load_bytes(item, data)
        self._held = {}
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _source(self, item: ReadItem, target: torch.Tensor) -> torch.Tensor:
        """What is to be copied, if it may be."""
        fqn, saved = item.dest_index.fqn, self._held[item]
        if not isinstance(saved, torch.Tensor) or target.shape != saved.shape:
            raise CheckpointError(f"cannot load {fqn}: the planner's tensor is not of the planned shape; correct it")
        if target.dtype != saved.dtype and not self._cast:
            raise CheckpointError(
                f"cannot load {fqn}: it was saved as {saved.dtype} and is {target.dtype} now; "
                "give it the saved dtype, or Reader(..., cast=True)"
            )
        return saved

    # Reading

    def _fetch(self, items: Iterable[ReadItem]) -> dict[ReadItem, object]:
        """What the items stand for, each file read once and wholly verified."""
        wanted: defaultdict[File, list[ReadItem]] = defaultdict(list)
        for item in items:
            wanted[self._file_of(item)].append(item)
        held: dict[ReadItem, object] = {}
        with ThreadPoolExecutor(AT_ONCE, "dcp-read") as threads:
            jobs = [threads.submit(self._open, file, of_file) for file, of_file in wanted.items()]
            try:
                for job in jobs:
                    held.update(job.result())
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
        return held

    def _file_of(self, item: ReadItem) -> File:
        index = item.storage_index
        if item.type is LoadItemType.TENSOR:
            return self._chunk(item).file
        if index.fqn not in self._manifest.objects:
            raise CheckpointError(f"cannot load {index.fqn}: the checkpoint has no such object; correct the planner")
        return self._manifest.objects[index.fqn]

    def _chunk(self, item: ReadItem) -> Chunk:
        fqn, offset = item.storage_index.fqn, tuple(item.storage_index.offset or ())
        if fqn not in self._blocks and fqn in self._manifest.tensors:
            self._blocks[fqn] = {chunk.offsets: chunk for chunk in self._manifest.tensors[fqn].chunks}
        if offset not in self._blocks.get(fqn, {}):
            raise CheckpointError(f"cannot load {fqn}: the checkpoint has no such block; correct the planner")
        return self._blocks[fqn][offset]

    def _open(self, file: File, items: list[ReadItem]) -> Mapping[ReadItem, object]:
        """Read and verify a file and cut out what is needed; the rest of its memory is given back."""
        buffer = memoryview(mmap.mmap(-1, file.size))
        store = self._shelf.store
        try:
            self._shelf.patiently(lambda: store.read_into(file.name, buffer))
        except Missing:
            raise Corrupt(f"cannot load {store.url}: {file.name} is missing; load another checkpoint") from None
        if not matches(buffer, file.digest):
            raise Corrupt(
                f"cannot load {store.url}: {file.name} was changed since it was saved (digest differs); "
                "load another checkpoint"
            )
        flat = image.read(buffer)
        parts = {item: self._part(item, flat, file) for item in items}
        needed = sum(part.numel() * part.element_size() for part in parts.values())
        keep = 2 * needed >= file.size
        return {
            item: _object_of(part) if item.type is LoadItemType.BYTE_IO else (part if keep else part.clone())
            for item, part in parts.items()
        }

    def _part(self, item: ReadItem, flat: Flat, file: File) -> torch.Tensor:
        fqn = item.storage_index.fqn
        if item.type is LoadItemType.BYTE_IO:
            return _named(flat, fqn, file)
        saved, chunk = self._manifest.tensors[fqn], self._chunk(item)
        tensor = _named(flat, tensor_name(fqn, chunk.offsets, whole=chunk.sizes == saved.shape), file)
        if tensor.dtype != saved.dtype or tuple(tensor.shape) != chunk.sizes:
            raise Corrupt(f"cannot load {fqn}: {file.name} holds it in another form than the manifest says")
        for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            tensor = tensor.narrow(dim, offset, length)
        return tensor


def _named(flat: Flat, name: str, file: File) -> torch.Tensor:
    if name not in flat.tensors:
        raise Corrupt(f"cannot load {name}: {file.name} does not hold it, though the manifest says so")
    return flat.tensors[name]


def _object_of(text: torch.Tensor) -> object:
    objects = bytes(text.numpy()).decode("ascii")
    return unflatten(Flat(tensors={}, aliases={}, objects=objects))


def _pickled(value: object) -> io.BytesIO:
    """What DCP's planner unpickles; the bytes are made here and have never been anywhere else."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


class _Unreadable(Metadata):
    """Metadata that could not be read.

    An error of ``read_metadata`` itself reaches the user as an AssertionError with no more than its text (torch 2.13,
    ``state_dict_loader``), and whoever judges the failure would take it for a bug.
    """

    def __init__(self, error: CheckpointError) -> None:
        super().__init__({})
        self._error = error

    def __getattribute__(self, name: str) -> Any:
        if name in _METADATA_FIELDS and "_error" in vars(self):
            raise self._error
        return super().__getattribute__(name)


_METADATA_FIELDS: Final = frozenset(field.name for field in fields(Metadata))
