# SPDX-License-Identifier: Apache-2.0
"""The termination message: short, valid and useful, whatever comes in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient.kubernetes.termination import LIMIT, message, write

ORDINARY: dict[str, Any] = {
    "run": "4f1c",
    "submission": "6a0e2c0e-8a5c-4c77-9b5c-0d8c54b6a5c1",
    "attempt": 2,
    "step": 57,
    "rank": 1,
    "rule": "exit-sigkill",
    "node": "gpu-node-17",
    "journal": "/journal",
}
texts = st.one_of(st.text(), st.text(alphabet='\U0001f525\x00"\\\ud800', max_size=3000), st.just("word " * 2000))
numbers = st.one_of(st.none(), st.integers())


@given(
    code=st.integers(-(10**6), 10**6), why=texts, do=texts, run=texts, submission=texts, attempt=st.integers(),
    step=numbers, rank=numbers, rule=texts, node=texts, device=texts, journal=texts,
)  # fmt: skip
def test_it_is_one_valid_line_of_at_most_1024_bytes(**fields: Any) -> None:
    """And why and do come first, with as much of their words as fits."""
    line = message(fields.pop("code"), fields.pop("why"), fields.pop("do"), **fields)
    assert len(line) <= LIMIT
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert list(json.loads(line))[:4] == ["why", "do", "code", "name"]


def test_an_ordinary_one_is_whole() -> None:
    """Nothing of it is cut, and what is unknown is left out."""
    told = json.loads(message(114, "rank 1 died", "correct it", **{**ORDINARY, "rank": None}))
    expected = {"why": "rank 1 died", "do": "correct it", "code": 114, "name": "code_fault", **ORDINARY}
    del expected["rank"]
    assert told == expected


def test_the_room_goes_to_the_reason_first() -> None:
    """Two long sentences are both there, the reason with the larger share; a short one leaves its room to the other."""
    both = json.loads(message(114, "w" * 5000, "d" * 5000, **ORDINARY))
    assert both["why"].endswith("...")
    assert both["do"].endswith("...")
    assert len(both["why"]) > 1.5 * len(both["do"]) > 150
    line = message(114, "short", "d" * 5000, **ORDINARY)
    assert json.loads(line)["why"] == "short"
    assert len(line) > LIMIT - 8


def test_it_is_written_in_place(tmp_path: Path) -> None:
    """The kubelet mounts the file itself, so it is overwritten, never replaced."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * 5000)
    inode = path.stat().st_ino
    assert write(path, b"{}\n") is None
    assert path.read_bytes() == b"{}\n"
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("where", ["missing/log", ".", "nul\0l"])
def test_a_path_that_cannot_be_written_is_told(tmp_path: Path, where: str) -> None:
    """It never raises: this comes last in a process that has to exit with its own code."""
    problem = write(f"{tmp_path}/{where}", b"{}\n")
    assert problem is not None
    assert problem.startswith("cannot write the termination message to")


def test_nothing_is_made_below_dev_and_nobody_is_waited_for(tmp_path: Path) -> None:
    """Without a kubelet there is no such file, and a fifo that nobody reads is no reason to hang."""
    assert write("/dev/no-such-termination-log", b"{}\n") is not None
    assert not os.path.exists("/dev/no-such-termination-log")
    os.mkfifo(tmp_path / "fifo")
    assert write(tmp_path / "fifo", b"{}\n") is not None
    assert write("/dev/full", b"{}\n") is not None
