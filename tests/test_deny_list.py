# SPDX-License-Identifier: Apache-2.0
"""The deny list in a run's directory and a platform's own: what is written, and what is made of what others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import object_store  # noqa: F401  # registers objects://
import pytest

from resilient.checkpoint import deny_list, layout
from resilient.checkpoint.layout import DenialRecord
from resilient.checkpoint.seal import sealed
from resilient.checkpoint.store import open_store
from resilient.core import wire
from resilient.core.denied import LASTS_S, Denied, Suspect
from resilient.errors import CheckpointError
from resilient.preflight.deny_list_probe import MOST_DEVICES, read_entries
from resilient.preflight.deny_list_probe import deny_list as read_platform
from resilient.preflight.errand import ANSWER_LIMIT

NODE = Suspect(kind=Denied.NODE, name="node-a", rule="xid-fatal", evidence="Xid 79")


def entry(name: str = "node-a", **changed: Any) -> DenialRecord:
    suspect = Suspect(kind=changed.pop("kind", Denied.NODE), name=name, rule="xid-fatal", evidence="Xid 79")
    return deny_list.record_of(suspect, submission="sub", pod="pod", wall_s=changed.pop("wall_s", 100.0))


@pytest.mark.parametrize("scheme", ["", "objects://"])
def test_an_entry_comes_back_as_it_was_written(tmp_path: Path, scheme: str) -> None:
    """One small object under the name of what it denies; a newer one takes its place, and it can be cleared."""
    store = open_store(f"{scheme}{tmp_path}/run")
    aside: list[str] = []
    for wall_s in (100.0, 200.0):
        deny_list.write(store, entry(wall_s=wall_s))
    deny_list.write(store, entry("GPU-1", kind=Denied.DEVICE))
    assert [each.name for each in store.list("deny")] == ["deny/GPU-1.json", "deny/node-a.json"]
    device, node = deny_list.read(store, aside)
    assert (node.name, node.written_s, node.expires_s) == ("node-a", 200.0, 200.0 + LASTS_S)
    assert deny_list.denial_of(node).suspect == NODE
    deny_list.erase(store, "node-a")
    assert deny_list.read(store, aside) == (device,)
    assert aside == []


def test_a_name_that_is_too_long_for_a_file_still_has_one() -> None:
    """The names of nodes have up to 253 characters; two of them that begin alike have two files."""
    first, second = (layout.deny_path("n" * 250 + end) for end in "ab")
    assert first != second
    assert len(first.split("/")[1]) < 255


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a b", "x" * 300, "GPU-\n"])
def test_no_name_leads_elsewhere(name: str) -> None:
    """Neither in what is written nor in what is read."""
    with pytest.raises(CheckpointError, match="no name of a node"):
        layout.deny_path(name)


GOOD = {name: value for name, value in json.loads(layout.encode(entry())).items() if name != "digest"}


def changed(**fields: object) -> bytes:
    """With the digest that belongs to it."""
    return sealed(json.dumps({**GOOD, **fields}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"name": "node-a"}',
        changed(version=99),
        changed(kind="cluster"),
        changed(name="../../finished"),
        changed(name="node-b"),
        changed(expires_s=float("inf")),
        changed(written_s=-1.0),
        changed(pod="a/b"),
        changed(why="an unknown field"),
        changed(evidence="x" * 5000),
    ],
)
def test_a_damaged_or_foreign_entry_denies_nothing(tmp_path: Path, data: bytes) -> None:
    """It is named, and the good one beside it counts."""
    store = open_store(str(tmp_path))
    deny_list.write(store, entry())
    deny_list.write(store, entry("node-c"))
    (tmp_path / "deny/node-a.json").write_bytes(data)
    aside: list[str] = []
    assert [record.name for record in deny_list.read(store, aside)] == ["node-c"]
    assert "deny/node-a.json" in aside[0]


def test_a_flood_of_entries_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A start must not take minutes because somebody has filled the list."""
    store = open_store(str(tmp_path))
    (tmp_path / "deny").mkdir()
    for number in range(260):
        (tmp_path / f"deny/node-{number:03}.json").write_bytes(b"{}")
    aside: list[str] = []
    assert deny_list.read(store, aside) == ()
    assert "only the first 256 of 260 entries" in aside[0]


# The platform's.


def test_the_platforms_list_is_read_line_by_line() -> None:
    """What concerns this node and all devices comes through; what is no entry is counted."""
    lines = [
        {"node": "node-a", "why": "fan  broken, token=hf_abcdefghijklmnopqrst"},
        {"node": "node-b"},
        {"device": "GPU-1", "until": 50},
        "node-a",
        {"node": "node-a", "device": "GPU-1"},
        {"node": "../a"},
        {"node": "node-a", "until": "tomorrow"},
        {"node": "node-a", "until": True},
        {"node": "node-a", "more": 1},
        {"why": "nothing named"},
    ]
    text = "\n\n".join(map(json.dumps, lines)) + '\n{"node": "no'
    facts = read_entries(text, url="/etc/denied", node="node-a")
    assert (facts.entries, facts.unread) == (3, 8)
    node, device = facts.denials
    assert (node.suspect.name, node.of_platform) == ("node-a", True)
    assert node.suspect.evidence == "fan broken, token=[redacted]"
    assert (device.suspect.name, device.expires_s) == ("GPU-1", 50.0)


def test_a_list_is_read_through_the_links_of_a_mounted_config_map(tmp_path: Path) -> None:
    """The kubelet makes the file a link into a directory that is itself a link."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026/denied").write_text('{"node": "node-a"}\n')
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "denied").symlink_to("..data/denied")
    facts = read_platform(print, str(tmp_path / "denied"), "node-a")
    assert (facts.why, len(facts.denials)) == ("", 1)


@pytest.mark.parametrize("url", ["missing", "folder", "folder/", "nothing://x/y", "objects:///no/such"])
def test_a_list_that_cannot_be_read_says_why(tmp_path: Path, url: str) -> None:
    """And denies nothing."""
    (tmp_path / "folder").mkdir()
    facts = read_platform(print, url if "://" in url else f"{tmp_path}/{url}", "node-a")
    assert facts.why
    assert facts.denials == ()


def test_more_devices_than_are_passed_on_are_counted() -> None:
    """A node behind them is still found."""
    lines = [json.dumps({"device": f"GPU-{number}", "why": "x" * 400}) for number in range(MOST_DEVICES + 5)]
    facts = read_entries("\n".join([*lines, '{"node": "node-a"}']), url="u", node="node-a")
    assert (facts.entries, facts.unread, facts.denials[-1].suspect.name) == (MOST_DEVICES + 1, 5, "node-a")
    assert len(wire.encode(facts)) < ANSWER_LIMIT


def test_a_list_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """Nobody keeps a gigabyte of nodes off."""
    with open(tmp_path / "denied", "wb") as file:
        file.truncate(5 << 20)
    assert "where at most" in read_platform(print, str(tmp_path / "denied"), None).why
