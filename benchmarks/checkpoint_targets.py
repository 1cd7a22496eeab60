# SPDX-License-Identifier: Apache-2.0
"""What was promised of checkpoints, each promise beside what was measured in the same run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from checkpoint_figures import LOADS, MAPPED, Samples, best, median
from checkpoint_limits import FRESH, MEMCPY, READS, WRITES

NEW_SHARE = 2 / 3
"""Of the state: the two moments that AdamW has for each parameter, and that a new process has no memory for yet."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All of one run."""

    size_bytes: float
    limits: Samples
    saves: Mapping[str, Samples]
    restores: Mapping[str, Samples]

    def ours(self, figure: str) -> float | None:
        return median(self.saves.get("resilient", {}).get(figure))

    def limit(self, *names: str) -> float | None:
        """The best rate of several ways, in bytes a second."""
        rates = [rate for name in names if (rate := median(self.limits.get(name))) is not None]
        return max(rates) * 1e9 if rates else None

    def best(self, kind: str, figure: str) -> float | None:
        found = best(self.saves, kind, figure)
        return found[1] if found else None

    def restored(self, name: str, figure: str) -> float | None:
        return median(self.restores.get(name, {}).get(figure))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One promise. ``measured`` and ``bound`` are in ``unit``; ``None``: something that it needs was not measured."""

    target: str
    unit: str
    measured: float | None
    bound: float | None
    at_least: bool = False
    """The bound is a lower one."""

    @property
    def holds(self) -> bool | None:
        if self.measured is None or self.bound is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def line(self) -> str:
        words = {None: "not measured", True: "holds", False: "DOES NOT HOLD"}
        sign = ">=" if self.at_least else "<="
        bound, measured = (
            f"{value:.4g} {self.unit}" if value is not None else "-" for value in (self.bound, self.measured)
        )
        return f"target {self.target} ({sign} {bound}): measured {measured}, {words[self.holds]}"


def verdicts(found: Measured) -> Iterator[Verdict]:
    """All of them."""
    yield from _premises(found)
    yield from _training(found)
    yield from _durable(found)
    yield from _restores(found)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _rate(found: Measured, seconds: float | None) -> float | None:
    return found.size_bytes / seconds / 1e9 if seconds else None


def _copying(found: Measured) -> float | None:
    """What this machine can do at best for a state of which a part has no memory yet, in bytes a second."""
    there, fresh = found.limit(MEMCPY), found.limit(FRESH)
    return 1 / ((1 - NEW_SHARE) / there + NEW_SHARE / fresh) if there and fresh else None


def _premises(found: Measured) -> Iterator[Verdict]:
    rate = found.limit(MEMCPY)
    yield Verdict(
        target="forward and backward at least as long as the copy",
        unit="s",
        measured=median(found.saves.get("none", {}).get("compute_s")),
        bound=found.size_bytes / rate if rate else None,
        at_least=True,
    )


def _training(found: Measured) -> Iterator[Verdict]:
    stall = found.best("async", "stall_s")
    bound = None if stall is None else max(stall / 20, 0.002)
    yield Verdict(
        target="stall at most 1/20 of the best async peer's or 2 ms",
        unit="ms",
        measured=_times(1e3, found.ours("stall_s")),
        bound=_times(1e3, bound),
    )
    yield Verdict(target="stall below 5 ms", unit="ms", measured=_times(1e3, found.ours("stall_s")), bound=5.0)
    yield Verdict(
        target="training time lost at most 1/3 of the best async peer's",
        unit="s",
        measured=found.ours("lost_s"),
        bound=_times(1 / 3, found.best("async", "lost_s")),
    )


def _durable(found: Measured) -> Iterator[Verdict]:
    durable = found.ours("durable_s")
    yield Verdict(
        target="durable at 70 % of the direct-write limit",
        unit="GB/s",
        measured=_rate(found, durable),
        bound=_times(0.7e-9, found.limit(*WRITES)),
        at_least=True,
    )
    yield Verdict(
        target="durable in at most 1/2 of the best async peer's time",
        unit="s",
        measured=durable,
        bound=_times(0.5, found.best("async", "durable_s")),
    )
    yield Verdict(
        target="durable no later than the best synchronous peer's",
        unit="s",
        measured=durable,
        bound=found.best("sync", "durable_s"),
    )


def _restores(found: Measured) -> Iterator[Verdict]:
    from_memory = found.restored("resilient, memory", "warm_s")
    warm = [s for name in LOADS if name not in MAPPED and (s := found.restored(name, "warm_s")) is not None]
    yield Verdict(
        target="restore from memory, verified, at 60 % of memcpy, to fresh memory where the state has none yet",
        unit="GB/s",
        measured=_rate(found, from_memory),
        bound=_times(0.6e-9, _copying(found)),
        at_least=True,
    )
    yield Verdict(
        target="restore from memory, verified, no slower than the fastest unverified warm load",
        unit="s",
        measured=from_memory,
        bound=min(warm) if warm else None,
    )
    yield Verdict(
        target="restore from memory, verified, in at most 1/2 of DCP's warm load",
        unit="s",
        measured=from_memory,
        bound=_times(0.5, found.restored("dcp_load", "warm_s")),
    )
    rate = found.limit(*READS)
    yield Verdict(
        target="training begins later by a cold durable restore by at most what reading takes at 70 % of the limit",
        unit="s",
        measured=found.restored("resilient, durable", "cold_later_s"),
        bound=found.size_bytes / (0.7 * rate) if rate else None,
    )
