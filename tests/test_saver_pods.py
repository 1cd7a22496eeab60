# SPDX-License-Identifier: Apache-2.0
"""Savers of two pods that make one checkpoint: each writes what its ranks name, and the first one commits."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import object_store  # noqa: F401  # registers objects://
import pytest
from faulty_store import FaultyFileSystem, Inline
from pod_savers import ALIKE, EACH, IMAGES, NAME, RANKS, Pod, Savers, begin, judge, own, reply_to, save
from test_saver import DEBIT
from test_saver_ahead import WAITING, files, usable

from resilient.checkpoint import layout, local_store
from resilient.checkpoint.layout import FinishedMark
from resilient.checkpoint.requests import Done, Failed, Fetch, Fetched, Finish, Record, Saved, Ship
from resilient.checkpoint.store import open_store
from resilient.checkpoint.vault import Vault
from resilient.checkpoint.whole import Whole
from resilient.link.board import SPILL, WHOLE

FIRST = {"rank-0.safetensors", "rank-1.safetensors", "tensors-0.safetensors", "tensors-1.safetensors"}
OWN = {"rank-2.safetensors", "rank-3.safetensors"}
SECOND = OWN | {"tensors-2.safetensors", "tensors-3.safetensors"}


@pytest.fixture
def pods(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Pod, Pod]]:
    """Snapshots of four ranks in two pods; their tensors differ, unless the test asks for others."""
    pods = Pod(tmp_path), Pod(tmp_path, first=EACH)
    for pod in pods:
        pod.put(getattr(request, "param", IMAGES))
    yield pods
    for pod in pods:
        pod.close()


def in_directory(url: object, name: str = NAME) -> set[str]:
    """The files of a checkpoint, finished or not."""
    return {file.split("/")[2] for file in files(url) if file.split("/")[1] == name}


def fetch(client: Any, name: str, slot: int = 1, **fields: Any) -> Any:
    values = {"world_size": RANKS, "slot": slot, "available_bytes": None, "patience_s": 0.0}
    return client.ask(Fetch, name=name, **{**values, **fields})


@pytest.mark.parametrize("pods", [IMAGES, ALIKE], ids=["different", "alike"], indirect=True)
@pytest.mark.parametrize("scheme", ["", "objects://"], ids=["directory", "bucket"])
def test_what_two_pods_write_is_one_checkpoint(
    tmp_path: Path, pods: tuple[Pod, Pod], scheme: str, request: pytest.FixtureRequest
) -> None:
    """Once it is judged; each pod reads its own ranks' state back from it, and what ranks have alike is there once."""
    url = f"{scheme}{tmp_path}/run"
    images = request.node.callspec.params["pods"]
    named = FIRST | (SECOND if images == IMAGES else OWN)
    with Savers(pods, url, (WAITING, "")) as savers:
        saving = begin(savers.holder, pods[0], 5, NAME)
        assert isinstance(reply_to(savers.guest, begin(savers.guest, pods[1], 5, NAME)), Done)
        savers.wait_for_files_of_holder()
        assert (in_directory(url), usable(url)) == (named, [])
        judge(savers.holder, 5)
        saved = reply_to(savers.holder, saving)
        assert isinstance(saved, Saved)
        assert (saved.name, usable(url)) == (NAME, [NAME])
        assert saved.size_bytes == sum(map(len, {*images})) + sum(len(own(rank)) for rank in range(RANKS))
        for client, pod, first in ((savers.holder, pods[0], 0), (savers.guest, pods[1], EACH)):
            for slot in (1, SPILL):
                fetched = fetch(client, NAME, slot)
                assert isinstance(fetched, Fetched), fetched
                assert (fetched.first, len(fetched.records)) == (first, EACH)
                for rank, record in enumerate(fetched.records, first):
                    assert pod.read(rank, record) == (images[rank], own(rank))
    with Inline(pods[0]) as client:
        assert [ref.name for ref in client.open(url, lock_patience_s=10.0).checkpoints] == [NAME]


