# SPDX-License-Identifier: Apache-2.0
"""The deny list with real supervisors: a device fault keeps its node off, the next start there is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nvml
import pytest
from recorded_driver import recorded
from supervised import HEAD, Ended, Folder

from resilient.checkpoint import deny_list
from resilient.checkpoint.store import open_store
from resilient.core.denied import Denied, Suspect

KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "RESILIENT_SUBMISSION": "job-uid-1",
    "RESILIENT_POD": "train-0",
    "RESILIENT_NODE": "node-a",
}
XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, name=python, GPU has fallen off the bus."
FAULTY = HEAD + f"if once('failed'):\n    sys.exit({XID!r})\nprint('trained')\n"
TRAINS = "print('trained')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, **KUBERNETES)


def run(folder: Folder, script: str, **environ: str) -> Ended:
    return folder.run("--checkpoints", folder.checkpoints, folder.script(script), **environ)


def entries(folder: Folder) -> dict[str, Any]:
    """The deny list as it lies in the store."""
    found = (folder.checkpoints / "deny").glob("*.json")
    return {path.stem: json.loads(path.read_bytes()) for path in found}


def debits(folder: Folder) -> list[int]:
    """The exits on record, in order."""
    rows = [json.loads(path.read_bytes()) for path in folder.checkpoints.rglob("debits/**/*.json")]
    return [row["code"] for row in sorted(rows, key=lambda row: row["attempt"])]


def test_a_node_with_a_broken_device_is_kept_off_and_another_is_not(folder: Folder) -> None:
    """194 writes the entry; the pod that comes back there is refused, the one elsewhere trains."""
    ended = run(folder, FAULTY)
    assert ended.code == 194, ended.stderr
    (entry,) = entries(folder).values()
    assert (entry["kind"], entry["name"], entry["rule"]) == ("node", "node-a", ended.rules[0])
    assert XID[:20] in entry["evidence"]
    assert entry["expires_s"] - entry["written_s"] == 86400.0
    assert "node node-a is on the deny list of this run for 24 h" in ended.stderr
    assert "Note: node node-a was put on the deny list of the run" in folder.ask("explain", folder.checkpoints).stdout
    refused = run(folder, FAULTY)
    assert (refused.code, refused.attempts) == (198, 0), refused.stderr
    assert "node node-a is on the deny list of this run: NVRM: Xid" in refused.termination["why"]
    assert "refusal 1 of at most 3 in a row" in refused.termination["do"]
    elsewhere = run(folder, FAULTY, RESILIENT_NODE="node-b")
    assert (elsewhere.code, elsewhere.attempts) == (0, 1), elsewhere.stderr
    assert debits(folder) == [194, 198]


def test_after_three_refusals_the_node_is_used_and_that_is_said(folder: Folder) -> None:
    """A cluster may have no other node; each index of each submission counts for itself."""
    keep_off(folder, Denied.NODE, "node-a")
    assert [run(folder, TRAINS).code for _ in range(3)] == [198, 198, 198]
    other = run(folder, TRAINS, RESILIENT_INDEX="1")
    assert other.code == 198
    ended = run(folder, TRAINS)
    assert ended.code == 0, ended.stderr
    assert "it was refused 3 times in a row and has passed its preflight, so it is used" in ended.stderr


def keep_off(folder: Folder, kind: Denied, name: str) -> None:
    """An entry as a verdict of a moment ago has made it."""
    suspect = Suspect(kind=kind, name=name, rule="xid-fatal", evidence="Xid 79")
    record = deny_list.record_of(suspect, submission="job-uid-0", pod="train-0", wall_s=time.time())
    deny_list.write(open_store(str(folder.checkpoints)), record)


def test_a_denied_device_keeps_a_start_off_only_where_it_can_be_seen(tmp_path: Path) -> None:
    """By the UUIDs that the driver tells; the device that has left does not count."""
    folder = Folder(tmp_path, **KUBERNETES, **recorded(tmp_path, "nvml.h100(0), nvml.h100(1)"))
    uuid = nvml.h100(1).uuid
    keep_off(folder, Denied.DEVICE, "GPU-00000000-gone")
    assert run(folder, TRAINS).code == 0
    keep_off(folder, Denied.DEVICE, uuid)
    (folder.checkpoints / "finished.json").unlink()
    refused = run(folder, TRAINS)
    assert refused.code == 198, refused.stderr
    assert f"device {uuid} is on the deny list" in refused.termination["why"]


def test_a_script_that_names_the_store_itself_is_refused_as_well(folder: Folder) -> None:
    """Before its first step."""
    keep_off(folder, Denied.NODE, "node-a")
    script = HEAD + (
        "import light_torch, torch, resilient\n"
        f"run = resilient.Run(state={{'model': torch.nn.Linear(1, 1)}}, checkpoints={str(folder.checkpoints)!r})\n"
        "for batch in run.batches([1], steps=1):\n    note('trained')\n"
    )
    refused = folder.run(folder.script(script))
    assert (refused.code, folder.notes) == (198, []), refused.stderr
    assert debits(folder) == [198]


def test_the_platforms_list_is_obeyed_with_and_without_a_store(folder: Folder) -> None:
    """On record in the store, or beside the journal; the list itself is left alone."""
    listed = folder.path / "denied.jsonl"
    listed.write_text('{"node": "node-a", "why": "fan broken"}\n')
    counted = {"RESILIENT_FAILURE_COUNT": "0", "RESILIENT_IGNORED_COUNT": ""}
    for store in (("--checkpoints", str(folder.checkpoints)), ()):
        refused = folder.run("--deny-list", listed, *store, folder.script(TRAINS), **counted)
        assert (refused.code, refused.attempts) == (198, 0), refused.stderr
        assert "node node-a is on the platform's deny list: fan broken" in refused.termination["why"]
    assert [path.name for path in folder.path.glob("journal-2/debits/*.json")] != []
    assert listed.read_text() == '{"node": "node-a", "why": "fan broken"}\n'
    assert entries(folder) == {}


@pytest.mark.parametrize(("ignored", "code"), [("2", 198), ("3", 0), (None, 199)])
def test_without_a_store_refusals_have_a_bound_though_the_journal_goes_with_the_pod(
    folder: Folder, ignored: str | None, code: int
) -> None:
    """By what the controller has ignored, else by the one exit that every controller counts."""
    listed = folder.path / "denied.jsonl"
    listed.write_text('{"node": "node-a"}\n')
    counted = {} if ignored is None else {"RESILIENT_FAILURE_COUNT": "0", "RESILIENT_IGNORED_COUNT": ignored}
    ended = folder.run("--deny-list", listed, folder.script("print('trained')"), **counted)
    assert ended.code == code, ended.stderr
    said = {198: "refusal 3 of at most 3", 0: "ends that its controller has not counted", 199: "may go with the pod"}
    assert said[code] in ended.stderr


def test_a_list_that_cannot_be_read_stops_nobody(folder: Folder) -> None:
    """It is said, and a damaged entry of the run's own list as well."""
    keep_off(folder, Denied.NODE, "node-a")
    (folder.checkpoints / "deny/node-a.json").write_bytes(b"{}")
    ended = run(folder, TRAINS, RESILIENT_DENY_LIST=str(folder.path / "missing"))
    assert ended.code == 0, ended.stderr
    assert "preflight: the platform's deny list: " in ended.stderr
    assert "cannot read deny/node-a.json" in ended.stderr


def test_an_entry_that_cannot_be_written_does_not_hold_the_exit(folder: Folder) -> None:
    """The exit is on record; the list is best effort."""
    blocked = FAULTY.replace("sys.exit(", "(HERE / 'checkpoints/deny').touch(), sys.exit(")
    ended = run(folder, blocked)
    assert ended.code == 194, ended.stderr
    assert "node node-a could not be put on the deny list: cannot " in ended.stderr
    assert debits(folder) == [194]
