# SPDX-License-Identifier: Apache-2.0
"""torch.distributed.checkpoint on our storage, in one process: what a load refuses, and what a save refuses."""

import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

import resilient.dcp
from resilient.dcp import writer as writers
from resilient.dcp.manifest import MANIFEST
from resilient.errors import CheckpointError, SettingsError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

State = dict[str, Any]
FLIPS = 5


def state_of(seed: int) -> State:
    """All that one process can have."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(300, 200, generator=generator), "bias": torch.zeros(0)},
        "half": torch.randn(7, generator=generator).bfloat16(),
        "scalar": torch.tensor(seed),
        "complex": torch.randn(3, 3, generator=generator, dtype=torch.complex64).conj(),
        "turned": torch.randn(6, 5, generator=generator).t(),
        "step": seed,
        "odd": {"tuple": (seed, None, 2.5), "set": {seed}, "nan": float("inf"), "dtype": torch.float16, "bytes": b"\0"},
        "list": [torch.ones(2) * seed, {"deep": torch.zeros(1) + seed}],
        "array": np.arange(seed),
    }


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a state."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def same(left: State, right: State) -> bool:
    """Whether two states are equal, in their types too."""

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor | np.ndarray):
            return bool(one.dtype == other.dtype and one.shape == other.shape and (one == other).all())
        return type(one) is type(other) and one == other

    pairs = zip(leaves(left), leaves(right), strict=True)
    return all(equal(one, other) for one, other in pairs)


def unchanged(state: State) -> bool:
    """Whether a state is ``state_of(5)``, but for what torch's own planner empties before it turns to the storage."""
    expected = state_of(5)
    expected["odd"] |= {key: state["odd"][key] for key in ("set", "dtype")}
    return same(state, expected)


def save(path: str | Path, state: State) -> None:
    dcp_save(state, storage_writer=resilient.dcp.Writer(path))


def load(path: str | Path, state: State, **options: Any) -> None:
    dcp_load(state, storage_reader=resilient.dcp.Reader(path, **options))


def refused(work: Callable[[], object]) -> str:
    """Why DCP could not; it must be an error of ours."""
    with pytest.raises(CheckpointException) as caught:
        work()
    (cause, _) = caught.value.failures[0]
    assert isinstance(cause, CheckpointError | SettingsError), repr(cause)
    return str(cause)


@pytest.fixture
def many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "FILE_BYTES", 100)


@pytest.mark.parametrize("file_bytes", [100, writers.FILE_BYTES])
def test_what_is_saved_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int) -> None:
    """In one file or in many, bit by bit, objects in their types."""
    monkeypatch.setattr(writers, "FILE_BYTES", file_bytes)
    save(tmp_path / "a", state_of(3))
    state = state_of(5)
    weight = state["model"]["weight"]
    load(tmp_path / "a", state)
    assert same(state, state_of(3))
    assert state["model"]["weight"] is weight, "DCP loads in place"
    files = list(tmp_path.rglob("*.safetensors"))
    assert (len(files) > 2) is (file_bytes == 100)


def test_every_file_opens_with_safetensors(tmp_path: Path, many_files: None) -> None:
    """Objects are text, readable by anybody."""
    save(tmp_path, state_of(3))
    found = {name: value for file in tmp_path.rglob("*.safetensors") for name, value in load_file(file).items()}
    assert torch.equal(found["model.weight"], state_of(3)["model"]["weight"])
    assert bytes(found["odd.tuple"].numpy()) == b'{"$tuple":[3,null,2.5]}'


def test_the_writer_can_be_pickled_and_reset(tmp_path: Path) -> None:
    """As async_save in a process and a checkpoint_id need; the path given last is used."""
    writer = pickle.loads(pickle.dumps(resilient.dcp.Writer(tmp_path / "first")))
    dcp_save(state_of(3), storage_writer=writer)
    dcp_save(state_of(4), storage_writer=writer, checkpoint_id=tmp_path / "second")
    reader = resilient.dcp.Reader(tmp_path / "nowhere")
    state = state_of(5)
    dcp_load(state, storage_reader=reader, checkpoint_id=tmp_path / "second")
    assert same(state, state_of(4))


