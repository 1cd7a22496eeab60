# SPDX-License-Identifier: Apache-2.0
"""The board: one page of shared words between a host and its workers.

The host is the supervisor, or the standalone keeper of a script that runs without
one. A worker writes where it is; the host writes which step boundary is to be
acted on. It is the only thing on the hot path of a step: one word written, one read.

Theory of operation. The *boundary* of step ``k`` lies between the end of step
``k`` and the next request for a batch. A worker that passes it first publishes
the step it is entering (``k + 1``), then reads ``ATTENTION``. The host names a
boundary for everybody like this: it writes ``PENDING`` and ``ATTENTION = 0``,
waits until stores issued before are visible, reads what all ranks have entered
and takes the highest step ``S`` of these. A worker that had not seen ``PENDING``
has published before the host read, so ``S`` is not behind it; one that has seen
it waits at its boundary until ``S`` is written. So all ranks finish step ``S``
and none begins the next, and no rank acts on its own clock.

The page outlives the workers: it is a memfd of the host, gone with its last holder.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Final, TypeVar

from resilient.core.batch import Batch, is_sound
from resilient.link.memory import anonymous_file

NOTHING: Final = 1 << 62
"""``ATTENTION`` while no boundary is to be acted on."""
NONE: Final = -1

VERSION: Final = 5
_HEADER: Final = 64
ROW: Final = 64
"""Words that a worker has."""
SLOTS: Final = 3
"""Of each rank's own, with a record on the board."""
SPILL: Final = 2
"""The slot that lies on disk, for where memory has no room for the others."""
WHOLE: Final = 3
"""One for all ranks together, with no record: a whole checkpoint that another number of ranks has saved."""
WHOLE_ON_DISK: Final = 4
"""The same where memory has no room for it."""
ON_DISK: Final = frozenset({SPILL, WHOLE_ON_DISK})
DESCRIPTORS: Final = 5
"""Of slots, that each worker is given."""
PAGE_BYTES: Final = 4096

# Words of the header, written by the host only.
ATTENTION: Final = 2
"""The lowest boundary that needs a look; 0 while an order is being named."""
PENDING: Final = 3
SNAPSHOT_STEP: Final = 4
SNAPSHOT_SLOT: Final = 5
STOP_STEP: Final = 6
END: Final = 7
"""1 once the group is being ended: SIGTERM means leave now."""
INHERITED: Final = 8
"""Bytes of slots that were filled in an earlier container of the pod."""

# Words of a row, written by its worker only (the host resets them between attempts).
OPEN: Final = 0
ENTERED: Final = 1
DONE: Final = 2
PLACE: Final = 3
SINCE_NS: Final = 4
LONGEST_NS: Final = 5
FIRST_NS: Final = 6
TERM: Final = 7
"""1 once this worker got SIGTERM; read by a standalone keeper."""
LOOPING: Final = 8
"""1 while a loop over ``run.batches`` goes on: a worker that ends then with 0 has not finished."""
EPOCH: Final = 9
BEFORE: Final = 10
TOGETHER: Final = 11
LOADER: Final = 12
"""What ``run.batches`` takes its batches from, one of the values below; 0 before it has begun."""
FIRST: Final = 13
"""1 + the number in the epoch of the first batch that was asked for since the last step; 0 while none was."""
LAST: Final = 14
"""The same of the last one."""
OF: Final = 15
"""Samples of its data set, and in a batch of it; 0: not known."""
SIZE: Final = 16
SLOT_WORDS: Final = 17
"""First word of the slot records: one of the values below, attempt, step; then size, digest high, digest low of each
of two images."""
_SLOT_STRIDE: Final = 12

# Values of a slot record's first word.
EMPTY: Final = 0
JUDGED: Final = 1
COPIED: Final = 2
"""What the slot holds may have been changed while it was copied: its worker finds that out later."""

# Values of PLACE; a named phase is PHASE + its number.
OUTSIDE: Final = 1
STEP: Final = 2
FINISHED: Final = 3
PHASE: Final = 16

# Values of LOADER: whether a batch can be left out without being fetched.
FETCHES: Final = 1
EXACT: Final = 2


B = TypeVar("B", bound="Board")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """So many bytes, and the digest that they have."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """A snapshot of one rank, in one slot of its arena: two images, each of which begins on a page.

    The first holds parameters and optimizer state, which other ranks may have bit by bit the same; the second all
    that is the rank's own.
    """

    slot: int
    attempt: int
    step: int
    tensors: Extent
    own: Extent

    @property
    def own_offset(self) -> int:
        """Where the second image begins."""
        return on_page(self.tensors.size)

    @property
    def size(self) -> int:
        """Bytes of the slot that are in use."""
        return self.own_offset + self.own.size


def on_page(offset: int) -> int:
    """The first page at or behind an offset."""
    return -(-offset // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """One reading of a worker's row."""

    opened: bool
    entered: int
    done: int
    place: int
    since_ns: int
    longest_ns: int
    first_ns: int
    looping: bool = False


