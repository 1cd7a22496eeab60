# SPDX-License-Identifier: Apache-2.0
"""An image is a safetensors file that brings a state back bit for bit, or is refused."""

import json
import mmap
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from trees import DTYPES, raw, same, states

from resilient.checkpoint.digest import digest, matches
from resilient.checkpoint.image import MAX_HEADER_BYTES, Layout, plan, read, write
from resilient.checkpoint.tensors import FORMAT_DTYPES, Flat, flatten, unflatten
from resilient.errors import CheckpointError
from resilient.link.board import PAGE_BYTES

Header = dict[str, dict[str, Any]]
Change = Callable[[Header], None]


def image_of(state: object, previous: Layout | None = None) -> bytearray:
    """The image of a state."""
    flat = flatten(state)
    layout = plan(flat, previous)
    buffer = bytearray(layout.size_bytes)
    write(flat, layout, buffer)
    return buffer


def rewritten(image: bytearray, change: Change) -> bytearray:
    """The image with its header changed, as a hostile writer would."""
    length = int.from_bytes(image[:8], "little")
    entries = json.loads(image[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode().ljust(length)
    return bytearray(len(text).to_bytes(8, "little") + text + image[8 + length :])


SMALL = {"w": torch.arange(6.0).reshape(2, 3), "h": torch.ones(3, dtype=torch.float16), "c": torch.ones(2) * 1j, "n": 7}
SMALL["t"] = SMALL["w"]


@settings(max_examples=200)
@given(states)
def test_states_come_back_from_an_image(state: object) -> None:
    """Type, order and bits of everything, through bytes and back."""
    assert same(unflatten(read(image_of(state))), unflatten(flatten(state)))


def test_other_tools_can_open_it(tmp_path: Path) -> None:
    """The plain safetensors reader finds each tensor under its name, in its dtype and shape."""
    tensors = {name: torch.ones(2, 3).to(dtype) for name, dtype in FORMAT_DTYPES.items()}
    tensors |= {"scalar": torch.tensor(1.5, dtype=torch.bfloat16), "none": torch.empty(0, 3), "last": torch.empty(2, 0)}
    tensors["turned"] = torch.arange(6).reshape(2, 3).t()
    file = tmp_path / "rank-0.safetensors"
    file.write_bytes(image_of({**tensors, "text": "x", "raw": torch.ones(2, dtype=torch.complex64)}))
    found = load_file(file)
    assert same(dict(sorted(found.items())), dict(sorted(
        {**{f"state.{name}": tensor for name, tensor in tensors.items()}, "state.raw": found["state.raw"]}.items()
    )))  # fmt: skip
    assert (found["state.raw"].dtype, found["state.raw"].shape) == (torch.uint8, (2, 8))
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_a_state_without_tensors_is_an_image_too(tmp_path: Path) -> None:
    """The smallest state is one page."""
    image = image_of({})
    (tmp_path / "x").write_bytes(image)
    assert load_file(tmp_path / "x") == {}
    assert unflatten(read(image)) == {}
    assert len(image) == PAGE_BYTES


@given(st.permutations([(dtype, count) for dtype in DTYPES for count in (1, 3)]))
@settings(max_examples=20)
def test_every_tensor_is_aligned(parts: list[tuple[torch.dtype, int]]) -> None:
    """Data begins on a page, and each tensor on a multiple of its item size, without gaps."""
    flat = flatten([torch.empty(count, dtype=dtype) for dtype, count in parts])
    layout = plan(flat)
    assert layout.header_bytes % PAGE_BYTES == 0
    spans = sorted(layout.spans.values(), key=lambda span: span.offset)
    assert all(span.offset % span.dtype.itemsize == 0 for span in spans)
    assert [span.end for span in spans] == [*(span.offset for span in spans[1:]), layout.size_bytes]


def test_offsets_stay_while_the_objects_grow() -> None:
    """From step to step only the numbers in the header change; the room for them is taken over."""
    first = plan(flatten({"w": torch.ones(5), "step": 1}))
    second = plan(flatten({"w": torch.ones(5), "step": 10**9, "losses": [0.1] * 50}), first)
    assert (second.spans, second.size_bytes) == (first.spans, first.size_bytes)
    third = plan(flatten({"w": torch.ones(5), "losses": [0.1] * 5000}), second)
    assert third.header_bytes > second.header_bytes
    assert third.header_bytes % PAGE_BYTES == 0
    assert plan(flatten({"w": torch.ones(5), "step": 1}), third).spans == third.spans


def test_an_image_is_the_same_bytes_each_time() -> None:
    """What is equal has one digest, on whatever rank and in whatever attempt."""
    assert digest(image_of(SMALL)) == digest(image_of(SMALL))


def test_what_is_read_are_views() -> None:
    """Restoring is a map: nothing is copied until the tensors are."""
    image = image_of({"w": torch.zeros(2)})
    flat = read(image)
    image[-4:] = bytes.fromhex("0000803f")
    assert flat.tensors["state.w"].tolist() == [0.0, 1.0]


def test_a_private_mapping_of_a_file_can_be_read(tmp_path: Path) -> None:
    """The file stays as it is whatever is done to the tensors."""
    file = tmp_path / "rank-0.safetensors"
    file.write_bytes(image_of(SMALL))
    before = digest(file.read_bytes())
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    flat = read(mapped)
    assert same(unflatten(flat), SMALL)
    flat.tensors["state.w"].fill_(9.0)
    assert digest(file.read_bytes()) == before


def test_read_only_memory_is_refused() -> None:
    """A write to a tensor there would be a segmentation fault."""
    with pytest.raises(CheckpointError, match="read-only"):
        read(memoryview(bytes(image_of(SMALL))))


def test_writing_to_the_wrong_place_is_refused() -> None:
    """Too small, too large or read-only memory, and a state that is not the planned one."""
    flat = flatten(SMALL)
    layout = plan(flat)
    for buffer in (bytearray(layout.size_bytes - 1), bytearray(layout.size_bytes + 1)):
        with pytest.raises(CheckpointError, match=r"^cannot write image"):
            write(flat, layout, buffer)
    with pytest.raises(CheckpointError, match=r"^cannot write image"):
        write(flat, layout, memoryview(bytes(layout.size_bytes)))
    grown = flatten({**SMALL, "h": torch.ones(4, dtype=torch.float16)})
    with pytest.raises(CheckpointError, match=r"its tensors have changed since it was planned"):
        write(grown, layout, bytearray(layout.size_bytes))


def test_objects_that_no_header_can_hold_are_refused() -> None:
    """The header has a limit, and the person is told what to do with large arrays."""
    flat = Flat(tensors={}, aliases={}, objects=json.dumps("x" * MAX_HEADER_BYTES))
    with pytest.raises(CheckpointError, match="keep large arrays as tensors"):
        plan(flat)


def test_every_truncation_is_refused() -> None:
    """Also the one that takes only the last byte, and the byte too many."""
    image = image_of(SMALL)
    for size in (*range(0, len(image), 7), *range(PAGE_BYTES - 9, len(image))):
        with pytest.raises(CheckpointError, match=r"^cannot read image: .+; do "):
            read(image[:size])
    with pytest.raises(CheckpointError, match=r"^cannot read image"):
        read(image + b"\0")


def test_no_flipped_bit_crashes_the_reader() -> None:
    """The reader refuses or reads; the digest tells in every case."""
    image = image_of(SMALL)
    whole = digest(image)
    used = len(bytes(image[:PAGE_BYTES]).rstrip())
    bits = random.Random(0).sample(range(used * 8), 3000)
    refused = 0
    for bit in [*range(64), *bits]:
        image[bit // 8] ^= 1 << bit % 8
        assert not matches(image, whole)
        try:
            unflatten(read(image))
        except CheckpointError:
            refused += 1
        image[bit // 8] ^= 1 << bit % 8
    assert refused > len(bits) // 2
    assert matches(image, whole)


@settings(max_examples=200)
@given(st.binary(max_size=64), st.integers(0, 300))
def test_random_bytes_are_refused(noise: bytes, position: int) -> None:
    """Noise in the header never raises anything but the one error."""
    image = image_of(SMALL)
    image[position : position + len(noise)] = noise
    try:
        unflatten(read(image))
    except CheckpointError:
        return
    assert raw(read(image).tensors["state.w"]) == raw(torch.arange(6.0))


def change_entry(name: str, **fields: object) -> Change:
    def change(entries: Header) -> None:
        entries.setdefault(name, {}).update(fields)

    return change


def drop(name: str, field: str | None = None) -> Change:
    def change(entries: Header) -> None:
        if field is None:
            del entries[name]
        else:
            del entries[name][field]

    return change


def replace(name: str, value: Any) -> Change:
    def change(entries: Header) -> None:
        entries[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_entry("state.w", dtype="F128"),
        change_entry("state.w", dtype=None),
        change_entry("state.w", dtype="F64"),
        change_entry("state.w", shape=[3, 3]),
        change_entry("state.w", shape=[-2, -3]),
        change_entry("state.w", shape=[2.0, 3]),
        change_entry("state.w", shape=[True, 6]),
        change_entry("state.w", shape="6"),
        change_entry("state.w", shape=[10**18] * 20),
        change_entry("state.w", shape=[0, 10**18, 10**18], data_offsets=[16, 16]),
        change_entry("state.w", data_offsets=[16, 41]),
        change_entry("state.w", data_offsets=[0, 24]),
        change_entry("state.w", data_offsets=[15, 39]),
        change_entry("state.w", data_offsets=[40, 16]),
        change_entry("state.w", data_offsets=[16]),
        change_entry("state.w", data_offsets=[-8, 16]),
        change_entry("state.w", more=1),
        change_entry("state.new", dtype="U8", shape=[1], data_offsets=[46, 47]),
        change_entry("state.c", shape=[4, 4]),
        change_entry("state.c", dtype="I8"),
        drop("state.w"),
        drop("state.h"),
        drop("state.w", "shape"),
        drop("__metadata__"),
        drop("__metadata__", "objects"),
        drop("__metadata__", "aliases"),
        drop("__metadata__", "dtypes"),
        drop("__metadata__", "resilient"),
        replace("state.w", []),
        replace("__metadata__", []),
        change_entry("__metadata__", resilient="2"),
        change_entry("__metadata__", resilient=1),
        change_entry("__metadata__", objects=1),
        change_entry("__metadata__", aliases="[]"),
        change_entry("__metadata__", aliases="{"),
        change_entry("__metadata__", aliases='{"state.h":"state.w"}'),
        change_entry("__metadata__", aliases='{"state.t":1}'),
        change_entry("__metadata__", dtypes='{"state.c":"qint8"}'),
        change_entry("__metadata__", dtypes='{"state.c":"complex128"}'),
        change_entry("__metadata__", dtypes='{"state.w":"complex64","state.c":"complex64"}'),
        change_entry("__metadata__", dtypes='{"state.x":"complex64","state.c":"complex64"}'),
    ],
)
def test_headers_that_lie_are_refused(change: Change) -> None:
    """Every field is checked against the others and against the size before a tensor is made."""
    image = image_of(SMALL)
    assert same(unflatten(read(rewritten(image, lambda entries: None))), SMALL)
    with pytest.raises(CheckpointError, match=r"^cannot read image: .+; do "):
        read(rewritten(image, change))


def test_a_tensor_off_its_alignment_is_refused() -> None:
    """Some processors cannot read one there, and safetensors itself asks for no order."""
    image = image_of({"a": torch.ones(1, dtype=torch.uint8), "w": torch.ones(1)})

    def swap(entries: Header) -> None:
        entries["state.a"]["data_offsets"], entries["state.w"]["data_offsets"] = [0, 1], [1, 5]

    with pytest.raises(CheckpointError, match=r"the bytes of 'state\.w' do not fit"):
        read(rewritten(image, swap))


def test_a_newer_format_is_named() -> None:
    """The person learns that the checkpoint is good, and the version too old."""
    image = rewritten(image_of(SMALL), change_entry("__metadata__", resilient="2"))
    with pytest.raises(CheckpointError, match=r"its format is '2'.*; do use the version of resilient that wrote it"):
        read(image)


def test_a_header_length_without_bounds_is_refused() -> None:
    """Nothing is allocated for it."""
    for length in (2**64 - 1, MAX_HEADER_BYTES + 1, PAGE_BYTES):
        with pytest.raises(CheckpointError, match="ends within its header"):
            read(bytearray(length.to_bytes(8, "little") + b"{}"))


@pytest.mark.gpu
def test_tensors_are_copied_from_a_gpu() -> None:
    """The image of a state on a device is that of the same state in memory."""
    state = {"w": torch.arange(6.0).reshape(2, 3).t(), "c": torch.ones(2) * 1j, "b": torch.ones(3).bfloat16()}
    assert image_of({name: tensor.cuda() for name, tensor in state.items()}) == image_of(state)
