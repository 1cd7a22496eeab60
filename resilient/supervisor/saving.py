# SPDX-License-Identifier: Apache-2.0
"""Which snapshot goes to the store, and what has become durable.

One is saved at a time: the newest whole one, or one that all ranks have copied and not judged
yet. That one is written *ahead*, while they train on towards the optimizer's step, and
committed once each rank has published its part as it was; else it is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from resilient.checkpoint.requests import Failed, Judge, Reply, Request, Save, Saved
from resilient.core.retention import Rules
from resilient.link.board import Board, SlotRecord
from resilient.supervisor.slots import Slots, Whole

Ask = Callable[[Callable[[int], Request], Callable[[Reply], None]], None]
MOST_TOLD: Final = 5
"""Reasons why old checkpoints could not be deleted: they are mostly the same."""
RETRY_S: Final = 10.0
"""Between tries to save after the saver's own retries have failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ahead:
    """A save that is not judged yet."""

    number: int
    whole: Whole
    """What it will be."""
    records: tuple[SlotRecord, ...]


class Saving:
    """What the store is asked, and what it has answered."""

    def __init__(
        self,
        board: Board,
        slots: Slots,
        *,
        ask: Ask,
        told: Callable[[str, dict[str, object]], None],
        saved: Callable[[Saved], None],
        settled: Callable[[int], None],
    ) -> None:
        self._board = board
        self._slots = slots
        self._ask = ask
        self._told = told
        self._saved = saved
        self._settled = settled
        self.may: bool | None = False
        """The store is open and the attempt is ours; ``None``: that is being found out."""
        self.began_from: dict[int, str | None] = {}
        """The checkpoint that each attempt began from."""
        self.versions: Mapping[str, str] = {}
        self.determinism: Mapping[str, str] = {}
        self.rules = Rules()
        """Which checkpoints stay."""
        self.durable_step = 0
        self._metrics: dict[Whole, Mapping[str, float]] = {}
        """What rank 0 had measured when it took what lies in a slot."""
        self._wanted: Whole | None = None
        self._adopted: Whole | None = None
        """What an earlier container took, as long as nobody trains on it."""
        self._ahead: _Ahead | None = None
        self._numbers = 0
        """Of saves ahead: not those of requests, as a saver that replaces a killed one counts anew."""
        self._retry_at = 0.0
        self._now = 0.0
        """Of the last tick: an answer may come long after what was asked."""
        self._settling = False

    def start(self) -> None:
        """New workers: whoever asked what is durable has heard it."""
        self._settling = False

    def train(self, step: int) -> None:
        """All workers go on from ``step``."""
        # What is durable beyond it was refused, or is another history's.
        self.durable_step = min(self.durable_step, step)
        adopted, self._adopted = self._adopted, None
        if adopted is not None and adopted == self._slots.newest and adopted.step > self.durable_step:
            self._wanted = adopted  # whoever took it could not save it any more

    def adopt(self, whole: Whole, began_from: str | None) -> None:
        """A snapshot of an earlier container lies in a slot; its attempt had begun from this checkpoint."""
        self._adopted = whole
        self.began_from[whole.attempt] = began_from

    def note_metrics(self, whole: Whole, metrics: Mapping[str, float]) -> None:
        """What rank 0 had measured when it took a snapshot."""
        self._metrics = {other: known for other, known in self._metrics.items() if other.slot != whole.slot}
        self._metrics[whole] = metrics

    def tick(self, now: float) -> None:
        """Save what is wanted, unless that has failed just now."""
        self._now = now
        self.save_next(now)
        self._settle_on()

    def want(self, whole: Whole) -> None:
        """This one has to become durable, or one that is newer by then."""
        self._wanted = whole

    def save_next(self, now: float, *, at_once: bool = False) -> None:
        """Save what is wanted; ``at_once``: although that has failed just now."""
        if at_once or now >= self._retry_at:
            self._save_newest()

    def write_ahead(self, whole: Whole, now: float) -> bool:
        """Begin to write what all ranks have copied, if the store is free for it; :meth:`judge` is to follow."""
        found = self._records(whole.slot, judged=False)
        records = tuple(r for r in found if r is not None and (r.attempt, r.step) == (whole.attempt, whole.step))
        if self._slots.saving or self._wanted or not self.may or now < self._retry_at or len(records) < len(found):
            return False
        self._numbers += 1
        self._ahead = _Ahead(number=self._numbers, whole=whole, records=records)
        self._submit(whole, records, ahead=self._ahead)
        return True

    def judge(self) -> bool:
        """What is written ahead is committed if each rank has published its part as it was, and dropped if not.

        True where it is committed.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return False
        whole = self._records(ahead.whole.slot) == [*ahead.records]
        self._ask(lambda number: Judge(id=number, ahead=ahead.number, whole=whole), lambda reply: None)
        return whole

    def settle(self, now: float) -> None:
        """Make the newest whole snapshot durable, then say what is."""
        self._now = now
        self._settling = True
        self.judge()
        newest = self._slots.newest
        is_saved = newest is not None and self._slots.saving == newest
        if newest is not None and newest.step > self.durable_step and not is_saved:
            self._wanted = newest
            self._save_newest()
        self._settle_on()

    def _records(self, slot: int, *, judged: bool = True) -> list[SlotRecord | None]:
        return [self._board.record(index, slot, judged=judged) for index in range(self._board.rows)]

    def _save_newest(self) -> None:
        if self._wanted is None or self._slots.saving is not None or not self.may:
            return
        # While the store was away snapshots went on: the newest is saved, not the one that was wanted then.
        wanted = self._slots.newest
        self._wanted = None
        if wanted is not None:
            records = tuple(record for record in self._records(wanted.slot) if record is not None)
            self._submit(wanted, records)

    def _submit(self, whole: Whole, records: tuple[SlotRecord, ...], ahead: _Ahead | None = None) -> None:
        self._slots.saving = whole

        def request(number: int) -> Save:
            return Save(
                id=number,
                attempt=whole.attempt,  # which may have ended meanwhile
                step=whole.step,
                world_size=self._board.rows,
                began_from=self.began_from.get(whole.attempt),
                records=records,
                versions=self.versions,
                determinism=self.determinism,
                metrics=self._metrics.get(whole, {}),
                rules=self.rules,
                ahead=None if ahead is None else ahead.number,
            )

        self._ask(request, lambda reply: self._answered(whole, ahead, reply))

    def _answered(self, whole: Whole, ahead: _Ahead | None, reply: Reply) -> None:
        self._slots.saving = None
        unjudged = ahead is not None and ahead is self._ahead
        if unjudged:
            self._ahead = None
        if isinstance(reply, Saved):
            self.durable_step = max(self.durable_step, reply.step)
            self._slots.saved = whole
            self._told(
                "checkpoint",
                {
                    "name": reply.name,
                    "attempt": reply.attempt,
                    "step": reply.step,
                    "seconds": round(reply.seconds, 3),
                    "prune_s": round(reply.prune_s, 3),
                    "size_bytes": reply.size_bytes,
                    "pruned": list(reply.pruned),
                    "not_pruned": list(reply.not_pruned[:MOST_TOLD]),
                },
            )
            self._saved(reply)
        elif isinstance(reply, Failed) and reply.kind != "dropped":
            self._told("save_failed", {"step": whole.step, "why": reply.why})
            self._failed(whole, reply, unjudged=unjudged)
        self._settle_on()

    def _failed(self, whole: Whole, reply: Failed, *, unjudged: bool) -> None:
        if reply.kind == "corrupt":
            self._slots.void(whole.slot)
        elif unjudged:
            self._retry_at = self._now + RETRY_S  # it is wanted again once it is whole
        elif whole not in self._slots.whole():
            return  # it was dropped before that could be said
        elif self._wanted is None and (not self._settling or (not reply.answered and reply.kind == "internal")):
            # At the end there is time for one thing: another saver, where the one before was killed.
            self._wanted = whole
            self._retry_at = self._now + RETRY_S

    def _settle_on(self) -> None:
        if not self._settling or self._slots.saving is not None:
            return
        if self._wanted is not None and self.may is not False and self._wanted.step > self.durable_step:
            self._save_newest()
            if not self._settling or self._slots.saving is not None or self._wanted is not None:
                return
        self._settling = False
        self._settled(self.durable_step)
