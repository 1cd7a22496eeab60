# SPDX-License-Identifier: Apache-2.0
"""``resilient forgive``: what a run holds against nodes, devices, faults and samples, and clearing entries of it.

It takes no lock for the first three: a pod that is refused again and again holds the run most of the time, and a start
reads these entries once. What is left out a supervisor writes down again with every attempt, so that is cleared while
nobody holds the run. An exit stays on record when it is forgiven, as the clock and the numbers of attempts go on from
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from resilient import retry, settings
from resilient.checkpoint import deny_list, layout
from resilient.checkpoint.files import Store
from resilient.checkpoint.holder import Locked
from resilient.checkpoint.holding import held as held_by_us
from resilient.checkpoint.layout import AttemptRecord, Debit, DenialRecord
from resilient.checkpoint.store import open_store
from resilient.checkpoint.survey import newest_claim, set_aside
from resilient.checkpoint.targets import why_not
from resilient.checkpoint.vault import Vault
from resilient.core.batch import Batch
from resilient.core.denials import is_valid
from resilient.core.denied import Denied
from resilient.core.exit_codes import PREEMPTED, ExitCode
from resilient.core.skipping import goes_by, name_of
from resilient.errors import CheckpointError, SettingsError
from resilient.report.entries import one_line
from resilient.report.tables import print_line, print_table, time_text
from resilient.supervisor.journal import JOURNAL

PATIENCE_S: Final = 30.0
_WHY_CHARS: Final = 300
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One thing that is held against the run, or was."""

    kind: str
    """``node``, ``device``, ``fingerprint`` or ``sample``: the flag that clears it."""
    name: str
    why: str
    since_s: float | None = None
    until_s: float | None = None
    """When it runs out by itself."""
    code: int | None = None
    """Of the exit that is on record for it."""
    submission: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """An entry, and how it is cleared."""

    held: Held
    clear: Callable[[], None]
    batch: Batch | None = None
    """The one that is left out."""

    def is_meant(self, kind: str, name: str) -> bool:
        """Whether a person means this one; a batch goes by each of its samples, and by its place."""
        called = self.held.name == name if self.batch is None else goes_by(self.batch, name)
        return self.held.kind == kind and called


def forgive_command(target: str, wanted: Mapping[str, str], *, as_json: bool) -> int:
    """Clear the entries that ``wanted`` names by kind, or list all where it names none."""
    store = _open(target)
    notes: list[str] = []
    cases = _patient(lambda: list(_cases(store, notes)))
    if not wanted:
        _show(store, [case.held for case in cases], notes, as_json=as_json)
        return ExitCode.FINISHED
    chosen = []
    for kind, name in wanted.items():
        meant = [case for case in cases if case.is_meant(kind, name)]
        if not meant:
            raise CheckpointError(_missing(kind, name, store.url, [case.held for case in cases]))
        chosen += meant
    samples = [case.held.name for case in chosen if case.batch]
    with _alone(store, target, samples[0]) if samples else contextlib.nullcontext():
        for case in chosen:
            _patient(case.clear)
    cleared = [case.held for case in chosen]
    if as_json:
        print(json.dumps({"url": store.url, "cleared": [_data(held) for held in cleared]}, indent=2))
    else:
        for held in cleared:
            print_line(f"cleared {_said(held)}")
    return ExitCode.FINISHED


def _open(target: str) -> Store:
    """A run that is there, or the directory of a journal; nothing is made."""
    if "://" not in target and not Path(target).is_dir():
        raise SettingsError(
            f"cannot forgive {target}: {why_not(Path(target))}; give the path or URL of the checkpoints, or the "
            "directory of a journal"
        )
    store = open_store(target)
    if store.path is None or not Path(store.path, JOURNAL).is_file():
        _patient(lambda: Vault(store, clock=time.time).identify(make=False))
    return store


