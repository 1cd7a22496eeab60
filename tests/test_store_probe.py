# SPDX-License-Identifier: Apache-2.0
"""The probe of a checkpoint store: a directory, an S3 that fails, and what it must never touch."""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from faulty_store import FaultyFileSystem
from s3_server import Proxy, running
from saved_run import SavedRun, small_state

from resilient.checkpoint.store import _wall_s, open_store
from resilient.core.checks_store import SKEW_REFUSED_S
from resilient.core.measured import StoreFacts
from resilient.preflight.store_probe import store

URL = "s3://bucket/run"


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with running() as proxy:
        yield proxy


@pytest.fixture
def s3(server: Proxy) -> Proxy:
    server.mend()
    return server


def probed(url: str | Path, patience_s: float = 0.0) -> StoreFacts:
    return store(lambda place: None, str(url), patience_s)


def names(url: str) -> list[str]:
    """All objects there."""
    return [entry.name for entry in open_store(url).list(".")]


def test_a_directory_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    """The run in it is only read, for the size of its state."""
    run = SavedRun(tmp_path / "run")
    run.claim(1)
    run.save("1-10", [small_state(10), small_state(10)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    facts = probed(tmp_path / "run")
    assert (facts.kind, facts.made_in, facts.skew) == ("", "", 0.0)
    assert facts.state == sum(
        2 * os.path.getsize(tmp_path / "run/checkpoints/1-10" / f"{name}-0.safetensors") for name in ("tensors", "rank")
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    """A typing error in the URL leaves no directory behind."""
    facts = probed(tmp_path / "new/run")
    assert (facts.kind, facts.made_in, facts.state) == ("", str(tmp_path), None)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_no_matter_of_the_store(tmp_path: Path) -> None:
    """``resilient checkpoints`` tells what is wrong with it; here a size stays unknown."""
    (tmp_path / "run.json").write_text("{")
    facts = probed(tmp_path)
    assert (facts.kind, facts.state) == ("", None)


def test_s3_takes_gives_and_lets_go(s3: Proxy) -> None:
    """By conditional creation, and with a clock that agrees to the second."""
    facts = probed(URL)
    assert (facts.kind, facts.why, facts.skew, facts.state) == ("", "", 0.0, None)
    assert names(URL) == []
    assert s3.calls["DeleteObject"] == 1


@pytest.mark.parametrize(
    ("word", "kind", "code"),
    [
        ("skewed", "denied", "RequestTimeTooSkewed"),
        ("gone", "missing", "NoSuchBucket"),
        ("503", "unreachable", "SlowDown"),
    ],
)
def test_s3_that_refuses_is_told_by_its_own_word(s3: Proxy, word: str, kind: str, code: str) -> None:
    """And nothing is left there."""
    s3.fail_always("PutObject", word)
    facts = probed(URL)
    assert (facts.kind, facts.code) == (kind, code)
    assert facts.why.startswith("cannot create s3://bucket/run/.probe-")
    assert names(URL) == []


def test_an_answer_that_was_lost_is_no_conflict(s3: Proxy) -> None:
    """The second try meets what the first one has made."""
    s3.fail("PutObject", "lost")
    facts = probed(URL, patience_s=30.0)
    assert facts.kind == ""
    assert names(URL) == []


def test_a_clock_that_is_off_is_measured(s3: Proxy) -> None:
    """By the time that the store gives to what was just written."""
    s3.fail_always("HeadObject", "ahead")
    facts = probed(URL)
    assert facts.skew is not None
    assert SKEW_REFUSED_S < 3500 < facts.skew <= 3600


@pytest.mark.parametrize("operation", ["cat", "rm"])
def test_what_cannot_be_read_or_deleted_is_refused(operation: str) -> None:
    """A store that only takes is none."""

    def fault(name: str, path: str) -> None:
        if name == operation:
            raise PermissionError(13, "Permission denied")

    FaultyFileSystem.reset(fault)
    try:
        facts = probed("faulty://run")
        assert facts.kind == "denied"
        assert "read" in facts.why if operation == "cat" else "delete" in facts.why
    finally:
        FaultyFileSystem.reset()


@pytest.mark.parametrize(
    ("url", "kind"),
    [("nonsense://x/y", "settings"), ("file://relative", "settings"), ("memory://x", "settings"), ("", "settings")],
)
def test_what_is_no_store_is_a_matter_of_settings(url: str, kind: str) -> None:
    """The same words as at a start."""
    facts = probed(url)
    assert facts.kind == kind
    assert facts.why.startswith("cannot ")


def test_a_password_in_the_url_is_never_told(s3: Proxy) -> None:
    """Neither where it works nor where it does not."""
    facts = probed("nonsense://user:canary@host/run?signature=canary")
    assert "canary" not in repr(facts)


NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"LastModified": NOON}, NOON.timestamp()),
        ({"last_modified": NOON.astimezone(timezone(timedelta(hours=5)))}, NOON.timestamp()),
        ({"created": NOON.replace(tzinfo=None)}, NOON.timestamp()),
        ({"updated": "2026-01-01T12:00:00.000Z"}, NOON.timestamp()),
        ({"mtime": 1.5}, 1.5),
        ({"updated": "yesterday"}, None),
        ({"LastModified": "", "size": 3}, None),
        ({}, None),
    ],
)
def test_each_back_end_says_its_time_in_its_own_way(found: dict[str, object], expected: float | None) -> None:
    """Names and types as s3fs, adlfs, memory and gcsfs have them; what cannot be read is unknown."""
    assert _wall_s(found) == expected
