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


# Several nodes.


def test_how_many_nodes_and_which() -> None:
    """By flags, else by what Kubernetes has said; a single node needs neither."""
    assert torchrun.nodes({}, None) == (1, 0)
    assert torchrun.nodes({"nnodes": "1:1", "node-rank": "0"}, 5) == (1, 0)
    assert torchrun.nodes({}, 5) == (1, 0), "each pod of an Indexed Job may be a run of its own"
    assert torchrun.nodes({"nnodes": "4", "node-rank": "3"}, None) == (4, 3)
    assert torchrun.nodes({"nnodes": "4:4"}, 2) == (4, 2)
    assert torchrun.nodes({"nnodes": "4", "node-rank": "1"}, 2) == (4, 1)
    assert torchrun.nodes({"nnodes": "1024", "node-rank": "1023"}, None) == (1024, 1023)


@pytest.mark.parametrize(
    ("flags", "index", "why"),
    [
        ({"nnodes": "x"}, None, "cannot use --nnodes x: it is not a number of nodes; leave it out for one"),
        ({"nnodes": "2:"}, None, "cannot use --nnodes 2:: it is not a number of nodes"),
        ({"nnodes": "-2"}, None, "cannot use --nnodes -2: it is not a number of nodes"),
        ({"nnodes": "1:4"}, 0, "cannot use --nnodes 1:4: a run has as many nodes from its beginning to its end"),
        ({"nnodes": "0"}, 0, "cannot use --nnodes 0: give 1 to 1024"),
        ({"nnodes": "1025", "node-rank": "0"}, None, "cannot use --nnodes 1025: give 1 to 1024"),
        ({"nnodes": "3"}, None, "cannot tell which of the 3 nodes this is: nobody has said it; give --node-rank"),
        ({"nnodes": "3", "node-rank": "3"}, 0, "cannot use --node-rank 3: give 0 to 2"),
        ({"nnodes": "3"}, 3, "cannot use --node-rank 3: give 0 to 2"),
        ({"nnodes": "3", "node-rank": "-1"}, 0, "cannot use --node-rank -1: give 0 to 2"),
        ({"nnodes": "3", "node-rank": "one"}, 0, "cannot use --node-rank one: give 0 to 2"),
        ({"node-rank": "1"}, 1, "cannot use --node-rank 1: there is one node, with rank 0; leave it out"),
    ],
)
def test_nodes_that_cannot_be_are_refused(flags: dict[str, str], index: int | None, why: str) -> None:
    """With what to give instead."""
    with pytest.raises(SettingsError) as refused:
        torchrun.nodes(flags, index)
    assert str(refused.value).startswith(why)


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ({"master-addr": "first"}, ("first", 29500)),
        ({"master-addr": "first", "master-port": "1234"}, ("first", 1234)),
        ({"rdzv-endpoint": "first:1234"}, ("first", 1234)),
        ({"rdzv-endpoint": "first"}, ("first", 29500)),
        ({"rdzv-endpoint": "[fd00::1]:1234", "rdzv-backend": "c10d"}, ("fd00::1", 1234)),
        ({"rdzv-endpoint": "first:1234", "master-addr": "other", "master-port": "1"}, ("first", 1234)),
    ],
)
def test_where_several_nodes_meet(flags: dict[str, str], where: tuple[str, int]) -> None:
    """As in torchrun the endpoint goes before the master; of whatever backend, as it is none of ours."""
    assert torchrun.meeting_point(flags) == where


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"standalone": "1", "master-addr": "first"}, "cannot use --standalone with several nodes: it means one"),
        ({}, "cannot find the other nodes: it is not said where the first one is; give --master-addr"),
        ({"master-port": "1234"}, "cannot find the other nodes: it is not said where the first one is"),
        ({"master-addr": "first", "master-port": "0"}, "cannot use '0' as master port: it is not a port"),
        ({"rdzv-endpoint": "first:http"}, "cannot use 'http' as master port: it is not a port"),
        ({"rdzv-endpoint": "first:70000"}, "cannot use '70000' as master port: it is not a port"),
        ({"master-addr": ""}, "cannot find the other nodes"),
        ({"rdzv-endpoint": ":1234"}, "cannot find the other nodes"),
        ({"rdzv-endpoint": ""}, "cannot find the other nodes"),
    ],
)
def test_a_meeting_point_that_is_none_is_refused(flags: dict[str, str], why: str) -> None:
    """Before anything starts: 115, and not a wait for nobody."""
    with pytest.raises(SettingsError) as refused:
        torchrun.meeting_point(flags)
    assert str(refused.value).startswith(why)
