# SPDX-License-Identifier: Apache-2.0
"""Reading a candidate to resume from: everything is checked before anything is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from torch import Tensor

from resilient.checkpoint import digest, pair, tensors
from resilient.checkpoint.arena import Slot
from resilient.errors import CheckpointError
from resilient.facts import cpus
from resilient.link.board import SlotRecord
from resilient.training import batches, rng
from resilient.training.placing import Placing, Source, own_block
from resilient.training.state import Memo, OptimizerPart, Part, in_load_order

_SHOWN: Final = 5
_MOST_THREADS: Final = 4


class Damaged(CheckpointError):
    """The bytes do not have their digest."""

    kind = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A state that was read and fits; its tensors are views of the memory it was read from."""

    name: str
    step: int
    state: Mapping[str, Any]
    rng: dict[str, Any]
    data: dict[str, Any] | None
    memo: Memo = field(default_factory=dict)
    """What has memory of its own already."""
    size_bytes: int = 0
    read_s: float = 0.0
    saved_by: int | None = None
    """How many ranks, where that is another number than there are now."""


def read(name: str, record: SlotRecord, slot: Slot, parts: Mapping[str, Part], *, ranks: int) -> Candidate:
    """The state in a slot, verified; memory that optimizers need anew is filled while the digests are made.

    ``ranks`` of this machine do the same at the same time.
    """
    begun = time.monotonic()
    view = slot.view(record.size)
    first, own = view[: record.tensors.size], view[record.own_offset :]
    verified: list[bool] = []

    def verify() -> None:
        verified.append(digest.matches(own, record.own.digest) and digest.matches(first, record.tensors.digest))

    verifier = threading.Thread(target=verify, name="resilient-digest")
    verifier.start()
    try:
        candidate = check(name, tensors.unflatten(pair.read(first, own)), parts, step=record.step)
        for part_name, part in in_load_order(parts):
            if isinstance(part, OptimizerPart):
                _copy(part.prepare(candidate.state[part_name], candidate.memo), ranks)
    finally:
        verifier.join()
        if verified != [True]:
            raise Damaged(f"cannot restore {name}: what lies in memory does not have its digest")
    return replace(candidate, size_bytes=record.size, read_s=time.monotonic() - begun)


def _copy(copies: list[tuple[Tensor, Tensor]], ranks: int) -> None:
    """On several threads: memory that nobody had before is slow, and not for one core alone."""
    with ThreadPoolExecutor(min(_MOST_THREADS, max(1, cpus() // ranks)), "resilient-restore") as threads:
        for copied in [threads.submit(target.copy_, source) for source, target in copies]:
            copied.result()


def check(name: str, tree: object, parts: Mapping[str, Part], *, step: int, source: Source = own_block) -> Candidate:
    """What was read as a candidate for these parts; a :class:`CheckpointError` says what does not fit."""
    if not isinstance(tree, dict) or tree.keys() != {"state", "run"}:
        raise CheckpointError(f"cannot restore {name}: the image is not one of a run")
    own, state = tree["run"], tree["state"]
    if not isinstance(own, dict) or own.keys() != {"step", "rng", "data"} or not isinstance(state, dict):
        raise CheckpointError(f"cannot restore {name}: the image is not one of a run")
    found = [] if own["step"] == step else [f"run.step: {own['step']!r} where {step} belongs"]
    found += rng.differences(own["rng"]) + batches.differences(own["data"])
    found += [f"state.{part}: not in what was saved" for part in sorted(parts.keys() - state.keys())]
    found += [f"state.{part}: saved, but not given to Run" for part in sorted(state.keys() - parts.keys())]
    placing = Placing(parts, source)
    for part in sorted(parts.keys() & state.keys()):
        state[part] = placing.placed(part, state[part])
        if not placing.found:
            found += [f"state.{part}: {difference}" for difference in parts[part].differences(state[part])]
    found += placing.found
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(f"cannot restore {name}: {'; '.join(found[:_SHOWN])}{more}")
    return Candidate(name=name, step=step, state=state, rng=own["rng"], data=own["data"])


def load(candidate: Candidate, parts: Mapping[str, Part]) -> None:
    """Put a candidate in place; where that fails half-way the error ends the worker."""
    memo = candidate.memo  # one of all parts: what they shared they share again
    for name, part in in_load_order(parts):
        try:
            part.load(candidate.state[name], memo)
        except Exception as error:  # load_state_dict is the user's code
            raise CheckpointError(
                f"cannot restore state[{name!r}] from {candidate.name}: load_state_dict raised {type(error).__name__}: "
                f"{error}; the state is half restored, so this worker ends"
            ) from error
