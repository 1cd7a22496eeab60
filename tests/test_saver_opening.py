# SPDX-License-Identifier: Apache-2.0
"""What a saver tells of a store that it opens, however much it is; what may not hold an opening, and how it writes."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_store import Arenas, FaultyFileSystem, Inline, SaverProcess
from saved_run import SavedRun

from resilient.checkpoint import deny_list
from resilient.checkpoint.direct import PIECE
from resilient.checkpoint.layout import Debit
from resilient.checkpoint.requests import Opened, Saved
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import UNREADABLE
from resilient.checkpoint.vault import Vault
from resilient.core.denied import Denied, Suspect

DEBIT = Debit(
    submission="sub", index=0, attempt=1, code=194, step=3, fingerprint="f", held_s=5.0, wall_s=9.0, why="ecc"
)


@pytest.fixture
def arenas() -> Iterator[Arenas]:
    arenas = Arenas((b"first", b"second"))
    yield arenas
    arenas.close()


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    FaultyFileSystem.reset()
    yield
    FaultyFileSystem.reset()


def keep_off(url: str, name: str, evidence: str = "Xid 79") -> None:
    suspect = Suspect(kind=Denied.NODE, name=name, rule="r" * 200, evidence=evidence)
    record = deny_list.record_of(suspect, submission="sub", pod="pod", wall_s=1.0)
    deny_list.write(open_store(url), record)


def test_a_store_may_have_much_to_tell(tmp_path: Path, arenas: Arenas) -> None:
    """A deny list as full as it is read, and many exits: the answer is longer than what a worker may say."""
    for number in range(256):
        keep_off(str(tmp_path), f"node-{number}", "é" * 500)
    vault = Vault(open_store(str(tmp_path)), clock=lambda: 1.0)
    for attempt in range(1, 601):
        vault.record(replace(DEBIT, attempt=attempt, why="é" * 1000))
    with Inline(arenas) as client:
        opened = client.open(tmp_path)
    assert isinstance(opened, Opened)
    assert (len(opened.denials), len(opened.debits)) == (256, 600)


@pytest.mark.parametrize("error", [PermissionError("denied"), OSError(errno.EBUSY, "SlowDown"), TimeoutError()])
@pytest.mark.parametrize("operation", ["ls", "cat"])
def test_a_deny_list_that_is_refused_or_silent_holds_no_start(arenas: Arenas, error: OSError, operation: str) -> None:
    """It says what became of the list, and opens: it may only spare a run some starts."""

    def fault(asked: str, path: str) -> None:
        if asked == operation and "/deny" in path:
            raise error

    keep_off("faulty://run", "node-a")
    FaultyFileSystem.fault = staticmethod(fault)
    with Inline(arenas) as client:
        opened = client.open("faulty://run")
    assert isinstance(opened, Opened)
    assert opened.denials == ()
    (note,) = opened.notes
    assert "deny" in note


def test_an_entry_that_is_refused_hides_no_other(arenas: Arenas) -> None:
    """As one that another user wrote for itself alone."""

    def fault(asked: str, path: str) -> None:
        if asked == "cat" and path.endswith("node-a.json"):
            raise PermissionError("denied")

    keep_off("faulty://run", "node-a")
    keep_off("faulty://run", "node-b")
    FaultyFileSystem.fault = staticmethod(fault)
    with Inline(arenas) as client:
        opened = client.open("faulty://run")
    assert [denial.name for denial in opened.denials] == ["node-b"]
    assert len(opened.notes) == 1


def test_it_says_whose_an_attempt_is(tmp_path: Path, arenas: Arenas) -> None:
    """By the token of its claim: nobody's, somebody's, or one that cannot be read."""
    run = SavedRun(tmp_path)
    run.claim(1)
    run.claim(3)
    (tmp_path / "attempts" / "2.json").write_text("{")
    found = []
    for attempt in (1, 2, 3, 4):
        with Inline(arenas) as client:
            opened = client.open(tmp_path, left_by=attempt)
        assert isinstance(opened, Opened)
        found.append(opened.claim)
    assert found == ["t", UNREADABLE, "t", None]


def test_a_save_is_no_faster_than_it_may_be(tmp_path: Path) -> None:
    """What the supervisor was told holds for all files together, in the process that writes them."""
    arenas = Arenas((bytes(2 * PIECE), b"x" + bytes(PIECE)))
    try:
        with SaverProcess(arenas) as saver:
            saver.client.open(tmp_path, save_bandwidth=200_000_000)
            saved = saver.client.save(arenas.records, 1, 1)
            assert isinstance(saved, Saved), saved
            assert saved.seconds >= 2 * PIECE / 200_000_000  # the first piece passes at once
    finally:
        arenas.close()
