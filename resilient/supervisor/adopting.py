# SPDX-License-Identifier: Apache-2.0
"""What the container before has left in memory, and what this one leaves to the next.

Found before the workers are started, judged once the store is open: only then is it known whose it is. From then on
it is a snapshot like any other, which all ranks verify before one of them restores from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from resilient.checkpoint.arena import Slot
from resilient.checkpoint.requests import Opened
from resilient.checkpoint.volume import Images, KeptRecord, Leftover, Volume
from resilient.core.adoption import Kept, Origin, Present, objection, outlives, told_adopted, told_kept
from resilient.link.board import Board
from resilient.supervisor.slots import Whole
from resilient.supervisor.store_link import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """A snapshot in memory."""

    whole: Whole
    origin: Origin
    """Of its attempt."""


class Adopting:
    """Of one supervisor; without a volume there is nothing to find and nothing to leave."""

    def __init__(
        self,
        volume: Volume | None,
        board: Board,
        identity: Identity,
        *,
        pod: str,
        journal: Callable[[str, Mapping[str, object]], None],
        say: Callable[[str], None],
    ) -> None:
        """``pod`` is its uid."""
        self._volume = volume
        self._board = board
        self._identity = identity
        self._pod = pod
        self._journal = journal
        self._say = say
        self._found = Leftover() if self._volume is None else self._volume.take()
        if self._found.why:
            self._tell(None, self._found.why)
        board.inherit(sum(slot.held_bytes for slot in self._found.slots.values()))

    @property
    def in_memory(self) -> Callable[[int, int], Slot] | None:
        """Gives the slot of a rank with this number; ``None``: it needs no name."""
        return None if self._volume is None else self._slot

    @property
    def attempt(self) -> int | None:
        """That of the snapshot that was found."""
        return self._found.record.kept.attempt if self._found.record else None

    def judge(self, opened: Opened, adopt: Callable[[Newest], None]) -> Opened:
        """Take the snapshot that was found for one of this run, which ``adopt`` is told, or drop it.

        Returns the store's answer as it counts then.
        """
        found, self._found = self._found, Leftover()
        if found.record is None:
            return opened
        kept = found.record.kept
        why = objection(kept, self._present(opened))
        self._tell(kept, why)
        if why is not None:
            self._drop(found)
            return opened
        for rank, record in enumerate(found.record.records()):
            self._board.publish(rank, record)
        whole = Whole(attempt=kept.attempt, step=kept.step, slot=found.record.slot)
        adopt(Newest(whole=whole, origin=kept.origin))
        # Where the store was away when it began, the snapshot's attempt has not even a claim there.
        return replace(opened, next_attempt=max(opened.next_attempt, kept.attempt + 1))

    def leave(self, code: int, newest: Newest | None, run: str | None) -> None:
        """Make ready what the next container gets after this exit: the ``newest`` snapshot in memory, of this ``run``.

        Both are known once the store was open; until then what was found stays what it was.
        It is left once :meth:`~resilient.checkpoint.volume.Volume.keep` is called.
        """
        record = self._record(newest, run) if outlives(code) else None
        if self._volume is None or record is None:
            return
        why = None
        try:
            self._volume.stage(record)
        except OSError as error:
            why = error.strerror or str(error)
        kept = record.kept
        self._journal("kept", {"attempt": kept.attempt, "step": kept.step, "why": why})
        self._say(told_kept(kept.attempt, kept.step, why))

    def _slot(self, rank: int, number: int) -> Slot:
        assert self._volume is not None, "there is no volume"
        record = self._found.record
        if record is not None and number == record.slot and rank in self._found.slots:
            return self._found.slots[rank]
        return self._volume.create(rank, number)

    def _present(self, opened: Opened) -> Present:
        return Present(
            submission=self._identity.submission,
            index=self._identity.index,
            pod=self._pod,
            run=opened.run_id,
            ranks=self._board.rows,
            fresh_from=opened.fresh_from,
            claim=opened.claim,
            skipped=opened.skipped,
            newest=max(((ref.attempt, ref.step) for ref in opened.checkpoints), default=None),
        )

    def _tell(self, kept: Kept | None, why: str | None) -> None:
        attempt, step = (kept.attempt, kept.step) if kept else (None, None)
        self._journal("adopted", {"attempt": attempt, "step": step, "why": why})
        self._say(told_adopted(attempt, step, why))

    def _drop(self, found: Leftover) -> None:
        """Nobody has read it yet. The slots of our ranks stay, and are as good as new."""
        for rank, slot in found.slots.items():
            slot.give_back()
            if rank >= self._board.rows:
                slot.close()
        self._board.inherit(0)

    def _record(self, newest: Newest | None, run: str | None) -> KeptRecord | None:
        if newest is None or run is None:
            return self._found.record if newest is None else None
        whole = newest.whole
        records = [self._board.record(rank, whole.slot) for rank in range(self._board.rows)]
        kept = Kept(
            submission=self._identity.submission,
            index=self._identity.index,
            pod=self._pod,
            run=run,
            ranks=self._board.rows,
            attempt=whole.attempt,
            step=whole.step,
            origin=newest.origin,
        )
        images = tuple(Images(tensors=one.tensors, own=one.own) for one in records if one is not None)
        return KeptRecord(kept=kept, slot=whole.slot, images=images)
