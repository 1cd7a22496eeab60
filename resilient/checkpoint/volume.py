# SPDX-License-Identifier: Apache-2.0
"""A directory in memory that outlives the container, so that the next one of the pod finds the snapshot there.

    <directory>/slots/            ours alone, mode 700
        <rank>-<slot>             a slot in memory of one rank
        kept.json                 KeptRecord: which slot holds a whole snapshot, and whose

The slots lie here from the beginning and have names, so that leaving a snapshot behind costs no copy. Only the record
makes it one: it comes last, in one instant, and is taken away before anything else is done with it. So whoever is
killed leaves slots without a record, which the next supervisor removes, and no record is ever gone on from twice.

What is found is untrusted: only plain files of our own under the names above are opened, links and FIFOs never are,
sizes are checked, and all else in the directory is removed. The digests of the images are checked by their readers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from resilient.checkpoint import digest, layout
from resilient.checkpoint.arena import Slot
from resilient.core import wire
from resilient.core.adoption import Kept
from resilient.core.batch import is_sound
from resilient.errors import CheckpointError, SettingsError
from resilient.link.board import ON_DISK, SLOTS, Extent, SlotRecord

FORMAT: Final = 1
RECORD: Final = "kept.json"
RECORD_LIMIT: Final = 4 << 20
"""Of some thousand ranks."""
_FOLDER: Final = "slots"
_STAGED: Final = "staged"
_HIGHEST: Final = 1 << 62
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
_PLAIN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Neither follows a link nor waits for the other end of a FIFO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What lies in the slot of one rank."""

    tensors: Extent
    own: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRecord:
    """A snapshot that was left behind."""

    version: int = FORMAT
    kept: Kept
    slot: int
    images: tuple[Images, ...]
    """Of rank 0, 1, ..."""

    def records(self) -> tuple[SlotRecord, ...]:
        """As the board has it, of rank 0, 1, ..."""
        kept = self.kept
        return tuple(
            SlotRecord(slot=self.slot, attempt=kept.attempt, step=kept.step, tensors=one.tensors, own=one.own)
            for one in self.images
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What a supervisor before us has left: a snapshot with its slots, or why there is none although something is."""

    record: KeptRecord | None = None
    slots: dict[int, Slot] = field(default_factory=dict)
    """By rank."""
    why: str = ""


def disk_of(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of file system that a directory is on, if that is none in memory; ``None`` where nobody says."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return None
    kinds = {words[2]: words[words.index("-") + 1] for words in lines if "-" in words[6:-1]}
    kind = kinds.get(wanted)
    return None if kind in _IN_MEMORY else kind


class Volume:
    """The directory, held by one supervisor until it ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._staged = self._kept = False
        self._lock = self._hold()
        try:
            self._folder = self._own_folder()
        except BaseException:
            os.close(self._lock)
            raise

    def take(self) -> Leftover:
        """What lies there: once, since from now on it is no snapshot any more; what is not part of one is removed."""
        try:
            if not os.listdir(self._folder):
                return Leftover()
            found = self._found()
            self._clear({_name(rank, found.record.slot) for rank in found.slots} if found.record else set())
        except OSError as error:
            raise self._unusable(error) from error
        return found

    def create(self, rank: int, slot: int) -> Slot:
        """An empty slot in memory."""
        flags = _PLAIN | os.O_CREAT | os.O_EXCL
        return Slot(os.open(_name(rank, slot), flags, 0o600, dir_fd=self._folder))

    def stage(self, record: KeptRecord) -> None:
        """Make ready to leave this snapshot behind: all but its slots is removed. An ``OSError`` says why not."""
        self._clear({_name(rank, record.slot) for rank in range(len(record.images))})
        body = wire.encode(record)
        fd = os.open(_STAGED, _PLAIN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
        with open(fd, "wb") as file:
            file.write(digest.digest(body).encode() + b"\n" + body)
        self._staged = True

    def keep(self) -> None:
        """Leave behind what was made ready, if anything was, in one instant."""
        if self._staged:
            os.rename(_STAGED, RECORD, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._kept = True

    def close(self) -> None:
        """Let go of the directory; unless something was kept in it, it is as empty as it was."""
        if not self._kept:
            with contextlib.suppress(OSError):  # the next supervisor removes it
                self._clear(set())
                os.rmdir(_FOLDER, dir_fd=self._lock)
        os.close(self._folder)
        os.close(self._lock)

    def _hold(self) -> int:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.directory, _DIRECTORY)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise SettingsError(
                f"cannot keep snapshots in {self.directory}: another supervisor does; give another with --snapshots"
            ) from error
        return fd

    def _unusable(self, error: OSError) -> SettingsError:
        return SettingsError(
            f"cannot keep snapshots in {self.directory}: {error.strerror}; mount a volume there that can be written to "
            "and lives as long as the pod, or leave --snapshots out"
        )

    def _own_folder(self) -> int:
        """Made where it is not there; what is no directory of ours alone is not gone into."""
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(_FOLDER, dir_fd=self._lock, follow_symlinks=False).st_mode):
                    os.unlink(_FOLDER, dir_fd=self._lock)
            with contextlib.suppress(FileExistsError):
                os.mkdir(_FOLDER, 0o700, dir_fd=self._lock)
            fd = os.open(_FOLDER, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._lock)
        except OSError as error:
            raise self._unusable(error) from error
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            os.close(fd)
            raise SettingsError(
                f"cannot keep snapshots in {self.directory}: others may write to {_FOLDER} in it; give a volume of its "
                "own with --snapshots"
            )
        return fd

    def _found(self) -> Leftover:
        """The record is gone on return, whether it was of use or not."""
        slots: dict[int, Slot] = {}
        try:
            record = self._read()
            for rank, images in enumerate(record.images):
                slots[rank] = Slot(self._open(_name(rank, record.slot)))
                _check_size(slots[rank], images, rank)
        except FileNotFoundError as error:
            why = "a supervisor that was killed has left it" if error.filename == RECORD else "a slot of it is gone"
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        except (ValueError, RecursionError, CheckpointError) as error:
            why = str(error)
        else:
            os.unlink(RECORD, dir_fd=self._folder)
            return Leftover(record=record, slots=slots)
        for slot in slots.values():
            slot.close()
        return Leftover(why=why)

    def _read(self) -> KeptRecord:
        with open(self._open(RECORD), "rb") as file:
            data = file.read(RECORD_LIMIT + 1)
        said, _, body = data.partition(b"\n")
        if len(data) > RECORD_LIMIT or not digest.matches(body, said.decode("ascii", "replace")):
            raise ValueError("its record was damaged")
        record = wire.decode(body, {KeptRecord.__name__: KeptRecord})
        _check(record)
        return record

    def _open(self, name: str) -> int:
        """A plain file of our own that has this name and no other."""
        fd = os.open(name, _PLAIN, dir_fd=self._folder)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1:
            return fd
        os.close(fd)
        raise ValueError(f"{name} is not a file of our own alone")

    def _clear(self, stays: set[str]) -> None:
        for name in set(os.listdir(self._folder)) - stays:
            try:
                os.unlink(name, dir_fd=self._folder)
            except IsADirectoryError:
                shutil.rmtree(self.directory / _FOLDER / name, ignore_errors=True)
            except FileNotFoundError:
                continue


def _name(rank: int, slot: int) -> str:
    return f"{rank}-{slot}"


def _check(record: KeptRecord) -> None:
    """What the schema does not say; a ``ValueError`` names what is wrong."""
    kept = record.kept
    if record.version != FORMAT:
        raise ValueError(f"its record has format {record.version}, and this release reads {FORMAT}")
    if record.slot in ON_DISK or not 0 <= record.slot < SLOTS or not 0 < kept.ranks == len(record.images):
        raise ValueError("its record speaks of slots that there are not")
    extents = list(_extents(record))
    if not all(0 <= number < _HIGHEST for number in (kept.attempt, kept.step, *(one.size for one in extents))):
        raise ValueError("a number in its record is out of range")
    if not all(digest.is_digest(one.digest) for one in extents):
        raise ValueError("a digest in its record is malformed")
    if not all(map(is_sound, kept.origin.skipped)):
        raise ValueError("a batch in its record is out of range")
    if kept.origin.began_from is not None:
        layout.parse_checkpoint(kept.origin.began_from)


def _extents(record: KeptRecord) -> Iterator[Extent]:
    for images in record.images:
        yield from (images.tensors, images.own)


def _check_size(slot: Slot, images: Images, rank: int) -> None:
    """All of the images must lie in memory: what is said to be there and is not would be taken from what is free."""
    size = SlotRecord(slot=0, attempt=0, step=0, tensors=images.tensors, own=images.own).size
    if not 0 < size <= slot.room <= slot.held_bytes:
        raise ValueError(f"the slot of rank {rank} is not whole: {size} bytes belong there, {slot.room} are")
