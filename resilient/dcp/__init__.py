# SPDX-License-Identifier: Apache-2.0
"""Our storage under torch.distributed.checkpoint, usable without anything else of this package::

    import torch.distributed.checkpoint as dcp
    import resilient.dcp

    dcp.save(state, storage_writer=resilient.dcp.Writer(f"s3://bucket/run-42/step-{step}"))
    dcp.load(state, storage_reader=resilient.dcp.Reader("s3://bucket/run-42/step-1000"))

Planners, resharding and collectives are DCP's. What it does not have is here: a checkpoint exists when its manifest
does, which is created last and names every file with its size and digest; a path is written once; a load verifies all
that it needs, on all ranks, before it changes anything; and nothing that was read is unpickled.
"""

from __future__ import annotations

import os

import torch.distributed as dist

from resilient.dcp.reader import Reader
from resilient.dcp.shelf import Shelf
from resilient.dcp.writer import Writer

__all__ = ["Reader", "Writer", "per_rank", "remove"]


def per_rank(name: str, rank: int | None = None) -> str:
    """A key of the state for a value that every rank has its own of: ``rank-3/rng``.

    DCP takes values with one key on several ranks for copies and keeps any of them (torch 2.13, ``_dedup_save_plans``),
    so a random state or a position in the data needs a key for each rank. The rule when the number of ranks changes:
    rank r takes what rank r saved. With fewer ranks the rest stays unread. A rank that did not exist has nothing, and
    DCP then refuses the load on all ranks with "Missing key"; leave the key out and make a new value instead::

        key = resilient.dcp.per_rank("rng")
        if not reader.holds(key):
            del state[key]

    ``rank``: of the process group by default, 0 without one.
    """
    if rank is None:
        rank = dist.get_rank() if dist.is_initialized() else 0
    return f"rank-{rank}/{name}"


def remove(path: str | os.PathLike[str]) -> None:
    """Delete the checkpoint at a path, or what a failed save has left there; call it on one rank.

    The manifest goes first, so that a removal that is broken off leaves no checkpoint. Files that are not of a save are
    left alone. Raises CheckpointError where the store does not let it, SettingsError for a path that cannot be used.
    """
    Shelf(path).remove()
