# SPDX-License-Identifier: Apache-2.0
"""Tests of bad batches with real processes: named by their samples, left out by all ranks, and on record."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from once import Once
from supervised import HEAD, LIMIT_S, Folder

_SCRIPT = (
    HEAD
    + """
import hashlib, time
import light_torch
import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler
import resilient

torch.set_num_threads(1)
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if ranks > 1:
    dist.init_process_group("gloo")
torch.manual_seed(7 + rank)
SUPERVISOR = os.getppid()
HOW, WITHOUT, STEPS = os.environ.get("HOW", ""), os.environ.get("WITHOUT"), int(os.environ.get("STEPS", "12"))

class Data(Dataset):
    def __len__(self):
        return int(os.environ.get("LENGTH", "160"))

    def __getitem__(self, index):
        if index == BAD and HOW == "read":
            raise ValueError("cannot decode")
        return torch.full((2,), float(index))

class Batches(BatchSampler):
    '''Without the bad one: what a run has that never had it.'''

    def __iter__(self):
        return (batch for number, batch in enumerate(super().__iter__()) if number != 5 or not WITHOUT)

sampler = DistributedSampler(Data(), num_replicas=ranks, rank=rank, seed=3)
BAD = list(DistributedSampler(Data(), num_replicas=ranks, rank=ranks - 1, seed=3))[5 * 8 + 3]
loader = DataLoader(Data(), batch_sampler=Batches(sampler, 8, False), num_workers=int(os.environ.get("WORKERS", "0")))
if "PLAIN" in os.environ:
    loader, BAD = DataLoader(Data(), batch_size=8), 43
model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)).double()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
run = resilient.Run(state={"model": model, "optimizer": optimizer})

@run.step
def train_step(batch):
    if HOW in ("step", "crash") and BAD in batch[:, 0].tolist():
        note(f"bad:{run.step_number + 1}")
        if HOW == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        raise RuntimeError("this one is bad")
    if HOW == "mended" and BAD in batch[:, 0].tolist():
        note("trained")
    optimizer.zero_grad()
    model(batch.double() / 160).square().mean().backward()
    for parameter in model.parameters() if ranks > 1 else ():
        dist.all_reduce(parameter.grad)
    optimizer.step()

for batch in run.batches(loader, steps=STEPS):
    train_step(batch)
    if os.environ.get("KILL") == str(run.attempt) and rank == 0:
        while not (HERE / "checkpoints" / "attempts" / os.environ["KILL"]).with_suffix(".json").exists():
            time.sleep(0.01)
        os.kill(SUPERVISOR, signal.SIGKILL)
