# SPDX-License-Identifier: Apache-2.0
"""The copy of a journal in the store: small pieces as they come, and what has gathered of them as one.

A supervisor ships every 30 s, and an object store cannot append. A training of a month would leave ninety thousand
files behind, each of which has to be listed at every start and asked for whenever the story is told.

Nothing is lost in between, wherever this stops: the last of some pieces gets the lines of all, in one instant, and
only then do the others go, the youngest first. Whoever reads them in order finds each line where it belongs, some of
them twice.
"""

from __future__ import annotations

import contextlib
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.files import Store
from resilient.checkpoint.store_errors import Exists
from resilient.errors import CheckpointError

TOGETHER: Final = 120
"""Pieces that become one: those of an hour, where nothing happens."""
JOINED_LIMIT: Final = 4 << 20
"""Bytes; a larger piece would save nobody anything."""
AT_ONCE: Final = 8
"""Pieces that are deleted with each new one, which must not wait long for it."""


class ShippedJournal:
    """That of one supervisor, which alone writes and deletes there; used by one thread."""

    def __init__(self, store: Store, submission: str) -> None:
        self._store = store
        self._submission = submission
        self._pieces: dict[str, bytes] = {}
        """Those that are not joined yet, by name, in order."""
        self._spare: list[str] = []
        """Those whose lines stand in a later one too, in order."""

    def keep(self, pod: str, number: int, piece: bytes) -> None:
        """Keep a piece, of a higher number than all before."""
        name = layout.segment_path(self._submission, pod, number)
        if not self._create(name, piece):
            self._join()  # those before it, as none may go past it
            return
        if len(piece) + sum(map(len, self._pieces.values())) > JOINED_LIMIT:
            self._join()
        self._pieces[name] = piece
        if len(self._pieces) >= TOGETHER:
            self._join()
        self._delete_some()

    def _create(self, name: str, piece: bytes) -> bool:
        """False where it is there already: the answer was lost, and by now it may hold the lines of others too."""
        try:
            self._store.create(name, piece)
        except Exists:
            if not self._store.read(name, layout.SEGMENT_LIMIT).endswith(piece):
                raise
            return False
        return True

    def _join(self) -> None:
        pieces, self._pieces = self._pieces, {}
        if len(pieces) > 1:
            *earlier, last = pieces
            with contextlib.suppress(CheckpointError):  # then these stay as they are
                self._store.replace(last, b"".join(pieces.values()))
                self._spare += earlier

    def _delete_some(self) -> None:
        for _ in range(min(AT_ONCE, len(self._spare))):
            try:
                self._store.delete(self._spare[-1])
            except CheckpointError:  # with the next piece; to go on would leave a gap
                return
            self._spare.pop()


def read_segment(path: str) -> bytes:
    """A file of this machine that is to be kept."""
    try:
        with open(path, "rb") as file:
            segment = file.read(layout.SEGMENT_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(f"cannot ship {path}: {error}") from error
    if len(segment) > layout.SEGMENT_LIMIT:
        raise CheckpointError(f"cannot ship {path}: it is longer than {layout.SEGMENT_LIMIT} bytes; cut it earlier")
    return segment
