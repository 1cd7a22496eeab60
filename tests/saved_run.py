# SPDX-License-Identifier: Apache-2.0
"""A run's directory with checkpoints in it, made as the saver makes them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from resilient.checkpoint import layout, pair, tensors
from resilient.checkpoint.digest import digest
from resilient.checkpoint.layout import AttemptRecord, FileRecord, Manifest, RankFiles
from resilient.checkpoint.seal import sealed
from resilient.checkpoint.store import open_store
from resilient.checkpoint.vault import Vault

Tree = dict[str, Any]
Images = tuple[memoryview, memoryview]
"""Of parameters and optimizer state, and of the rest."""


class SavedRun:
    """A run at a path or URL."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.store = open_store(self.url)
        self.vault = Vault(self.store, clock=lambda: 1.0)
        self.run = self.vault.identify(make=True)

    def claim(self, attempt: int, **fields: Any) -> None:
        """An attempt that somebody has begun."""
        values = {"index": 0, "pod": "p", "host": "h", "claimed_s": 1.0, "began_from": None, "held_s": 0.0, **fields}
        self.vault.claim(AttemptRecord(attempt=attempt, submission="sub", token="t", **values))

    def save(
        self, name: str, states: Sequence[Tree] | None = None, images_by_rank: Sequence[Images] = (), **fields: Any
    ) -> str:
        """A checkpoint of this name; ``states``, or the images of these: of rank 0, 1, ..."""
        attempt, step = (int(part) for part in name.split("-"))
        files: dict[str, FileRecord] = {}
        images: dict[str, memoryview] = {}
        ranks: list[RankFiles] = []
        known: dict[str, str] = {}
        made = images_by_rank or [images_of(state, step) for state in states or [small_state(step)]]
        for rank, (first, own) in enumerate(made):
            text = digest(first)
            ranks.append(
                RankFiles(tensors=known.setdefault(text, layout.tensors_file(rank)), own=layout.rank_file(rank))
            )
            for file, image in ((ranks[-1].tensors, first), (ranks[-1].own, own)):
                files[file] = FileRecord(file=file, size=len(image), digest=digest(image))
                images[file] = image
        values: Tree = {
            "run": self.run.id,
            "submission": "sub",
            "began_from": None,
            "created_s": 1.5e9,
            "versions": {"torch": "2.13"},
            "determinism": {},
        }
        manifest = Manifest(
            attempt=attempt,
            step=step,
            world_size=len(ranks),
            ranks=tuple(ranks),
            files=tuple(files.values()),
            **{**values, **fields},
        )
        return self.vault.save(manifest, images, lambda: None)

    def path(self, name: str, file: str = "") -> Path:
        """A file of a checkpoint, where the run is a directory."""
        return Path(self.url) / "checkpoints" / name / file

    def names(self) -> set[str]:
        """Directories that are there."""
        return {entry.name.split("/")[1] for entry in self.store.list(layout.CHECKPOINTS)}

    def rewrite(self, name: str, **fields: Any) -> None:
        """Change a manifest behind everybody's back."""
        path = self.path(name, layout.MANIFEST)
        known = {**json.loads(path.read_text()), **fields}
        path.write_bytes(sealed(json.dumps({name: v for name, v in known.items() if name != "digest"}).encode()))


def small_state(step: int) -> Tree:
    """One parameter, and something of each rank's own."""
    return {"model": {"weight": torch.nn.Parameter(torch.full((3, 2), float(step)))}, "extra": {"step": step}}


def images_of(state: Mapping[str, Any], step: int, *, behind: Collection[int] = (), **run: Any) -> Images:
    """Both images of a state, each beginning on a page."""
    own: Tree = {"step": step, "rng": {}, "data": None, **run}
    flat = tensors.flatten({"state": dict(state), "run": own}, path=(), behind=behind)
    first, rest = pair.split(flat)
    plan = pair.plan(first, rest, None)
    view = memoryview(mmap.mmap(-1, plan.size_bytes))
    targets = pair.targets(rest, plan, view, pair.Places())
    for source, target in [*targets.behind, *targets.at_once]:
        target.copy_(source)
    return view[: plan.tensors.size_bytes], view[plan.own_offset :]
