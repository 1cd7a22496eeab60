# SPDX-License-Identifier: Apache-2.0
"""torchrun's command line as we have written it down is the one that the installed torch has."""

import argparse

import pytest
from torch.distributed.run import get_args_parser

from resilient import torchrun
from resilient.errors import SettingsError
from resilient.torchrun import HONOURED, IGNORED, NOT_IN_ENVIRONMENT, SHORT, SWITCHES, VALUES, Scan

LONG = sorted(HONOURED | IGNORED)


def scan(*argv: str) -> Scan:
    """A command line of torchrun's."""
    return torchrun.scan(argv, values=VALUES, switches=SWITCHES, program="torchrun")


@pytest.fixture(scope="module")
def actions() -> list[argparse.Action]:
    """The flags of torch's own parser."""
    return [action for action in get_args_parser()._actions if action.option_strings and action.dest != "help"]


def test_every_flag_of_torchrun_is_known(actions: list[argparse.Action]) -> None:
    """Each of torchrun's spellings is read, and takes a value where torchrun's does."""
    for action in actions:
        for spelling in action.option_strings:
            words = [spelling] if action.nargs == 0 else [spelling, "1"]
            assert scan(*words, "train.py") == Scan(
                flags={action.dest.replace("_", "-"): "1"}, command=("train.py",), after_dashes=False
            )


def test_every_variable_of_torchrun_is_known(actions: list[argparse.Action]) -> None:
    """PET_* is read for the flags for which torchrun reads it, and for no others."""
    from torch.distributed import argparse_util

    reading = {action.dest for action in actions if isinstance(action, argparse_util.env | argparse_util.check_env)}
    read = torchrun.from_environment({f"PET_{action.dest.upper()}": "1" for action in actions})
    assert {name.replace("-", "_") for name in read} == reading
    assert {name.replace("-", "_") for name in NOT_IN_ENVIRONMENT} == {action.dest for action in actions} - reading


@pytest.mark.parametrize("name", LONG)
def test_both_spellings_are_one_flag(name: str) -> None:
    """Dashes and underscores, a value attached or apart."""
    value = [] if name in SWITCHES else ["1"]
    assert scan(f"--{name}", *value).flags == scan(f"--{name.replace('-', '_')}", *value).flags == {name: "1"}
    if value:
        assert scan(f"--{name.replace('-', '_')}=1").flags == {name: "1"}


def test_short_flags_are_read_in_every_spelling() -> None:
    """-t 3, -t3 and -t=3 are one."""
    assert scan("-t", "3").flags == scan("-t3").flags == scan("-t=3").flags == {"tee": "3"}
    assert set(SHORT) == {"m", "r", "t", "h"}


def test_the_first_word_ends_the_flags() -> None:
    """What follows the script is the script's, whatever it looks like."""
    got = scan("--nproc-per-node", "2", "train.py", "--nproc-per-node", "4", "--", "-m")
    assert got.flags == {"nproc-per-node": "2"}
    assert got.command == ("train.py", "--nproc-per-node", "4", "--", "-m")


def test_dashes_end_the_flags() -> None:
    """-- is taken away once."""
    got = scan("--role", "a", "--role", "b", "--", "--", "x")
    assert got == Scan(flags={"role": "b"}, command=("--", "x"), after_dashes=True)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--nproc"], "no such flag; did you mean --nproc-per-node?"),
        (["--zzz", "x"], "see torchrun --help"),
        (["--standalone=1"], "takes no value"),
        (["--role"], "its value is missing"),
        (["--nproc-per-node", "--standalone", "train.py"], "its value is missing"),
        (["-x"], "did you mean -m or"),
    ],
)
def test_what_cannot_be_read_is_refused(argv: list[str], why: str) -> None:
    """A typo is met with the flag that was meant."""
    with pytest.raises(SettingsError, match=why):
        scan(*argv)


def test_a_negative_number_is_a_value() -> None:
    """Its setting says what is wrong with it, and not that it is missing."""
    assert scan("--role", "-1", "--nproc-per-node", "-.5", "x").flags == {"role": "-1", "nproc-per-node": "-.5"}


def test_a_switch_in_the_environment_is_a_number() -> None:
    """0 is off, as in torchrun, and what torchrun could not read is refused."""
    assert torchrun.from_environment({"PET_STANDALONE": "0", "PET_MODULE": "1", "PET_ROLE": ""}) == {"module": "1"}
    with pytest.raises(SettingsError, match="PET_STANDALONE='yes'"):
        torchrun.from_environment({"PET_STANDALONE": "yes"})
