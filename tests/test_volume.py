# SPDX-License-Identifier: Apache-2.0
"""Tests of the directory that outlives a container: what is found in it again, and what is refused and removed."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resilient.checkpoint import volume
from resilient.checkpoint.digest import digest
from resilient.checkpoint.volume import RECORD, Images, KeptRecord, Leftover, Volume, disk_of
from resilient.core import wire
from resilient.core.adoption import Kept, Origin
from resilient.core.batch import Batch
from resilient.errors import SettingsError
from resilient.link.board import PAGE_BYTES, Extent

RANKS, SLOT, SIZE = 2, 1, 2 * PAGE_BYTES
IMAGES = Images(
    tensors=Extent(size=PAGE_BYTES, digest=digest(b"tensors")), own=Extent(size=PAGE_BYTES, digest=digest(b"own"))
)
ORIGIN = Origin(token="a1", began_from=None, skipped=())
KEPT = Kept(submission="job-1", index=0, pod="pod-1", run="run-1", ranks=RANKS, attempt=4, step=60, origin=ORIGIN)
KEPT_RECORD = KeptRecord(kept=KEPT, slot=SLOT, images=(IMAGES,) * RANKS)


def fill(held: Volume) -> None:
    """Both slots of each rank."""
    for rank in range(RANKS):
        for number in (0, 1):
            slot = held.create(rank, number)
            slot.reserve(SIZE)
            slot.view(SIZE)[:] = bytes([rank]) * SIZE
            slot.close()


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """Where a supervisor has left a snapshot."""
    held = Volume(tmp_path / "volume")
    fill(held)
    held.stage(KEPT_RECORD)
    held.keep()
    held.close()
    return tmp_path / "volume"


def found_in(directory: Path) -> Leftover:
    """What the next supervisor finds, and that it leaves nothing."""
    held = Volume(directory)
    try:
        found = held.take()
        assert sorted(os.listdir(directory / "slots")) == sorted(f"{rank}-{SLOT}" for rank in found.slots)
        assert held.take().record is None
        return found
    finally:
        held.close()
        assert os.listdir(directory) == []


def close(found: Leftover) -> None:
    for slot in found.slots.values():
        slot.close()


def test_what_is_left_is_found_once(left: Path) -> None:
    """The slots of the snapshot with what lies in them, and nothing of the other ones."""
    assert sorted(os.listdir(left / "slots")) == ["0-1", "1-1", RECORD]
    found = found_in(left)
    assert found.record == KEPT_RECORD
    assert [bytes(slot.view(SIZE)) for slot in found.slots.values()] == [bytes([rank]) * SIZE for rank in range(RANKS)]
    close(found)
    assert found_in(left) == Leftover()


def test_nothing_is_left_by_other_exits(tmp_path: Path) -> None:
    """Neither slots nor the directory that they lay in."""
    held = Volume(tmp_path / "volume")
    fill(held)
    held.close()
    assert os.listdir(tmp_path / "volume") == []


@pytest.mark.parametrize("staged", [False, True])
def test_a_killed_supervisor_leaves_no_snapshot(tmp_path: Path, staged: bool) -> None:
    """Up to the very last moment, in which its record gets its name."""
    child = os.fork()
    if not child:
        held = Volume(tmp_path / "volume")
        fill(held)
        if staged:
            held.stage(KEPT_RECORD)
        os._exit(0)
    os.waitpid(child, 0)
    assert found_in(tmp_path / "volume").why == "a supervisor that was killed has left it"


def write_record(directory: Path, body: bytes) -> None:
    (directory / "slots" / RECORD).write_bytes(digest(body).encode() + b"\n" + body)


def flip(directory: Path) -> None:
    path = directory / "slots" / RECORD
    data = path.read_bytes()
    at = data.index(b'"attempt":4') + len(b'"attempt":')
    path.write_bytes(data[:at] + b"5" + data[at + 1 :])


def changed(**changes: object) -> Callable[[Path], None]:
    record = replace(KEPT_RECORD, **changes)  # type: ignore[arg-type]  # also what no type allows
    return lambda directory: write_record(directory, wire.encode(record))


def instead(make: Callable[[Path], object], name: str = "1-1") -> Callable[[Path], None]:
    """Something else under the name of a file."""

    def spoil(directory: Path) -> None:
        path = directory / "slots" / name
        path.rename(directory / "aside")
        make(path)
        if (directory / "aside").exists():
            (directory / "aside").unlink()

    return spoil


def link(path: Path) -> None:
    path.symlink_to(path.parent / "0-1")


def hard_link(path: Path) -> None:
    os.link(path.parent / "0-1", path)


def sparse(path: Path) -> None:
    """As large as it has to be, with nothing in it."""
    path.touch()
    os.truncate(path, SIZE)


def directory_with_content(path: Path) -> None:
    (path / "below").mkdir(parents=True)
    (path / "below" / "file").write_text("x")


MALFORMED = replace(IMAGES, own=Extent(size=PAGE_BYTES, digest="md5:00"))
ENDLESS = replace(IMAGES, own=Extent(size=1 << 62, digest=digest(b"own")))
NEGATIVE = replace(IMAGES, own=Extent(size=-1, digest=digest(b"own")))
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped bit": (flip, "its record was damaged"),
    "truncated record": (lambda path: os.truncate(path / "slots" / RECORD, 80), "its record was damaged"),
    "empty record": (lambda path: os.truncate(path / "slots" / RECORD, 0), "not an xxh3_128 digest"),
    "record too long": (lambda path: os.truncate(path / "slots" / RECORD, volume.RECORD_LIMIT + 1), "damaged"),
    "no object": (lambda path: write_record(path, b"[]"), "not one of the expected types"),
    "unknown field": (lambda path: write_record(path, b'{"type": "KeptRecord", "x": 1}'), "unknown field"),
    "nested": (lambda path: write_record(path, b"[" * 100_000), "JSON"),
    "other version": (changed(version=2), "format 2"),
    "slot on disk": (changed(slot=2), "slots that there are not"),
    "no such slot": (changed(slot=-1), "slots that there are not"),
    "another number of images": (changed(images=(IMAGES,)), "slots that there are not"),
    "no rank": (changed(images=(), kept=replace(KEPT, ranks=0)), "slots that there are not"),
    "negative step": (changed(kept=replace(KEPT, step=-1)), "out of range"),
    "negative size": (changed(images=(IMAGES, NEGATIVE)), "out of range"),
    "endless size": (changed(images=(IMAGES, ENDLESS)), "out of range"),
    "digest of another kind": (changed(images=(IMAGES, MALFORMED)), "malformed"),
    "path as a checkpoint": (
        changed(kept=replace(KEPT, origin=replace(ORIGIN, began_from="../../etc"))),
        "its name is not",
    ),
    "batch that cannot be": (
        changed(kept=replace(KEPT, origin=replace(ORIGIN, skipped=(Batch(epoch=-1, first=0, exact=True),)))),
        "a batch in its record",
    ),
    "truncated slot": (lambda path: os.truncate(path / "slots" / "1-1", SIZE - 1), "the slot of rank 1 is not whole"),
    "slot gone": (instead(lambda path: None), "a slot of it is gone"),
    "slot without content": (instead(sparse), "the slot of rank 1 is not whole"),
    "link": (instead(link), "1-1: Too many levels of symbolic links"),
    "second name": (instead(hard_link), "not a file of our own alone"),
    "FIFO": (instead(os.mkfifo), "1-1 is not a file of our own alone"),
    "directory": (instead(directory_with_content), "1-1: Is a directory"),
    "record is a link": (instead(link, RECORD), "kept.json: Too many levels of symbolic links"),
    "record is a FIFO": (instead(os.mkfifo, RECORD), "kept.json is not a file of our own alone"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_was_spoiled_is_refused_and_removed(left: Path, name: str) -> None:
    """By name, without waiting, following or taking memory for it."""
    spoil, why = SPOILED[name]
    spoil(left)
    found = found_in(left)
    assert (found.record, found.slots) == (None, {})
    assert why in found.why


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_is_refused(left: Path) -> None:
    """Another container of the pod may have put it there."""
    os.chown(left / "slots" / "0-1", 4711, 4711)
    assert found_in(left).why == "0-1 is not a file of our own alone"


def test_what_is_no_directory_is_replaced(tmp_path: Path) -> None:
    """A link would lead elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "slots").symlink_to(tmp_path / "elsewhere")
    assert found_in(tmp_path / "volume") == Leftover()
    assert (tmp_path / "elsewhere").is_dir()