bits = b"".join(value.numpy().tobytes() for value in (*model.state_dict().values(), torch.get_rng_state()))
note(f"{rank}:{hashlib.sha256(bits).hexdigest()}")
"""
)
ALLOWED = ("--skip-bad-batches", "1")
OFTEN = ("--snapshot-every", "1", "--every", "2")


START = (*ALLOWED, "--snapshot-every", "1", "--every", "3")


def digests(path: Path, *arguments: str, **environ: str) -> list[str]:
    """Of what a run ends with."""
    folder = Folder(path, **environ)
    ended = folder.run(*arguments, folder.script(_SCRIPT))
    assert ended.code == 0, ended.stderr
    return sorted(folder.notes)


@pytest.fixture
def expected(once: Once) -> list[str]:
    """The digest of a run of one rank that never had the batch."""
    return Folder(once("without", lambda path: digests(path, WITHOUT="1"))).notes


@pytest.fixture
def killed(tmp_path: Path, once: Once) -> Folder:
    """A run that was to leave the batch out, and was killed before anything was saved that came of it."""

    def kill(path: Path) -> None:
        folder = Folder(path, HOW="step")
        ended = folder.run("--checkpoints", folder.checkpoints, *START, folder.script(_SCRIPT), KILL="3")
        assert ended.code == -9, ended.stderr
        assert folder.notes == ["bad:6", "bad:6"]

    made, folder = once("killed", kill), Folder(tmp_path / "run")
    shutil.copytree(made / "checkpoints", folder.checkpoints)
    shutil.copy(made / "notes", folder.path)
    return folder


def test_two_ranks_leave_out_the_batch_that_fails_on_one(tmp_path: Path) -> None:
    """It is bad on the last rank only; both end with the bits of a run that never had it, and everybody says so."""
    folder = Folder(tmp_path / "run", HOW="step", WORKERS="1")
    two = ("--nproc-per-node", "2")
    script = folder.script(_SCRIPT)
    ended = folder.run("--checkpoints", folder.checkpoints, *OFTEN, *ALLOWED, *two, script)
    assert (ended.code, ended.attempts) == (0, 3), ended.stderr
    assert folder.notes[:2] == ["bad:6", "bad:6"]
    assert sorted(folder.notes[2:]) == digests(tmp_path / "without", *two, WITHOUT="1", WORKERS="1")
    (skipped,) = ended.entries("skipped")
    assert (skipped["epoch"], skipped["first"], len(skipped["samples"])) == (0, 5, 8)
    assert "is left out by all ranks (skip_bad_batches: 1 of 1)" in ended.stderr
    assert "warning: left out batch 5 of epoch 0 (samples " in ended.stderr
    notes = [entry["text"] for entry in ended.entries("note") if "left out batch 5 of epoch 0" in entry["text"]]
    assert len(set(notes)) == 2, "each rank tells what it had in it"
    story = json.loads(folder.ask("explain", "--json", folder.checkpoints).stdout)
    assert story["skipped"] == [skipped["text"]]
    assert skipped["text"] in folder.ask("explain", folder.checkpoints).stdout


def test_a_skip_outlives_its_supervisor(killed: Folder, expected: list[str]) -> None:
    """It is on record before anything is saved that came of it: killed in between, the run ends with the same bits."""
    folder = killed
    ended = folder.run("--checkpoints", folder.checkpoints, *START, folder.script(_SCRIPT), HOW="step")
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert ended.entries("restore")[0]["step"] <= 5, "from before the batch"
    assert folder.notes[2:] == expected
    claims = [json.loads(path.read_text()) for path in sorted((folder.checkpoints / "attempts").iterdir())]
    assert [len(claim["skipped"]) for claim in claims] == [0, 0, 1, 1]


def test_a_batch_that_was_forgiven_is_trained_on_again(tmp_path: Path, killed: Folder) -> None:
    """Its sample was mended: the next start, from before the batch, ends with the bits of a run that had no fault."""
    folder = killed
    (held,) = json.loads(folder.ask("forgive", folder.checkpoints, "--json").stdout)["held"]
    assert (held["kind"], held["name"]) == ("sample", "0/5")
    said = folder.ask("forgive", folder.checkpoints, "--sample", "0/5")
    assert (said.returncode, said.stdout.startswith("cleared sample 0/5: batch 5 of epoch 0 ")) == (0, True), (
        said.stderr
    )
    ended = folder.run("--checkpoints", folder.checkpoints, *START, folder.script(_SCRIPT))
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert ended.entries("restore")[0]["step"] <= 5, "from before the batch"
    assert "left out batch" not in ended.stderr
    assert folder.notes[2:] == digests(tmp_path / "whole")


def test_a_sample_that_cannot_be_read_is_named_although_a_loaders_worker_reads_it(tmp_path: Path) -> None:
    """Nobody allowed to leave it out: after the one restart it is 114."""
    folder = Folder(tmp_path, HOW="read", WORKERS="2")
    ended = folder.run("--checkpoints", folder.checkpoints, *OFTEN, folder.script(_SCRIPT))
    assert (ended.code, ended.attempts) == (114, 2), ended.stderr
    assert re.match(r"train.py:\d+ in __getitem__: the code of rank 0 .*: cannot decode ", ended.termination["why"])
    assert "(twice, at the same point), in batch 5 of epoch 0 (sample " in ended.termination["why"]
    assert ended.termination["why"] in ended.stderr
    assert not ended.entries("skipped")


@pytest.mark.slow
def test_one_batch_more_than_allowed_ends_the_job_and_names_it(tmp_path: Path) -> None:
    """The same sample comes again in the next epoch, in another batch."""
    folder = Folder(tmp_path, HOW="read", STEPS="60")
    ended = folder.run("--checkpoints", folder.checkpoints, *OFTEN, *ALLOWED, folder.script(_SCRIPT))
    assert (ended.code, ended.attempts) == (114, 3), ended.stderr
    assert ended.rules[-1] == "same-sample-again"
    (skipped,) = ended.entries("skipped")
    assert f"of epoch 1 (sample {skipped['sample']}), and skip_bad_batches=1 is spent" in ended.termination["why"]


@pytest.mark.slow
def test_a_crash_without_a_word_is_left_out_by_its_number(tmp_path: Path, expected: list[str]) -> None:
    """What was in it nobody could say any more; where it was stands on the board."""
    folder = Folder(tmp_path / "run", HOW="crash")
    ended = folder.run("--checkpoints", folder.checkpoints, *OFTEN, *ALLOWED, folder.script(_SCRIPT))
    assert (ended.code, ended.attempts) == (0, 3), ended.stderr
    assert ", in batch 5 of epoch 0, which is left out by all ranks" in ended.stderr
    assert folder.notes[2:] == expected


@pytest.mark.slow
def test_a_script_of_its_own_leaves_out_what_is_on_record(killed: Folder, expected: list[str]) -> None:
    """A run that goes on without a supervisor is the same run."""
    folder = killed
    alone = {"HOW": "step", "RANK": "0", "WORLD_SIZE": "1", "RESILIENT_CHECKPOINTS": str(folder.checkpoints)}
    environ = folder.environment(folder.path / "no-journal", alone)
    done = subprocess.run(
        [sys.executable, folder.script(_SCRIPT)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: left out batch 5 of epoch 0" in done.stderr
    assert folder.notes[2:] == expected


@pytest.mark.slow
def test_where_the_data_set_was_changed_no_rank_leaves_another_batch_out_for_its_number(tmp_path: Path) -> None:
    """Nothing deals it but the order of the data set: 8 samples more, and number 5 need not be the bad one any more."""
    folder = Folder(tmp_path, PLAIN="1")
    start = ("--checkpoints", folder.checkpoints, *ALLOWED, *OFTEN, "--nproc-per-node", "2", folder.script(_SCRIPT))
    assert folder.run(*start, HOW="step", KILL="3").code == -9
    (claim,) = [json.loads(path.read_text()) for path in (folder.checkpoints / "attempts").glob("3.json")]
    assert [(batch["first"], batch["of"], batch["size"]) for batch in claim["skipped"]] == [(5, 160, 8)]
    ended = folder.run(*start, HOW="mended", LENGTH="168")
    assert (ended.code, ended.attempts) == (0, 1), ended.stderr
    assert ended.entries("restore")[0]["step"] <= 5, "from before the batch"
    assert folder.notes.count("trained") == 2
    said = "batch 5 of epoch 0 is not left out: the data set has 168 samples now, and had 160, "
    assert ended.stderr.count(said) == 1
    assert len([entry for entry in ended.entries("note") if entry["text"].startswith(said)]) == 1
    assert "left out batch" not in ended.stderr
