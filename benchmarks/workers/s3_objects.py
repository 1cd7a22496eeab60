# SPDX-License-Identifier: Apache-2.0
"""Saves one state to S3 and loads it again, by one candidate, in a process of its own; for ``checkpoint_s3.py``.

A small state goes first, uncounted: imports and connections are there then, as in a training's second save. Not counted
either is what is made ahead of a save: for us the image and its digest, which the training's worker makes; for plain
uploads the bytes of a safetensors file, for which their training would have to wait.
"""

import argparse
import io
import json
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

State = dict[str, torch.Tensor]
TENSORS = 8


class Candidate:
    """One way to save. ``prepare`` is not counted."""

    def __init__(self, place: str) -> None:
        """``place``: bucket and key."""
        self.place = place

    def prepare(self, state: State) -> None:
        self.data = safetensors.torch.save(state)

    def save(self) -> None:
        raise NotImplementedError

    def load(self) -> State:
        raise NotImplementedError


class Ours(Candidate):
    """What the saver does: the image in parts, its digest compared, then the manifest; and all of it back."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        from resilient.checkpoint.store import open_store
        from resilient.checkpoint.vault import Vault

        self.vault = Vault(open_store(f"s3://{place}"), clock=time.time)
        self.run = self.vault.identify(make=True).id

    def prepare(self, state: State) -> None:
        from resilient.checkpoint import image, layout, tensors
        from resilient.checkpoint.digest import digest

        flat = tensors.flatten(state)
        plan = image.plan(flat)
        first, own = (memoryview(mmap.mmap(-1, plan.size_bytes)) for _ in range(2))
        image.write(flat, plan, first)
        own = own[: mmap.PAGESIZE]
        names = layout.RankFiles(tensors=layout.tensors_file(0), own=layout.rank_file(0))
        self.images = {names.tensors: first, names.own: own}
        files = (layout.FileRecord(file=n, size=len(v), digest=digest(v)) for n, v in self.images.items())
        self.manifest = layout.Manifest(
            run=self.run, submission="bench", attempt=1, step=1, began_from=None, world_size=1, ranks=(names,),
            files=tuple(files), created_s=time.time(), versions={}, determinism={},
        )  # fmt: skip

    def save(self) -> None:
        self.name = self.vault.save(self.manifest, self.images, lambda: None)

    def load(self) -> State:
        from resilient.checkpoint import image, tensors

        file = self.manifest.files[0]
        view = memoryview(mmap.mmap(-1, file.size))
        self.vault.read_image(self.name, file, view)
        loaded = tensors.unflatten(image.read(view))
        assert isinstance(loaded, dict)
        return loaded


class S3fs(Candidate):
    """Its own upload of bytes in memory, with its own concurrency."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        import s3fs

        self.fs = s3fs.S3FileSystem(skip_instance_cache=True)

    def save(self) -> None:
        self.fs.pipe_file(f"{self.place}/state", self.data)

    def load(self) -> State:
        return safetensors.torch.load(self.fs.cat_file(f"{self.place}/state"))


class Boto3(Candidate):
    """The transfer manager of Amazon's own package."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        import boto3

        self.client = boto3.client("s3")
        self.bucket, _, self.key = place.partition("/")

    def save(self) -> None:
        self.client.upload_fileobj(io.BytesIO(self.data), self.bucket, f"{self.key}/state")

    def load(self) -> State:
        into = io.BytesIO()
        self.client.download_fileobj(self.bucket, f"{self.key}/state", into)
        return safetensors.torch.load(into.getvalue())


class Dcp(Candidate):
    """``torch.distributed.checkpoint`` through fsspec."""

    def prepare(self, state: State) -> None:
        self.state = state
        self.url = f"s3://{self.place}/{len(state[min(state)])}"

    def save(self) -> None:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        writer = FsspecWriter(self.url, sync_files=False)
        save(self.state, storage_writer=writer, no_dist=True)

    def load(self) -> State:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
        from torch.distributed.checkpoint.state_dict_loader import load

        into = {name: torch.empty_like(value) for name, value in self.state.items()}
        load(into, storage_reader=FsspecReader(self.url), no_dist=True)
        return into


KINDS: dict[str, type[Candidate]] = {"resilient": Ours, "s3fs": S3fs, "boto3": Boto3, "dcp_fsspec": Dcp}


def cpu_s(pid: int) -> float:
    """Of a process, by proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(server: int, act: Callable[[], Any]) -> tuple[Any, float, float]:
    """What came of it, its seconds, and the share of them in which the server computed."""
    before, begun = cpu_s(server), time.monotonic()
    found = act()
    seconds = time.monotonic() - begun
    return found, seconds, (cpu_s(server) - before) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=KINDS, required=True)
    parser.add_argument("--place", required=True)
    parser.add_argument("--mib", type=int, required=True)
    parser.add_argument("--server", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(1)
    candidate = KINDS[options.what](options.place)
    for mib in (1, options.mib):
        state = {f"tensor{n}": torch.rand(mib * (1 << 18) // TENSORS) for n in range(TENSORS)}
        candidate.prepare(state)
        found = measured(candidate, state, options.server)
    (options.directory / "result.json").write_text(json.dumps(found))


def measured(candidate: Candidate, state: State, server: int) -> dict[str, float]:
    """One save and one load of what was prepared."""
    _, save_s, save_busy = timed(server, candidate.save)
    loaded, load_s, load_busy = timed(server, candidate.load)
    same = loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    return {"save_s": save_s, "save_busy": save_busy, "load_s": load_s, "load_busy": load_busy, "same": same}


if __name__ == "__main__":
    main()
