# SPDX-License-Identifier: Apache-2.0
"""Names and records of a run's directory, written by us or by somebody hostile."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.checkpoint import layout
from resilient.checkpoint.layout import (
    AttemptRecord,
    CheckpointName,
    Debit,
    FileRecord,
    FinishedMark,
    Manifest,
    RankFiles,
    RunRecord,
)
from resilient.checkpoint.seal import sealed
from resilient.core import wire
from resilient.core.batch import Batch
from resilient.errors import CheckpointError

DIGEST = "xxh3_128:" + "0" * 32
MANIFEST = Manifest(
    run="r",
    submission="s",
    attempt=2,
    step=7,
    began_from="1-5.1",
    world_size=2,
    ranks=tuple(RankFiles(tensors="tensors-0.safetensors", own=f"rank-{r}.safetensors") for r in (0, 1)),
    files=tuple(
        FileRecord(file=f"{name}.safetensors", size=9, digest=DIGEST) for name in ("tensors-0", "rank-0", "rank-1")
    ),
    created_s=1.5,
    versions={"torch": "2.13"},
    determinism={},
)
BAD = Batch(epoch=2, first=17, sample=560, samples=(544, 560), of=1000)
RECORDS: list[Any] = [
    RunRecord(id="a", created_s=1.0),
    AttemptRecord(
        attempt=1, submission="s", index=0, pod="p", host="h", claimed_s=1.0, token="t", began_from=None, held_s=0.0
    ),
    AttemptRecord(
        attempt=1,
        submission="s",
        index=0,
        pod="p",
        host="h",
        claimed_s=1.0,
        token="t",
        began_from=None,
        held_s=0.0,
        skipped=(BAD, replace(BAD, sample=None)),
    ),
    MANIFEST,
    Debit(submission="s", index=0, attempt=1, code=194, step=3, fingerprint="f", held_s=1.0, wall_s=2.0, why="ecc"),
    Debit(
        submission="s",
        index=0,
        attempt=1,
        code=194,
        step=3,
        fingerprint="f",
        held_s=1.0,
        wall_s=2.0,
        why="x",
        batch=BAD,
    ),
    FinishedMark(steps=None, reached=3, how="break", submission="s", attempt=1),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_records_come_back_as_they_were(record: Any) -> None:
    """What is written can be read."""
    assert layout.decode(layout.encode(record), type(record), "here") == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_every_truncation_is_refused(record: Any) -> None:
    """Half a record is no record."""
    data = layout.encode(record).rstrip()
    for end in range(len(data)):
        with pytest.raises(CheckpointError, match="cannot read here"):
            layout.decode(data[:end], type(record), "here")


@pytest.mark.parametrize("wrong", [{"first": -1}, {"samples": [-3]}, {"count": 0}, {"epoch": 1 << 60}, {"more": "x"}])
def test_a_batch_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """Wherever one stands in a record."""
    for record in (each for each in RECORDS if getattr(each, "skipped", ()) or getattr(each, "batch", None)):
        data = json.loads(layout.encode(record))
        batch = {**wire.to_data(BAD), **wrong}
        data |= {"skipped": [batch]} if "skipped" in data else {"batch": batch}
        with pytest.raises(CheckpointError, match=r"fits none of|out of range|where int belongs"):
            layout.decode(resealed(data), type(record), "here")


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_every_flipped_bit_is_refused(record: Any) -> None:
    """Also where another number, name or sentence comes of it."""
    data = layout.encode(record)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError, match="cannot read here"):
            layout.decode(bytes(flipped), type(record), "here")


def test_a_record_of_the_first_format_has_no_digest() -> None:
    """Those that are there can be read; later ones need theirs."""
    old = wire.encode(replace(MANIFEST, version=1))
    assert layout.decode(old, Manifest, "here").files == MANIFEST.files
    with pytest.raises(CheckpointError, match="its digest is missing"):
        layout.decode(wire.encode(MANIFEST), Manifest, "here")


DATA = json.loads(layout.encode(MANIFEST))


def resealed(data: dict[str, Any]) -> bytes:
    """As somebody would write it who means it."""
    rest = {name: value for name, value in data.items() if name != "digest"}
    return sealed(json.dumps(rest).encode())


def changed(**fields: Any) -> bytes:
    return resealed({**DATA, **fields})


def ranks(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"tensors": f"{tensors}.safetensors", "own": f"{own}.safetensors"} for tensors, own in pairs]


def files(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"file": f"{name}.safetensors", "size": 1, "digest": DIGEST, **fields} for name in names]


ONE: dict[str, Any] = {"world_size": 1, "ranks": ranks(("tensors-0", "rank-0"))}


@pytest.mark.parametrize(
    "fields",
    [
        {"attempt": -1},
        {"attempt": True},
        {"step": 1.5},
        {"step": 10**30},
        {"created_s": float("nan")},
        {"created_s": float("inf")},
        {"world_size": 3},
        {"world_size": 1 << 61},
        {"files": []},
        {"files": [], "ranks": [], "world_size": 0},
        {"ranks": DATA["ranks"][::-1]},
        {"ranks": DATA["ranks"][:1]},
        {"files": DATA["files"][1:]},
        {"files": [*DATA["files"], DATA["files"][0]]},
        {"files": [*DATA["files"], *files("tensors-1")]},
        {**ONE, "ranks": ranks(("tensors-0", "../../x")), "files": files("tensors-0", "../../x")},
        {**ONE, "ranks": ranks(("../../x", "rank-0")), "files": files("../../x", "rank-0")},
        {**ONE, "ranks": ranks(("tensors-1", "rank-0")), "files": files("tensors-1", "rank-0")},
        {**ONE, "ranks": ranks(("tensors-00", "rank-0")), "files": files("tensors-00", "rank-0")},
        {**ONE, "ranks": ranks(("rank-0", "rank-0")), "files": files("rank-0")},
        {**ONE, "files": files("tensors-0", "rank-0", size=-1)},
        {**ONE, "files": files("tensors-0", "rank-0", digest="md5")},
        {**ONE, "files": files("tensors-0", "rank-0", rank=0)},
        {"began_from": "../1-1"},
        {"began_from": "1-1/x"},
        {"submission": "../s"},
        {"extra": 1},
        {"version": 0},
        {"version": None},
        {"type": "Debit"},
    ],
    ids=str,
)
def test_wrong_manifests_are_refused(fields: dict[str, Any]) -> None:
    """Each field is checked for type, range and meaning."""
    with pytest.raises(CheckpointError, match="cannot read here"):
        layout.decode(changed(**fields), Manifest, "here")


def test_every_rank_may_have_tensors_of_its_own() -> None:
    """Or share those of any rank before it; each file is looked up by its name."""
    for shared in ("tensors-0", "tensors-1"):
        data = changed(
            ranks=ranks(("tensors-0", "rank-0"), (shared, "rank-1")),
            files=files(*dict.fromkeys(("tensors-0", "rank-0", shared, "rank-1"))),
        )
        manifest = layout.decode(data, Manifest, "here")
        assert manifest.file(manifest.ranks[1].tensors).file == f"{shared}.safetensors"


def test_a_newer_format_is_named_as_such() -> None:
    """Somebody with an old release learns that a newer one is needed."""
    with pytest.raises(CheckpointError, match="newer resilient"):
        layout.decode(changed(version=3, new_field=1), Manifest, "here")


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda value: json.dumps(value).encode())
)
def test_nonsense_is_refused(data: bytes) -> None:
    """Whatever bytes come, the only error is ours."""
    for record in RECORDS:
        with pytest.raises(CheckpointError):
            layout.decode(data, type(record), "here")


def test_deep_nesting_is_refused() -> None:
    """A record that would exhaust the stack is damaged, not fatal."""
    with pytest.raises(CheckpointError):
        layout.decode(b"[" * 60_000, Manifest, "here")


def test_nothing_is_written_that_could_not_be_read() -> None:
    """A bad value is refused by its writer."""
    with pytest.raises(CheckpointError):
        layout.encode(RunRecord(id="a", created_s=float("nan")))


@pytest.mark.parametrize("name", ["1-2", "0-0", "12-345.6"])
def test_checkpoint_names_come_back(name: str) -> None:
    """Parsing and printing are inverse."""
    assert str(layout.parse_checkpoint(name)) == name


@pytest.mark.parametrize(
    "name", ["", "1", "1-", "-1-2", "01-2", "1-2.0", "1-2.x", "1-2\n", "../1-2", "1-2/", "¹-2", "1-" + "9" * 40]
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    """Only the canonical form is ours."""
    with pytest.raises(CheckpointError):
        layout.parse_checkpoint(name)


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a\\b", "a\0", "a b", "-a", ".a", "é", "a" * 300, "a\n"])
def test_hostile_components_are_refused(text: str) -> None:
    """A submission or pod becomes part of a path."""
    with pytest.raises(CheckpointError, match="cannot use"):
        layout.debits_path(text, 0)
    with pytest.raises(CheckpointError, match="cannot use"):
        layout.segment_path("s", text, 1)


def test_a_name_that_is_drawn_is_a_name_and_nobody_elses() -> None:
    """And so is the one that a saver counts on from it, which takes the next higher number."""
    names = {layout.fresh_name(3, 20) for _ in range(100)}
    assert len(names) == 100
    for name in map(layout.parse_checkpoint, names):
        assert name[:2] == (3, 20)
        assert layout.parse_checkpoint(str(name._replace(again=name.again + 1))).again == name.again + 1
    with pytest.raises(CheckpointError):
        layout.fresh_name(-1, 20)


def test_checkpoint_names_sort_as_numbers() -> None:
    """The order of names is that of a restore."""
    assert max(CheckpointName(1, 9, 0), CheckpointName(1, 10, 0)) == CheckpointName(1, 10, 0)
