# SPDX-License-Identifier: Apache-2.0
"""What is said where a person names something that is no run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from resilient import cli
from resilient.checkpoint.targets import why_not


@pytest.mark.parametrize("verb", ["explain", "forgive", "save", "stop"])
def test_a_fifo_is_told_and_not_waited_for(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is there, and whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    assert cli.main([verb, str(tmp_path / "pipe")]) == 115
    assert "pipe: it is a FIFO, not a " in capsys.readouterr().err


def test_each_kind_has_its_word(tmp_path: Path) -> None:
    """Nothing is opened for it."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    found = {name: why_not(tmp_path / name) for name in ("file", "link", "socket", "missing", "file/below", "a" * 300)}
    assert found == {
        "file": "it is a file, not a directory",
        "link": "it leads nowhere",
        "socket": "it is a socket, not a directory",
        "missing": "there is no such directory",
        "file/below": "not a directory",
        "a" * 300: "file name too long",
    }
    assert why_not(Path("/dev/null"), "file or directory") == "it is a device, not a file or directory"
