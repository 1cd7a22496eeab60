# SPDX-License-Identifier: Apache-2.0
"""Every form of command, run for real, and what a worker finds around it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from supervised import HEAD, LIMIT_S, ROOT, Folder

SHOW = (
    HEAD
    + """
import json
launcher = ("MASTER_", "TORCHELASTIC_", "TORCH_", "OMP_", "GROUP_", "ROLE_", "LOCAL_", "WORLD_", "RANK")
shown = {name: value for name, value in os.environ.items() if name.startswith(launcher)}
shown |= {"argv": sys.argv[1:], "stdin": sys.stdin.read(), "python": sys.executable}
(HERE / f"shown-{os.environ.get('RANK', 'none')}-{os.getpid()}").write_text(json.dumps(shown))
"""
)
ANY = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
"""What differs from run to run."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.script(SHOW)
    return folder


def shown(folder: Folder) -> list[dict[str, Any]]:
    """What the workers found, by rank; their files are removed."""
    files = sorted(folder.path.glob("shown-*"), key=lambda path: int(path.name.split("-")[1]))
    found = [json.loads(path.read_text()) for path in files]
    for path in files:
        path.unlink()
    return found


def test_every_form_of_command_starts_the_same_script(folder: Folder) -> None:
    """Script, module, program and any command; arguments arrive as given, stdin is at its end."""
    program = folder.program(SHOW, "show")
    forms: list[tuple[str | Path, ...]] = [
        ("train.py",),
        ("-m", "train"),
        ("--no-python", program),
        ("--", program),
        ("--", "sh", "-c", f'exec {sys.executable} train.py "$@"', "sh"),
        (sys.executable, "train.py"),
        ("torchrun", "--standalone", "--nproc-per-node=1", "train.py"),
    ]
    for form in forms:
        ended = folder.run(*form, "--lr", "3e-4", "--keep=9", PYTHONPATH=f"{ROOT}:{folder.path}")
        assert ended.code == 0, (form, ended.stderr)
        [found] = shown(folder)
        assert (found["argv"], found["stdin"], found["WORLD_SIZE"]) == (["--lr", "3e-4", "--keep=9"], "", "1"), form


