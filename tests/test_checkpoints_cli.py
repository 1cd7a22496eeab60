# SPDX-License-Identifier: Apache-2.0
"""``resilient checkpoints list|verify|show|prune``: what it says, what it deletes, and what it leaves alone."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_store import FaultyFileSystem
from moto.server import ThreadedMotoServer
from rich.console import Console
from saved_run import SavedRun, small_state
from supervised import LIMIT_S

from resilient.checkpoint.header import read_header
from resilient.cli import main
from resilient.core.retention import Rules
from resilient.errors import CheckpointError
from resilient.report.tables import print_table

NASTY = "[bold]x[/bold] \x1b[2J\x1b]0;owned\x07 \u202e\n"
HOSTILE = ["..", "../1-1", "/etc/passwd", "s3://bucket/1-1", "1-1/../../x", "1-1\n", "-1", "1-1.0", "latest/x", "a"]
HOLD = """
import sys
from resilient.checkpoint.holding import held
from resilient.checkpoint.store import open_store
with held(open_store(sys.argv[1]), "pod-a"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def saved(tmp_path: Path) -> SavedRun:
    return SavedRun(tmp_path / "run")


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of ``resilient checkpoints ...``."""

    def asked(*argv: object) -> tuple[int, str, str]:
        code = main(["checkpoints", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return asked


Ask = Callable[..., tuple[int, str, str]]


def files_below(path: Path) -> dict[str, bytes]:
    """All that is there, but for the lock."""
    found = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".lock", ".holder")))
    return {str(file): file.read_bytes() for file in found}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def states(ask: Ask, url: str) -> dict[str, str]:
    code, out, _ = ask("list", url, "--json")
    assert code == 0
    return {row["name"]: row["state"] for row in json.loads(out)["checkpoints"]}


def test_list_says_what_a_restore_would_do_with_each(saved: SavedRun, ask: Ask) -> None:
    """The next one, good ones, those set aside and why, those of an earlier history, and leftovers."""
    saved.claim(1)
    saved.save("1-10")
    saved.claim(2, fresh_from=2)
    saved.save("2-5", [small_state(5)] * 2, metrics={"loss": -0.25})
    saved.save("2-7")
    saved.save("2-9")
    saved.save("2-8", run="another")
    saved.path("2-9", "rank-0.safetensors").unlink()
    saved.store.create("checkpoints/2-11/rank-0.safetensors", b"half")
    assert states(ask, saved.url) == {
        "2-11": "not committed",
        "2-9": "set aside",
        "2-8": "set aside",
        "2-7": "restored next",
        "2-5": "complete",
        "1-10": "earlier history",
    }
    row = json.loads(ask("list", saved.url, "--json")[1])["checkpoints"][4]
    size = sum(path.stat().st_size for path in saved.path("2-5").glob("*.safetensors"))
    assert (row["ranks"], row["metrics"], row["size_bytes"]) == (2, {"loss": -0.25}, size)
    code, out, _ = ask("list", saved.url)
    assert code == 0
    assert out.splitlines()[1].split() == ["NAME", "ATTEMPT", "STEP", "SAVED", "SIZE", "RANKS", "METRICS", "STATE"]
    assert "2-9: cannot use checkpoint 2-9: rank-0.safetensors is missing" in out
    assert "2-8: it belongs to another run, 'another'" in out
    assert "2017-07-14 02:40:00 UTC" in out


@pytest.mark.parametrize(
    ("harm", "file", "why"),
    [
        (lambda path: flip(path, 9), "tensors-0.safetensors", "its digest differs"),
        (lambda path: flip(path, -1), "rank-1.safetensors", "its digest differs"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "rank-0.safetensors", "bytes where"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), "rank-0.safetensors", "longer than"),
        (lambda path: path.unlink(), "rank-1.safetensors", "is missing"),
        (lambda path: path.write_text("{}"), "manifest.json", "no format version"),
    ],
)
def test_verify_names_each_damaged_file(
    saved: SavedRun, ask: Ask, harm: Callable[[Path], None], file: str, why: str
) -> None:
    """With exit code 1; what is whole beside it is good, alone with exit code 0."""
    for name in ("1-1", "1-2"):
        saved.save(name, [small_state(1)] * 2)
    assert ask("verify", saved.url)[0] == 0
    assert [line.split()[0] for line in ask("verify", saved.url, "latest")[1].splitlines()] == ["NAME", "1-2"]
    harm(saved.path("1-2", file))
    code, out, _ = ask("verify", saved.url, "--json")
    assert code == 1
    found = {verdict["name"]: verdict["flaws"] for verdict in json.loads(out)["checkpoints"]}
    assert found["1-1"] == []
    assert [flaw["file"] for flaw in found["1-2"]] == [file]
    assert why in found["1-2"][0]["why"]
    code, out, _ = ask("verify", saved.url)
    line = next(line for line in out.splitlines() if line.startswith("1-2"))
    assert (code, line.split()[1:3]) == (1, [file, "damaged:"])
    assert ask("verify", saved.url, "1-1")[0] == 0
    assert ask("verify", saved.url, "1-2")[0] == 1


def test_verify_finds_every_damaged_file_at_once(saved: SavedRun, ask: Ask) -> None:
    """Somebody who has to repair a store wants to know all of it."""
    saved.save("1-1", [small_state(1), small_state(2)])
    for path in saved.path("1-1").glob("*.safetensors"):
        flip(path, 20)
    verdict = json.loads(ask("verify", saved.url, "--json")[1])["checkpoints"][0]
    assert len(verdict["flaws"]) == 4


def test_show_tells_what_is_in_it(saved: SavedRun, ask: Ask) -> None:
    """Manifest and tensors with dtype, shape and bytes; tied ones and dtypes that safetensors lacks by their own."""
    weight = torch.nn.Parameter(torch.zeros(4, 2, dtype=torch.bfloat16))
    state = {"model": {"a": weight, "b": weight}, "wave": {"c": torch.zeros(3, dtype=torch.complex128)}}
    saved.save("1-1", [state, state], metrics={"loss": 0.5}, determinism={"threads": "1"})
    code, out, _ = ask("show", saved.url, "latest", "--json")
    shown = json.loads(out)
    assert (code, shown["name"], shown["manifest"]["metrics"]) == (0, "1-1", {"loss": 0.5})
    tensors = {file: [tuple(t.values()) for t in found] for file, found in shown["tensors"].items()}
    assert tensors["tensors-0.safetensors"] == [("state.model.a", "BF16", [4, 2], 16, "")]
    assert tensors["rank-1.safetensors"] == [
        ("state.wave.c", "complex128", [3], 48, ""),
        ("state.model.b", "BF16", [4, 2], 0, "state.model.a"),
    ]
    assert set(tensors) == {"tensors-0.safetensors", "rank-0.safetensors", "rank-1.safetensors"}
    code, out, _ = ask("show", saved.url, "1-1", "--rank", "1")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["state.model.b", "BF16", "4x2", "tied", "to", "state.model.a"] in lines
    assert ["determinism:", "threads", "1"] in lines
    assert "rank-0.safetensors" not in out
    code, _, err = ask("show", saved.url, "1-1", "--rank", "2")
    assert (code, "has ranks 0 to 1" in err) == (115, True)


def test_text_in_a_checkpoint_is_only_text(saved: SavedRun, ask: Ask) -> None:
    """Control sequences are escaped and markup is not read, whether there is a terminal or not."""
    saved.save("1-1", versions={NASTY: NASTY}, determinism={"x": NASTY * 1000}, submission="sub")
    saved.rewrite("1-1", run=NASTY)
    for argv in (["show", saved.url, "1-1"], ["list", saved.url], ["verify", saved.url]):
        code, out, err = ask(*argv)
        assert code in (0, 1)
        assert not set(out + err) & set("\x1b\x07\u202e")
        assert "[bold]x[/bold]" in out
        assert len(out) < 10_000
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, markup=True)
    print_table(("A",), [(NASTY,)], terminal)
    assert "[bold]x[/bold] \\x1b[2J" in terminal.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0\xff\xff"])
def test_a_damaged_header_is_refused_by_show(saved: SavedRun, ask: Ask, header: bytes) -> None:
    """Of whatever length it claims to be, and without reading on for it."""
    saved.save("1-1")
    path = saved.path("1-1", "rank-0.safetensors")
    data = path.read_bytes()
    path.write_bytes((header + data[len(header) :])[: len(data)] if header else b"\0" * len(data))
    code, _, err = ask("show", saved.url, "1-1")
    assert code == 115
    assert "cannot read rank-0.safetensors: " in err


def test_a_header_without_end_is_not_read_on_for() -> None:
    """What an image claims costs neither time nor memory."""

    def pieces() -> Iterator[bytes]:
        yield (1 << 40).to_bytes(8, "little")
        pytest.fail("it was read on for")

    with pytest.raises(CheckpointError, match="it ends within its header"):
        read_header("rank-0.safetensors", pieces(), 1 << 50)


def test_prune_keeps_what_the_rules_keep(saved: SavedRun, ask: Ask) -> None:
    """A dry run says the same and deletes nothing; leftovers go, an earlier history stays."""
    saved.save("1-3")
    saved.claim(2, fresh_from=2)
    for step, loss in ((10, 0.5), (20, 0.1), (30, 0.3), (40, 0.2), (50, 0.4)):
        saved.save(f"2-{step}", metrics={"loss": loss})
    saved.store.create("checkpoints/2-60/rank-0.safetensors", b"half")
    rules = ("--keep", 1, "--keep-every", 30, "--keep-best", "loss:min:1")
    before = files_below(Path(saved.url))
    code, out, _ = ask("prune", saved.url, *rules, "--dry-run", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, ["2-10", "2-40", "2-60"])
    assert files_below(Path(saved.url)) == before
    code, out, _ = ask("prune", saved.url, *rules)
    assert (code, out.splitlines()[-1]) == (0, "3 deleted, 0 failed")
    assert saved.names() == {"1-3", "2-20", "2-30", "2-50"}
    assert states(ask, saved.url)["2-50"] == "restored next"
    assert ask("prune", saved.url, *rules)[1] == "nothing to delete; what stays: 2-50, 2-30, 2-20, 1-3\n"


def test_prune_leaves_the_last_good_one(saved: SavedRun, ask: Ask) -> None:
    """Damaged ones do not count, and what the newest attempt began from is all that it has."""
    for name in ("1-1", "1-2", "1-3"):
        saved.save(name)
    saved.path("1-3", "rank-0.safetensors").unlink()
    saved.claim(2, began_from="1-1")
    assert ask("prune", saved.url, "--keep", 1)[0] == 0
    assert saved.names() == {"1-1", "1-2", "1-3"}
    saved.save("2-4")
    assert ask("prune", saved.url, "--keep", 1)[0] == 0
    assert saved.names() == {"2-4"}


def test_prune_and_export_are_refused_while_the_run_is_held(saved: SavedRun, ask: Ask, tmp_path: Path) -> None:
    """By a supervisor, another prune or an export: it is named. Looking is allowed, and it is free again afterwards."""
    for name in ("1-1", "1-2"):
        saved.save(name)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, saved.url], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        target = tmp_path / "out.pt"
        refused: list[list[Any]] = [
            ["prune", saved.url, "--keep", 1],
            ["export", saved.url, "1-1", "--to", target, "--format", "torch"],
        ]
        for argv in refused:
            code, _, err = ask(*argv)
            assert code == 115
            assert f"it is held by process {holder.pid} on " in err
            assert "in pod pod-a" in err
        for looking in (["list", saved.url], ["verify", saved.url], ["prune", saved.url, "--keep", 1, "--dry-run"]):
            assert ask(*looking)[0] == 0
        assert not target.exists()
        assert saved.names() == {"1-1", "1-2"}
    assert ask("prune", saved.url, "--keep", 1)[0] == 0
    assert saved.names() == {"1-2"}


def test_what_is_pruned_while_it_is_verified_is_gone_not_damaged(ask: Ask) -> None:
    """Verifying holds no lock, so that it can be done while the training runs."""
    FaultyFileSystem.reset()
    saved = SavedRun("faulty://run")
    saved.save("1-1")
    saved.save("1-2")

    def fault(operation: str, path: str) -> None:
        if operation == "cat" and "1-1/rank" in path and "1-1" in saved.names():
            saved.vault.prune(1, Rules(keep=1), fresh_from=0)

    FaultyFileSystem.fault = staticmethod(fault)
    code, out, _ = ask("verify", saved.url)
    assert code == 0
    assert [line.split()[0::2][:2] for line in out.splitlines()[1:]] == [["1-2", "kB"], ["1-1", "it"]]
    assert "gone: it was deleted meanwhile" in out
    FaultyFileSystem.reset()


def test_prune_goes_on_after_an_error(ask: Ask) -> None:
    """What cannot be deleted is said, with exit code 1, and goes the next time."""
    FaultyFileSystem.reset()
    saved = SavedRun("faulty://run")
    for step in range(1, 5):
        saved.save(f"1-{step}")

    def fault(operation: str, path: str) -> None:
        if operation == "rm" and "1-2/rank" in path:
            raise PermissionError("no")

    FaultyFileSystem.fault = staticmethod(fault)
    code, out, _ = ask("prune", saved.url, "--keep", 1, "--json")
    assert code == 1
    assert json.loads(out)["deleted"] == ["1-1", "1-3"]
    assert "1-2/rank-0.safetensors: PermissionError" in json.loads(out)["failed"][0]
    assert states(ask, saved.url) == {"1-4": "restored next", "1-2": "not committed"}
    FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
    assert ask("prune", saved.url, "--keep", 1)[0] == 0
    assert saved.names() == {"1-4"}
    FaultyFileSystem.reset()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_open_and_delete_nothing(saved: SavedRun, ask: Ask, tmp_path: Path, name: str) -> None:
    """On the command line, in the store, or inside a manifest."""
    saved.save("1-1")
    saved.save("1-2")
    outside = SavedRun(tmp_path / "outside")
    outside.save("1-9")
    os.symlink(outside.path("1-9"), saved.path("1-9"))
    manifest = json.loads(saved.path("1-2", "manifest.json").read_text())
    ranks = [{**manifest["ranks"][0], "own": name}]
    saved.rewrite("1-2", ranks=ranks, files=[{**manifest["files"][0], "file": name}, *manifest["files"][1:]])
    before = files_below(tmp_path)
    asked: list[list[Any]] = [
        ["verify", saved.url, "--", name],
        ["show", saved.url, "--", name],
        ["export", "--to", tmp_path / "out", "--format", "torch", saved.url, "--", name],
    ]
    for argv in asked:
        code, out, err = ask(*argv)
        assert (code, out) == (115, "")
        assert err.count("\n") == 1
    assert states(ask, saved.url) == {"1-2": "set aside", "1-1": "restored next"}
    assert ask("verify", saved.url)[0] == 1
    assert ask("prune", saved.url, "--keep", 1)[0] == 0
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("action", ["list", "verify", "prune"])
def test_where_no_run_is_nothing_is_made(ask: Ask, tmp_path: Path, action: str) -> None:
    """A wrong path is refused, and is not there afterwards either."""
    code, _, err = ask(action, tmp_path / "nowhere", *(["--keep", 1] if action == "prune" else []))
    assert (code, "there is no run.json; check the URL" in err) == (115, True)
    assert list(tmp_path.iterdir()) == []


def test_looking_and_pruning_need_no_torch(saved: SavedRun) -> None:
    """Its import takes seconds, and an image without it can still be looked after."""
    saved.save("1-1")
    asked: list[list[Any]] = [["list"], ["verify"], ["show", "latest"], ["prune", "--keep", "1"]]
    commands = [["checkpoints", argv[0], saved.url, *argv[1:]] for argv in asked]
    program = (
        "import sys; from resilient.cli import main\n"
        f"codes = [main(argv) for argv in {commands!r}]\n"
        "print(codes, {'torch', 'numpy', 'safetensors'} & {name.split('.')[0] for name in sys.modules})"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert ended.stdout.splitlines()[-1] == "[0, 0, 0, 0] set()", ended.stderr


@pytest.fixture
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("shop")
        yield "s3://shop"
        server.stop()


def test_the_same_holds_on_s3(bucket: str, ask: Ask, tmp_path: Path) -> None:
    """By the real API: list, verify, prune under a lease, show and export."""
    saved = SavedRun(f"{bucket}/run")
    for name in ("1-1", "1-2", "1-3"):
        saved.save(name)
    saved.store.replace("checkpoints/1-2/rank-0.safetensors", b"0")
    assert states(ask, saved.url) == {"1-3": "restored next", "1-2": "set aside", "1-1": "complete"}
    code, out, _ = ask("verify", saved.url, "--json")
    assert code == 1
    assert [bool(verdict["flaws"]) for verdict in json.loads(out)["checkpoints"]] == [False, True, False]
    assert "state.model.weight" in ask("show", saved.url, "latest")[1]
    target = tmp_path / "out.pt"
    assert ask("export", saved.url, "latest", "--to", target, "--format", "torch")[0] == 0
    assert torch.load(target, weights_only=True)["extra"] == {"step": 3}
    assert ask("prune", saved.url, "--keep", 1)[0] == 0
    assert saved.names() == {"1-3"}
