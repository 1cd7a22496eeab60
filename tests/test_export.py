# SPDX-License-Identifier: Apache-2.0
"""``resilient checkpoints export``: others read what we saved, and nothing is written over or half written."""

import os
import stat
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from saved_run import SavedRun, small_state
from torch.distributed.checkpoint.state_dict_loader import load as load_dcp

from resilient.checkpoint.export import FORMATS
from resilient.checkpoint.landing import land
from resilient.cli import main
from resilient.errors import CheckpointError

Tree = dict[str, Any]
Export = Callable[..., int]


@pytest.fixture
def saved(tmp_path: Path) -> SavedRun:
    return SavedRun(tmp_path / "run")


@pytest.fixture
def export(saved: SavedRun, tmp_path: Path) -> Export:
    def exported(kind: str, *argv: str, to: str = "out", name: str = "latest") -> int:
        return main(["checkpoints", "export", saved.url, name, "--to", str(tmp_path / to), "--format", kind, *argv])

    return exported


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model with tied weights and buffers, and an optimizer that has state."""
    torch.manual_seed(3)
    words = torch.nn.Embedding(10, 4)
    head = torch.nn.Linear(4, 10, bias=False)
    head.weight = words.weight
    model = torch.nn.Sequential(words, torch.nn.BatchNorm1d(4), head)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tree:
    return {"model": dict(model.state_dict(keep_vars=True)), "optimizer": optimizer.state_dict()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*items) for items in zip(a, b, strict=True))
    return bool(a == b)


def test_torch_loads_it_with_weights_only(saved: SavedRun, export: Export, tmp_path: Path) -> None:
    """A fresh model and optimizer take it as they would take their own, and tied weights are one tensor."""
    model, optimizer = trained()
    saved.save("1-5", [state_of(model, optimizer)])
    assert export("torch") == 0
    found = torch.load(tmp_path / "out", weights_only=True)
    assert found["model"]["0.weight"].data_ptr() == found["model"]["2.weight"].data_ptr()
    torch.manual_seed(4)
    fresh, other = trained()
    fresh.load_state_dict(found["model"])
    other.load_state_dict(found["optimizer"])
    assert same(state_of(fresh, other), state_of(model, optimizer))
    assert (tmp_path / "out").stat().st_size < 20_000, "views must not bring the whole image along"


def test_what_weights_only_refuses_is_turned_into_its_kin(
    saved: SavedRun, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And said. What it takes is left as it is."""
    odd = {
        "deque": deque([1, deque()], 5),
        "frozen": frozenset([1]),
        "default": defaultdict(list, a=[np.float32(0.5)]),
        "array": np.arange(4, dtype=np.int16).reshape(2, 2),
        "fine": (Counter(a=2), OrderedDict(b=1), {3}, 1 << 80, b"x", torch.Size([1]), torch.float16),
    }
    saved.save("1-1", [{"odd": odd}])
    assert export("torch") == 0
    found = torch.load(tmp_path / "out", weights_only=True)["odd"]
    assert (found["deque"], found["frozen"], found["default"]) == ([1, []], {1}, {"a": [0.5]})
    assert torch.equal(found["array"], torch.arange(4, dtype=torch.int16).reshape(2, 2))
    assert found["fine"] == odd["fine"]
    assert [type(item) for item in found["fine"]] == [type(item) for item in odd["fine"]]
    said = capsys.readouterr().out
    assert "state['odd']['deque']: a deque is written as a list" in said
    assert "state['odd']['default']['a'][0]: a float32 is written as a float" in said
    assert "fine" not in said