@pytest.mark.parametrize("slot", [WHOLE, WHOLE + 1])
def test_another_number_of_ranks_gets_the_whole_in_each_pod(tmp_path: Path, pods: tuple[Pod, Pod], slot: int) -> None:
    """In the slot that the ranks of the pod share, of whichever numbers these are."""
    with Savers(pods, tmp_path / "run") as savers:
        save(savers, pods, 5, NAME)
        for client, pod in zip((savers.holder, savers.guest), pods, strict=True):
            fetched = fetch(client, NAME, slot, world_size=2 * RANKS)
            assert isinstance(fetched, Fetched), fetched
            assert fetched.contents is not None
            with memoryview(bytearray(os.pread(pod.slots[min(pod.slots)][slot], fetched.size_bytes, 0))) as view:
                whole = Whole.read(view, fetched.contents)
                assert [bytes(whole.image(view, layout.tensors_file(rank))) for rank in range(RANKS)] == [*IMAGES]
            assert fetch(client, NAME, world_size=2 * RANKS).kind == "damaged"


@pytest.mark.parametrize("part", ["none", "cut"])
def test_what_another_pod_has_not_written_is_not_committed(tmp_path: Path, pods: tuple[Pod, Pod], part: str) -> None:
    """Though it was judged to be: the answer names the file, nothing is left, and the one before stays."""
    url = tmp_path / "run"
    with Savers(pods, url) as savers:
        assert save(savers, pods, 1, "1-1.9").name == "1-1.9"
        saving = begin(savers.holder, pods[0], 5, NAME)
        if part == "cut":
            assert isinstance(reply_to(savers.guest, begin(savers.guest, pods[1], 5, NAME)), Done)
            (url / "checkpoints" / NAME / "rank-3.safetensors").write_bytes(b"rank")
        judge(savers.holder, 5)
        refused = reply_to(savers.holder, saving)
        said = {"none": "tensors-2.safetensors is not there", "cut": "rank-3.safetensors has 4 bytes where 6 belong"}
        assert (type(refused), refused.answered) == (Failed, True)
        assert f"cannot save {NAME}: {said[part]}" in refused.why
        assert (in_directory(url), usable(url)) == (set(), ["1-1.9"])
        assert save(savers, pods, 10, "1-10.3").name == "1-10.3"


@pytest.mark.parametrize("scheme", ["", "objects://"], ids=["directory", "bucket"])
def test_dropped_it_leaves_nothing(tmp_path: Path, pods: tuple[Pod, Pod], scheme: str) -> None:
    """A saver that only writes a part deletes that; the first one deletes all, also of those who were done before."""
    url = f"{scheme}{tmp_path}/run"
    with Savers(pods, url, (WAITING, ""), save_bandwidth=1) as savers:
        saving = begin(savers.holder, pods[0], 5, NAME)
        writing = begin(savers.guest, pods[1], 5, NAME)  # all but its first file wait for years
        savers.wait_for_files_of_holder()
        judge(savers.guest, 5, whole=False)
        assert reply_to(savers.guest, writing).kind == "dropped"
        assert in_directory(url) == FIRST
        judge(savers.holder, 5, whole=False)
        assert reply_to(savers.holder, saving).kind == "dropped"
        assert files(url) == []
    with Savers(pods, url) as savers:
        saving = begin(savers.holder, pods[0], 5, NAME)
        assert isinstance(reply_to(savers.guest, begin(savers.guest, pods[1], 5, NAME)), Done)
        judge(savers.holder, 5, whole=False)
        assert reply_to(savers.holder, saving).kind == "dropped"
        assert files(url) == []


