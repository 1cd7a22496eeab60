# SPDX-License-Identifier: Apache-2.0
"""A lock for stores that know no locks: numbered objects, each created by exactly one holder.

The highest ``.lock/<n>.json`` is the lease. Its creator writes it anew every ``RENEW_S``
with a counter that rises; nobody else ever writes it, so a holder that was thought dead
and wakes up cannot undo a takeover. To take over is to create ``n + 1``, which has one winner.

No clock is compared with another machine's: an observer watches the counter against its own
monotonic clock, and takes over after ``FREE_AFTER_S`` without a change. A holder whose
renewals have not gone through for so long holds no more, and must look before it commits.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import LIMIT, UNKNOWN, Holder, Locked, is_alive
from resilient.checkpoint.store_errors import Exists, Missing
from resilient.core import wire
from resilient.errors import StoreError

RENEW_S: Final = 15.0
FREE_AFTER_S: Final = 60.0
_LOOK_AGAIN_S: Final = 2.0
_DIRECTORY: Final = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """The content of a lease object."""

    holder: Holder
    renewals: int = 0
    released: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The highest lease object, as it was read."""

    number: int
    record: LeaseRecord


class Lease:
    """A lease that was won."""

    def __init__(
        self, store: Store, number: int, record: LeaseRecord, now: Callable[[], float], renewed_s: float
    ) -> None:
        self.number = number
        self._store = store
        self._record = record
        self._now = now
        self._renewed_s = renewed_s
        self._taken_by: Holder | None = None
        self._mutex = threading.Lock()

    def check(self) -> None:
        """Return while it is held, else raise :class:`Locked`; asks the store when the last answer is old."""
        if self._taken_by is None and self._now() - self._renewed_s >= 2 * RENEW_S:
            self.renew()
        if self._taken_by is not None:
            raise Locked(self._taken_by)

    def renew(self) -> None:
        """Look whether it is still ours, and raise its counter."""
        with self._mutex:
            begun_s = self._now()
            seen = _highest(self._store)
            if seen is not None and seen.number > self.number:
                self._taken_by = seen.record.holder
                return
            self._record = replace(self._record, renewals=self._record.renewals + 1)
            self._store.replace(_path(self.number), wire.encode(self._record))
            self._renewed_s = begun_s

    def release(self) -> None:
        """Mark it free, if it is still ours. If this fails it runs out by itself."""
        if self._taken_by is not None:
            return
        with self._mutex, contextlib.suppress(StoreError):
            self._store.replace(_path(self.number), wire.encode(replace(self._record, released=True)))


def observe(
    store: Store, holder: Holder, *, patience_s: float, now: Callable[[], float], wait: Callable[[float], object]
) -> Lease:
    """Win the lease, watching its holder for as long as it takes to know that it is dead or alive."""
    deadline = now() + max(patience_s, 0.0)
    before: _Seen | None = None
    since_s = now()
    while True:
        asked_s = now()  # a slow answer must not count as the holder's silence
        seen = _highest(store)
        silent_s = asked_s - since_s
        if seen is None or _is_free(seen, before, silent_s):
            won = _create(store, seen.number + 1 if seen else 1, holder, now)
            if won is not None:
                return won
            continue
        other = seen.record.holder
        alive = is_alive(other, other.supervisor)
        if alive and other.supervisor == holder.supervisor:
            alive = False  # our own supervisor's last saver, on its way out
        elif alive is None and before not in (None, seen):
            alive = True  # it renewed while we looked
        if alive or now() >= deadline:
            raise Locked(other)
        if seen != before:
            before, since_s = seen, now()
        wait(_LOOK_AGAIN_S)


def _is_free(seen: _Seen, before: _Seen | None, silent_s: float) -> bool:
    if seen.record.released or is_alive(seen.record.holder, seen.record.holder.keeper) is False:
        return True
    return seen == before and silent_s >= FREE_AFTER_S


def _create(store: Store, number: int, holder: Holder, now: Callable[[], float]) -> Lease | None:
    record = LeaseRecord(holder=holder)
    begun_s = now()
    try:
        store.create(_path(number), wire.encode(record))
    except Exists:
        # Ours all the same if the answer to an earlier try was lost on the way.
        if _read(store, number) != record:
            return None
    _delete_below(store, number)
    return Lease(store, number, record, now, begun_s)


def _delete_below(store: Store, number: int) -> None:
    """Old lease objects are of no use to anybody; failing to delete one does no harm."""
    with contextlib.suppress(StoreError):
        for old in _numbers(store):
            if old < number:
                store.delete(_path(old))


def _numbers(store: Store) -> list[int]:
    numbers = []
    for entry in store.list(_DIRECTORY):
        stem = entry.name.removeprefix(f"{_DIRECTORY}/").removesuffix(".json")
        if stem.isdigit() and len(stem) < 18:
            numbers.append(int(stem))
    return sorted(numbers)


def _highest(store: Store) -> _Seen | None:
    numbers = _numbers(store)
    return _Seen(number=numbers[-1], record=_read(store, numbers[-1])) if numbers else None


def _read(store: Store, number: int) -> LeaseRecord:
    """What a damaged object says is unknown; it counts as held until it has been silent long enough."""
    try:
        return wire.from_data(json.loads(store.read(_path(number), LIMIT).decode()), LeaseRecord)
    except (Missing, ValueError, RecursionError):
        return LeaseRecord(holder=UNKNOWN)


def _path(number: int) -> str:
    return f"{_DIRECTORY}/{number}.json"
