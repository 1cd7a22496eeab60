# SPDX-License-Identifier: Apache-2.0
"""The operations on a run: what is committed can be loaded, and what cannot be loaded is found."""

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_store import FaultyFileSystem

from resilient.checkpoint import layout
from resilient.checkpoint.digest import digest
from resilient.checkpoint.files import Store
from resilient.checkpoint.layout import AttemptRecord, Debit, FileRecord, FinishedMark, Manifest, RankFiles
from resilient.checkpoint.store import open_store
from resilient.checkpoint.store_errors import Denied, Exists, Full, Unreachable
from resilient.checkpoint.survey import Survey, read_manifest, survey
from resilient.checkpoint.vault import Corrupt, Vault
from resilient.core.batch import Batch
from resilient.core.retention import Rules
from resilient.core.usage import Usage
from resilient.errors import CheckpointError, StoreError

RANKS = tuple(RankFiles(tensors=layout.tensors_file(0), own=layout.rank_file(rank)) for rank in (0, 1))
IMAGES = {
    layout.tensors_file(0): b"shared" * 100,
    layout.rank_file(0): b"first" * 10,
    layout.rank_file(1): b"second" * 10,
}


@pytest.fixture(params=["directory", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    FaultyFileSystem.reset()
    yield open_store(str(tmp_path / "run") if request.param == "directory" else "faulty://run")
    FaultyFileSystem.reset()


@pytest.fixture
def vault(store: Store) -> Vault:
    vault = Vault(store, clock=lambda: 1.0)
    vault.identify(make=True)
    return vault


def manifest(vault: Vault, attempt: int, step: int, began_from: str | None = None) -> Manifest:
    return Manifest(
        run=vault.identify(make=False).id,
        submission="sub",
        attempt=attempt,
        step=step,
        began_from=began_from,
        world_size=len(RANKS),
        ranks=RANKS,
        files=tuple(FileRecord(file=name, size=len(image), digest=digest(image)) for name, image in IMAGES.items()),
        created_s=1.0,
        versions={},
        determinism={},
    )


def images() -> dict[str, memoryview]:
    return {name: memoryview(bytearray(image)) for name, image in IMAGES.items()}


def save(vault: Vault, attempt: int, step: int, check: Callable[[], None] = lambda: None) -> str:
    return vault.save(manifest(vault, attempt, step), images(), check)


def look(vault: Vault) -> Survey:
    return survey(vault.store, vault.identify(make=False), "sub", 0)


def names(vault: Vault) -> list[str]:
    return [checkpoint.name for checkpoint in look(vault).checkpoints]


def claim(attempt: int, token: str = "t", **fields: object) -> AttemptRecord:
    values = {"submission": "sub", "index": 0, "pod": "p", "host": "h", "claimed_s": 1.0, "began_from": None}
    return AttemptRecord(attempt=attempt, token=token, **{"held_s": 0.0, **values, **fields})  # type: ignore[arg-type]  # fields of all types


def test_a_run_keeps_its_identity(vault: Vault) -> None:
    """It is made once and read from then on."""
    assert vault.identify(make=True) == vault.identify(make=False)


def test_a_run_that_is_not_there_is_not_made_by_reading(tmp_path: Path) -> None:
    """Somebody who mistypes a URL learns of it."""
    with pytest.raises(CheckpointError, match="check the URL"):
        Vault(open_store(str(tmp_path / "x")), clock=lambda: 1.0).identify(make=False)
    assert not (tmp_path / "x").exists()


def test_checkpoints_without_their_run_are_refused(vault: Vault) -> None:
    """A lost identity is not replaced by a new one that disowns the checkpoints."""
    save(vault, 1, 1)
    vault.store.delete(layout.RUN)
    with pytest.raises(CheckpointError, match=r"its run.json is gone"):
        vault.identify(make=True)


def test_what_is_saved_can_be_found_and_verified(vault: Vault) -> None:
    """Newest first, every byte checked."""
    assert [save(vault, 1, 5), save(vault, 1, 10), save(vault, 2, 7)] == ["1-5", "1-10", "2-7"]
    assert names(vault) == ["2-7", "1-10", "1-5"]
    found = vault.verify("2-7")
    for file in found.files:
        buffer = bytearray(file.size)
        vault.read_image("2-7", file, memoryview(buffer))
        assert bytes(buffer) == IMAGES[file.file]
    assert look(vault).ever_committed


def test_every_save_has_a_directory_of_its_own(vault: Vault) -> None:
    """Not even a leftover of the same step is written into."""
    vault.store.create("checkpoints/1-5/rank-0.safetensors", b"left over")
    assert save(vault, 1, 5) == "1-5.1"
    assert save(vault, 1, 5) == "1-5.2"
    assert vault.store.read("checkpoints/1-5/rank-0.safetensors", 99) == b"left over"
    assert names(vault) == ["1-5.2", "1-5.1"]


@pytest.mark.parametrize("image", ["rank-1.safetensors", "tensors-0.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "missing", "manifest", "foreign", "moved"])
def test_damage_is_found_and_the_one_before_is_used(vault: Vault, damage: str, image: str) -> None:
    """Whatever happens to a checkpoint's bytes, it is not loaded, and the others are."""
    save(vault, 1, 4)
    save(vault, 1, 5)
    store, file = vault.store, f"checkpoints/1-5/{image}"
    data = store.read(file, 1 << 20)
    text = store.read("checkpoints/1-5/manifest.json", 1 << 20)
    victim = "checkpoints/1-5/manifest.json" if damage in ("manifest", "foreign") else file
    store.delete(victim)
    if damage == "flip":
        store.create(file, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    elif damage == "cut":
        store.create(file, data[:-1])
    elif damage == "longer":
        store.create(file, data + b"\0")
    elif damage == "manifest":
        store.create(victim, text[:-9])
    elif damage == "foreign":
        store.create(victim, layout.encode(replace(layout.decode(text, Manifest, "here"), run="another")))
    elif damage == "moved":
        store.create(file, data)
        store.create("checkpoints/1-6/manifest.json", text)
    found = look(vault)
    usable = [checkpoint.name for checkpoint in found.checkpoints]
    if damage == "flip":  # its size is right: only reading it all tells
        assert usable == ["1-5", "1-4"]
        with pytest.raises(Corrupt, match="digest differs"):
            vault.read_image("1-5", read_manifest(vault.store, "1-5").file(image), memoryview(bytearray(len(data))))
    else:
        assert usable == (["1-5", "1-4"] if damage == "moved" else ["1-4"])
        assert len(found.set_aside) == 1
    if damage not in ("foreign", "moved"):
        with pytest.raises(CheckpointError):
            vault.verify("1-5")
    vault.verify("1-4")


def test_memory_that_changed_is_not_saved(vault: Vault) -> None:
    """The worker's digest is checked on the way; nothing of it stays."""
    for name in IMAGES:
        for changed in (IMAGES[name][:-1] + b"x", IMAGES[name][:-1]):
            with pytest.raises(Corrupt, match=f"cannot save {name}: it changed in memory"):
                vault.save(manifest(vault, 1, 5), {**images(), name: memoryview(changed)}, lambda: None)
            assert vault.store.list("checkpoints") == ()


def test_a_run_that_was_lost_is_not_committed_to(vault: Vault) -> None:
    """The last look comes right before the manifest."""

    def lost() -> None:
        raise CheckpointError("somebody else holds it")

    with pytest.raises(CheckpointError, match="somebody else"):
        save(vault, 1, 5, lost)
    assert names(vault) == []


def test_one_of_two_claims_wins(vault: Vault) -> None:
    """The other is told; the winner may ask twice, as it must after a lost answer, also by another saver."""
    vault.claim(claim(1, "a"))
    vault.claim(claim(1, "a"))
    vault.claim(claim(1, "a", fresh_from=1))
    with pytest.raises(Exists):
        vault.claim(claim(1, "b"))
    assert look(vault).newest == claim(1, "a")
    assert look(vault).next_attempt == 2


def test_numbers_of_attempts_are_never_given_twice(vault: Vault) -> None:
    """A debit without a claim counts, and so does a claim that cannot be read."""
    debit = Debit(
        submission="sub", index=0, attempt=3, code=193, step=0, fingerprint="", held_s=7.0, wall_s=1.0, why=""
    )
    vault.record(debit)
    assert look(vault).next_attempt == 4
    vault.store.create("attempts/8.json", b"damaged")
    vault.store.create("attempts/9.json.tmp", b"")
    found = look(vault)
    assert (found.next_attempt, found.debits, found.usage("sub", None, 0.0).held_s) == (9, (debit,), 7.0)
    assert any("attempts/8.json" in line for line in found.set_aside)


def test_an_exit_that_was_overtaken_is_replaced_by_its_own_only(vault: Vault) -> None:
    """SIGTERM may come while another exit is put on record, which then does not come to pass."""
    debit = Debit(
        submission="sub", index=0, attempt=3, code=194, step=0, fingerprint="", held_s=7.0, wall_s=1.0, why=""
    )
    left = replace(debit, code=195, wall_s=2.0)
    vault.record(left, over=debit)
    for stranger in (None, debit):
        with pytest.raises(Exists):
            vault.record(debit, over=stranger)
    vault.record(debit, over=left)
    assert look(vault).debits == (debit,)


def test_time_held_and_restarts_start_anew_with_a_commit(vault: Vault) -> None:
    """The newest record of the submission counts, unless its attempt has saved something."""
    vault.claim(claim(1, held_s=50.0, restarts=9, restarts_since_commit=4))
    assert look(vault).usage("sub", None, 0.0) == Usage(held_s=50.0, restarts=9, restarts_since_commit=4)
    assert look(vault).usage("another", None, 0.0) == Usage()
    save(vault, 1, 1)
    assert look(vault).usage("sub", None, 0.0) == Usage(restarts=9)


def test_what_is_left_out_is_on_record_until_it_is_forgiven(vault: Vault) -> None:
    """It is that of the newest claim; what is not left out cannot be forgiven, and changes nothing."""
    bad = (Batch(epoch=0, first=5, sample=77, of=160), Batch(epoch=1, first=2, samples=(8, 9)))
    vault.identify(make=True)
    vault.forgive_batches(bad)
    assert look(vault).newest is None
    vault.claim(claim(1))
    vault.claim(claim(2, skipped=bad))
    vault.forgive_batches(bad[:1])
    assert look(vault).newest == claim(2, skipped=bad[1:])
    vault.forgive_batches(bad)
    assert look(vault).newest == claim(2)


def test_debits_of_others_are_not_ours(vault: Vault) -> None:
    """Budgets belong to one index of one submission."""
    for submission, index in (("sub", 1), ("other", 0)):
        vault.record(
            Debit(submission=submission, index=index, attempt=1, code=194, step=0, fingerprint="", held_s=0.0,
                  wall_s=0.0, why="")
        )  # fmt: skip
    assert look(vault).debits == ()


def mark(attempt: int, steps: int) -> FinishedMark:
    return FinishedMark(steps=steps, reached=steps, how="steps", submission="sub", attempt=attempt)


def test_a_later_end_replaces_an_earlier_one_only(vault: Vault) -> None:
    """A run goes on when more steps are asked for; a zombie's end does not count."""
    vault.finish(mark(2, 10))
    vault.finish(mark(3, 20))
    vault.finish(mark(1, 5))
    assert look(vault).finished == mark(3, 20)


def test_a_fresh_history_leaves_the_old_one_alone(vault: Vault) -> None:
    """What was saved before is not offered and not pruned."""
    save(vault, 1, 5)
    vault.finish(mark(1, 5))
    vault.claim(claim(2, fresh_from=2))
    found = look(vault)
    assert (found.checkpoints, found.finished, found.ever_committed) == ((), None, False)
    assert (found.fresh_from, found.fresh_by, found.next_attempt) == (2, "sub", 3)
    save(vault, 2, 1)
    save(vault, 2, 2)
    pruned = vault.prune(2, Rules(keep=1), fresh_from=2)
    assert pruned.deleted == ("2-1",)
    vault.verify("1-5")


def test_pruning_keeps_the_last_and_clears_leftovers(vault: Vault) -> None:
    """A higher attempt's unfinished save is left alone: it may be going on."""
    for step in (1, 2, 3):
        save(vault, 1, step)
    for left in ("1-9", "2-4"):
        vault.store.create(f"checkpoints/{left}/rank-0.safetensors", b"half")
    vault.store.create("checkpoints/notes/todo.txt", b"the user's own")
    pruned = vault.prune(1, Rules(keep=1), fresh_from=0, in_use=["1-1"])
    assert set(pruned.deleted) == {"1-2", "1-9"}
    assert {entry.name.split("/")[1] for entry in vault.store.list("checkpoints")} == {"1-1", "1-3", "2-4", "notes"}


def test_another_runs_checkpoint_counts_for_nothing(vault: Vault) -> None:
    """Whoever copied one here, with a higher attempt, must not lose what this run has, nor the copy."""
    save(vault, 1, 1)
    foreign = replace(manifest(vault, 9, 9), run="another")
    vault.save(foreign, images(), lambda: None)
    assert vault.prune(1, Rules(keep=1), fresh_from=0).deleted == ()
    save(vault, 1, 2)
    assert vault.prune(1, Rules(keep=1), fresh_from=0).deleted == ("1-1",)
    assert [found.name for found in look(vault).checkpoints] == ["1-2"]
    vault.verify("9-9")


def test_a_pruning_that_fails_is_no_error() -> None:
    """It is reported, and the next one tries again."""
    FaultyFileSystem.reset()
    vault = Vault(open_store("faulty://run"), clock=lambda: 1.0)
    vault.identify(make=True)
    for step in (1, 2):
        save(vault, 1, step)

    def deny(operation: str, path: str) -> None:
        if operation == "rm":
            raise PermissionError("no")

    FaultyFileSystem.fault = staticmethod(deny)
    pruned = vault.prune(1, Rules(keep=1), fresh_from=0)
    assert pruned.deleted == ()
    assert len(pruned.failed) == 1
    FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
    assert vault.prune(1, Rules(keep=1), fresh_from=0).deleted == ("1-1",)
    FaultyFileSystem.reset()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "full"), Full),
        (OSError(errno.EBUSY, "503"), Unreachable),
        (PermissionError("no"), Denied),
    ],
)
def test_a_save_that_fails_anywhere_leaves_what_was_there(error: OSError, kind: type[StoreError]) -> None:
    """Each operation of a save fails once, for good; the checkpoint before is whole and the error is named."""
    for failing in itertools.count(1):
        FaultyFileSystem.reset()
        vault = Vault(open_store("faulty://run"), clock=lambda: 1.0)
        vault.identify(make=True)
        save(vault, 1, 1)
        plan = manifest(vault, 1, 2)
        calls = itertools.count(1)

        def fault(operation: str, path: str, calls: Iterator[int] = calls, failing: int = failing) -> None:
            if next(calls) >= failing:
                raise error

        FaultyFileSystem.fault = staticmethod(fault)
        with contextlib.suppress(kind):
            vault.save(plan, images(), lambda: None)
        FaultyFileSystem.fault = staticmethod(lambda operation, path: None)
        for name in names(vault):
            vault.verify(name)
        assert look(vault).set_aside == ()
        assert "1-1" in names(vault)
        if next(calls) <= failing:
            assert names(vault) == ["1-2", "1-1"]
            break
    assert failing > 4
    FaultyFileSystem.reset()


def test_silence_is_not_an_empty_store() -> None:
    """A store that does not answer must never look like a new run."""
    FaultyFileSystem.reset()
    vault = Vault(open_store("faulty://run"), clock=lambda: 1.0)
    run = vault.identify(make=True)
    save(vault, 1, 1)
    vault.claim(claim(1))
    for failing in itertools.count(1):
        calls = itertools.count(1)

        def fault(operation: str, path: str, calls: Iterator[int] = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise OSError(errno.EIO, "input/output error")

        FaultyFileSystem.fault = staticmethod(fault)
        try:
            found = survey(vault.store, run, "sub", 0)
        except Unreachable:
            continue
        assert next(calls) <= failing
        assert [c.name for c in found.checkpoints] == ["1-1"]
        break
    FaultyFileSystem.reset()
