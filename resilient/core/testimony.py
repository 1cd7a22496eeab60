# SPDX-License-Identifier: Apache-2.0
"""Evidence of several pods: each tells what it has seen of its own workers, and one judges it all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

from resilient.core.evidence import UNNAMED, Evidence, Hang, RankEvidence

_TAILS: Final = (64 << 10, 8 << 10, 1 << 10)
"""How much is left of each text where all of it is too long, tried one after the other."""
N = TypeVar("N", int, float)


def of_pod(evidence: Evidence, *, first: int, node: str | None) -> Evidence:
    """What a pod has seen, by the ranks of the run: ``first`` is that of its first worker."""
    hang = evidence.hang
    return replace(
        evidence,
        ranks=tuple(_of_pod(rank, first, node) for rank in evidence.ranks),
        hang=None if hang is None else replace(hang, rank=hang.rank + first),
    )


def _of_pod(rank: RankEvidence, first: int, node: str | None) -> RankEvidence:
    """The monotonic clock of a machine says nothing on another."""
    number = rank.rank if rank.rank == UNNAMED else rank.rank + first
    error = rank.error if rank.error is None else replace(rank.error, monotonic_s=None)
    return replace(rank, rank=number, node=rank.node or node, error=error)


def shortened(evidence: Evidence, chars: int) -> Evidence:
    """With the ends of its texts only, none of which is longer than ``chars``."""
    return replace(evidence, ranks=tuple(_shortened(rank, chars) for rank in evidence.ranks))


def shorter(evidence: Evidence) -> Sequence[Evidence]:
    """The evidence, and ever less of it; the last is how each worker ended, which has room for any number of them."""
    endings = tuple(
        RankEvidence(rank=rank.rank, exit_code=rank.exit_code, signal=rank.signal, stopped=rank.stopped)
        for rank in evidence.ranks
    )
    return [evidence, *(shortened(evidence, chars) for chars in _TAILS), Evidence(ranks=endings, hang=evidence.hang)]


def _shortened(rank: RankEvidence, chars: int) -> RankEvidence:
    error = rank.error
    if error is not None:
        error = replace(
            error,
            traceback=error.traceback[-chars:],
            chain=tuple(replace(link, message=link.message[:chars]) for link in error.chain),
        )
    return replace(
        rank,
        error=error,
        stderr_tail=rank.stderr_tail[-chars:],
        stdout_tail=rank.stdout_tail[-chars:],
        nccl_log=rank.nccl_log[-chars:],
        kernel_log=rank.kernel_log[-chars:],
    )


def is_of(evidence: Evidence, ranks: range) -> bool:
    """Whether a pod speaks of its own workers only, and of each once."""
    spoken = [rank.rank for rank in evidence.ranks if rank.rank != UNNAMED]
    hang = evidence.hang
    return len(set(spoken)) == len(spoken) and set(spoken) <= {*ranks} and (hang is None or hang.rank in ranks)


def together(testimonies: Sequence[Evidence], *, order: Sequence[int], world_size: int) -> Evidence:
    """One evidence of them all; ``order``: the ranks as they were seen to end."""
    places = {rank: place for place, rank in enumerate(order)}
    ranks = [replace(rank, order=places.get(rank.rank)) for each in testimonies for rank in each.ranks]
    return Evidence(
        ranks=tuple(sorted(ranks, key=lambda rank: rank.rank)),
        hang=min((each.hang for each in testimonies if each.hang is not None), key=_is_a_victim, default=None),
        oom_kills=_most([each.oom_kills for each in testimonies]),
        shm_used_fraction=_most([each.shm_used_fraction for each in testimonies]),
        disk_used_fraction=_most([each.disk_used_fraction for each in testimonies]),
        announced=tuple(text for each in testimonies for text in each.announced),
        pod_devices=tuple(device for each in testimonies for device in each.pod_devices),
        world_size=None if len(ranks) == world_size else world_size,
    )


def _is_a_victim(hang: Hang) -> bool:
    return hang.waits


def _most(values: Sequence[N | None]) -> N | None:
    return max((value for value in values if value is not None), default=None)