def test_a_part_that_is_dropped_at_its_last_byte_is_not_done(
    tmp_path: Path, pods: tuple[Pod, Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its files would stay where nobody looks for them before the next checkpoint."""
    written, judged = threading.Event(), threading.Event()
    write_share = Vault.write_share

    def waiting(*args: Any) -> None:
        write_share(*args)
        written.set()
        judged.wait()

    monkeypatch.setattr(Vault, "write_share", waiting)
    with Inline(pods[1]) as guest:
        guest.open(tmp_path / "run", guest=True)
        writing = begin(guest, pods[1], 5, NAME)
        assert written.wait(60)
        assert in_directory(tmp_path / "run") == SECOND
        reply_to(guest, judge(guest, 5, whole=False))
        judged.set()
        assert reply_to(guest, writing).kind == "dropped"
    assert files(tmp_path / "run") == []


def test_a_guest_neither_claims_nor_finishes_nor_commits(tmp_path: Path, pods: tuple[Pod, Pod]) -> None:
    """Another pod holds the run; what is its own it puts on record."""
    segment = tmp_path / "segment"
    segment.write_bytes(b"{}\n")
    mark = FinishedMark(steps=5, reached=5, how="steps", submission="sub", attempt=1)
    with Savers(pods, tmp_path / "run") as savers:
        guest = savers.guest
        for refused in (guest.claim(1), guest.ask(Finish, mark=mark)):
            assert (type(refused), refused.kind) == (Failed, "damaged")
            assert "another pod holds the run" in refused.why
        judge(guest, 5)
        whole = reply_to(guest, begin(guest, pods[1], 5, NAME, part=False, ahead=None))
        assert "cannot save: another pod holds the run" in whole.why
        assert isinstance(guest.ask(Record, debit=replace(DEBIT, index=1)), Done)
        assert isinstance(guest.ask(Ship, pod="pod-1", number=1, path=str(segment)), Done)
        assert isinstance(savers.holder.claim(1), Done)
        assert isinstance(savers.holder.ask(Finish, mark=mark), Done)
        assert files(tmp_path / "run") == []
    with Inline(pods[1]) as client:
        assert client.open(tmp_path / "run", guest=True, index=1).debits == (replace(DEBIT, index=1),)


@pytest.mark.parametrize(
    ("directory", "fields", "why"),
    [
        ("../1-5", {}, "its name is not"),
        ("1-6.77", {}, "that is the name of another one"),
        ("2-5.77", {}, "that is the name of another one"),
        (None, {"part": True}, "it has no directory"),
        (None, {}, "cannot use slot 0 of rank 2: there is none"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    tmp_path: Path, pods: tuple[Pod, Pod], directory: str | None, fields: dict[str, Any], why: str
) -> None:
    """And nothing is written."""
    with Inline(pods[0]) as client:
        client.open(tmp_path / "run")
        refused = reply_to(client, begin(client, pods[0], 5, directory, ahead=None, **fields))
        assert (type(refused), refused.answered) == (Failed, True)
        assert why in refused.why
        assert files(tmp_path / "run") == []


def test_a_checkpoint_is_not_written_into(tmp_path: Path, pods: tuple[Pod, Pod]) -> None:
    """Nor deleted because that was refused."""
    with Savers(pods, tmp_path / "run") as savers:
        assert save(savers, pods, 5, NAME).name == NAME
        for client, pod in ((savers.guest, pods[1]), (savers.holder, pods[0])):
            assert reply_to(client, begin(client, pod, 5, NAME, ahead=None)).kind == "conflict"
        assert usable(tmp_path / "run") == [NAME]


@pytest.mark.parametrize("scheme", ["", "objects://"], ids=["directory", "bucket"])
def test_what_a_saver_that_died_has_left_is_written_over(tmp_path: Path, pods: tuple[Pod, Pod], scheme: str) -> None:
    """The next one of the same pod may be asked for the same part."""
    left = tmp_path / "run" / "checkpoints" / NAME
    left.mkdir(parents=True)
    for file in ("rank-0.safetensors", "tensors-2.safetensors"):
        (left / file).write_bytes(b"half")
    with Savers(pods, f"{scheme}{tmp_path}/run") as savers:
        assert save(savers, pods, 5, NAME).name == NAME
    assert usable(tmp_path / "run") == [NAME]


@pytest.mark.parametrize("is_guest", [False, True], ids=["holder", "guest"])
def test_a_try_that_fails_is_gone_on_with(pods: tuple[Pod, Pod], is_guest: bool) -> None:
    """In the same directory, with what is not written yet; others write there meanwhile, and theirs is not touched."""
    failing = f"rank-{EACH * is_guest + 1}.safetensors"
    opened: Counter[str] = Counter()
    deleted: list[str] = []

    def fault(operation: str, path: str) -> None:
        if operation == "open":
            file = path.rpartition("/")[2]
            opened[file] += 1
            if file == failing and opened[file] == 1:
                raise TimeoutError
        if operation == "rm" and NAME in path:
            deleted.append(path)

    FaultyFileSystem.reset()
    with Inline(pods[0]) as holder, Inline(pods[1]) as guest:
        holder.open("faulty://run")
        guest.open("faulty://run", guest=True)
        FaultyFileSystem.fault = staticmethod(fault)
        saving = begin(holder, pods[0], 5, NAME, patience_s=1e6)
        assert isinstance(reply_to(guest, begin(guest, pods[1], 5, NAME, patience_s=1e6)), Done)
        judge(holder, 5)
        assert reply_to(holder, saving).name == NAME
    assert opened == {file: 2 if file == failing else 1 for file in FIRST | SECOND}
    assert deleted == []
    assert usable("faulty://run") == [NAME]
    FaultyFileSystem.reset()


def test_a_part_that_is_given_up_takes_only_its_own_files_along(pods: tuple[Pod, Pod]) -> None:
    """And the first saver, which gives up, takes all: nobody will commit them."""
    failing = ["rank-3"]

    def fault(operation: str, path: str) -> None:
        if operation == "open" and failing[0] in path:
            raise TimeoutError

    FaultyFileSystem.reset()
    with Inline(pods[0]) as holder, Inline(pods[1]) as guest:
        holder.open("faulty://run")
        guest.open("faulty://run", guest=True)
        store = open_store("faulty://run")
        store.replace(layout.checkpoint_path(NAME, "rank-0.safetensors"), b"another's")
        FaultyFileSystem.fault = staticmethod(fault)
        assert reply_to(guest, begin(guest, pods[1], 5, NAME)).kind == "unreachable"
        assert in_directory("faulty://run") == {"rank-0.safetensors"}
        failing[0] = "rank-1"
        assert isinstance(reply_to(guest, begin(guest, pods[1], 5, NAME)), Done)
        assert in_directory("faulty://run") == SECOND | {"rank-0.safetensors"}
        assert reply_to(holder, begin(holder, pods[0], 5, NAME)).kind == "unreachable"
        assert files("faulty://run") == []
    FaultyFileSystem.reset()


def test_what_a_pod_writes_of_a_later_step_is_not_pruned(tmp_path: Path, pods: tuple[Pod, Pod]) -> None:
    """It has no manifest yet; once a save has overtaken it, it never gets one."""
    with Savers(pods, tmp_path / "run") as savers:
        assert isinstance(reply_to(savers.guest, begin(savers.guest, pods[1], 10, "1-10.4")), Done)
        assert save(savers, pods, 5, NAME).pruned == ()
        assert in_directory(tmp_path / "run", "1-10.4") == SECOND
        assert save(savers, pods, 15, "1-15.4").pruned == ("1-10.4",)


@pytest.mark.parametrize("pods", [ALIKE], ids=["alike"], indirect=True)
def test_what_ranks_have_alike_is_written_once_and_read_once_by_each_pod(pods: tuple[Pod, Pod]) -> None:
    """Under the name of the lowest of them, wherever that is."""
    read: Counter[str] = Counter()
    written: Counter[str] = Counter()

    def fault(operation: str, path: str) -> None:
        if operation in ("cat", "open"):
            (read if operation == "cat" else written)[path.rpartition("/")[2]] += 1

    FaultyFileSystem.reset()
    with Inline(pods[0]) as holder, Inline(pods[1]) as guest:
        holder.open("faulty://run")
        guest.open("faulty://run", guest=True)
        FaultyFileSystem.fault = staticmethod(fault)
        assert isinstance(reply_to(guest, begin(guest, pods[1], 5, NAME)), Done)
        assert reply_to(holder, begin(holder, pods[0], 5, NAME, ahead=None)).name == NAME
        assert written == dict.fromkeys(FIRST | OWN, 1)
        read.clear()
        assert isinstance(fetch(guest, NAME), Fetched)
    assert read == dict.fromkeys({layout.MANIFEST, "tensors-0.safetensors"} | OWN, 1)
    FaultyFileSystem.reset()


def test_a_directory_that_another_pod_takes_for_empty_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last file went after this saver had seen it, and before it had a file in it."""
    store = open_store(str(tmp_path / "run"))
    made: list[str] = []
    make = local_store._make_directory

    def emptied(path: str) -> None:
        make(path)
        if path.endswith(NAME):
            made.append(path)
        if len(made) == 1:
            store.delete(f"checkpoints/{NAME}/rank-0.safetensors")

    monkeypatch.setattr(local_store, "_make_directory", emptied)
    store.write_file(f"checkpoints/{NAME}/rank-1.safetensors", memoryview(b"rank 1"))
    assert store.read(f"checkpoints/{NAME}/rank-1.safetensors", 10) == b"rank 1"
    assert len(made) == 2
