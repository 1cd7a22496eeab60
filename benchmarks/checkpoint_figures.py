# SPDX-License-Identifier: Apache-2.0
"""From the times of steps and saves to figures, tables and verdicts; it measures nothing.

The same arithmetic is applied to every candidate, on times taken by the same training.
"""

import itertools
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

BEGUN, BACKWARD, FREE, ENDED = range(4)
GIB = 2**30
Samples = dict[str, list[float]]
"""What was measured, by the name of the figure."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Who saves."""

    kind: str
    """``sync``, ``async``, ``forks`` (asynchronous, by copy on write), ``ours``."""
    needs: str = ""
    """A package that need not be installed."""
    needs_gpu: bool = False


CANDIDATES = {
    "torch_save": Candidate(kind="sync"),
    "safetensors": Candidate(kind="sync"),
    "dcp": Candidate(kind="sync"),
    "dcp_async_thread": Candidate(kind="async"),
    "dcp_async_stager": Candidate(kind="async"),
    "dcp_async_process": Candidate(kind="async"),
    "torchsnapshot": Candidate(kind="async", needs="torchsnapshot"),
    "nvrx": Candidate(kind="async", needs="nvidia_resiliency_ext", needs_gpu=True),
    "nvrx_fork": Candidate(kind="forks", needs="nvidia_resiliency_ext", needs_gpu=True),
    "dlrover": Candidate(kind="async", needs="dlrover"),
    "resilient": Candidate(kind="ours"),
}
LOADS = (
    "torch_load",
    "torch_load_mapped",
    "torch_load_mapped_copied",
    "safetensors_mapped",
    "safetensors_copied",
    "dcp_load",
)
MAPPED = ("torch_load_mapped", "safetensors_mapped")
"""They return before the file has been read, so no target is compared with them."""


def saved(steps: Sequence[Sequence[float]], saves: Sequence[Mapping[str, float]], warm_up: int) -> Samples:
    """Figures of all saves but those that warm up and the last, which is for the memory.

    A step is the time from the end of the one before to its own end, so that whatever happens between two steps is in
    it. ``lost`` is what steps that a save touches take longer than the median of those that none touches. ``stall`` is
    that part of it for which the training waits: between two steps, and before the optimizer.
    """
    took, gaps, waits = _spans(steps)
    touched = [_touched(steps, save) for save in saves]
    counted = range(warm_up, len(saves) - 1)
    calm = _calm(touched, warm_up) if counted else []
    if not calm:
        print(f"    {len(saves)} saves with no undisturbed step between them give no figures", file=sys.stderr)
        return {}
    ordinary = [statistics.median(of[i] for i in calm) for of in (took, gaps, waits)]
    found: Samples = {"step_s": [took[i] for i in calm], "stall_s": [], "lost_s": [], "durable_s": []}
    for number in counted:
        found["stall_s"].append(sum(gaps[i] - ordinary[1] + waits[i] - ordinary[2] for i in touched[number]))
        found["lost_s"].append(sum(took[i] - ordinary[0] for i in touched[number]))
        found["durable_s"].append(saves[number]["durable"] - saves[number]["begun"])
    return found


def _spans(steps: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Of each step its whole time, the time before it and its wait before the optimizer."""
    before = [steps[0][BEGUN], *(step[ENDED] for step in steps[:-1])]
    took = [step[ENDED] - end for step, end in zip(steps, before, strict=True)]
    gaps = [step[BEGUN] - end for step, end in zip(steps, before, strict=True)]
    return took, gaps, [step[FREE] - step[BACKWARD] for step in steps]


def _touched(steps: Sequence[Sequence[float]], save: Mapping[str, float]) -> list[int]:
    """Steps during which a save goes on."""
    return [
        number
        for number, (before, step) in enumerate(itertools.pairwise(steps), start=1)
        if step[ENDED] > save["begun"] and before[ENDED] < save["durable"]
    ]


def _calm(touched: Sequence[Sequence[int]], warm_up: int) -> list[int]:
    """Steps between the counted saves that none touches, and that follow none: there old files are deleted."""
    busy = {i + after for indices in touched for i in indices for after in (0, 1)}
    return [i for i in range(min(touched[warm_up]), min(touched[-1])) if i not in busy]


def median(values: Iterable[float] | None) -> float | None:
    """``None`` where nothing was measured."""
    found = list(values or ())
    return statistics.median(found) if found else None


def shown(values: Sequence[float] | None, scale: float = 1.0, digits: int = 2) -> str:
    """Median [least-most]."""
    if not values:
        return "-"
    numbers = (statistics.median(values), min(values), max(values))
    middle, least, most = (f"{value * scale:.{digits}f}" for value in numbers)
    return f"{middle} [{least}-{most}]"


def summary(samples: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Median, least and most of each figure."""
    return {
        name: [round(value, 6) for value in (statistics.median(values), min(values), max(values))]
        for name, values in samples.items()
        if values
    }


SAVE_COLUMNS = (
    ("stall ms", "stall_s", 1e3, 1),
    ("lost s", "lost_s", 1.0, 2),
    ("durable s", "durable_s", 1.0, 2),
    ("extra GiB", "extra_bytes", 1 / GIB, 2),
    ("disk GiB", "disk_bytes", 1 / GIB, 2),
    ("step s", "step_s", 1.0, 2),
)
RESTORE_COLUMNS = (
    ("warm s", "warm_s", 1.0, 3),
    ("cold s", "cold_s", 1.0, 3),
    ("warm, later s", "warm_later_s", 1.0, 3),
    ("cold, later s", "cold_later_s", 1.0, 3),
)


def table(title: str, found: Mapping[str, Samples], columns: Sequence[tuple[str, str, float, int]]) -> Iterator[str]:
    """One line for each candidate."""
    yield f"\n{title}: median [least-most]"
    yield "".join([f"{'':<26}", *(f"{name:>24}" for name, *_ in columns)])
    for name, samples in found.items():
        cells = (shown(samples.get(figure), scale, digits) for _, figure, scale, digits in columns)
        yield "".join([f"{name:<26}", *(f"{cell:>24}" for cell in cells)])


def best(found: Mapping[str, Samples], kind: str, figure: str) -> tuple[str, float] | None:
    """Who of a kind has the least of a figure."""
    medians = {
        name: value
        for name, samples in found.items()
        if name in CANDIDATES and CANDIDATES[name].kind == kind
        if (value := median(samples.get(figure))) is not None
    }
    return min(medians.items(), key=lambda item: item[1]) if medians else None


def ratios(found: Mapping[str, Samples]) -> Iterator[str]:
    """Ours to the best peer of each kind."""
    for title, figure, _, _ in SAVE_COLUMNS[:3]:
        ours = median(found.get("resilient", {}).get(figure))
        for kind in ("async", "sync", "forks"):
            peer = best(found, kind, figure)
            if ours is not None and peer is not None and peer[1] > 0:
                yield f"{title.split()[0]}: resilient / best {kind} peer ({peer[0]}) = {ours / peer[1]:.3f}"
