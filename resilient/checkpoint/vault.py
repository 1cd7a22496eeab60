# SPDX-License-Identifier: Apache-2.0
"""The operations on a run's directory: claim, save, verify, prune, record, ship.

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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from resilient.checkpoint import layout
from resilient.checkpoint.digest import Digest
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import (
    AttemptRecord,
    CheckpointName,
    Debit,
    FileRecord,
    FinishedMark,
    Manifest,
    RunRecord,
    parse_checkpoint,
)
from resilient.checkpoint.store_errors import Exists, Missing
from resilient.checkpoint.survey import Directories, committed_in, directories, finished_mark, look, read_manifest
from resilient.core.retention import prunable
from resilient.errors import CheckpointError


class Corrupt(CheckpointError):
    """Bytes are not what their digest or size says."""

    kind = "corrupt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a pruning did. What could not be deleted is no error: the next one tries again."""

    deleted: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One rank's bytes on their way to the store."""

    rank: int
    size: int
    digest: str
    chunks: Callable[[], Iterator[bytes]]


class Vault:
    """A run's directory in a store."""

    def __init__(self, store: Store, *, clock: Callable[[], float]) -> None:
        self.store = store
        self._clock = clock

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

    def read_image(self, name: str, file: FileRecord, buffer: memoryview) -> None:
        """Fill ``buffer`` with a rank's image and verify its digest."""
        path = layout.checkpoint_path(name, file.file)
        self.store.read_into(path, buffer)
        state = Digest()
        state.update(buffer)
        if state.text() != file.digest:
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
        """Make an attempt ours; :class:`Exists` where it is somebody else's."""
        self._create_once(layout.attempt_path(record.attempt), layout.encode(record))

    def record(self, debit: Debit) -> None:
        """Put an exit on record."""
        directory = layout.debits_path(debit.submission, debit.index)
        self._create_once(f"{directory}/{debit.attempt}.json", layout.encode(debit))

    def finish(self, mark: FinishedMark) -> None:
        """Say that the work is done, unless a later attempt has said so."""
        earlier = finished_mark(self.store, [])
        if earlier is None or earlier.attempt <= mark.attempt:
            self.store.replace(layout.FINISHED, layout.encode(mark))

    def ship(self, submission: str, pod: str, number: int, segment: bytes) -> None:
        """Keep a segment of a pod's journal."""
        self._create_once(layout.segment_path(submission, pod, number), segment)

    def save(self, manifest: Manifest, images: Sequence[Image], check: Callable[[], None]) -> str:
        """Write the images and commit them; the new checkpoint's name.

        ``check`` is called right before the commit, and raises if the run is not ours any more.
        What was written so far is deleted again when anything fails.
        """
        committed = layout.encode(manifest)
        name = self._fresh_name(manifest.attempt, manifest.step)
        try:
            for image, file in zip(images, manifest.files, strict=True):
                path = layout.checkpoint_path(str(name), file.file)
                self.store.write_file(path, _verified(image), image.size)
            check()
            self._create_once(layout.checkpoint_path(str(name), layout.MANIFEST), committed)
        except CheckpointError:
            self._forget(name)
            raise
        return str(name)

    def prune(self, manifest: Manifest, *, keep: int, fresh_from: int, in_use: Collection[str] = ()) -> Pruned:
        """Delete what retention does not keep, and what was left behind without a manifest.

        ``manifest`` is the one that was just committed. Leftovers of higher attempts are
        those of a supervisor that replaced this one, and earlier histories are not ours to shorten.
        """
        deleted: list[str] = []
        failed: list[str] = []
        try:
            files = {name: sizes for name, sizes in directories(self.store).items() if name.attempt >= fresh_from}
            doomed = self._doomed(files, manifest.attempt, keep, in_use)
        except CheckpointError as error:
            return Pruned(failed=(str(error),))
        for name in doomed:
            try:
                self._delete(name, files[name])
                deleted.append(str(name))
            except CheckpointError as error:
                failed.append(str(error))
        return Pruned(deleted=tuple(deleted), failed=tuple(failed))

    def _doomed(self, files: Directories, attempt: int, keep: int, in_use: Collection[str]) -> list[CheckpointName]:
        whole = [name for name in files if committed_in(files[name])]
        committed = [_Committed(name=str(name), attempt=name.attempt, step=name.step) for name in whole]
        damaged = [c.name for c in committed if isinstance(look(self.store, parse_checkpoint(c.name), files), str)]
        doomed = prunable(committed, keep=keep, damaged=damaged, in_use=in_use)
        leftovers = [name for name in files if not committed_in(files[name]) and name.attempt <= attempt]
        return [*map(parse_checkpoint, doomed), *leftovers]

    def _create_once(self, path: str, data: bytes) -> None:
        """Create a record; one that is there already with these very bytes is ours, its answer having been lost."""
        try:
            self.store.create(path, data)
        except Exists:
            if self.store.read(path, layout.SEGMENT_LIMIT) != data:
                raise

    def _fresh_name(self, attempt: int, step: int) -> CheckpointName:
        used = [name.again for name in directories(self.store) if name[:2] == (attempt, step)]
        return CheckpointName(attempt, step, 1 + max(used) if used else 0)

    def _forget(self, name: CheckpointName) -> None:
        """Delete a try at saving that failed, to free its space; what cannot be deleted is pruned later."""
        with contextlib.suppress(CheckpointError):
            self._delete(name, directories(self.store).get(name, {}))

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


def _verified(image: Image) -> Iterator[bytes]:
    """The image's chunks; raises before the end is reached if they are not what its digest says."""
    state = Digest()
    size = 0
    for chunk in image.chunks():
        state.update(chunk)
        size += len(chunk)
        yield chunk
    if size != image.size or state.text() != image.digest:
        raise Corrupt(f"cannot save the image of rank {image.rank}: it changed in memory since its digest was made")
