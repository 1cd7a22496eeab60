# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, how it refuses, and the exit codes of both."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import LIMIT_S

from resilient import settings
from resilient.cli import main
from resilient.core.causes import Action
from resilient.core.exit_codes import ExitCode
from resilient.settings import FIELDS


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "arguments are required: COMMAND; see resilient --help"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["explain"], "required: RUN; see resilient explain --help"),
        (["stop", "a", "b"], "unrecognized arguments: b"),
        (["run"], "cannot run: no command is given"),
        (["run", "--kepe", "3", "a.py"], "did you mean --keep?"),
        (["run", "--nnodes", "2", "a.py"], "cannot tell which of the 2 nodes this is"),
        (["config", "--keep", "0"], "cannot use '0' for keep (flag --keep)"),
        (["config", "--jsno"], "resilient config has no such flag; did you mean --json?"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(argv: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One message on stderr, nothing on stdout, and the code for wrong settings."""
    assert main(argv) == ExitCode.CONFIG_FAULT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("resilient: cannot ")
    assert why in err
    assert err.count("\n") == 1


def test_python_m_resilient_is_the_command() -> None:
    """The module exits with the command's code and message."""
    command = [sys.executable, "-m", "resilient", "run", "--nproc-per-node", "none", "a.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 115
    assert ended.stderr.startswith("resilient: cannot use --nproc-per-node none: ")


def test_config_shows_value_default_and_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting, as text and as JSON, with where it comes from; a command may follow and is not looked at."""
    monkeypatch.setenv("RESILIENT_EVERY", "100")
    monkeypatch.setenv("RESILIENT_CHECKPOINTS", "s3://user:canary@bucket/run")
    arguments = ["--keep", "7", "--nproc-per-node", "2", "train.py", "--keep", "9"]
    assert main(["config", "--json", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(FIELDS)
    assert shown["keep"] == {"value": "7", "default": "3", "origin": "flag --keep"}
    assert shown["every"] == {"value": "100", "default": "5min", "origin": "RESILIENT_EVERY"}
    assert main(["config", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FIELDS) + 1
    assert next(line for line in lines if line.startswith("keep ")).split(maxsplit=3) == [
        "keep",
        "7",
        "3",
        "flag --keep",
    ]
    assert "canary" not in json.dumps(shown) + "".join(lines)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["run", "explain", "save", "stop", "config", "RUN is the directory or URL"]),
        (["explain", "--help"], ["Tell what happened to a run", "RUN", "--json"]),
        (["save", "--help"], ["Have a run save", "next common step"]),
        (["stop", "--help"], ["Have a run save", "delete its Job"]),
        (["checkpoints", "--help"], ["List, verify, show", "Exit codes: "]),
        (["checkpoints", "verify", "--help"], ["Read everything", "latest"]),
        (["checkpoints", "export", "--help"], ["Verify one checkpoint", "torch.load", "one file of tensors", "dcp:"]),
        (["classify", "--help"], ["Say what ended", "Exit code 0", *Action]),
        (["rules", "--help"], ["Print the rules", "--check"]),
        (["run", "--help"], ["-- any command", "--keep N", "--every STEPS|TIME", *map(settings.flag, FIELDS)]),
        (["run", "-h", "train.py"], ["--checkpoints"]),
        (["config", "--help"], ["--json", "/etc/resilient/config.toml", "--checkpoints"]),
    ],
)
def test_help_is_complete(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command names its forms and every flag, on stdout, and ends with 0."""
    try:
        code: object = main(argv)
    except SystemExit as ended:  # argparse prints its help and leaves
        code = ended.code
    assert code == 0
    out = capsys.readouterr().out
    assert [word for word in words if word not in out] == []
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    "argv", [["run", "--help"], ["config", "--json"], ["rules"], ["rules", "--json"], ["classify", "LOG"]]
)
def test_nobody_may_read_what_is_printed(argv: list[str], tmp_path: Path) -> None:
    """A reader that has gone, as `head` does, ends each of them without a word, as SIGPIPE would."""
    log = tmp_path / "train.log"
    log.write_text("TypeError: bad operand\n")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "resilient", *(str(log) if word == "LOG" else word for word in argv)]
    try:
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


class Terminal(io.TextIOWrapper):
    """One that has plain letters only."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")

    def isatty(self) -> bool:
        return True

    def shown(self) -> bytes:
        self.seek(0)
        return bytes(self.buffer.read())


@pytest.mark.parametrize("argv", [["config", "--checkpoints", "runs/b\xe9b\xe9"], ["classify", "LOG"]])
def test_a_terminal_may_lack_letters(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have named or printed is shown as far as it can be."""
    log = tmp_path / "train.log"
    log.write_text("RuntimeError: b\xe9b\xe9\n", encoding="utf-8")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main([str(log) if word == "LOG" else word for word in argv]) == 0
    assert b"b?b?" in terminal.shown()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """As name and number."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("resilient 0.")


def test_supervising_is_refused_elsewhere_than_on_linux(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is given before anything of the supervisor is imported; other commands work there."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["run", "train.py"]) == ExitCode.CONFIG_FAULT
    assert "cannot supervise on darwin: " in capsys.readouterr().err
    assert main(["doctor"]) == ExitCode.CONFIG_FAULT
    assert "cannot examine this machine: darwin " in capsys.readouterr().err
    assert main(["config"]) == 0


def test_a_bug_of_ours_has_a_code_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is never mistaken for a fault of the user's."""

    def broken(**_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(settings, "load", broken)
    assert main(["config"]) == ExitCode.INTERNAL
    err = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in err
    assert err.splitlines()[-1].startswith("resilient: cannot go on: a bug in resilient itself")


def test_the_command_line_is_light() -> None:
    """A typo is answered without the seconds that torch and its like take to import."""
    program = (
        "import sys; from resilient.cli import main; main(['config'])\n"
        "print({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'fsspec', 'kubernetes', 'rich'})"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RESILIENT_")}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert ended.stdout.splitlines()[-1] == "set()"
