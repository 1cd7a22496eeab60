# SPDX-License-Identifier: Apache-2.0
"""One held run, as the saver keeps it: what each request does, in blocking calls.

Knows nothing of sockets or queues. Retries are decided here, by the named policies.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from resilient import retry
from resilient.checkpoint import deny_list, layout
from resilient.checkpoint.arena import Slot
from resilient.checkpoint.fetch import fetch
from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import Holder, machine, process
from resilient.checkpoint.layout import AttemptRecord, Debit, DenialRecord, Manifest, RunRecord
from resilient.checkpoint.lease import RENEW_S
from resilient.checkpoint.lock import Lock, Unheld, acquire
from resilient.checkpoint.naming import images_of, manifest_of
from resilient.checkpoint.recall import recall
from resilient.checkpoint.requests import (
    CheckpointRef,
    Claim,
    Deny,
    Done,
    Fetch,
    Fetched,
    Finish,
    Judge,
    Open,
    Opened,
    Record,
    Reply,
    Request,
    Save,
    Saved,
    Ship,
)
from resilient.checkpoint.saves import Saves
from resilient.checkpoint.shipped import ShippedJournal, read_segment
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Exists
from resilient.checkpoint.survey import Survey, claim_of, survey
from resilient.checkpoint.throttle import Throttle
from resilient.checkpoint.vault import Corrupt, Vault, share
from resilient.core.aftermath import Trace
from resilient.errors import CheckpointError, StoreError
from resilient.link.board import ON_DISK

T = TypeVar("T")
_DENY_LIST_S: Final = 30.0
"""After which a start goes on without the deny list, from a store that has answered all else."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """A run that this process holds."""

    asked: Open
    lock: Lock
    vault: Vault
    run: RunRecord
    fresh_from: int
    journal: ShippedJournal
    next_attempt: int
    """The lowest number that neither an attempt nor a debit had when the run was opened."""
    claimed: AttemptRecord | None = None
    """The newest attempt that was claimed here."""
    recorded: Debit | None = None
    """The exit that was put on record here last."""
    committed: set[int] = field(default_factory=set)
    """Attempts that have a checkpoint."""
    damaged: set[str] = field(default_factory=set)
    """Checkpoints whose files were found not to have their digests."""


class Keeping:
    """Performs requests; small ones and a save may run at the same time."""

    def __init__(self, slots: Mapping[int, Sequence[int]]) -> None:
        self.leaving = threading.Event()
        """Set when nobody waits for answers any more: no operation is tried again."""
        self.saves = Saves()
        self._slots = {
            rank: [Slot.from_fd(fd, on_disk=number in ON_DISK) for number, fd in enumerate(fds)]
            for rank, fds in slots.items()
        }
        self._held: _Held | None = None
        self._closed = threading.Event()

    def perform(self, request: Request) -> Reply:
        """Do what is asked, or raise a :class:`ResilientError`."""
        if isinstance(request, Open):
            return self._open(request)
        if self._held is None:
            raise CheckpointError(f"cannot {type(request).__name__.lower()}: no run is open; send Open first")
        if isinstance(request, Save):
            return self._save(self._held, request)
        if isinstance(request, Fetch):
            return self._fetch(self._held, request)
        if isinstance(request, Judge):
            self.saves.judge(request)
            return Done(id=request.id)
        self._small(request.patience_s, _operation(self._held, request))
        return Done(id=request.id)

    def leave(self) -> None:
        """Nobody waits for answers any more: what is known to be whole is saved, if the store takes it at once."""
        self.leaving.set()
        self.saves.leave()

    def renew_until_closed(self) -> None:
        """Say every ``RENEW_S`` that the holder lives."""
        while not self._closed.wait(RENEW_S):
            if (held := self._held) is not None:
                with contextlib.suppress(StoreError):  # the lock notices that it is not renewed
                    held.lock.renew()

    def close(self) -> None:
        """Give the run back."""
        self._closed.set()
        if self._held is not None:
            self._held.lock.release()

    def _small(self, patience_s: float, operation: Callable[[], T]) -> T:
        return retry.store_small(patience_s, self.leaving)(operation)

    def _open(self, asked: Open) -> Opened:
        if self._held is not None:
            raise CheckpointError("cannot open: this saver holds a run already; start another saver")
        layout.component(asked.submission, "submission")
        throttle = Throttle(
            bytes_per_s=asked.save_bandwidth,
            lifted=self.leaving,
            wanted=self.saves.check_wanted,
            wait=self.saves.wait,
        )
        store = open_store(asked.url, throttle=throttle)
        self._small(asked.patience_s, store.probe)
        lock: Lock = Unheld()
        if not asked.guest:
            lock = self._small(asked.patience_s, lambda: self._acquire(store, asked))
        vault = Vault(store, clock=time.time)
        try:
            run = self._small(asked.patience_s, lambda: vault.identify(make=True))
            found = self._small(asked.patience_s, lambda: survey(store, run, asked.submission, asked.index))
            beside = self._beside(store, asked)
            left_by = asked.left_by
            claim = None if left_by is None else self._small(asked.patience_s, lambda: claim_of(store, left_by))
        except BaseException:
            lock.release()
            raise
        fresh = asked.fresh and found.fresh_by != asked.submission
        self._held = _Held(
            asked=asked,
            lock=lock,
            vault=vault,
            run=run,
            journal=ShippedJournal(vault.store, asked.submission),
            fresh_from=found.next_attempt if fresh else found.fresh_from,
            next_attempt=found.next_attempt,
            committed={checkpoint.attempt for checkpoint in found.checkpoints},
        )
        return replace(_opened(asked, found, beside, fresh=fresh), fresh_from=self._held.fresh_from, claim=claim)

    def _beside(self, store: Store, asked: Open) -> _Beside:
        """A deny list that cannot be read denies nothing: it may only spare a run some starts."""
        notes: list[str] = []
        try:
            denials = self._small(min(asked.patience_s, _DENY_LIST_S), lambda: _deny_list(store, notes))
        except StoreError as error:
            denials = ()
            notes.append(f"the deny list is not known, and keeps nothing off: {error}")
        # Elsewhere each start is a submission of its own.
        before = recall(store, asked.submission, asked.index, notes) if asked.in_kubernetes else None
        return _Beside(denials=denials, before=before, notes=tuple(notes))

    def _acquire(self, store: Store, asked: Open) -> Lock:
        holder = Holder(
            host=asked.host,
            pid=asked.pid,
            pod=asked.pod if asked.in_kubernetes else "",
            journal=asked.journal,
            since_s=time.time(),
            machine=machine(),
            supervisor=process(asked.pid),
            keeper=process(os.getpid()),
        )
        return acquire(store, holder, patience_s=asked.lock_patience_s, now=time.monotonic, wait=self._pause)

    def _save(self, held: _Held, asked: Save) -> Saved | Done:
        if held.asked.guest and not asked.part:
            raise _refused("save", "ask for a part of what its saver commits")
        manifest = manifest_of(asked, run=held.run.id, submission=held.asked.submission, created_s=time.time())
        name, seconds = (self._save_alone if asked.directory is None else self._save_share)(held, asked, manifest)
        if asked.part:
            return Done(id=asked.id)
        committed_s = time.monotonic()
        held.committed.add(asked.attempt)
        pruned = held.vault.prune(
            asked.attempt,
            asked.rules,
            fresh_from=held.fresh_from,
            step=asked.step,
            damaged=held.damaged,
            in_use=_fallback(held),
        )
        return Saved(
            id=asked.id,
            name=name,
            attempt=asked.attempt,
            step=asked.step,
            size_bytes=sum(file.size for file in manifest.files),
            seconds=seconds,
            prune_s=time.monotonic() - committed_s,
            pruned=pruned.deleted,
            not_pruned=pruned.failed,
        )

    def _save_alone(self, held: _Held, asked: Save, manifest: Manifest) -> tuple[str, float]:
        if asked.part:
            raise CheckpointError("cannot save a part: it has no directory; give the one that all its savers share")
        images = images_of(manifest, asked.records, range(len(asked.records)), self._slot)
        return self.saves.perform(
            asked, lambda may_commit: held.vault.save(manifest, images, may_commit), held.lock.check
        )

    def _save_share(self, held: _Held, asked: Save, manifest: Manifest) -> tuple[str, float]:
        """The directory is one for all tries, as other savers write into it."""
        images = images_of(manifest, asked.records, self._slots, self._slot)
        ours = share(asked.directory or "", manifest, images)

        def save(may_commit: Callable[[], None]) -> str:
            if not asked.part:
                return held.vault.save_into(ours, may_commit)
            held.vault.write_share(ours)
            self.saves.check_wanted()
            return str(ours.name)

        try:
            return self.saves.perform(asked, save, held.lock.check)
        except Exists:  # it is a checkpoint, or somebody else's
            raise
        except CheckpointError:
            held.vault.forget(ours, whole=not asked.part)
            raise

    def _slot(self, rank: int, number: int) -> Slot:
        slots = self._slots.get(rank, ())
        if not 0 <= number < len(slots):
            raise CheckpointError(f"cannot use slot {number} of rank {rank}: there is none")
        return slots[number]

    def _fetch(self, held: _Held, asked: Fetch) -> Fetched:
        try:
            patient = retry.store_small(asked.patience_s, self.leaving)
            return fetch(held.vault, asked, sorted(self._slots), self._slot, patient)
        except Corrupt:
            held.damaged.add(asked.name)
            raise

    def _pause(self, seconds: float) -> None:
        if self.leaving.wait(seconds):
            raise CheckpointError("cannot open: the supervisor is gone")


def _operation(held: _Held, request: Claim | Record | Deny | Finish | Ship) -> Callable[[], None]:
    """The work of a small request; whatever differs from call to call is made here, once for all tries."""
    vault = held.vault
    if held.asked.guest and isinstance(request, (Claim, Finish)):
        raise _refused(type(request).__name__.lower(), "let that one do it")
    if isinstance(request, Claim):
        return _claim(held, request)
    if isinstance(request, Record):
        return _record_exit(held, request.debit)
    if isinstance(request, Deny):
        return lambda: deny_list.write(vault.store, request.record)
    if isinstance(request, Finish):
        return lambda: _finish(held, request)
    segment = read_segment(request.path)
    return lambda: held.journal.keep(request.pod, request.number, segment)


def _refused(what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"cannot {what}: another pod holds the run; {remedy}")


def _finish(held: _Held, request: Finish) -> None:
    held.lock.check()
    held.vault.finish(request.mark)


def _record_exit(held: _Held, debit: Debit) -> Callable[[], None]:
    """Under a number that is free: who asked may not know those of the run, having to leave while it is opened."""
    if held.claimed is None:
        debit = replace(debit, attempt=max(debit.attempt, held.next_attempt))
    before, held.recorded = held.recorded, debit

    def record() -> None:
        held.lock.check()
        held.vault.record(debit, over=before)

    return record


def _claim(held: _Held, request: Claim) -> Callable[[], None]:
    record = AttemptRecord(
        attempt=request.attempt,
        submission=held.asked.submission,
        index=held.asked.index,
        pod=held.asked.pod,
        host=held.asked.host,
        claimed_s=request.claimed_s,
        token=request.token,
        began_from=request.began_from,
        held_s=request.usage.held_s,
        restarts=request.usage.restarts,
        restarts_since_commit=request.usage.restarts_since_commit,
        fresh_from=held.fresh_from,
        skipped=request.skipped,
    )

    def claim() -> None:
        held.lock.check()
        held.vault.claim(record)
        held.claimed = record

    return claim


def _fallback(held: _Held) -> tuple[str, ...]:
    """What the present attempt began from is what is left to it until it has saved something itself."""
    claimed = held.claimed
    if claimed is None or claimed.began_from is None or claimed.attempt in held.committed:
        return ()
    return (claimed.began_from,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
    """What a start should know besides what it resumes from."""

    denials: tuple[DenialRecord, ...]
    before: Trace | None
    notes: tuple[str, ...]


def _deny_list(store: Store, notes: list[str]) -> tuple[DenialRecord, ...]:
    """What is noted in a try that fails is not said: the next one comes upon it again."""
    aside: list[str] = []
    denials = deny_list.read(store, aside)
    notes.extend(aside)
    return denials


def _opened(asked: Open, found: Survey, beside: _Beside, *, fresh: bool) -> Opened:
    """A new history begins with nothing but the numbers of the old one."""
    return Opened(
        id=asked.id,
        run_id=found.run.id,
        next_attempt=found.next_attempt,
        checkpoints=()
        if fresh
        else tuple(
            CheckpointRef(
                name=checkpoint.name,
                attempt=checkpoint.attempt,
                step=checkpoint.step,
                world_size=checkpoint.manifest.world_size,
                began_from=checkpoint.manifest.began_from,
            )
            for checkpoint in found.checkpoints
        ),
        set_aside=() if fresh else found.set_aside,
        debits=found.debits,
        usage=found.usage(asked.submission, beside.before, time.time()),
        earlier=None if fresh else found.finished,
        ever_committed=not fresh and found.ever_committed,
        skipped=() if fresh or found.newest is None else found.newest.skipped,
        denials=beside.denials,
        before=beside.before,
        notes=beside.notes,
    )