def test_a_state_can_be_rebuilt_from_the_checkpoint_alone(tmp_path: Path) -> None:
    """As DCP's own conversion to one torch.save file does, which asks for all metadata."""
    save(tmp_path, state_of(3))
    state: State = {}
    _load_state_dict(state, resilient.dcp.Reader(tmp_path), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    assert same({key: state[key] for key in state_of(3)}, state_of(3))


# What a load refuses


def test_one_flipped_bit_is_never_loaded(tmp_path: Path, many_files: None) -> None:
    """Anywhere in any kind of file, and the state is as it was."""
    save(tmp_path, state_of(3))
    chance = random.Random(7)
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for offset in [0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(FLIPS))]:
            broken = bytearray(whole)
            broken[offset] ^= 1 << chance.randrange(8)
            file.write_bytes(broken)
            state = state_of(5)
            assert "cannot" in refused(partial(load, tmp_path, state))
            assert unchanged(state), f"{file.name} at {offset}"
        file.write_bytes(whole)
    load(tmp_path, state_of(5))


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "missing", "a directory"])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, many_files: None, damage: str) -> None:
    """Each file of a checkpoint, the manifest too."""
    save(tmp_path, state_of(3))
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        file.unlink()
        if damage == "a directory":
            file.mkdir()
        elif damage != "missing":
            file.write_bytes({"cut": whole[:-1], "longer": whole + b"}", "empty": b""}[damage])
        state = state_of(5)
        refused(partial(load, tmp_path, state))
        assert unchanged(state)
        if damage == "a directory":
            file.rmdir()
        file.write_bytes(whole)
    load(tmp_path, state_of(5))


def test_files_of_another_save_or_place_are_refused(tmp_path: Path, many_files: None) -> None:
    """Two saves of states of one form have files of one size."""
    save(tmp_path / "a", state_of(3))
    save(tmp_path / "b", state_of(4))
    mine, other = (sorted((tmp_path / name).rglob("*-0.safetensors"))[0] for name in "ab")
    whole = mine.read_bytes()
    mine.write_bytes(other.read_bytes())
    assert "digest differs" in refused(lambda: load(tmp_path / "a", state_of(5)))
    mine.write_bytes(whole)
    (tmp_path / "a" / MANIFEST).write_bytes((tmp_path / "b" / MANIFEST).read_bytes())
    assert "is missing" in refused(lambda: load(tmp_path / "a", state_of(5)))


def test_another_dtype_or_shape_is_refused_before_anything_changes(tmp_path: Path) -> None:
    """DCP alone would convert it silently; whoever wants that says so."""
    save(tmp_path, state_of(3))
    state = state_of(5) | {"half": torch.zeros(7)}
    assert "it was saved as torch.bfloat16 and is torch.float32 now" in refused(lambda: load(tmp_path, state))
    assert unchanged(state | {"half": state_of(5)["half"]})
    assert not state["half"].any()
    load(tmp_path, state, cast=True)
    assert torch.equal(state["half"], state_of(3)["half"].float())
    with pytest.raises(CheckpointException, match="Size mismatch"):
        load(tmp_path, {"half": torch.zeros(8).bfloat16()})