def test_workers_find_the_environment_of_torchrun(folder: Folder) -> None:
    """Name by name and value by value, beside the real torchrun."""
    command = ["--nproc-per-node", "2", "--max-restarts", "3", "--rdzv-id", "same", "train.py"]
    theirs = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        cwd=folder.path,
        env=folder.environment(folder.path / "none", {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert theirs.returncode == 0, theirs.stderr
    expected = shown(folder)
    assert len(expected) == 2
    assert folder.run(*command).code == 0
    for rank, (peer, ours) in enumerate(zip(expected, shown(folder), strict=True)):
        peer.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)  # torchrun's word to its own process
        assert set(peer) - set(ours) == set(), f"rank {rank} lacks names"
        differing = {name: (peer[name], ours[name]) for name in peer.keys() - ANY if peer[name] != ours[name]}
        # torchrun's own process holds the store; ours does not, so that rank 0 opens it.
        differing.pop("TORCHELASTIC_USE_AGENT_STORE")
        assert differing == {}
        assert set(ours) - set(peer) <= {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_DUMP_ON_TIMEOUT"}


def test_a_nested_torchrun_is_unwrapped(folder: Folder) -> None:
    """Its workers become ours, in both of its spellings, and PET_* variables count as its flags do."""
    for command in (["torchrun"], [sys.executable, "-m", "torch.distributed.run"]):
        ended = folder.run("--", *command, "--nproc_per_node", "2", "train.py", "--lr", "1")
        assert ended.code == 0, ended.stderr
        assert "2 workers are started and supervised directly" in ended.stderr
        assert [(found["RANK"], found["argv"]) for found in shown(folder)] == [
            ("0", ["--lr", "1"]),
            ("1", ["--lr", "1"]),
        ]
    assert folder.run("train.py", PET_NPROC_PER_NODE="3").code == 0
    assert len(shown(folder)) == 3


@pytest.mark.parametrize("launcher", ["accelerate", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_another_launcher_is_supervised_as_one_process(folder: Folder, launcher: str) -> None:
    """It gets no ranks, one line says what is lost, and its workers die with it."""
    folder.program(
        "import os, subprocess, sys\n"
        "environs = [{**os.environ, 'RANK': rank} for rank in '01']\n"
        "codes = [subprocess.run([sys.executable, sys.argv[2]], env=environ).returncode for environ in environs]\n"
        "sys.exit(max(codes))",
        f"bin/{launcher}",
    )
    path = {"PATH": f"{folder.path / 'bin'}:{os.environ['PATH']}"}
    ended = folder.run("--", launcher, "launch", folder.path / "train.py", **path)
    assert ended.code == 0, ended.stderr
    assert f"{launcher} starts the workers itself and is supervised as one process" in ended.stderr
    assert ["WORLD_SIZE" in found for found in shown(folder)] == [False, False]
    folder.script("raise ValueError('wrong rate')")
    assert folder.run("--", launcher, "launch", folder.path / "train.py", **path).code == 114


def test_one_worker_keeps_the_terminal(folder: Folder) -> None:
    """``breakpoint()`` stops at a prompt that answers, and no prefix disturbs it."""
    script = folder.script("secret = 6 * 7\nbreakpoint()\nprint('went on')")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "resilient", "run", str(script)],
        cwd=folder.path,
        env=folder.environment(folder.path / "journal", {"TERM": "dumb"}),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        said = read_until(master, b"(Pdb) ")
        os.write(master, b"p secret\n")
        said += read_until(master, b"(Pdb) ")
        os.write(master, b"c\n")
        said += read_until(master, b"resilient explain")
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"42\r\n" in said
    assert b"went on" in said
    assert b"[rank0]" not in said


def test_closed_standard_streams_mean_silence(folder: Folder) -> None:
    """No pipe or file of ours takes the number of one, to be written to as if it were the log."""
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    process = subprocess.run(
        [*closing, sys.executable, "-m", "resilient", "run", "train.py"],
        cwd=folder.path,
        env=folder.environment(folder.path / "journal", {}),
        timeout=LIMIT_S,
        check=False,
    )
    assert process.returncode == 0
    assert [found["stdin"] for found in shown(folder)] == [""]
    for line in (folder.path / "journal" / "journal.jsonl").read_text().splitlines():
        json.loads(line)


def read_until(fd: int, words: bytes) -> bytes:
    data = b""
    while words not in data:
        try:
            more = os.read(fd, 4096)
        except OSError:  # EIO: the other end is closed
            more = b""
        assert more, data
        data += more
    return data


REFUSED: list[tuple[list[str], dict[str, str], str]] = [
    (["--keep", "0"], {}, "keep"),
    (["--checkpoints", "no-such-scheme://bucket/run"], {}, "no-such-scheme"),
    ([], {"RESILIENT_KEPE": "3"}, "RESILIENT_KEEP"),
]
"""By the flags, by the store and by the environment; what each of them refuses has pure tests of its own."""
ALSO_REFUSED: list[tuple[list[str], dict[str, str], str]] = [
    (["--every", "soon"], {}, "every"),
    (["--checkpoints", "memory://run"], {}, "memory"),
    (["--nnodes", "2"], {}, "nnodes"),
    (["--kepe", "3"], {}, "--keep"),
    (["--nproc-per-node", "many"], {}, "nproc"),
    (["--hang-floor", "2h"], {}, "idle_timeout"),
    (["-m", "--no-python"], {}, "--no-python"),
    ([], {"RESILIENT_GRACE_S": "soon"}, "RESILIENT_GRACE_S"),
    ([], {"PET_NNODES": "2:4"}, "nnodes"),
]


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [*REFUSED, *(pytest.param(*refused, marks=pytest.mark.slow) for refused in ALSO_REFUSED)],
)
def test_a_wrong_setting_is_refused_before_anything_starts(
    folder: Folder, arguments: list[str], environ: dict[str, str], words: str
) -> None:
    """115 and a sentence that says cannot, why and what to do."""
    ended = folder.run(*arguments, "train.py", **environ)
    assert (ended.code, shown(folder)) == (115, [])
    assert words in ended.stderr
    assert "cannot" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.termination["code"] == 115
    assert "cannot" in ended.termination["why"]


def test_no_command_is_a_wrong_command_line(folder: Folder) -> None:
    """Nothing to run is refused with an example."""
    ended = folder.run()
    assert ended.code == 115
    assert "resilient run train.py" in ended.stderr


def test_config_shows_what_would_hold(folder: Folder) -> None:
    """Every setting with its value and where it comes from; flags go before the environment."""
    folder.environ["RESILIENT_KEEP"] = "7"
    asked = folder.ask("config", "--json", "--every", "2min")
    assert asked.returncode == 0, asked.stderr
    effective = json.loads(asked.stdout)
    assert (effective["keep"]["value"], effective["keep"]["origin"]) == ("7", "RESILIENT_KEEP")
    assert (effective["every"]["value"], effective["every"]["origin"]) == ("2min", "flag --every")
