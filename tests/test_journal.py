# SPDX-License-Identifier: Apache-2.0
"""The journal: every line at once, nothing secret, nothing unbounded, and never in the training's way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilient.checkpoint import layout
from resilient.core import events as ev
from resilient.core.redact import Redactor
from resilient.errors import SettingsError
from resilient.supervisor import journal as journal_module
from resilient.supervisor.journal import JOURNAL, LINE_LIMIT, OLD, TEXT_LIMIT, Journal

Open = Callable[..., Journal]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Iterator[Open]:
    """Opens journals in one directory, each a millisecond later than the last, and closes them."""
    journals: list[Journal] = []

    def open_journal(secrets: tuple[str, ...] = (), at: float = 100.0) -> Journal:
        made = Journal(
            tmp_path / "journal", Redactor(secrets), wall=lambda: at, monotonic=lambda: at / 2, say=said.append
        )
        journals.append(made)
        return made

    yield open_journal
    for made in journals:
        made.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines() if line]


def debit(attempt: int) -> layout.Debit:
    return layout.Debit(
        submission="local", index=0, attempt=attempt, code=193, step=4, fingerprint="f", held_s=1.0, wall_s=2.0, why="x"
    )


def test_an_entry_is_on_disk_when_write_returns(opened: Open, tmp_path: Path) -> None:
    """One line with both clocks, the kind and the fields, dataclasses included; only we may read it."""
    opened().write("event", event=ev.WorkerEnded(rank=1, clean=False, finished=False), pids={0: 7})
    path = tmp_path / "journal" / JOURNAL
    assert lines(path) == [
        {
            "t": 100.0, "m": 50.0, "kind": "event",
            "event": {"type": "WorkerEnded", "rank": 1, "clean": False, "finished": False}, "pids": {"0": 7},
        }
    ]  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_secret_and_no_control_sequence_gets_in(opened: Open, tmp_path: Path) -> None:
    """Neither as a value, short or long, nor as a key, nor nested."""
    journal = opened(secrets=("hunter2-canary",))
    text = "\x1b[31mhunter2-canary\x07" + "x" * 200
    journal.write("note", text=text, short="hunter2-canary", nested=[{"hunter2-canary": {"a": ("hunter2-canary",)}}])
    raw = (tmp_path / "journal" / JOURNAL).read_text()
    assert "hunter2" not in raw
    assert "u001b" not in raw


def test_texts_and_lines_are_bounded(opened: Open, tmp_path: Path) -> None:
    """A text is cut; many texts are cut further; what still does not fit leaves a line that says so."""
    journal = opened()
    journal.write("stacks", text="x" * 1_000_000)
    journal.write("stacks", texts=["\U0001f525" * 100_000] * 50)
    journal.write("stacks", numbers=list(range(100_000)))
    raw = (tmp_path / "journal" / JOURNAL).read_bytes().splitlines()
    assert all(len(line) < LINE_LIMIT for line in raw)
    first, second, third = map(json.loads, raw)
    assert first["text"] == "x" * TEXT_LIMIT
    assert len(second["texts"]) == 50
    assert "left_out" in third


def test_what_json_has_no_word_for_is_null(opened: Open, tmp_path: Path) -> None:
    """A loss that is not a number must not make the journal unreadable."""
    opened().write("sample", a=float("nan"), b=[float("inf")])
    entry = lines(tmp_path / "journal" / JOURNAL)[0]
    assert entry["a"] is None
    assert entry["b"] == [None]


def test_a_torn_line_does_not_spoil_the_next(opened: Open, tmp_path: Path) -> None:
    """A supervisor that was killed while it wrote leaves half a line; the next one begins a new line."""
    path = tmp_path / "journal" / JOURNAL
    opened().write("start")
    with path.open("ab") as file:
        file.write(b'{"t": 1, "ki')
    opened().write("start", again=True)
    assert json.loads(path.read_bytes().splitlines()[-1])["again"] is True


@pytest.mark.parametrize("limit", [0, 40])
def test_a_full_disk_is_counted_and_said_once(tmp_path: Path, limit: int) -> None:
    """Writing fails, wholly or half-way through a line; nothing is raised, and a line after that is whole again."""
    script = """