def test_a_directory_that_cannot_be_used_is_a_wrong_setting(tmp_path: Path) -> None:
    """Said before anything starts: a second supervisor, no directory, one that others may write to."""
    held = Volume(tmp_path / "volume")
    with pytest.raises(SettingsError, match="another supervisor does"):
        Volume(tmp_path / "volume")
    held.close()
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot keep snapshots in .*file"):
        Volume(tmp_path / "file")
    (tmp_path / "shared" / "slots").mkdir(parents=True)
    (tmp_path / "shared" / "slots").chmod(0o777)
    with pytest.raises(SettingsError, match="others may write to slots in it"):
        Volume(tmp_path / "shared")


@pytest.mark.parametrize(("kind", "disk"), [("ext4", "ext4"), ("overlay", "overlay"), ("tmpfs", None)])
def test_a_directory_on_a_disk_is_told_by_the_list_of_mounts(tmp_path: Path, kind: str, disk: str | None) -> None:
    """By the device that it is on, whatever is mounted where; what is not in the list is not told."""
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    other = "21 1 0:4711 / /proc rw - proc proc rw"
    line = f"22 1 {os.major(device)}:{os.minor(device)} / /mnt\\040x rw,noatime shared:1 master:2 - {kind} none rw"
    mounts.write_text(f"{other}\n{line}\nnonsense\n")
    assert disk_of(tmp_path, mounts) == disk
    mounts.write_text(other)
    assert disk_of(tmp_path, mounts) is None
    assert disk_of(tmp_path, tmp_path / "missing") is None


def test_shared_memory_is_no_disk() -> None:
    """As the kernel of this machine tells it."""
    assert disk_of(Path("/dev/shm")) is None