def test_what_is_wrong_is_an_error_of_ours_for_whoever_asks(tmp_path: Path) -> None:
    """Also outside dcp.load: of the reader itself, and of the metadata that it could not read."""
    reader = resilient.dcp.Reader(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no checkpoint was committed there"):
        reader.world_size()
    metadata = reader.read_metadata()
    with pytest.raises(CheckpointError, match="no checkpoint was committed there"):
        _ = metadata.state_dict_metadata
    for path in ("", "s3x://bucket/a", "a::b"):
        with pytest.raises(SettingsError):
            resilient.dcp.Reader(path)
        with pytest.raises(SettingsError):
            resilient.dcp.Writer(path)
        assert not resilient.dcp.Writer.validate_checkpoint_id(path)
    assert resilient.dcp.Reader.validate_checkpoint_id(tmp_path)


def test_a_reader_says_what_a_checkpoint_holds(tmp_path: Path) -> None:
    """For values that each rank has its own of."""
    assert resilient.dcp.per_rank("rng", 3) == "rank-3/rng"
    save(tmp_path, {resilient.dcp.per_rank("rng"): {"torch": torch.zeros(2)}, "rank-10/rng": 1})
    reader = resilient.dcp.Reader(tmp_path)
    assert reader.world_size() == 1
    assert [reader.holds(f"rank-{rank}/rng") for rank in (0, 1, 10)] == [True, False, True]


# What a save refuses


class Wrong(DefaultSavePlanner):
    """Resolves to something else than it has planned."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        return torch.zeros(2)


class Lazy(DefaultSavePlanner):
    """Plans what no rank is to write."""

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return replace(new_plan, items=new_plan.items[1:])


class Bytes(DefaultSavePlanner):
    """Has no way to get at an object itself, like a planner that does not extend the default one."""

    lookup_object = None  # type: ignore[assignment]  # taken away on purpose


@pytest.mark.parametrize(
    ("state", "planner", "why"),
    [
        ({"a": {"b": object()}}, None, "cannot save a.b: object is not a type"),
        ({"a": (torch.zeros(1),)}, None, "cannot save a: there is a tensor in an object"),
        ({"a": torch.zeros(3).to_sparse()}, None, "cannot save a: its layout is torch.sparse_coo"),
        ({"__metadata__": torch.zeros(2)}, None, "cannot save __metadata__: safetensors files use that name"),
        ({"a": torch.zeros(3)}, Wrong(), "cannot save a: torch.float32 of shape"),
        ({"a": torch.zeros(3), "b": 1}, Lazy(), "no rank has written it"),
        ({"a": 1}, Bytes(), "cannot save a: it is no tensor, and Bytes gives it as pickled bytes only"),
    ],
)
def test_what_could_not_come_back_is_refused(tmp_path: Path, state: State, planner: Any, why: str) -> None:
    """By name, and there is no checkpoint."""
    writer = resilient.dcp.Writer(tmp_path)
    assert why in refused(lambda: dcp_save(state, storage_writer=writer, planner=planner))
    assert not (tmp_path / MANIFEST).exists()


def test_a_path_is_written_once_and_can_be_cleared(tmp_path: Path) -> None:
    """A committed checkpoint is never touched by a save; removing it is another word, and spares what is not ours."""
    save(tmp_path, state_of(3))
    (tmp_path / "notes.txt").write_text("mine")
    files = sorted(tmp_path.rglob("*"))
    assert "none is ever overwritten" in refused(lambda: save(tmp_path, state_of(4)))
    assert sorted(tmp_path.rglob("*")) == files
    state = state_of(5)
    load(tmp_path, state)
    assert same(state, state_of(3))
    resilient.dcp.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    resilient.dcp.remove(tmp_path)
    save(tmp_path, state_of(4))


class Unasked(resilient.dcp.Writer):
    """Must not come to writing."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        raise AssertionError


def test_a_path_that_is_taken_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A large save would otherwise be in vain."""
    save(tmp_path, state_of(3))
    assert "none is ever overwritten" in refused(lambda: dcp_save(state_of(4), storage_writer=Unasked(tmp_path)))


class Rival(resilient.dcp.Writer):
    """Another save to the path commits while this one does, and has cleared its files away or not."""

    clears = True

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self.clears:
            save(self._path, state_of(3))
        else:
            Path(self._path, MANIFEST).write_bytes(b"another")
        super().finish(metadata, results)


@pytest.mark.parametrize("clears", [True, False])
def test_of_two_saves_at_once_one_is_refused_and_leaves_nothing(tmp_path: Path, clears: bool) -> None:
    """The manifest is created exclusively; the files of the other one are freed, those of the winner are not."""
    writer = Rival(tmp_path)
    writer.clears = clears
    assert "none is ever overwritten" in refused(lambda: dcp_save(state_of(4), storage_writer=writer))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == clears
    if clears:
        load(tmp_path, state_of(5))
    else:
        assert (tmp_path / MANIFEST).read_bytes() == b"another"


def anonymous_maps() -> int:
    """Shared mappings of this process without a file; Linux shows them under this name."""
    return Path("/proc/self/maps").read_text().count("/dev/zero")


class Watched(resilient.dcp.Reader):
    """Says how many files it holds in memory when it begins to fill the state."""

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        self.files = anonymous_maps()
        return super().read_data(plan, planner)


@pytest.mark.parametrize(("key", "files"), [("half", 0), ("model", 1)])
def test_a_small_part_does_not_keep_its_file_in_memory(tmp_path: Path, key: str, files: int) -> None:
    """On another number of ranks each needs a little of many files."""
    save(tmp_path, state_of(3))
    reader = Watched(tmp_path)
    before = anonymous_maps()
    dcp_load({key: state_of(5)[key]}, storage_reader=reader)
    assert reader.files - before == files


def test_a_save_clears_away_what_killed_ones_left_at_its_path(tmp_path: Path) -> None:
    """And nothing else."""
    stray = tmp_path / ("ab" * 8) / "rank-1-0.safetensors"
    kept = tmp_path / "step-5" / ("ab" * 8) / "rank-1-0.safetensors"
    for file in (stray, kept):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half")
    save(tmp_path, state_of(3))
    assert not stray.parent.exists()
    assert kept.exists()