import json, resource, signal, sys
from pathlib import Path
from resilient.core.redact import Redactor
from resilient.supervisor.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
said = []
journal = Journal(Path(sys.argv[1]), Redactor(), wall=lambda: 1.0, monotonic=lambda: 1.0, say=said.append)
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
journal.write("note", text="lost " * 20)
journal.write("note", text="lost " * 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.write("note", text="kept")
print(json.dumps([journal.failed, said]))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "journal"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    failed, said = json.loads(done.stdout)
    assert failed == 2
    assert len(said) == 1
    assert said[0].startswith("cannot write the journal in")
    last = (tmp_path / "journal" / JOURNAL).read_bytes().splitlines()[-1]
    assert json.loads(last)["text"] == "kept"


def test_segments_hold_every_entry_once(opened: Open) -> None:
    """A piece stays the same until it is shipped; the next holds what was written since; then there is none."""
    journal = opened()
    journal.write("note", n=1)
    journal.write("note", n=2)
    offered = journal.segment()
    assert offered is not None
    journal.write("note", n=3)
    assert journal.segment() == offered
    number, path = offered
    assert [entry["n"] for entry in lines(path)] == [1, 2]
    journal.shipped(number)
    assert not path.exists()
    following = journal.segment()
    assert following is not None
    assert following[0] > number
    assert [entry["n"] for entry in lines(following[1])] == [3]
    journal.shipped(following[0])
    assert journal.segment() is None


def test_what_a_dead_supervisor_did_not_ship_is_offered(opened: Open) -> None:
    """First its piece, then what it had not cut, then our own; numbers go on."""
    dead = opened(at=100.0)
    dead.write("note", n=1)
    offered = dead.segment()
    dead.write("note", n=2)
    journal = opened(at=50.0)  # its clock was set back
    journal.write("note", n=3)
    assert journal.segment() == offered
    assert offered is not None
    journal.shipped(offered[0])
    following = journal.segment()
    assert following is not None
    assert following[0] > offered[0]
    assert [entry["n"] for entry in lines(following[1])] == [2, 3]


def test_numbers_are_new_after_the_directory_is_lost(opened: Open, tmp_path: Path) -> None:
    """A container that starts again in its pod ships under the same name, and must not meet its own pieces."""
    numbers = []
    for at in (100.0, 101.0):
        journal = opened(at=at)
        journal.write("start")
        offered = journal.segment()
        assert offered is not None
        numbers.append(offered[0])
        (tmp_path / "journal").rename(tmp_path / f"gone-{at}")
    assert numbers[0] < numbers[1]


def test_a_damaged_note_of_what_was_cut_ships_twice_rather_than_never(opened: Open, tmp_path: Path) -> None:
    """What is in doubt is cut again."""
    journal = opened()
    journal.write("note", n=1)
    offered = journal.segment()
    assert offered is not None
    journal.shipped(offered[0])
    (tmp_path / "journal/segments/cut.json").write_bytes(b"[" * 500)
    again = opened().segment()
    assert again is not None
    assert [entry["n"] for entry in lines(again[1])] == [1]


def test_the_journal_is_turned_over(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the newest two files, and goes on shipping from the new one."""
    monkeypatch.setattr(journal_module, "LIMIT", 1000)
    journal = opened()
    for n in range(100):
        journal.write("note", n=n)
    directory = tmp_path / "journal"
    kept = lines(directory / OLD) + lines(directory / JOURNAL)
    assert [entry["n"] for entry in kept] == list(range(100 - len(kept), 100))
    assert sum((directory / name).stat().st_size for name in (OLD, JOURNAL)) <= 2000
    offered = journal.segment()
    assert offered is not None
    assert lines(offered[1])[-1]["n"] == 99


def test_a_directory_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    """The error says what to do; a link in the journal's place is not followed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot keep a journal in .*; give another directory with --journal"):
        Journal(tmp_path / "file", Redactor(), wall=lambda: 0.0, monotonic=lambda: 0.0)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / JOURNAL).symlink_to(tmp_path / "file")
    with pytest.raises(SettingsError):
        Journal(tmp_path / "linked", Redactor(), wall=lambda: 0.0, monotonic=lambda: 0.0)


def test_debits_are_kept_here_without_a_store(opened: Open, tmp_path: Path, said: list[str]) -> None:
    """They come back by attempt; none is written over; a damaged one is said and left out."""
    journal = opened()
    assert journal.local_debits() == ()
    for attempt in (10, 9):
        journal.record_local(str(attempt), layout.encode(debit(attempt)))
    with pytest.raises(OSError, match="cannot create"):
        journal.record_local("9", b"another")
    with pytest.raises(OSError, match="not a plain relative path"):
        journal.record_local("../9", b"x")
    (tmp_path / "journal/debits/11.json").write_text("{")
    assert opened().local_debits() == (debit(9), debit(10))
    assert len(said) == 1
    assert "11.json" in said[0]
