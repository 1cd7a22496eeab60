# SPDX-License-Identifier: Apache-2.0
"""``resilient forgive``: lists what a run holds against nodes, devices, faults and samples, and clears
single entries."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from saved_run import SavedRun
from supervised import Folder

from resilient.checkpoint import deny_list, layout
from resilient.checkpoint.holding import held
from resilient.checkpoint.layout import Debit
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import newest_claim
from resilient.cli import main
from resilient.core import events as ev
from resilient.core.batch import Batch
from resilient.core.denied import Denied, Suspect
from resilient.core.history import on_record
from resilient.core.ledger import Ledger, opening_ledger
from resilient.core.usage import Usage

KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "RESILIENT_SUBMISSION": "job-uid-1",
    "RESILIENT_POD": "train-0",
    "RESILIENT_NODE": "node-a",
}


def debit(attempt: int, fingerprint: str, code: int = 193) -> Debit:
    return Debit(
        submission="sub",
        index=0,
        attempt=attempt,
        code=code,
        step=0,
        fingerprint=fingerprint,
        held_s=7.0,
        wall_s=1e9,
        why=f"the reason of {attempt}, password=hunter2",
    )


@pytest.fixture
def run(tmp_path: Path) -> SavedRun:
    """A run that holds a node, a device that it should have let go, and three exits for two faults."""
    run = SavedRun(tmp_path / "run")
    for kind, name, wall_s in ((Denied.NODE, "node-a", time.time()), (Denied.DEVICE, "GPU-1", 1.0)):
        suspect = Suspect(kind=kind, name=name, rule="xid-fatal", evidence="Xid 79")
        deny_list.write(run.store, deny_list.record_of(suspect, submission="sub", pod="pod", wall_s=wall_s))
    for attempt, fingerprint in enumerate(("sigsegv", "sigsegv", "gloo-lost", ""), 1):
        run.vault.record(debit(attempt, fingerprint))
    run.vault.record(debit(5, "sigsegv", code=195))
    return run


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON that a forgiving prints."""
    assert main(["forgive", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def names(answer: Any) -> list[tuple[str, str]]:
    return [(held["kind"], held["name"]) for held in answer["held"]]


def test_without_a_selector_it_lists_and_changes_nothing(run: SavedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """What has run out, has no fault, or was a preemption is held against nobody."""
    listed = ask(capsys, run.url)
    assert names(listed) == [
        ("node", "node-a"),
        ("fingerprint", "sigsegv"),
        ("fingerprint", "sigsegv"),
        ("fingerprint", "gloo-lost"),
    ]
    assert listed["held"][1]["why"] == "the reason of 1, password=[redacted]"
    assert names(ask(capsys, run.url)) == names(listed)
    assert main(["forgive", run.url]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["KIND", "NAME", "SINCE", "UNTIL", "EXIT", "WHY"]
    assert len(rows) == 4


def test_a_node_is_taken_off_the_list(run: SavedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it cleared, and leaves the rest."""
    assert main(["forgive", run.url, "--node", "node-a"]) == 0
    assert capsys.readouterr().out.startswith("cleared node node-a, on the deny list since ")
    assert [each.name for each in run.store.list("deny")] == ["deny/GPU-1.json"]
    assert len(names(ask(capsys, run.url))) == 3


def test_exits_for_a_fault_are_forgiven_and_stay_on_record(run: SavedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """The clock and the numbers of attempts go on from them; rungs and history do not."""
    answer = ask(capsys, run.url, "--fingerprint", "sigsegv", "--node", "node-a")
    assert [held["name"] for held in answer["cleared"]] == ["node-a", "sigsegv", "sigsegv"]
    assert names(ask(capsys, run.url)) == [("fingerprint", "gloo-lost")]
    paths = [f"debits/sub/0/{attempt}.json" for attempt in (1, 2, 3)]
    rows = [layout.decode(run.store.read(path, 1 << 16), Debit, path) for path in paths]
    assert [(row.forgiven, row.held_s) for row in rows] == [(True, 7.0), (True, 7.0), (False, 7.0)]


def test_a_forgiven_exit_is_no_rung_and_no_history() -> None:
    """It only still says how far the run had got."""
    exits = [ev.Debit(code=193, step=5, fingerprint="f", forgiven=True), ev.Debit(code=194, step=5, fingerprint="g")]
    ledger = opening_ledger(Ledger(), committed_step=0, usage=Usage(), debits=exits, now=0.0)
    assert (ledger.spent, ledger.highest_step) == (frozenset({194}), 5)
    assert [past.fingerprint for past in on_record(exits)] == ["g"]


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        (("--node", "node-b"), "it is not there; those that are held against it: node-a"),
        (("--device", "GPU-1"), "it is not there; no device is held against it"),
        (("--fingerprint", "../../run"), "those that are held against it: sigsegv, gloo-lost"),
    ],
)
def test_what_is_not_there_cannot_be_forgiven(
    run: SavedRun, capsys: pytest.CaptureFixture[str], selector: tuple[str, str], said: str
) -> None:
    """115, with what there is; and nothing is cleared."""
    assert main(["forgive", run.url, *selector]) == 115
    assert said in capsys.readouterr().err
    assert len(names(ask(capsys, run.url))) == 4


LEFT_OUT = (
    Batch(epoch=0, first=5, sample=77, samples=(70, 77), of=160),
    Batch(epoch=2, first=17, samples=(560, 561), of=1600),
)


def test_a_batch_that_is_left_out_is_forgiven_by_its_sample_or_its_place(
    run: SavedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is listed by the name that clears it; only the newest claim says what is left out."""
    run.claim(1, skipped=LEFT_OUT[:1])
    run.claim(2, skipped=LEFT_OUT)
    listed = [each for each in ask(capsys, run.url)["held"] if each["kind"] == "sample"]
    assert [(each["name"], each["submission"], each["since_s"]) for each in listed] == [
        ("77", "sub", None),
        ("2/17", "sub", None),
    ]
    assert listed[1]["why"] == "batch 17 of epoch 2 (samples 560 to 561) is left out by all ranks"
    for name, left in (("561", LEFT_OUT[:1]), ("0/5", ())):
        assert main(["forgive", run.url, "--sample", name]) == 0
        assert "; a start that goes on from before it trains on it again\n" in capsys.readouterr().out
        newest = newest_claim(run.store, [])
        assert newest is not None
        assert (newest.attempt, newest.skipped) == (2, left)


def test_what_a_living_supervisor_leaves_out_is_not_cleared_under_it(
    run: SavedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would write it down again with its next attempt; and of one command either all is cleared or nothing."""
    run.claim(1, skipped=LEFT_OUT)
    with held(run.store, "train-0"):
        assert main(["forgive", run.url, "--node", "node-a", "--sample", "77"]) == 115
    said = capsys.readouterr().err
    assert "cannot forgive sample 77" in said
    assert "pod train-0" in said
    assert f"end it (resilient stop {run.url}, or suspend the Job that would start it again), forgive it" in said
    assert main(["forgive", run.url, "--node", "node-a", "--sample", "78"]) == 115
    assert "it is not there; those that are held against it: 77, 2/17" in capsys.readouterr().err
    assert len(names(ask(capsys, run.url))) == 6


def test_a_place_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is made there."""
    assert main(["forgive", str(tmp_path)]) == 115
    assert main(["forgive", str(tmp_path / "missing")]) == 115
    assert "there is no run.json" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_damaged_records_are_named_and_the_rest_is_listed(run: SavedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody vouches for what lies there."""
    Path(run.url, "debits/sub/0/1.json").write_bytes(b"{")
    Path(run.url, "deny/node-a.json").write_bytes(b"[]")
    answer = ask(capsys, run.url)
    assert len(answer["held"]) == 2
    assert [note.split(":")[0] for note in answer["notes"]] == [
        "cannot read deny/node-a.json",
        "cannot read debits/sub/0/1.json",
    ]


def test_a_forgiven_node_and_ladder_are_used_again(tmp_path: Path) -> None:
    """With real supervisors: a denied node trains, and a ladder that was spent begins on its first rung."""
    folder = Folder(tmp_path, **KUBERNETES)
    script = folder.script("raise OSError(71, 'Protocol error')")
    run = ("--checkpoints", folder.checkpoints, script)
    assert [folder.run(*run).code for _ in range(2)] == [193, 194]
    suspect = Suspect(kind=Denied.NODE, name="node-a", rule="xid-fatal", evidence="Xid 79")
    record = deny_list.record_of(suspect, submission="job-uid-1", pod="train-0", wall_s=time.time())
    deny_list.write(open_store(str(folder.checkpoints)), record)
    assert folder.run(*run).code == 198
    listed = folder.ask("forgive", folder.checkpoints, "--json")
    held = json.loads(listed.stdout)["held"]
    assert [each["kind"] for each in held] == ["node", "fingerprint", "fingerprint"], listed.stderr
    cleared = folder.ask("forgive", folder.checkpoints, "--node", "node-a", "--fingerprint", held[1]["name"])
    assert cleared.stdout.count("cleared ") == 3, cleared.stderr
    assert folder.run(*run).code == 193


def test_without_a_store_the_journals_directory_is_asked(tmp_path: Path) -> None:
    """There the exits on record lie beside the journal."""
    folder = Folder(tmp_path, **KUBERNETES, RESILIENT_JOURNAL=str(tmp_path / "volume"))
    assert folder.run(folder.script("raise OSError(71, 'Protocol error')")).code == 193
    listed = folder.ask("forgive", tmp_path / "volume", "--json")
    (held,) = json.loads(listed.stdout)["held"]
    assert (held["kind"], held["code"]) == ("fingerprint", 193)
    assert folder.ask("forgive", tmp_path / "volume", "--fingerprint", held["name"]).returncode == 0
    assert json.loads(folder.ask("forgive", tmp_path / "volume", "--json").stdout)["held"] == []
