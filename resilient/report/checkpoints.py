# SPDX-License-Identifier: Apache-2.0
"""``resilient checkpoints``: what a run has saved, whether it is whole, and taking it elsewhere.

Exit codes for scripts: 0, 1 where something is damaged or could not be deleted, 115 where the question itself
cannot be answered (a wrong name, no run there, a store that refuses, a run that somebody holds). torch is imported
for an export only.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from resilient import retry, settings
from resilient.checkpoint import layout
from resilient.checkpoint.catalog import Catalog, State, Verdict, find, read_catalog, verify
from resilient.checkpoint.files import Store
from resilient.checkpoint.header import TensorEntry, read_header, with_kin
from resilient.checkpoint.holding import held
from resilient.checkpoint.landing import check_target, land
from resilient.checkpoint.layout import Manifest, RunRecord, parse_checkpoint
from resilient.checkpoint.lock import Lock
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import committed_in, directories, newest_claim
from resilient.checkpoint.vault import Pruned, Vault
from resilient.core.retention import Rules
from resilient.errors import CheckpointError
from resilient.report.tables import print_line, print_table, size_text, time_text

PATIENCE_S: Final = 30.0
"""For a store that does not answer."""
LATEST: Final = "latest"
DONE: Final = 0
NOT_ALL: Final = 1
_MOST_NOTES: Final = 20
_ALL_ATTEMPTS: Final = 1 << 61
"""Who holds the run saves nothing meanwhile: whatever is not committed was left behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A run to look at."""

    store: Store
    vault: Vault
    run: RunRecord


def list_command(url: str, *, as_json: bool) -> int:
    """Every checkpoint with its state, newest attempt and step first."""
    opened = _open(url)
    catalog = _patiently()(read_catalog, opened.store, opened.run)
    if as_json:
        rows = [_data(row) for row in catalog.rows]
        _print_json({"url": opened.store.url, "run": catalog.run.id, "checkpoints": rows, "notes": catalog.notes})
        return DONE
    print_line(f"{len(catalog.rows)} in {opened.store.url}, run {catalog.run.id}")
    print_table(
        ("NAME", "ATTEMPT", "STEP", "SAVED", "SIZE", "RANKS", "METRICS", "STATE"),
        [
            (
                row.name,
                str(row.attempt),
                str(row.step),
                time_text(row.created_s),
                size_text(row.size_bytes),
                "" if row.ranks is None else str(row.ranks),
                " ".join(f"{name}={value:.6g}" for name, value in row.metrics.items()),
                row.state.value,
            )
            for row in catalog.rows
        ],
    )
    for row in catalog.rows:
        if row.state is State.SET_ASIDE:
            print_line(f"{row.name}: {row.why}")
    for note in catalog.notes:
        print_line(note)
    return DONE


def verify_command(url: str, names: Sequence[str], *, as_json: bool) -> int:
    """Read all of the named checkpoints, or of all that are committed."""
    for given in names:
        if given != LATEST:
            parse_checkpoint(given)  # refused before anything is opened
    opened = _open(url)
    patient = _patiently()
    chosen = [parse_checkpoint(_resolved(opened, given)) for given in names]
    files = patient(directories, opened.store)
    committed = {name for name in files if committed_in(files[name])}
    for name in chosen:
        if name not in committed:
            raise CheckpointError(f"cannot verify {name}: it is not there, or was never committed")
    verdicts = [patient(verify, opened.store, opened.run, name) for name in chosen or sorted(committed, reverse=True)]
    if as_json:
        _print_json({"url": opened.store.url, "checkpoints": [_data(verdict) for verdict in verdicts]})
    else:
        print_table(("NAME", "SIZE", "FILE", "FOUND"), [row for verdict in verdicts for row in _verdict_rows(verdict)])
    return NOT_ALL if any(verdict.flaws for verdict in verdicts) else DONE


def show_command(url: str, name: str, rank: int | None, *, as_json: bool) -> int:
    """The manifest of a checkpoint and the tensors of its ranks, read from their headers."""
    opened = _open(url)
    patient = _patiently()
    chosen, manifest = patient(find, opened.store, _resolved(opened, name))
    _check_rank(manifest, rank)
    ranks = range(manifest.world_size) if rank is None else (rank,)
    wanted = dict.fromkeys(file for r in ranks for file in (manifest.ranks[r].tensors, manifest.ranks[r].own))
    headers = {file: patient(_header, opened.store, str(chosen), manifest, file) for file in wanted}
    for owned in (manifest.ranks[r] for r in ranks):  # what is tied to a tensor of the other image is like that
        headers[owned.own] = with_kin(headers[owned.own], headers[owned.tensors])
    if as_json:
        tensors = {file: [_data(entry) for entry in entries] for file, entries in headers.items()}
        _print_json({"url": opened.store.url, "name": str(chosen), "manifest": _data(manifest), "tensors": tensors})
        return DONE
    _print_manifest(str(chosen), manifest)
    for file, entries in headers.items():
        owners = [r for r in ranks if file in (manifest.ranks[r].tensors, manifest.ranks[r].own)]
        print_line("")
        print_line(f"{file}, {size_text(manifest.file(file).size)}, {_ranks_text(owners)}")
        print_table(("TENSOR", "DTYPE", "SHAPE", "BYTES"), [_tensor_row(entry) for entry in entries])
    return DONE


def prune_command(url: str, rules: Rules, *, dry_run: bool, as_json: bool) -> int:
    """Delete what the rules do not keep, while nobody else uses the run."""
    opened = _open(url)
    if dry_run:
        pruned = _prune(opened, rules, lock=None)
    else:
        with held(opened.store, settings.platform().pod or "") as lock:
            pruned = _prune(opened, rules, lock=lock)
    if as_json:
        _print_json({"url": opened.store.url, "dry_run": dry_run, **_data(pruned)})
    else:
        for name in pruned.deleted:
            print_line(f"{'would delete' if dry_run else 'deleted'} {name}")
        for why in pruned.failed:
            print_line(why)
        if pruned == Pruned():
            print_line(f"nothing to delete; {_staying(opened)}")
            return DONE
        print_line(f"{len(pruned.deleted)} {'would be ' if dry_run else ''}deleted, {len(pruned.failed)} failed")
    return NOT_ALL if pruned.failed else DONE


def export_command(url: str, name: str, *, to: str, kind: str, rank: int, part: str | None) -> int:
    """Write the state of one rank for whoever has no resilient."""
    target = check_target(to)
    opened = _open(url)
    with held(opened.store, settings.platform().pod or "") as lock:
        chosen, manifest = _patiently()(find, opened.store, _resolved(opened, name))
        _check_rank(manifest, rank)
        from resilient.checkpoint import export  # torch: seconds, and only here

        whole = _patiently()(export.read_state, opened.store, str(chosen), manifest, rank)
        lock.check()
    choose = export.with_tensors if kind == "safetensors" else export.part_of
    found = export.portable(choose(whole, part))
    land(target, lambda path: export.save_as(kind, found.tree, path, export.about(str(chosen), manifest, rank)))
    for note in found.notes[:_MOST_NOTES]:
        print_line(note)
    if len(found.notes) > _MOST_NOTES:
        print_line(f"and {len(found.notes) - _MOST_NOTES} more of that kind")
    print_line(f"exported {chosen}, step {manifest.step}, rank {rank}, to {target} ({kind})")
    return DONE


def _open(url: str) -> _Opened:
    """A run that is there; nothing is made."""
    store = open_store(url)
    vault = Vault(store, clock=lambda: 0.0)
    return _Opened(store=store, vault=vault, run=_patiently()(lambda: vault.identify(make=False)))


def _patiently() -> Any:
    return retry.store_small(PATIENCE_S, threading.Event())


def _resolved(opened: _Opened, name: str) -> str:
    """The checkpoint that a restore would try first, or the one that is named."""
    if name != LATEST:
        return str(parse_checkpoint(name))
    catalog: Catalog = _patiently()(read_catalog, opened.store, opened.run)
    for row in catalog.rows:
        if row.state is State.NEXT:
            return row.name
    raise CheckpointError(f"cannot find a checkpoint in {opened.store.url}: none can be used; see checkpoints list")


def _prune(opened: _Opened, rules: Rules, *, lock: Lock | None) -> Pruned:
    claim = _patiently()(newest_claim, opened.store, [])
    files = _patiently()(directories, opened.store)
    in_use: tuple[str, ...] = ()
    saved = {name.attempt for name in files if committed_in(files[name])}
    if claim is not None and claim.began_from and claim.attempt not in saved:
        in_use = (claim.began_from,)  # all that the newest attempt has
    if lock is not None:
        lock.check()
    return opened.vault.prune(
        _ALL_ATTEMPTS, rules, fresh_from=claim.fresh_from if claim else 0, in_use=in_use, only_say=lock is None
    )


def _staying(opened: _Opened) -> str:
    files = _patiently()(directories, opened.store)
    names = [str(name) for name in sorted(files, reverse=True) if committed_in(files[name])]
    return f"what stays: {', '.join(names)}" if names else "there is no checkpoint"


def _check_rank(manifest: Manifest, rank: int | None) -> None:
    if rank is not None and not 0 <= rank < manifest.world_size:
        raise CheckpointError(f"cannot find rank {rank}: the checkpoint has ranks 0 to {manifest.world_size - 1}")


def _header(store: Store, name: str, manifest: Manifest, file: str) -> tuple[TensorEntry, ...]:
    pieces = store.chunks(layout.checkpoint_path(name, file))
    return read_header(file, pieces, manifest.file(file).size)


def _verdict_rows(verdict: Verdict) -> list[tuple[str, str, str, str]]:
    if verdict.gone:
        return [(verdict.name, "", "", "gone: it was deleted meanwhile")]
    if not verdict.flaws:
        return [(verdict.name, size_text(verdict.size_bytes), "", "good")]
    return [(verdict.name, "", flaw.file, f"damaged: {flaw.why}") for flaw in verdict.flaws]


def _print_manifest(name: str, manifest: Manifest) -> None:
    rows = [
        ("checkpoint", name),
        ("step", str(manifest.step)),
        ("run", manifest.run),
        ("submission", manifest.submission),
        ("saved", time_text(manifest.created_s)),
        ("began from", manifest.began_from or "nothing"),
        ("ranks", str(manifest.world_size)),
        ("size", size_text(sum(file.size for file in manifest.files))),
        *((f"metric {name}", f"{value:.6g}") for name, value in manifest.metrics.items()),
        *((f"version of {name}", value) for name, value in manifest.versions.items()),
        *((f"determinism: {name}", value) for name, value in manifest.determinism.items()),
    ]
    print_table(("MANIFEST", ""), rows)


def _tensor_row(entry: TensorEntry) -> tuple[str, str, str, str]:
    size = f"tied to {entry.tied_to}" if entry.tied_to else str(entry.size_bytes)
    return entry.name, entry.dtype, "x".join(map(str, entry.shape)) or "()", size


def _ranks_text(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _data(value: Any) -> Any:
    """A dataclass as JSON data."""
    return dataclasses.asdict(value)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, default=lambda value: value.value if isinstance(value, State) else str(value)))
