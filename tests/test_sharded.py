# SPDX-License-Identifier: Apache-2.0
"""Trainings whose state is spread over the ranks of real gloo groups, killed, and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
from sharded_train import dealt_order, digest
from supervised import ROOT, Ended, Folder

from resilient.checkpoint import export
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import directories, read_manifest

TRAINING = ROOT / "tests" / "sharded_train.py"


class Spread:
    """Trainings with one directory of checkpoints."""

    def __init__(self, path: Path) -> None:
        self.folder = Folder(path, RESILIENT_CHECKPOINTS=str(path / "checkpoints"))

    def run(self, kind: str, ranks: int, steps: int, *more: str | int, result: str = "result") -> Ended:
        """``resilient run`` to its end, which must be a good one."""
        place = self.folder.path / result
        place.mkdir(exist_ok=True)
        script: list[str | Path] = [TRAINING, "--kind", kind, "--steps", str(steps), "--result", place]
        ended = self.folder.run("--nproc-per-node", str(ranks), *script, *map(str, more))
        assert ended.code == 0, ended.stderr[-4000:]
        return ended

    def lines(self, what: str, rank: int = 0, result: str = "result") -> list[dict[str, Any]]:
        """What a rank has noted."""
        trail = (self.folder.path / result / f"trail-{rank}").read_text().splitlines()
        return [line for line in map(json.loads, trail) if line.pop("what") == what]

    def samples(self) -> dict[tuple[int, int], list[int]]:
        """What was given in each step to each replica; ranks of one replica are given the same."""
        found: dict[tuple[int, int], list[int]] = {}
        for path in sorted(self.folder.path.glob("result-*/samples-*")):
            for line in path.read_text().splitlines():
                step, replica, numbers = json.loads(line)
                assert found.setdefault((step, replica), numbers) == numbers
        return found

    def exported(self, rank: int) -> str:
        """Digest of the newest checkpoint, as an export of one rank has it."""
        store = open_store(str(self.folder.checkpoints))
        name = str(max(directories(store)))
        state = export.read_state(store, name, read_manifest(store, name), rank)
        return digest(state["model"], state["optimizer"])


@pytest.fixture
def spread(tmp_path: Path) -> Spread:
    return Spread(tmp_path)


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("fsdp", 2)] + [pytest.param(*case, marks=pytest.mark.slow) for case in (("tp", 2), ("fsdp", 4), ("both", 4))],
)
def test_a_killed_rank_changes_no_bit(spread: Spread, kind: str, ranks: int) -> None:
    """The steps that are made once more, from a snapshot in memory, give what they gave before the kill: every whole
    tensor of model and optimizer, and what each rank draws next."""
    ended = spread.run(kind, ranks, 7, "--kill", 6, "--snapshot-every", 3)
    assert ended.attempts == 2
    assert [entry["name"] for entry in ended.entries("restore")] == ["", "memory"]
    assert not ended.entries("note"), "no copy had to be dropped or made at once"
    for rank in range(ranks):
        steps = spread.lines("step", rank)
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 4, 5, 6, 7]
        assert steps[3:5] == steps[5:7]
        (restored,) = spread.lines("restored", rank)
        assert restored["digest"] == steps[2]["digest"] != steps[3]["digest"]
        assert spread.exported(rank) == steps[-1]["digest"], "an export has the whole of every tensor"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ranks"), [("fsdp", 2), ("tp", 2), ("fsdp", 4), ("both", 4)])
def test_a_disturbed_run_ends_like_an_undisturbed_one(spread: Spread, tmp_path: Path, kind: str, ranks: int) -> None:
    """Killed once, resumed from memory; stopped after more steps, and resumed by another submission from the store."""
    spread.run(kind, ranks, 7, "--kill", 5, "--snapshot-every", 2)
    assert spread.run(kind, ranks, 11).entries("restore")[0]["name"] == "2-7"
    whole = Spread(tmp_path / "whole")
    whole.run(kind, ranks, 11)
    for rank in range(ranks):
        assert spread.lines("step", rank)[-4:] == whole.lines("step", rank)[-4:]


CHAINS = {"2, 4, 1, 3": (2, 4, 1, 3), "4, 2": (4, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "both", "tp"])
def test_other_numbers_of_ranks_go_on_with_every_bit_and_sample(spread: Spread, kind: str, chain: str) -> None:
    """One submission after the other in the middle of an epoch: of each whole tensor every bit is there, on all ranks;
    no sample is lost or repeated; rank r has what rank r had, a new one what rank 0 had, and random numbers of its own.
    """
    last: list[dict[str, Any]] = []
    for number, ranks in enumerate(CHAINS[chain], 1):
        result = f"result-{number}"
        ended = spread.run(kind, ranks, 3 * number, result=result)
        assert ended.entries("restore")[-1]["refused"] == []
        first = [spread.lines("step", rank, result)[0] for rank in range(ranks)]
        if kind != "tp":
            assert len({line["random"] for line in first}) == ranks, "no two ranks draw the same"
        told = [entry["text"] for entry in ended.entries("note")]
        expected = (
            f"resumed from {number - 1}-{3 * number - 3}: {len(last)} ranks have saved it, and there are {ranks} now"
        )
        assert told == ([expected] if last else [])
        if last:
            restored = [spread.lines("restored", rank, result)[0] for rank in range(ranks)]
            assert {line["step"] for line in restored} == {3 * number - 3}
            assert {line["digest"] for line in restored} == {last[0]["digest"]}
            assert [line["rank"] for line in restored] == [r if r < len(last) else 0 for r in range(ranks)]
        last = [spread.lines("step", rank, result)[-1] for rank in range(ranks)]
        assert len({line["digest"] for line in last}) == 1
        assert not any(line["shared"] for line in last), "the memory that the checkpoint lay in is given back"
    seen = spread.samples()
    dealt = [sample for numbers in seen.values() for sample in numbers]
    assert len(dealt) == len(set(dealt)), "no sample twice in the epoch"
    order = dealt_order()
    assert set(dealt) == set(order[: len(dealt)]), "and none left out"
