# SPDX-License-Identifier: Apache-2.0
"""The operations on a run's directory: claim, save, verify, prune, record.

The order of writes is the whole safety argument: a checkpoint's files go into a fresh
directory and are durable before its manifest is created, exclusively and in one instant;
what has no manifest does not exist. A manifest is deleted before its files are. So a crash
between any two operations leaves the checkpoints that were there, or these and the new one.

A vault asks once: trying again is its caller's (see :mod:`resilient.retry`). Writing one
record twice is harmless, as it then finds its own.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from resilient.checkpoint import layout
from resilient.checkpoint.digest import Digest, matches
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import (
    AttemptRecord,
    CheckpointName,
    CommittedMark,
    Debit,
    FileRecord,
    FinishedMark,
    Manifest,
    RunRecord,
    parse_checkpoint,
)
from resilient.checkpoint.manifests import Manifests
from resilient.checkpoint.pieces import Ready, there_already
from resilient.checkpoint.store_errors import Exists, Missing
from resilient.checkpoint.survey import (
    Directories,
    committed_in,
    directories,
    finished_mark,
    look,
    newest_claim,
    read_manifest,
)
from resilient.core.batch import Batch
from resilient.core.retention import Rules, prunable
from resilient.errors import CheckpointError

_HIGHEST: Final = 1 << 62
_AT_ONCE: Final = 4
"""Files that are written at the same time; each store writes parts of a file at once besides."""


class Corrupt(CheckpointError):
    """Bytes are not what their digest or size says."""

    kind = "corrupt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a pruning did. What could not be deleted is no error: the next one tries again."""

    deleted: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one saver writes into a directory that those of other pods write into as well.

    What a try has written is left to the next one. Nothing is written twice, as the manifest may be there by then,
    and only the answer to it have been lost.
    """

    name: CheckpointName
    manifest: Manifest
    images: Mapping[str, memoryview]
    """By file name."""
    written: set[str] = field(default_factory=set)


def share(directory: str, manifest: Manifest, images: Mapping[str, memoryview]) -> Share:
    """A share of the checkpoint with this manifest in the directory that was chosen for it."""
    name = parse_checkpoint(directory)
    if name[:2] != (manifest.attempt, manifest.step):
        raise CheckpointError(
            f"cannot save step {manifest.step} of attempt {manifest.attempt} as {name}: that is the name of another one"
        )
    if not images:
        raise CheckpointError(f"cannot save {name}: none of its ranks has slots here; ask the savers of its pods")
    return Share(name=name, manifest=manifest, images=images)


class Vault:
    """A run's directory in a store."""

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self.store = store
        self._clock = clock
        self._manifests = Manifests()
        self._noted = 0
        """The attempt that is known to have committed."""

    # Reading.

    def identify(self, *, make: bool) -> RunRecord:
        """The run's identity; with ``make`` a new one where nothing was saved yet."""
        try:
            return layout.decode(self.store.read(layout.RUN, layout.RECORD_LIMIT), RunRecord, layout.RUN)
        except Missing:
            if not make:
                raise CheckpointError(
                    f"cannot read a run at {self.store.url}: there is no {layout.RUN}; check the URL"
                ) from None
        if any(entry.name.endswith(f"/{layout.MANIFEST}") for entry in self.store.list(layout.CHECKPOINTS)):
            raise CheckpointError(
                f"cannot open the run at {self.store.url}: it has checkpoints and its {layout.RUN} is gone; "
                "restore that file, or give another directory"
            )
        record = RunRecord(id=uuid.uuid4().hex, created_s=self._clock())
        try:
            self.store.create(layout.RUN, layout.encode(record))
        except Exists:  # somebody was faster, or the answer to an earlier try was lost
            return self.identify(make=False)
        return record

    def read_image(self, name: str, file: FileRecord, buffer: memoryview, ready: Ready = there_already) -> None:
        """Fill ``buffer`` with an image, each piece of it once it is ``ready``, and verify its digest."""
        path = layout.checkpoint_path(name, file.file)
        self.store.read_into(path, buffer, ready)
        if not matches(buffer, file.digest):
            raise Corrupt(f"cannot use checkpoint {name}: {file.file} was changed since it was saved (digest differs)")

    def verify(self, name: str) -> Manifest:
        """Read all of a checkpoint; raises if any byte of any file is not what was saved."""
        manifest = read_manifest(self.store, name)
        for file in manifest.files:
            size, state = 0, Digest()
            try:
                for chunk in self.store.chunks(layout.checkpoint_path(name, file.file)):
                    size += len(chunk)
                    state.update(chunk)
            except Missing:
                raise Corrupt(f"cannot use checkpoint {name}: {file.file} is missing") from None
            if size != file.size or state.text() != file.digest:
                what = "size" if size != file.size else "digest"
                raise Corrupt(
                    f"cannot use checkpoint {name}: {file.file} was changed since it was saved ({what} differs)"
                )
        return manifest

    # Writing.

    def claim(self, record: AttemptRecord) -> None:
        """Make an attempt ours; :class:`Exists` where it is somebody else's.

        One that has our token is ours: its answer was lost, or the saver that made it was killed.
        """
        path = layout.attempt_path(record.attempt)
        try:
            self.store.create(path, layout.encode(record))
        except Exists:
            if layout.decode(self.store.read(path, layout.CLAIM_LIMIT), AttemptRecord, path).token != record.token:
                raise

    def forgive_batches(self, batches: Collection[Batch]) -> None:
        """Train on batches again that are left out; a checkpoint that was saved behind one of them stays as it is."""
        newest = newest_claim(self.store, [])
        if newest is not None:
            left = tuple(batch for batch in newest.skipped if batch not in batches)
            self.store.replace(layout.attempt_path(newest.attempt), layout.encode(replace(newest, skipped=left)))

    def record(self, debit: Debit, *, over: Debit | None = None) -> None:
        """Put an exit on record; ``over`` is one of our own that did not come to pass, as another overtook it."""
        path = f"{layout.debits_path(debit.submission, debit.index)}/{debit.attempt}.json"
        try:
            self._create_once(path, layout.encode(debit))
        except Exists:
            if over is None or self.store.read(path, layout.RECORD_LIMIT) != layout.encode(over):
                raise
            self.store.replace(path, layout.encode(debit))

    def finish(self, mark: FinishedMark) -> None:
        """Say that the work is done, unless a later attempt has said so."""
        earlier = finished_mark(self.store, [])
        if earlier is None or earlier.attempt <= mark.attempt:
            self.store.replace(layout.FINISHED, layout.encode(mark))

    def save(self, manifest: Manifest, images: Mapping[str, memoryview], check: Callable[[], None]) -> str:
        """Write the images, by file name, and commit them; the new checkpoint's name.

        ``check`` is called right before the commit, which waits for it, and raises if there must be none.
        What was written so far is deleted again when anything fails.
        """
        committed = layout.encode(manifest)
        name = self._fresh_name(manifest.attempt, manifest.step)
        try:
            self._write_all(name, manifest.files, images)
            check()
            self._create_once(layout.checkpoint_path(str(name), layout.MANIFEST), committed)
        except CheckpointError:
            self._forget(name)
            raise
        self._note_commit(manifest)
        return str(name)

    def save_into(self, share: Share, check: Callable[[], None]) -> str:
        """The same where other savers have written their shares by the time that ``check`` returns."""
        committed = layout.encode(share.manifest)
        self.write_share(share)
        check()
        self._check_shares(share)
        self._create_once(layout.checkpoint_path(str(share.name), layout.MANIFEST), committed)
        self._note_commit(share.manifest)
        return str(share.name)

    def write_share(self, share: Share) -> None:
        """Write what is still to be written of a share."""
        if not share.written and self.store.exists(layout.checkpoint_path(str(share.name), layout.MANIFEST)):
            raise Exists(f"cannot save {share.name}: it is a checkpoint already; give it a fresh name")
        left = [file for file in share.manifest.files if file.file in share.images.keys() - share.written]
        self._write_all(share.name, left, share.images, share.written)

    def forget(self, share: Share, *, whole: bool) -> None:
        """Delete a share that is of no use, or with ``whole`` those of all savers; what cannot be is pruned later."""
        if whole:
            self._forget(share.name)
        else:
            with contextlib.suppress(CheckpointError):
                self._delete(share.name, share.images)

    def _check_shares(self, share: Share) -> None:
        there = {entry.name: entry.size for entry in self.store.list(f"{layout.CHECKPOINTS}/{share.name}")}
        for file in share.manifest.files:
            size = there.get(layout.checkpoint_path(str(share.name), file.file))
            if size != file.size:
                what = "is not there" if size is None else f"has {size} bytes where {file.size} belong"
                raise CheckpointError(
                    f"cannot save {share.name}: {file.file} {what}; look why the pod of that rank has not written it"
                )

    def _note_commit(self, manifest: Manifest) -> None:
        """Once for each attempt; a store that fails now is asked again with the next checkpoint."""
        if self._noted < manifest.attempt:
            mark = CommittedMark(attempt=manifest.attempt, step=manifest.step)
            with contextlib.suppress(CheckpointError):
                self.store.replace(layout.COMMITTED, layout.encode(mark))
                self._noted = manifest.attempt

    def _write_all(
        self,
        name: CheckpointName,
        files: Iterable[FileRecord],
        images: Mapping[str, memoryview],
        written: set[str] | None = None,
    ) -> None:
        """Several files at once, and their digests meanwhile; returns when nothing is under way any more. Where others
        write into the directory too, ``written`` is told what is done, also when something fails."""
        write = self.store.write_file if written is None else self._write_over
        jobs: list[tuple[str, Future[None]]] = []
        try:
            with ThreadPoolExecutor(_AT_ONCE, "write") as writers, ThreadPoolExecutor(1, "digest") as checker:
                for file in files:
                    path = layout.checkpoint_path(str(name), file.file)
                    jobs.append((file.file, writers.submit(write, path, images[file.file])))
                    jobs.append((file.file, checker.submit(_check_image, file, images[file.file])))
                try:
                    for _, job in jobs:
                        job.result()
                except BaseException:
                    for _, job in jobs:
                        job.cancel()
                    raise
        finally:
            if written is not None:
                written |= {file for file, _ in jobs} - {file for file, job in jobs if not _has_succeeded(job)}

    def _write_over(self, path: str, image: memoryview) -> None:
        """A file of ours may be in the way that a try, or a saver, has left that failed; objects are replaced."""
        try:
            self.store.write_file(path, image)
        except Exists:
            self.store.delete(path)
            self.store.write_file(path, image)

    def prune(
        self,
        attempt: int,
        rules: Rules,
        *,
        fresh_from: int,
        step: int | None = None,
        damaged: Collection[str] = (),
        in_use: Collection[str] = (),
        only_say: bool = False,
    ) -> Pruned:
        """Delete what retention does not keep, and what was left behind without a manifest.

        ``attempt`` is the newest that is ours. Leftovers of higher attempts are those of a supervisor
        that replaced this one, and earlier histories are not ours to shorten. Neither are those of steps behind
        ``step``, the newest that was saved: other pods may be writing them.
        ``damaged`` are those whose files were found not to have their digests: only sizes are looked at here.
        With ``only_say`` nothing is deleted, and the answer is what would be.
        """
        deleted: list[str] = []
        failed: list[str] = []
        try:
            files = {name: found for name, found in directories(self.store).items() if name.attempt >= fresh_from}
            good, bad = self._committed(files)
            doomed = prunable([*good, *bad], rules, damaged={*damaged, *(one.name for one in bad)}, in_use=in_use)
        except CheckpointError as error:
            return Pruned(failed=(str(error),))
        newest = (attempt, _HIGHEST if step is None else step)
        leftovers = [name for name in files if not committed_in(files[name]) and name[:2] <= newest]
        for name in (*map(parse_checkpoint, doomed), *leftovers):
            try:
                if not only_say:
                    self._delete(name, files[name])
                deleted.append(str(name))
            except CheckpointError as error:
                failed.append(str(error))
        return Pruned(deleted=tuple(deleted), failed=tuple(failed))

    def _committed(self, files: Directories) -> tuple[list[_Committed], list[_Committed]]:
        """The checkpoints of this run: those that can be used, as far as that is seen without reading all of them, and
        those that cannot. Another run's are no good to this one, and not its to delete."""
        run = self.identify(make=False).id
        good, bad = [], []
        read = self._manifests.reader(files)
        for name in (name for name in files if committed_in(files[name])):
            seen = look(self.store, name, files, read)
            if isinstance(seen, str):
                bad.append(_Committed(name=str(name), attempt=name.attempt, step=name.step, metrics={}))
            elif seen.run == run:
                good.append(_Committed(name=str(name), attempt=name.attempt, step=name.step, metrics=seen.metrics))
        return good, bad

    def _create_once(self, path: str, data: bytes) -> None:
        """Create a record; one that is there already with these very bytes is ours, its answer having been lost."""
        try:
            self.store.create(path, data)
        except Exists:
            if self.store.read(path, layout.MANIFEST_LIMIT) != data:
                raise

    def _fresh_name(self, attempt: int, step: int) -> CheckpointName:
        used = [name.again for name in directories(self.store) if name[:2] == (attempt, step)]
        return CheckpointName(attempt, step, 1 + max(used) if used else 0)

    def _forget(self, name: CheckpointName) -> None:
        """Delete a try at saving that failed, to free its space; what cannot be deleted is pruned later."""
        with contextlib.suppress(CheckpointError):
            # Where no file was begun, its directory may have been: that goes with the last of them.
            self._delete(name, {layout.MANIFEST, *directories(self.store).get(name, {})})

    def _delete(self, name: CheckpointName, files: Iterable[str]) -> None:
        """The manifest first: from then on it is no checkpoint, however far the rest gets."""
        for file in sorted(files, key=lambda file: (file != layout.MANIFEST, file)):
            self.store.delete(f"{layout.CHECKPOINTS}/{name}/{file}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Committed:
    """What retention wants to know."""

    name: str
    attempt: int
    step: int
    metrics: Mapping[str, float]


def _has_succeeded(job: Future[None]) -> bool:
    return not job.cancelled() and job.exception() is None


def _check_image(file: FileRecord, image: memoryview) -> None:
    """Raise if an image is not what its digest says: it must not be committed under it."""
    if len(image) != file.size or not matches(image, file.digest):
        raise Corrupt(f"cannot save {file.file}: it changed in memory since its digest was made")