class Board:
    """The shared page, seen from either side."""

    def __init__(self, fd: int, rows: int) -> None:
        self.fd = fd
        self.rows = rows
        self._map = mmap.mmap(fd, _bytes(rows))
        self.words = memoryview(self._map).cast("q")

    @classmethod
    def create(cls: type[B], rows: int) -> B:
        """A new page for ``rows`` local workers."""
        fd = anonymous_file("resilient-board")
        os.ftruncate(fd, _bytes(rows))
        board = cls(fd, rows)
        board.words[0], board.words[1] = VERSION, rows
        board.clear_orders()
        return board

    @classmethod
    def attach(cls, fd: int) -> Board:
        """The page behind an inherited descriptor."""
        rows = os.fstat(fd).st_size // 8 // ROW - _HEADER // ROW
        board = cls(fd, rows)
        if board.words[0] != VERSION or board.words[1] > rows:
            raise ValueError("cannot attach to the supervisor's board: another version of resilient wrote it")
        board.rows = board.words[1]
        return board

    def close(self) -> None:
        """Unmap and close; the other holders keep the page."""
        self.words.release()
        self._map.close()
        os.close(self.fd)

    @property
    def inherited_bytes(self) -> int:
        """Memory of all slots that an earlier container of the pod is charged for: our own cgroup does not show it."""
        return self.words[INHERITED]

    # Host side.

    def inherit(self, size_bytes: int) -> None:
        """Note how much of the slots' memory is charged to an earlier container."""
        self.words[INHERITED] = size_bytes

    def clear_orders(self) -> None:
        """No boundary is to be acted on."""
        self.words[ATTENTION] = NOTHING
        self.words[PENDING] = 0
        self.words[SNAPSHOT_STEP] = self.words[SNAPSHOT_SLOT] = self.words[STOP_STEP] = NONE
        self.words[END] = 0

    def reset_rows(self) -> None:
        """Forget where the workers of the last attempt were; their slots stay."""
        for index in range(self.rows):
            base = row_base(index)
            for word in range(SLOT_WORDS):
                self.words[base + word] = 0

    def pulse(self, index: int) -> Pulse:
        """Where worker ``index`` is."""
        w, b = self.words, row_base(index)
        return Pulse(
            opened=w[b + OPEN] == 1,
            entered=w[b + ENTERED],
            done=w[b + DONE],
            place=w[b + PLACE],
            since_ns=w[b + SINCE_NS],
            longest_ns=w[b + LONGEST_NS],
            first_ns=w[b + FIRST_NS],
            looping=w[b + LOOPING] == 1,
        )

    def batch(self, index: int) -> Batch | None:
        """The batch, or batches, that worker ``index`` is at; ``None`` where it has none, or has done its step."""
        w, b = self.words, row_base(index)
        if not (w[b + LOADER] and w[b + FIRST] and w[b + ENTERED] > w[b + DONE]) or w[b + PLACE] >= PHASE:
            return None
        batch = Batch(
            epoch=w[b + EPOCH],
            first=w[b + FIRST] - 1,
            count=w[b + LAST] - w[b + FIRST] + 1,
            before=w[b + BEFORE],
            together=w[b + TOGETHER],
            exact=w[b + LOADER] == EXACT,
            of=w[b + OF],
            size=w[b + SIZE],
        )
        return batch if is_sound(batch) else None

    def counts(self) -> list[tuple[int, int]]:
        """``of`` and ``size`` of the batches of each rank that takes some."""
        bases = (row_base(index) for index in range(self.rows))
        return [(self.words[b + OF], self.words[b + SIZE]) for b in bases if self.words[b + LOADER]]

    def record(self, index: int, slot: int, *, judged: bool = True) -> SlotRecord | None:
        """The snapshot in a slot, or ``None``; with ``judged`` only one that is known to be whole."""
        w, b = self.words, _slot_base(index, slot)
        if w[b] != JUDGED and (judged or w[b] != COPIED):
            return None
        return SlotRecord(
            slot=slot,
            attempt=w[b + 1],
            step=w[b + 2],
            tensors=_extent(w[b + 3], w[b + 4], w[b + 5]),
            own=_extent(w[b + 6], w[b + 7], w[b + 8]),
        )

    def void(self, index: int, slot: int) -> None:
        """Declare a slot empty: before it is written, or when what it holds failed verification."""
        self.words[_slot_base(index, slot)] = EMPTY

    def publish(self, index: int, record: SlotRecord, *, judged: bool = True) -> None:
        """Declare a slot whole, or only copied; the last word written makes it so."""
        w, b = self.words, _slot_base(index, record.slot)
        w[b + 1], w[b + 2] = record.attempt, record.step
        for at, extent in ((b + 3, record.tensors), (b + 6, record.own)):
            digest = int(extent.digest.removeprefix("xxh3_128:"), 16)
            w[at], w[at + 1], w[at + 2] = extent.size, _signed(digest >> 64), _signed(digest & _MASK)
        w[b] = JUDGED if judged else COPIED


_MASK: Final = (1 << 64) - 1


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _extent(size: int, high: int, low: int) -> Extent:
    return Extent(size=size, digest=f"xxh3_128:{((high & _MASK) << 64) | (low & _MASK):032x}")


def _slot_base(index: int, slot: int) -> int:
    return row_base(index) + SLOT_WORDS + _SLOT_STRIDE * slot


def row_base(index: int) -> int:
    """Number of the first word of worker ``index``'s row."""
    return _HEADER + ROW * index


def _bytes(rows: int) -> int:
    return 8 * (_HEADER + ROW * rows)
