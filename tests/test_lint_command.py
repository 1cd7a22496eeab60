# SPDX-License-Identifier: Apache-2.0
"""What a container's command line starts, and whether code and signals get through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.kubernetes.lint_command import CommandLine, Starts, flag_value, is_training, read_command

THROUGH = [
    ["resilient", "run", "train.py"],
    ["/opt/venv/bin/resilient", "run", "--", "torchrun", "train.py"],
    ["python3.11", "-u", "-m", "resilient", "run", "train.py"],
    ["/usr/bin/tini", "-g", "--", "resilient", "run"],
    ["dumb-init", "env", "A=b c", "numactl", "--interleave=all", "resilient", "run"],
    ["bash", "-lc", "source env.sh && exec resilient run train.py"],
    ["sh", "-c", "set -e; export A=1\ncd /app\nexec resilient run \\\n  --keep 3 train.py"],
    ["sh", "-c", "A=b exec resilient run train.py"],
]
IN_SHELL = [
    ["sh", "-c", "resilient run train.py"],
    ["/bin/bash", "-c", "cd /app && resilient run train.py"],
    ["bash", "-euxc", "resilient run train.py; exit $?"],
    ["bash", "-c", "resilient run train.py || true"],
    ["bash", "-c", 'exec echo "a; b"; resilient run train.py'],
]
IN_PIPE = [
    ["bash", "-c", "resilient run train.py 2>&1 | tee log"],
    ["bash", "-c", "exec resilient run train.py | tee log"],
    ["bash", "-c", "yes | resilient run train.py"],
]
OTHERS = [
    ["python", "train.py"],
    ["torchrun", "--nproc-per-node", "8", "train.py"],
    ["bash", "-c", "torchrun train.py | tee resilient.log"],
    ["resilient", "doctor"],
]
UNSEEN = [[], ["./start.sh"], ["bash", "start.sh"], ["bash", "-c", "./start.sh --fast"], ["tini", "--"]]


@pytest.mark.parametrize("argv", THROUGH)
def test_what_passes_on_code_and_signals(argv: list[str]) -> None:
    """Exec form, inits, programs that replace themselves, and scripts that end in exec."""
    line = read_command(argv)
    assert (line.starts, line.in_shell, line.in_pipe, line.wrapper) == (Starts.SUPERVISOR, False, False, "")


@pytest.mark.parametrize("argv", IN_SHELL)
def test_a_shell_keeps_signals(argv: list[str]) -> None:
    """Unless the supervisor takes its place."""
    line = read_command(argv)
    assert (line.starts, line.in_shell, line.in_pipe) == (Starts.SUPERVISOR, True, False)


@pytest.mark.parametrize("argv", IN_PIPE)
def test_a_pipe_takes_the_code(argv: list[str]) -> None:
    """On either side of it."""
    assert read_command(argv).in_pipe


@pytest.mark.parametrize("argv", OTHERS)
def test_other_programs(argv: list[str]) -> None:
    """Also where the word stands somewhere."""
    assert read_command(argv).starts is Starts.OTHER


@pytest.mark.parametrize("argv", UNSEEN)
def test_what_cannot_be_seen(argv: list[str]) -> None:
    """The image's own entry point, and scripts that are not in the manifest."""
    assert read_command(argv) == CommandLine(starts=Starts.NOTHING)


def test_a_wrapper_that_nobody_knows() -> None:
    """It is named."""
    assert read_command(["nsys", "profile", "-o", "x", "resilient", "run", "a.py"]).wrapper == "nsys"


def test_flags_of_the_supervisor() -> None:
    """In both forms, and not those of the script behind it."""
    line = read_command(["resilient", "run", "--keep=3", "--grace", "60s", "train.py", "--journal", "x"])
    assert [flag_value(line.arguments, flag) for flag in ("--keep", "--grace", "--journal")] == ["3", "60s", None]
    assert flag_value(["--", "--keep", "3"], "--keep") is None
    assert flag_value(["--keep"], "--keep") is None


@pytest.mark.parametrize(
    ("words", "trains"),
    [
        (["python", "-m", "torch.distributed.run"], True),
        (["python", "pretrain_gpt.py"], True),
        (["accelerate launch x.py"], True),
        (["bash", "-c", "python -m axolotl.cli.train x.yaml"], True),
        (["python", "/app/Gemma3LLMTrain.py"], True),
        (["python", "serve.py"], False),
        (["python", "prepare.py", "--split", "train"], False),
    ],
)
def test_words_of_a_training(words: list[str], trains: bool) -> None:
    """By launcher, script or module; not by a word that a preparation uses as well."""
    assert is_training(words) is trains


@given(st.lists(st.text(alphabet="resilint un|;&-c\"'\\$()\n", max_size=20), max_size=4))
def test_any_words_are_read(argv: list[str]) -> None:
    """Also those that no shell would take."""
    read_command(argv)
    read_command(["bash", "-c", *argv])
