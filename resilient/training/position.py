# SPDX-License-Identifier: Apache-2.0
"""What a position in the data is, as it is saved and found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol

from resilient.errors import CheckpointError

Tree = dict[str, Any]
_KEYS = {"seed", "epoch", "used", "start", "own"}
_LATER_KEYS = {"before", "together", "of_others"}
"""A position that was saved before there were these has none of them."""
ALIKE: Final = "alike"
APART: Final = "apart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a rank is in its data."""

    seed: int
    """Where the seeds of DataLoader workers come from; drawn once in a run."""
    epoch: int = 0
    used: int = 0
    """Batches of the epoch that were given out; not those that workers have fetched ahead."""
    start: Tree | None = None
    """The generators when the epoch's sampler was first asked, or its data set."""
    own: Any = None
    """What the loader or data set itself says of its position, where it can."""
    before: int = 0
    """Samples of the epoch that other numbers of ranks had used, all of them together; ``used`` counts from there."""
    together: int = 0
    """Samples that one batch of every replica makes up, where a DistributedSampler deals them."""
    of_others: str = ""
    """Where it is that of another number of ranks, and so has to be found anew: whether these had it ``ALIKE``."""

    def to_tree(self) -> Tree:
        """As a part of the image."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tree(cls, tree: Tree) -> Position:
        """From a part of an image that ``differences`` found fine."""
        return cls(**tree)

    def must_be(self, *, own: bool) -> None:
        """Raise CheckpointError where it was saved by another kind of loader than is to go on from it."""
        if self.used and own is not (self.own is not None):
            saved, given = ("keeps", "does not") if self.own is not None else ("does not keep", "does")
            raise CheckpointError(
                f"cannot resume the data: it was saved with a loader that {saved} its own position, and this one "
                f"{given}; give run.batches the kind of loader that it was saved with"
            )


def differences(tree: object) -> list[str]:
    """What is wrong with a saved position."""
    if tree is None:
        return []
    if not isinstance(tree, dict) or tree.keys() - _LATER_KEYS != _KEYS:
        return ["run.data: not a position"]
    numbers = [tree["seed"], tree["epoch"], tree["used"], tree.get("before", 0), tree.get("together", 0)]
    if tree.get("of_others", "") not in ("", ALIKE, APART):
        return ["run.data: not a position"]
    if not all(type(number) is int for number in numbers) or min(numbers[1:]) < 0:
        return ["run.data: not a position"]
    start = tree["start"]
    if start is None or (isinstance(start, dict) and start.keys() == {"rng", "generators"}):
        return []
    return ["run.data.start: not the state of generators"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """What could not be read."""

    number: int
    """Of the batch in its epoch, counted as in a position."""
    sample: int | None


class Source(Protocol):
    """Batches, epoch after epoch."""

    exact: bool = False
    """It leaves batches out without fetching them."""
    together: int = 0
    """As in a position."""
    of: int = 0
    """Samples of its data set; 0: not known."""
    size: int = 0
    """Samples that it puts into a batch; 0: not known, or not always as many."""

    def open(self, position: Position, now: Tree | None, out: frozenset[int]) -> Iterator[Any]:
        """The rest of an epoch; with ``now`` the generators end up there once what was used is skipped.

        ``out``: numbers of the batches that are left out, by whoever asks where the source is not ``exact``.
        """

    def found(self) -> Tree:
        """``start`` and ``own`` of the position after the last batch that was given out."""

    def samples(self, number: int) -> tuple[int, ...]:
        """Indices of the samples of a batch of this epoch, where they are known still."""
        return ()

    def failed(self, messages: Sequence[str], *, fetching: bool) -> Failed | None:
        """What was being read when an exception with these messages, of itself and of its causes, was raised.

        ``fetching``: the training was waiting for a batch then.
        """
        return None

    def close(self) -> None:
        """No more batches are wanted."""