@contextlib.contextmanager
def _alone(store: Store, target: str, sample: str) -> Iterator[None]:
    """Hold the run; who holds it already is not to be stopped in passing, so that is said with what it takes."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held_by_us(store, settings.platform().pod or ""))
        except Locked as error:
            raise CheckpointError(
                f"cannot forgive sample {sample} in {store.url} while the run is held by {error.holder}: whoever runs "
                f"it writes down what is left out with every attempt; end it (resilient stop {shlex.quote(target)}, or "
                "suspend the Job that would start it again), forgive it, and start the run again"
            ) from error
        yield


def _patient(ask: Callable[[], T]) -> T:
    return retry.store_small(PATIENCE_S, threading.Event())(ask)


def _cases(store: Store, notes: list[str]) -> Iterator[_Case]:
    for record in deny_list.read(store, notes):
        if is_valid(deny_list.denial_of(record), time.time()):
            yield _denied(store, record)
    for entry in store.list(layout.DEBITS):
        try:
            debit = layout.decode(store.read(entry.name, layout.RECORD_LIMIT), Debit, entry.name)
        except CheckpointError as error:
            set_aside(error, notes)
            continue
        if debit.fingerprint and not debit.forgiven and debit.code not in PREEMPTED:
            yield _debited(store, entry.name, debit)
    newest = newest_claim(store, notes)
    if newest is not None:
        yield from (_left_out(store, newest, batch) for batch in newest.skipped)


def _denied(store: Store, record: DenialRecord) -> _Case:
    held = Held(
        kind=Denied(record.kind).value,
        name=record.name,
        why=one_line(f"{record.evidence} (rule {record.rule})", _WHY_CHARS),
        since_s=record.written_s,
        until_s=deny_list.denial_of(record).until_s,
        submission=record.submission,
    )
    return _Case(held=held, clear=lambda: deny_list.erase(store, record.name))


def _debited(store: Store, path: str, debit: Debit) -> _Case:
    held = Held(
        kind="fingerprint",
        name=debit.fingerprint,
        why=one_line(debit.why, _WHY_CHARS),
        since_s=debit.wall_s,
        code=debit.code,
        submission=debit.submission,
    )
    forgiven = layout.encode(dataclasses.replace(debit, forgiven=True))
    return _Case(held=held, clear=lambda: store.replace(path, forgiven))


def _left_out(store: Store, claim: AttemptRecord, batch: Batch) -> _Case:
    held = Held(
        kind="sample", name=name_of(batch), why=f"{batch} is left out by all ranks", submission=claim.submission
    )
    return _Case(held=held, clear=lambda: Vault(store, clock=time.time).forgive_batches([batch]), batch=batch)


def _show(store: Store, held: list[Held], notes: list[str], *, as_json: bool) -> None:
    if as_json:
        rows = [_data(each) for each in held]
        print(json.dumps({"url": store.url, "held": rows, "notes": [*map(one_line, notes)]}, indent=2))
        return
    if not held:
        print_line(f"nothing is held against {store.url}")
    print_table(
        ("KIND", "NAME", "SINCE", "UNTIL", "EXIT", "WHY"),
        [
            (each.kind, each.name, time_text(each.since_s), time_text(each.until_s), str(each.code or ""), each.why)
            for each in held
        ],
    )
    for note in notes:
        print_line(one_line(note))


def _said(held: Held) -> str:
    if held.kind == "sample":
        return f"{held.kind} {held.name}: {held.why}; a start that goes on from before it trains on it again"
    if held.kind == "fingerprint":
        return f"{held.kind} {held.name}: exit {held.code} of {time_text(held.since_s)} in submission {held.submission}"
    return f"{held.kind} {held.name}, on the deny list since {time_text(held.since_s)}: {held.why}"


def _missing(kind: str, name: str, url: str, held: list[Held]) -> str:
    there = ", ".join(dict.fromkeys(one_line(each.name, 200) for each in held if each.kind == kind))
    known = f"those that are held against it: {there}" if there else f"no {kind} is held against it"
    return f"cannot forgive {kind} {name[:200]!r} in {url}: it is not there; {known}"


def _data(held: Held) -> dict[str, Any]:
    return dataclasses.asdict(held)
