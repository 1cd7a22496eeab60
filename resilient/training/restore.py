# SPDX-License-Identifier: Apache-2.0
"""Reading a candidate to resume from: everything is checked before anything is written."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from resilient import retry
from resilient.checkpoint import digest, image, tensors
from resilient.checkpoint.arena import Slot
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import read_manifest
from resilient.checkpoint.vault import Vault
from resilient.errors import CheckpointError
from resilient.link.board import Board
from resilient.supervisor.samples import memory_available
from resilient.training import batches, rng
from resilient.training.state import Memo, Part, in_load_order

_PATIENCE_S: Final = 60.0
"""For a store that does not answer; the host has the longer patience."""
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A state that was read and fits; its tensors are views of the memory it was read from."""

    name: str
    step: int
    state: Mapping[str, Any]
    rng: dict[str, Any]
    data: dict[str, Any] | None


def read_memory(board: Board, index: int, slot: int, arena: Slot, *, step: int) -> memoryview:
    """The image in a slot, verified."""
    record = board.record(index, slot)
    if record is None or record.step != step:
        raise CheckpointError(f"cannot resume from memory: slot {slot} holds no snapshot of step {step}")
    view = arena.view(record.size)
    if not digest.matches(view, record.digest):
        board.void(index, slot)
        raise CheckpointError("cannot resume from memory: the snapshot does not have its digest")
    return view


def read_durable(url: str, name: str, *, rank: int, world_size: int) -> memoryview:
    """This rank's image of a checkpoint, verified."""
    vault = Vault(open_store(url), clock=time.time)
    patient = retry.store_small(_PATIENCE_S, threading.Event())
    manifest = patient(read_manifest, vault.store, name)
    if manifest.world_size != world_size:
        raise CheckpointError(
            f"cannot restore {name}: saved by {_ranks(manifest.world_size)}, this run has {_ranks(world_size)}; start "
            f"with --nproc-per-node {manifest.world_size} or --fresh; other numbers of ranks come with a later release"
        )
    file = next(file for file in manifest.files if file.rank == rank)
    available = memory_available()
    if file.size == 0 or (available is not None and file.size > available):
        raise CheckpointError(f"cannot restore {name}: its image has {file.size} bytes, there is room for {available}")
    view = memoryview(mmap.mmap(-1, file.size))
    patient(vault.read_image, name, file, view)
    return view


def check(name: str, view: memoryview, parts: Mapping[str, Part], *, step: int) -> Candidate:
    """The image as a candidate for these parts; a :class:`CheckpointError` says what does not fit."""
    tree = tensors.unflatten(image.read(view))
    if not isinstance(tree, dict) or tree.keys() != {"state", "run"}:
        raise CheckpointError(f"cannot restore {name}: the image is not one of a run")
    own, state = tree["run"], tree["state"]
    if not isinstance(own, dict) or own.keys() != {"step", "rng", "data"} or not isinstance(state, dict):
        raise CheckpointError(f"cannot restore {name}: the image is not one of a run")
    found = [] if own["step"] == step else [f"run.step: {own['step']!r} where {step} belongs"]
    found += rng.differences(own["rng"]) + batches.differences(own["data"])
    found += [f"state.{part}: not in what was saved" for part in sorted(parts.keys() - state.keys())]
    found += [f"state.{part}: saved, but not given to Run" for part in sorted(state.keys() - parts.keys())]
    for part in parts.keys() & state.keys():
        found += [f"state.{part}: {difference}" for difference in parts[part].differences(state[part])]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(f"cannot restore {name}: {'; '.join(found[:_SHOWN])}{more}")
    return Candidate(name=name, step=step, state=state, rng=own["rng"], data=own["data"])


def load(candidate: Candidate, parts: Mapping[str, Part]) -> None:
    """Put a candidate in place; where that fails half-way the error ends the worker."""
    memo: Memo = {}  # one of all parts: what they shared they share again
    for name, part in in_load_order(parts):
        try:
            part.load(candidate.state[name], memo)
        except Exception as error:  # load_state_dict is the user's code
            raise CheckpointError(
                f"cannot restore state[{name!r}] from {candidate.name}: load_state_dict raised {type(error).__name__}: "
                f"{error}; the state is half restored, so this worker ends"
            ) from error


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"