def test_safetensors_has_plain_names(saved: SavedRun, export: Export, tmp_path: Path) -> None:
    """All tensors by their path; of one part by the names that it gave itself, so that it loads with strict."""
    model, optimizer = trained()
    saved.save("1-5", [state_of(model, optimizer)], metrics={"loss": 0.5})
    assert export("safetensors") == 0
    everything = load_file(tmp_path / "out")
    assert {"model.0.weight", "model.2.weight", "model.1.running_mean", "optimizer.state.0.exp_avg"} <= set(everything)
    with safe_open(tmp_path / "out", "pt") as file:
        about = file.metadata()
    assert (about["checkpoint"], about["step"], about["run"]) == ("1-5", "5", saved.run.id)
    assert export("safetensors", "--part", "model", to="model") == 0
    weights = load_file(tmp_path / "model")
    fresh, _ = trained()
    torch.nn.init.zeros_(next(fresh.parameters()))
    fresh.load_state_dict(weights)
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("parts", "flags", "words"),
    [
        (("model", "numbers"), ("--part", "numbers"), "choose from the parts that do, 'model', or use --format torch"),
        (("numbers",), (), "cannot export the state as safetensors: it holds no tensors; use --format torch"),
    ],
)
def test_safetensors_of_no_tensors_is_refused(
    saved: SavedRun,
    export: Export,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    parts: tuple[str, ...],
    flags: tuple[str, ...],
    words: str,
) -> None:
    """A file without a tensor is of no use to anybody."""
    state = {"model": dict(trained()[0].state_dict()), "numbers": {"seen": [1, 2.0], "name": "a"}}
    saved.save("1-5", [{name: state[name] for name in parts}])
    assert export("safetensors", *flags) == 115
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_dcp_loads_it(saved: SavedRun, export: Export, tmp_path: Path) -> None:
    """Into a state of the same form, optimizer and numbers included."""
    model, optimizer = trained()
    saved.save("1-5", [state_of(model, optimizer)])
    assert export("dcp") == 0
    torch.manual_seed(4)
    fresh, other = trained()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    other.param_groups[0]["lr"] = 0.5
    target = state_of(fresh, other)
    load_dcp(target, checkpoint_id=str(tmp_path / "out"), no_dist=True)
    assert same(target, state_of(model, optimizer))


@pytest.mark.parametrize("kind", FORMATS)
def test_each_rank_has_its_own(saved: SavedRun, export: Export, tmp_path: Path, kind: str) -> None:
    """And a rank that there is none of is refused."""
    saved.save("1-2", [small_state(1), {**small_state(1), "own": {"x": torch.ones(2)}}])
    assert export(kind, "--rank", "2") == 115
    assert export(kind, "--rank", "-1") == 115
    assert export(kind, "--rank", "1", "--part", "own") == 0
    if kind != "dcp":
        found = load_file(tmp_path / "out") if kind == "safetensors" else torch.load(tmp_path / "out")
        assert torch.equal(found["x"], torch.ones(2))
    assert export(kind, "--part", "nothing", to="other") == 115
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_written_over(saved: SavedRun, export: Export, tmp_path: Path, kind: str) -> None:
    """Neither a file, a directory nor a link that leads nowhere; and nowhere but on this machine."""
    saved.save("1-1")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "gone", tmp_path / "link")
    before = sorted(tmp_path.rglob("*"))
    for to in ("file", "folder", "link", "no/such/folder"):
        assert export(kind, to=to) == 115
    assert main(["checkpoints", "export", saved.url, "1-1", "--to", "s3://b/x", "--format", kind]) == 115
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("file", ["tensors-0.safetensors", "rank-0.safetensors", "manifest.json"])
def test_nothing_unverified_is_written(saved: SavedRun, export: Export, tmp_path: Path, kind: str, file: str) -> None:
    """One flipped bit in any file, and there is no export."""
    saved.save("1-1")
    path = saved.path("1-1", file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if file == "manifest.json" else -1] ^= 4
    path.write_bytes(data)
    assert export(kind, name="1-1") == 115
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """A writer that fails half-way leaves nothing; one that was overtaken leaves the other's."""

    def half(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        land(tmp_path / "out", half)
    assert list(tmp_path.iterdir()) == []

    def overtaken(path: Path) -> None:
        path.write_text("ours")
        (tmp_path / "out").write_text("theirs")

    with pytest.raises(CheckpointError, match="cannot write"):
        land(tmp_path / "out", overtaken)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "theirs")]


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_others_may_read_it(saved: SavedRun, export: Export, tmp_path: Path, kind: str) -> None:
    """As far as the umask allows, like any other new file."""
    saved.save("1-1")
    (tmp_path / "usual").touch()
    assert export(kind) == 0
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "out")}
    assert len(modes) == 1
